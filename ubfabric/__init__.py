"""Packet-level simulation of AI supernode fabrics, from the wire to the token.

Data flows one way, and so do the five calls::

    import ubfabric as ub

    fabric = ub.build_topology("cloudmatrix384")                         # a NetworkX graph
    trace = ub.generate_trace("deepseek-r1-decode-ep320", layers=4, seed=1)
    result = ub.replay(fabric, trace, "runs/demo")                       # ns-3 moves each packet
    tokens = ub.rebuild_tokens(result)                                   # TPOT, tokens/s, shares
    ub.plot_fct(result, "fct.png")

Every stage's output can be saved, looked at and fed back: graphs as node-link JSON or
GraphML, traces and results as Parquet. Importing the package loads neither ns-3 nor a
plotting library; they come with the first replay and the first picture.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

#: Where each public name lives.
_HOMES = {
    "build_topology": "topology",
    "check_topology": "topology",
    "cloudmatrix384": "topology",
    "read_topology": "topology",
    "write_topology": "topology",
    "describe_topology": "describe",
    "draw_topology": "plot_topology",
    "FabricArrays": "routing",
    "compile_fabric": "routing",
    "load_workload": "workload",
    "place_ranks": "placement",
    "generate_trace": "decode",
    "all_to_all_trace": "collectives",
    "Trace": "trace",
    "TraceChunk": "trace",
    "check_trace": "trace",
    "read_trace": "trace",
    "write_trace": "trace",
    "replay": "replay",
    "replay_in_parts": "parts",
    "RunResult": "results",
    "Tokens": "tokens",
    "rebuild_tokens": "tokens",
    "load_topology": "topology",
    "run_sweep": "sweep",
    "load_requests": "requests",
    "serve": "serving",
    "ServingResult": "serving_results",
    "plot_comparison": "plot",
    "plot_fct": "plot",
    "plot_links": "plot",
    "plot_serving": "plot",
    "plot_timeline": "plot",
    "plot_tokens": "plot",
    "UbfabricError": "errors",
    "SpecError": "errors",
    "TopologyError": "errors",
    "TraceError": "errors",
    "ResultError": "errors",
    "BridgeError": "errors",
    "SimulationError": "errors",
}

if TYPE_CHECKING:
    from ubfabric.collectives import all_to_all_trace
    from ubfabric.decode import generate_trace
    from ubfabric.describe import describe_topology
    from ubfabric.errors import (
        BridgeError,
        ResultError,
        SimulationError,
        SpecError,
        TopologyError,
        TraceError,
        UbfabricError,
    )
    from ubfabric.parts import replay_in_parts
    from ubfabric.placement import place_ranks
    from ubfabric.plot import (
        plot_comparison,
        plot_fct,
        plot_links,
        plot_serving,
        plot_timeline,
        plot_tokens,
    )
    from ubfabric.plot_topology import draw_topology
    from ubfabric.replay import replay
    from ubfabric.requests import load_requests
    from ubfabric.results import RunResult
    from ubfabric.routing import FabricArrays, compile_fabric
    from ubfabric.serving import serve
    from ubfabric.serving_results import ServingResult
    from ubfabric.sweep import run_sweep
    from ubfabric.tokens import Tokens, rebuild_tokens
    from ubfabric.topology import (
        build_topology,
        check_topology,
        cloudmatrix384,
        load_topology,
        read_topology,
        write_topology,
    )
    from ubfabric.trace import Trace, TraceChunk, check_trace, read_trace, write_trace
    from ubfabric.workload import load_workload

__all__ = [
    "BridgeError",
    "FabricArrays",
    "ResultError",
    "RunResult",
    "ServingResult",
    "SimulationError",
    "SpecError",
    "Tokens",
    "TopologyError",
    "Trace",
    "TraceChunk",
    "TraceError",
    "UbfabricError",
    "all_to_all_trace",
    "build_topology",
    "check_topology",
    "check_trace",
    "cloudmatrix384",
    "compile_fabric",
    "describe_topology",
    "draw_topology",
    "generate_trace",
    "load_requests",
    "load_topology",
    "load_workload",
    "place_ranks",
    "plot_comparison",
    "plot_fct",
    "plot_links",
    "plot_serving",
    "plot_timeline",
    "plot_tokens",
    "read_topology",
    "read_trace",
    "rebuild_tokens",
    "replay",
    "replay_in_parts",
    "run_sweep",
    "serve",
    "write_topology",
    "write_trace",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name == "__version__":
        from importlib import metadata

        return metadata.version("ubfabric")
    if name not in _HOMES:
        raise AttributeError(f"module 'ubfabric' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ubfabric.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


class _Package(ModuleType):
    """The package, in which public names win over modules of the same name.

    Importing ``ubfabric.replay`` binds the module to the package's attribute ``replay``;
    users call ``ubfabric.replay()``, whatever was imported before.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in _HOMES:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
