"""The engine alone: flows in, flows and links out, with any attribute of the C++ fabric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np

from ubfabric import _bridge
from ubfabric.routing import FabricArrays, compile_fabric


@dataclass(frozen=True)
class Drive:
    """What came of a drive."""

    flows: np.ndarray
    links: dict[str, np.ndarray]
    counters: dict[str, int]
    arrays: FabricArrays
    leftover: str
    is_stalled: bool
    stalled_links: list[int]
    broken: list[tuple[int, int]]
    samples: tuple[np.ndarray, np.ndarray, np.ndarray]
    now_ps: int

    @property
    def fct_ps(self) -> np.ndarray:
        """Time from start to finish of each flow."""
        return self.flows["finish_ps"] - self.flows["start_ps"]

    def link(self, src: str, dst: str) -> int:
        """Return the number of the first link from one node to another."""
        return link_number(self.arrays, src, dst)


def link_number(arrays: FabricArrays, src: str, dst: str) -> int:
    """Return the number of the first directed link from one node to another."""
    u, v = arrays.node_names.index(src), arrays.node_names.index(dst)
    return int(np.flatnonzero((arrays.link_src == u) & (arrays.link_dst == v))[0])


def drive(
    graph: nx.Graph,
    flows: list[Mapping[str, Any]],
    attributes: Mapping[str, str | int] | None = None,
    *,
    header_bytes: int = 0,
    payload_bytes: int | None = None,
    prepare: Callable[[_bridge.Engine, FabricArrays], None] | None = None,
) -> Drive:
    """Send open-loop flows and return what became of them.

    Parameters
    ----------
    graph : networkx.Graph
        The fabric.
    flows : list of mapping
        ``src`` and ``dst`` are numbers of endpoints in graph order; ``messages``,
        ``message_bytes``, ``start_ps`` and the other fields of a flow record have defaults.
    attributes : mapping
        Attributes of the fabric.
    header_bytes, payload_bytes : int
        Header of each packet, and its largest payload (the graph's if not given).
    prepare : callable
        Called with the engine and the arrays before the first event.
    """
    arrays = compile_fabric(graph)
    endpoints = np.flatnonzero(arrays.node_is_endpoint)
    records = _bridge.flow_records(len(flows))
    for record, flow in zip(records, flows, strict=True):
        row = {"messages": 1, "message_bytes": 1_000, "start_ps": 0} | dict(flow)
        for name, value in row.items():
            record[name] = endpoints[value] if name in ("src", "dst") else value
    records["send_task"] = records["wait_task"] = _bridge.NONE
    payload = graph.graph["packet_payload_bytes"] if payload_bytes is None else payload_bytes
    transport = f"ns3::UbPosted[HeaderBytes={header_bytes}]"
    basic = {"PayloadBytes": payload, "UbTransport": transport}
    with _bridge.Engine(arrays, basic | dict(attributes or {})) as engine:
        if prepare is not None:
            prepare(engine, arrays)
        order = np.argsort(records["start_ps"], kind="stable").astype(np.uint32)
        engine.add_chunk(
            records,
            np.zeros(0, _bridge.TASK_RECORD),
            first_task=0,
            send_order=np.zeros(0, np.uint32),
            dep_start=np.zeros(1, np.uint64),
            deps=np.zeros(0, np.uint64),
            open_order=order,
            is_last=True,
        )
        engine.run()
        return Drive(
            records.copy(),
            engine.link_stats(),
            engine.counters,
            arrays,
            engine.leftover(),
            engine.is_stalled(),
            [int(link) for link in engine.stalled_links()],
            engine.take_broken(),
            engine.take_samples(),
            engine.now_ps,
        )
