"""A simulated machine beside what was measured on the real one, row by row.

``analysis/measured.yaml`` holds the measured figures with their sources; :func:`compare` makes
the same measurements on a fabric. ``analysis/validate_fabric.py`` prints the table and
``analysis/fit_fabric.py`` chooses the parameters that the rows of role ``fitted`` give.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import networkx as nx
import numpy as np
import pandas as pd
from pydantic import Field

from ubfabric.errors import TopologyError
from ubfabric.microbench import (
    FusedOperator,
    fused_operator_ps,
    memory_bandwidth_bytes_per_s,
    memory_latency_ps,
    sdma_bandwidth_bytes_per_s,
)
from ubfabric.quantities import (
    STRENGTHS,
    Bytes,
    BytesPerSecond,
    Count,
    Picoseconds,
    parse_rate_bytes_per_s,
    parse_time_ps,
)
from ubfabric.specs import Spec, load_yaml, validate_spec

Role = Literal["fitted", "predicted", "disputed"]
Strength = Annotated[str, Field(pattern="|".join(STRENGTHS))]
_Positive = Annotated[Count, Field(ge=1)]

#: Where the rows of fused operators are from.
FUSED_SOURCE = "arXiv 2506.12708 v2, section 5.5.1, table 7"


class MemoryRow(Spec):
    """Latency or bandwidth of remote memory; ``peer`` package is the other die of an NPU."""

    what: Literal["latency", "bandwidth"]
    operation: Literal["read", "write"]
    peer: Literal["die", "cpu", "package"]
    far: bool
    value: str
    strength: Strength
    role: Role
    source: str


class SdmaRow(Spec):
    """Rate of the SDMA engines of a die, or over another network, by the size of a block."""

    network: Literal["ub", "rdma", "vpc"] = "ub"
    operation: Literal["read", "write"]
    peer: Literal["die", "cpu"]
    far: bool
    block: Annotated[Bytes, Field(ge=1)]
    value: Annotated[BytesPerSecond, Field(ge=1)]
    strength: Strength
    role: Role
    source: str


class FusedRow(Spec):
    """Time of a fused dispatch or combine."""

    phase: Literal["dispatch", "combine"]
    ranks: _Positive
    value: Picoseconds
    strength: Strength
    role: Role


class PhaseSpec(Spec):
    """Sizes of one phase."""

    message: Bytes
    completion: Picoseconds
    copy_size: Annotated[Bytes, Field(alias="copy")]


class FusedSpec(Spec):
    """What the rows of fused operators have in common."""

    tokens: _Positive
    top_k: _Positive
    experts: _Positive
    cores: Annotated[_Positive, Field(le=64)]
    launch: Picoseconds
    message_cost: Picoseconds
    #: Of dispatch; what a flag of combine costs is part of its message's cost.
    flag_cost: Picoseconds
    flag: Bytes
    memory_bandwidth: BytesPerSecond
    dispatch: PhaseSpec
    combine: PhaseSpec
    rows: list[FusedRow]


class MeasuredSpec(Spec):
    """Measured figures of one machine."""

    memory: list[MemoryRow]
    sdma: Annotated[list[SdmaRow], Field(default_factory=list)]
    fused: FusedSpec


def load_measured(source: str | Path) -> MeasuredSpec:
    """Read measured figures from a YAML file.

    Raises
    ------
    SpecError
        One line with file, key, what was found and what is allowed.
    """
    label, raw = load_yaml(source, "topologies")
    return validate_spec(MeasuredSpec, raw, label)


def endpoints(graph: nx.Graph) -> dict[tuple[str, bool], tuple[str, str]]:
    """Return the pair of endpoints to measure between, by kind of peer and whether it is far.

    The first die asks; the peer is the first of its kind on another NPU of the same server, or
    in another server, or the other die of the NPU.

    Raises
    ------
    TopologyError
        If the machine has no such pair.
    """
    nodes = [(name, data) for name, data in graph.nodes(data=True) if data["role"] == "endpoint"]
    first, asks = next((n, d) for n, d in nodes if d["kind"] == "die")
    pairs: dict[tuple[str, bool], tuple[str, str]] = {}
    for name, data in nodes:
        far = data["server"] != asks["server"]
        if data["kind"] == "die" and data["npu"] == asks["npu"]:
            if name != first:
                pairs.setdefault(("package", False), (first, name))
        else:
            pairs.setdefault((str(data["kind"]), far), (first, name))
    for peer, far in (("die", False), ("die", True), ("cpu", False), ("cpu", True)):
        if (peer, far) not in pairs:
            raise TopologyError(
                f"{graph.graph.get('name')}: found no {peer} {'in another' if far else 'in the'} "
                "server of the first die; the comparison needs one"
            )
    return pairs


def simulate_memory(graph: nx.Graph, row: MemoryRow) -> float:
    """Return the simulated value of a row, in microseconds or GB/s."""
    src, dst = endpoints(graph)[row.peer, row.far]
    if row.what == "latency":
        return memory_latency_ps(graph, src, dst, row.operation) / 1e6
    return memory_bandwidth_bytes_per_s(graph, src, dst, row.operation) / 1e9


def simulate_sdma(graph: nx.Graph, row: SdmaRow) -> float:
    """Return the simulated rate of a row in GB/s."""
    src, dst = endpoints(graph)[row.peer, row.far]
    rate = sdma_bandwidth_bytes_per_s(
        graph, src, dst, row.operation, row.block, network=row.network
    )
    return rate / 1e9


def fused_operator(fused: FusedSpec, row: FusedRow) -> FusedOperator:
    """Return the operator of a row."""
    phase = fused.dispatch if row.phase == "dispatch" else fused.combine
    return FusedOperator(
        phase=row.phase,
        ranks=row.ranks,
        tokens=fused.tokens,
        top_k=fused.top_k,
        experts=fused.experts,
        message_bytes=phase.message,
        launch_ps=fused.launch,
        message_cost_ps=fused.message_cost,
        completion_ps=phase.completion,
        flag_cost_ps=fused.flag_cost if row.phase == "dispatch" else 0,
        flag_bytes=fused.flag,
        copy_bytes=phase.copy_size,
        copy_bytes_per_s=fused.memory_bandwidth,
    )


def simulate_fused(graph: nx.Graph, fused: FusedSpec, row: FusedRow, seed: int = 1) -> float:
    """Return the simulated time of a row in microseconds: until the slowest rank is through."""
    finish = fused_operator_ps(graph, fused_operator(fused, row), cores=fused.cores, seed=seed)
    return float(np.max(finish)) / 1e6


def compare(graph: nx.Graph, measured: MeasuredSpec) -> pd.DataFrame:
    """Make every measurement on a fabric.

    Parameters
    ----------
    graph : networkx.Graph
    measured : MeasuredSpec

    Returns
    -------
    DataFrame
        One row a measured figure: ``quantity``, ``unit``, ``measured``, ``simulated``,
        ``error`` (share of the measured value), ``role``, ``strength``, ``source``.
    """
    return pd.DataFrame(_rows(graph, measured))


def _rows(graph: nx.Graph, measured: MeasuredSpec) -> Iterator[Mapping[str, Any]]:
    done: dict[tuple[str, str, str, bool], float] = {}
    for row in measured.memory:
        key = (row.what, row.operation, row.peer, row.far)
        if key not in done:
            done[key] = simulate_memory(graph, row)
        is_latency = row.what == "latency"
        value = (
            parse_time_ps(row.value) / 1e6
            if is_latency
            else parse_rate_bytes_per_s(row.value) / 1e9
        )
        where = "same package" if row.peer == "package" else _where(row.far)
        peer = "die" if row.peer == "package" else row.peer
        yield _row(
            f"die to {peer}, {where}: {row.operation} {row.what}",
            "us" if is_latency else "GB/s",
            value,
            done[key],
            row,
            row.source,
        )
    for sdma in measured.sdma:
        by = "SDMA" if sdma.network == "ub" else sdma.network.upper()
        yield _row(
            f"die to {sdma.peer}, {_where(sdma.far)}: {by} {sdma.operation}, {_size(sdma.block)}",
            "GB/s",
            sdma.value / 1e9,
            simulate_sdma(graph, sdma),
            sdma,
            sdma.source,
        )
    for fused in measured.fused.rows:
        simulated = simulate_fused(graph, measured.fused, fused)
        yield _row(
            f"{fused.phase}, EP{fused.ranks}",
            "us",
            fused.value / 1e6,
            simulated,
            fused,
            FUSED_SOURCE,
        )


def _where(far: bool) -> str:
    return "other server" if far else "server"


def _size(n_bytes: int) -> str:
    """Return a size in the largest binary unit that divides it."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if n_bytes % unit == 0:
            return f"{n_bytes // unit} {name}"
    return f"{n_bytes} B"


def _row(
    quantity: str,
    unit: str,
    value: float,
    simulated: float,
    row: MemoryRow | SdmaRow | FusedRow,
    source: str,
) -> dict[str, Any]:
    return {
        "quantity": quantity,
        "unit": unit,
        "measured": value,
        "simulated": simulated,
        "error": simulated / value - 1,
        "role": row.role,
        "strength": row.strength,
        "source": source,
    }
