"""Small fabrics and traces written by hand, and a replay of them; test files share these."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import pandas as pd
import pyarrow as pa

from ubfabric.replay import replay
from ubfabric.trace import FLOW_SCHEMA, TASK_SCHEMA, Trace, TraceChunk

NS = 1_000
US = 1_000_000
GB = 10**9

#: An endpoint without limits of its own: what a test does not set does not get in its way.
_DIE = {
    "kind": "die",
    "role": "endpoint",
    "level": 0,
    "server": 0,
    "rack": -1,
    "plane": "",
    "buffer_bytes": 1 << 20,
    "issue_engines": 1,
    "issue_cost_ps": 0,
    "engine_bytes_per_s": 10**18,
    "egress_bytes_per_s": 10**18,
    "receive_latency_ps": 100 * NS,
    "copy_bytes_per_s": 10**12,
}
_SWITCH = {
    "kind": "l1",
    "role": "switch",
    "level": 1,
    "server": -1,
    "rack": -1,
    "npu": -1,
    "buffer_bytes": 1 << 20,
    "forward_latency_ps": 200 * NS,
}


class FabricBuilder:
    """A topology graph, node by node and link by link.

    Parameters
    ----------
    payload, header : int
        Bytes of a packet's payload and header.
    """

    def __init__(self, payload: int = 1_000, header: int = 0) -> None:
        self.graph = nx.MultiGraph(
            name="by-hand",
            schema=1,
            packet_payload_bytes=payload,
            transports={name: {"header_bytes": header} for name in ("ub", "rdma", "vpc")},
            max_payload_bytes=max(payload, 10_000),
        )

    def dies(self, count: int, **changes: Any) -> list[str]:
        """Add endpoints and return their names."""
        first = sum(role == "endpoint" for _, role in self.graph.nodes(data="role"))
        names = [f"die-{first + number}" for number in range(count)]
        for number, name in enumerate(names, first):
            self.graph.add_node(name, **_DIE | {"npu": number} | changes)
        return names

    def switch(self, name: str, plane: str = "ub0", **changes: Any) -> str:
        """Add a switch and return its name."""
        self.graph.add_node(name, **_SWITCH | {"plane": plane} | changes)
        return name

    def link(
        self,
        u: str,
        v: str,
        rate: int = 10 * GB,
        delay_ps: int = 5 * NS,
        plane: str = "ub0",
        network: str = "ub",
    ) -> None:
        """Lay a cable."""
        self.graph.add_edge(
            u,
            v,
            plane=plane,
            network=network,
            bandwidth_bytes_per_s=rate,
            delay_ps=delay_ps,
            lanes=1,
        )

    def build(self) -> nx.MultiGraph:
        """Return the graph, with as many ports as are used."""
        for name, degree in self.graph.degree():
            self.graph.nodes[name]["n_ports"] = degree
        return self.graph


def star(
    n_dies: int,
    *,
    rate: int = 10 * GB,
    delay_ps: int = 5 * NS,
    planes: int = 1,
    payload: int = 1_000,
    header: int = 0,
    switch: dict[str, Any] | None = None,
    **die: Any,
) -> nx.MultiGraph:
    """Return dies around one switch a plane."""
    builder = FabricBuilder(payload, header)
    dies = builder.dies(n_dies, **die)
    for number in range(planes):
        plane = f"ub{number}"
        hub = builder.switch(f"hub-{number}", plane, **(switch or {}))
        for name in dies:
            builder.link(name, hub, rate, delay_ps, plane)
    return builder.build()


def line(
    rates: list[int],
    delays_ps: list[int] | None = None,
    *,
    planes: int = 1,
    payload: int = 1_000,
    header: int = 0,
    switch: dict[str, Any] | None = None,
    **die: Any,
) -> nx.MultiGraph:
    """Return two dies with ``len(rates) - 1`` switches between them in each plane."""
    delays_ps = delays_ps or [5 * NS] * len(rates)
    builder = FabricBuilder(payload, header)
    ends = builder.dies(2, **die)
    for number in range(planes):
        plane = f"ub{number}"
        hubs = [
            builder.switch(f"hub-{number}-{at}", plane, **(switch or {}))
            for at in range(len(rates) - 1)
        ]
        path = [ends[0], *hubs, ends[1]]
        for u, v, rate, delay_ps in zip(path, path[1:], rates, delays_ps, strict=False):
            builder.link(u, v, rate, delay_ps, plane)
    return builder.build()


def flow(src: int, dst: int, **changes: Any) -> dict[str, Any]:
    """Return a row of the flow table: one message of 1,000 B, started at time 0."""
    row = {"phase": "dispatch", "layer": 0, "microbatch": 0, "src": src, "dst": dst}
    row |= {"messages": 1, "message_bytes": 1_000, "network": "ub", "service_level": 0}
    return row | {"start_ps": 0, "operation": "write"} | changes


def task(number: int, rank: int, **changes: Any) -> dict[str, Any]:
    """Return a row of the task table: a computation."""
    row = {"task": number, "rank": rank, "stream": 0, "kind": "attention", "layer": 0}
    row |= {"microbatch": 0, "duration_ps": 0, "sends": "", "waits": "", "depends_on": []}
    row["message_cost_ps"] = 0
    row["memory_ps"] = 0
    return row | changes


def make_trace(
    flows: Iterable[dict[str, Any]],
    tasks: Iterable[dict[str, Any]] = (),
    n_ranks: int | None = None,
    **metadata: Any,
) -> Trace:
    """Return a trace of these rows, one chunk for each layer that occurs."""
    flows, tasks = list(flows), list(tasks)
    if n_ranks is None:
        n_ranks = 1 + max([r[key] for r in flows for key in ("src", "dst")] + [0])
        n_ranks = max([n_ranks, *(r["rank"] + 1 for r in tasks)])
    chunks = []
    before = {"flows": 0, "tasks": 0}
    for layer in sorted({row["layer"] for row in [*flows, *tasks]}):
        rows = {
            "flows": [row for row in flows if row["layer"] == layer],
            "tasks": [row for row in tasks if row["layer"] == layer],
        }
        chunks.append(
            TraceChunk(
                layer,
                "",
                pa.Table.from_pylist(rows["flows"], schema=FLOW_SCHEMA),
                pa.Table.from_pylist(rows["tasks"], schema=TASK_SCHEMA),
                first_flow_row=before["flows"],
                first_task_row=before["tasks"],
            )
        )
        for name in rows:
            before[name] += len(rows[name])
    facts = {"schema": 1, "n_ranks": n_ranks, "spec": None, "seed": None, "rank_nodes": None}
    return Trace(facts | metadata, len(chunks), lambda: iter(chunks))


@dataclass(frozen=True)
class Outcome:
    """What a replay wrote."""

    flows: pd.DataFrame
    tasks: pd.DataFrame
    links: pd.DataFrame
    summary: dict[str, Any]
    files: dict[str, bytes]

    def link(self, src: str, dst: str) -> pd.Series:
        """Return the row of the only link from one node to another."""
        found = self.links[(self.links["src"] == src) & (self.links["dst"] == dst)]
        assert len(found) == 1
        return found.iloc[0]


def run(graph: nx.Graph, trace: Trace, **options: Any) -> Outcome:
    """Replay a trace into a folder that is read and removed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        result = replay(graph, trace, out, **{"progress": False} | options)
        return Outcome(
            result.flows(),
            result.tasks(),
            result.links(),
            json.loads((out / "summary.json").read_text()),
            {path.name: path.read_bytes() for path in sorted(out.glob("*.parquet"))},
        )


def serialise_ps(n_bytes: int, bytes_per_s: int) -> int:
    """Return the time to put bytes on a wire, rounded to the nearest picosecond."""
    return (n_bytes * 10**12 + bytes_per_s // 2) // bytes_per_s
