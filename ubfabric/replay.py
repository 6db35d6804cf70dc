"""The replay: a trace on a fabric, every packet moved by ns-3.

Layers of the trace are loaded into the engine when a rank needs them and leave it when
their last flow is seen, so memory holds two or three layers whatever the length of the
step. Loading stops the simulation at the very instant at which it is needed, so the
result is the one of loading everything at once.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from ubfabric import _bridge
from ubfabric.errors import SimulationError, SpecError, TopologyError, TraceError
from ubfabric.placement import place_ranks
from ubfabric.results import RunResult, RunWriter, check_run_target
from ubfabric.routing import FabricArrays, compile_fabric
from ubfabric.specs import NETWORKS
from ubfabric.trace import Trace, TraceChunk, check_chunk, link_flows

#: How a switch picks among the shortest paths, by name.
PATH_POLICIES = {
    "flow-hash": "ns3::UbPathFlowHash",
    "round-robin": "ns3::UbPathRoundRobin",
    "random": "ns3::UbPathRandom",
}
#: How a source picks the plane of a packet, by name.
PLANE_POLICIES = {
    "flow-hash": "ns3::UbPlaneFlowHash",
    "round-robin": "ns3::UbPlaneRoundRobin",
    "random": "ns3::UbPlaneRandom",
}
#: Packet-hops between two looks at the progress bar and at Ctrl-C.
_SLICE_PACKET_HOPS = 1_000_000
#: Most flows of one chunk; the engine keeps their number in 26 bits.
_MAX_FLOWS = 1 << 26
#: Most packets of one flow; the engine counts them down in 32 bits.
_MAX_PACKETS = (1 << 32) - 1
#: Further limits of the engine, which would end the process if they were exceeded.
_MAX_ENGINES = 64
_MAX_PLANES = 64
_MAX_PAYLOAD_BYTES = 60_000
_MAX_HEADER_BYTES = 5_000
_MAX_PORTS = (1 << 16) - 1


@dataclass(frozen=True)
class ReplayConfig:
    """How packets are cut and steered.

    Attributes
    ----------
    payload_bytes : int
        Most bytes of a message in one packet.
    header_bytes : int
        Bytes that headers and checks add to each packet.
    plane_policy, path_policy : str
        A key of :data:`PLANE_POLICIES` and of :data:`PATH_POLICIES`.
    n_virtual_lanes : int
        Virtual lanes of each port; service level ``s`` uses lane ``s mod n_virtual_lanes``.
    seed : int
        Seed of hashes and random choices.
    """

    payload_bytes: int
    header_bytes: int
    plane_policy: str
    path_policy: str
    n_virtual_lanes: int
    seed: int


def replay(
    graph: nx.Graph,
    trace: Trace,
    out: str | Path,
    *,
    payload_bytes: int | None = None,
    plane_policy: str = "round-robin",
    path_policy: str = "round-robin",
    n_virtual_lanes: int = 1,
    seed: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    attach: Callable[[_bridge.Engine, FabricArrays], None] | None = None,
) -> RunResult:
    """Move every packet of a trace through a fabric and write a run folder.

    Parameters
    ----------
    graph : networkx.Graph
        The fabric, as :func:`ubfabric.build_topology` returns it or of a user's own making.
    trace : Trace
        What the ranks do.
    out : path
        Run folder to write; it appears only when the run is whole.
    payload_bytes : int, optional
        Most bytes of a message in one packet; the graph's ``packet_payload_bytes`` if not given.
    plane_policy : {'round-robin', 'flow-hash', 'random'}
        How a source picks the plane of each packet.
    path_policy : {'round-robin', 'flow-hash', 'random'}
        How a switch picks among the shortest paths.
    n_virtual_lanes : int
        Virtual lanes of each port, 1 to 16.
    seed : int, optional
        Seed of hashes and random choices; the trace's seed if not given.
    overwrite : bool
        Whether a complete run folder of that name may be replaced.
    progress : bool, optional
        Show a progress bar; by default if standard error is a terminal.
    attach : callable, optional
        Called once with the engine and the fabric's arrays before the run, to attach
        ``UbNetDevice`` objects or trace sinks.

    Returns
    -------
    RunResult
        The opened run folder.

    Raises
    ------
    TopologyError, TraceError, SpecError
        If the input is at fault; before anything is simulated or written where it can be.
    ResultError
        If the folder cannot be written.
    SimulationError
        If a byte was not delivered or a task did not finish.

    Examples
    --------
    >>> import ubfabric as ub                                               # doctest: +SKIP
    >>> result = ub.replay(ub.cloudmatrix384(), trace, "runs/demo")         # doctest: +SKIP
    """
    check_run_target(out, overwrite=overwrite)
    arrays = compile_fabric(graph)
    config = _configure(
        graph, trace, payload_bytes, plane_policy, path_policy, n_virtual_lanes, seed
    )
    rank_nodes = _rank_nodes(graph, trace)
    _check_limits(arrays)
    _check_buffers(arrays, config)
    started = time.perf_counter()
    with (
        RunWriter(out, overwrite=overwrite) as writer,
        _bridge.Engine(
            arrays,
            {
                "PayloadBytes": config.payload_bytes,
                **{
                    f"{network}Transport": f"ns3::UbPosted[HeaderBytes={config.header_bytes}]"
                    for network in ("Ub", "Rdma", "Vpc")
                },
                "NumVirtualLanes": config.n_virtual_lanes,
                "Seed": config.seed,
                "PathPolicy": PATH_POLICIES[config.path_policy],
                "PlanePolicy": PLANE_POLICIES[config.plane_policy],
            },
        ) as engine,
    ):
        if attach is not None:
            attach(engine, arrays)
        session = _Session(engine, arrays, trace, rank_nodes, config, writer)
        session.run(_progress_bar(progress))
        writer.write_links(_links_table(graph, arrays, engine.link_stats()))
        wall_s = time.perf_counter() - started
        return writer.finish(_summary(graph, trace, rank_nodes, config, engine, session, wall_s))


def _configure(
    graph: nx.Graph,
    trace: Trace,
    payload_bytes: int | None,
    plane_policy: str,
    path_policy: str,
    n_virtual_lanes: int,
    seed: int | None,
) -> ReplayConfig:
    for key, value, table in (
        ("plane_policy", plane_policy, PLANE_POLICIES),
        ("path_policy", path_policy, PATH_POLICIES),
    ):
        if value not in table:
            raise SpecError(f"{key}: found {value!r}, allowed {', '.join(table)}")
    if not 1 <= n_virtual_lanes <= 16:
        raise SpecError(f"n_virtual_lanes: found {n_virtual_lanes}, allowed 1 to 16")
    name = graph.graph["name"]
    largest = min(int(graph.graph["max_payload_bytes"]), _MAX_PAYLOAD_BYTES)
    payload = int(graph.graph["packet_payload_bytes"] if payload_bytes is None else payload_bytes)
    if not 1 <= payload <= largest:
        raise SpecError(f"payload_bytes: found {payload}, {name} allows 1 to {largest}")
    chosen = int(trace.metadata.get("seed") or 0) if seed is None else seed
    if not 0 <= chosen < 1 << 64:
        raise SpecError(f"seed: found {chosen}, allowed 0 to 2**64 - 1")
    header = int(graph.graph["packet_header_bytes"])
    if header > _MAX_HEADER_BYTES:
        raise TopologyError(
            f"{name}: graph: packet_header_bytes is {header}; allowed up to {_MAX_HEADER_BYTES}"
        )
    return ReplayConfig(payload, header, plane_policy, path_policy, n_virtual_lanes, chosen)


def _rank_nodes(graph: nx.Graph, trace: Trace) -> list[str]:
    """Return the node of each rank, checked."""
    listed = trace.metadata.get("rank_nodes")
    if listed:
        return place_ranks(graph, {"policy": "listed", "nodes": listed}, trace.n_ranks)
    return place_ranks(graph, trace.metadata.get("rank_placement") or "packed", trace.n_ranks)


def _check_limits(arrays: FabricArrays) -> None:
    """Refuse a fabric that is too large for the numbers that the engine keeps."""
    if arrays.n_planes > _MAX_PLANES:
        raise TopologyError(f"found {arrays.n_planes} planes; allowed up to {_MAX_PLANES}")
    for values, what, limit in (
        (arrays.node_issue_engines, "issue_engines is", _MAX_ENGINES),
        (np.bincount(arrays.link_dst, minlength=arrays.n_nodes), "links:", _MAX_PORTS),
    ):
        node = int(np.argmax(values))
        if values[node] > limit:
            raise TopologyError(
                f"node {arrays.node_names[node]!r}: {what} {values[node]}; allowed up to {limit}"
            )


def _check_buffers(arrays: FabricArrays, config: ReplayConfig) -> None:
    packet = config.payload_bytes + config.header_bytes
    receivers = np.unique(arrays.link_dst)
    small = receivers[arrays.node_buffer_bytes[receivers] < packet]
    if len(small):
        node = int(small[0])
        raise TopologyError(
            f"node {arrays.node_names[node]!r}: buffer_bytes is "
            f"{arrays.node_buffer_bytes[node]}, a packet of {config.payload_bytes} B payload needs "
            f"{packet} B a port and virtual lane"
        )


def _progress_bar(wanted: bool | None) -> Progress:
    shown = sys.stderr.isatty() if wanted is None else wanted
    return Progress(
        TextColumn("replay"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("layers  {task.fields[rate]}  {task.fields[now]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not shown,
    )


@dataclass
class _Loaded:
    """Layers that the engine works on as one chunk."""

    layers: list[TraceChunk]
    flows: np.ndarray
    tasks: np.ndarray


class _Session:
    """The loop between trace, engine and run folder."""

    def __init__(
        self,
        engine: _bridge.Engine,
        arrays: FabricArrays,
        trace: Trace,
        rank_nodes: list[str],
        config: ReplayConfig,
        writer: RunWriter,
    ) -> None:
        self.engine = engine
        self.trace = trace
        self.config = config
        self.writer = writer
        number = {name: node for node, name in enumerate(arrays.node_names)}
        self.rank_node = np.array([number[name] for name in rank_nodes], np.uint32)
        self.loaded: dict[int, _Loaded] = {}
        self.done: set[int] = set()
        self.known_tasks = np.empty(0, np.int64)
        self.known_streams = np.empty(0, np.uint32)
        self.n_written = 0
        self.n_layers = 0
        self.reach = _Reach(arrays, rank_nodes, self.rank_node)

    def run(self, bar: Progress) -> None:
        """Simulate the whole trace."""
        engine = self.engine
        batches = self._batches()
        coming = next(batches, None)
        started = time.perf_counter()
        with bar:
            line = bar.add_task("", total=self.trace.n_chunks, rate="", now="")
            while True:
                if coming is not None:
                    following = next(batches, None)
                    self._load(coming, is_last=following is None)
                    coming = following
                    if engine.needs_chunk():
                        continue
                self._run_on(bar, line, started)
                if coming is None:
                    break
        left = engine.leftover()
        if left:
            raise SimulationError(f"the run ended unfinished: {left}")

    def _run_on(self, bar: Progress, line: Any, started: float) -> None:
        """Simulate until the next layer is needed or nothing is left."""
        engine = self.engine
        while True:
            engine.run(_SLICE_PACKET_HOPS)
            self._collect()
            rate = engine.counters["packet_hops"] / max(time.perf_counter() - started, 1e-9)
            bar.update(
                line,
                completed=self.n_layers,
                rate=f"{rate / 1e6:.1f} M packet-hops/s",
                now=f"{engine.now_ps / 1e9:.3f} ms simulated",
            )
            if engine.needs_chunk() or engine.is_finished():
                return

    def _batches(self) -> Iterator[list[TraceChunk]]:
        """Yield what is loaded at once: a layer, or everything if the trace is open loop."""
        chunks = self.trace.chunks()
        first = next(chunks, None)
        if first is None:
            return
        if _has_start_times(first):
            yield [first, *chunks]
            return
        yield [first]
        for chunk in chunks:
            if _has_start_times(chunk):
                raise TraceError(
                    f"{chunk.flows_file}: row {chunk.first_flow_row + 1}: layer {chunk.layer} has "
                    "flows with start_ps, and the first layer has none; a trace with start times "
                    "has them from its first layer on"
                )
            yield [chunk]

    def _load(self, layers: list[TraceChunk], *, is_last: bool) -> None:
        parts = []
        for chunk in layers:
            self.known_tasks = check_chunk(chunk, self.trace.n_ranks, self.known_tasks)
            parts.append(self._records(chunk))
        flows, tasks, dep_counts, deps = (_joined([part[i] for part in parts]) for i in range(4))
        # numbers of tasks in the engine run without gaps, those in a trace need not
        first_task = len(self.known_tasks) - len(tasks)
        offset = 0
        row = 0
        for part in parts:  # tasks of a layer are numbered within the layer so far
            n_flows, n_tasks = len(part[0]), len(part[1])
            for name in ("send_task", "wait_task"):
                column = flows[name][row : row + n_flows]
                column[column != _bridge.NONE] += offset
            offset += n_tasks
            row += n_flows
        order = np.argsort(flows["send_task"], kind="stable").astype(np.uint32)
        n_sent = int(np.count_nonzero(flows["send_task"] != _bridge.NONE))
        send_order = np.ascontiguousarray(order[:n_sent])
        counts = np.bincount(flows["send_task"][send_order], minlength=len(tasks))
        tasks["send_count"] = counts
        tasks["send_first"] = np.cumsum(counts) - counts
        awaited = flows["wait_task"][flows["wait_task"] != _bridge.NONE]
        tasks["flows_left"] = np.bincount(awaited, minlength=len(tasks))
        timed = order[n_sent:]
        open_order = timed[np.argsort(flows["start_ps"][timed], kind="stable")]
        dep_start = np.concatenate([[0], np.cumsum(dep_counts)]).astype(np.uint64)
        if len(flows) >= _MAX_FLOWS:
            raise TraceError(
                f"{layers[0].flows_file}: {len(flows)} flows in one layer, allowed {_MAX_FLOWS - 1}"
            )
        number = self.engine.add_chunk(
            flows,
            tasks,
            first_task=first_task,
            send_order=send_order,
            dep_start=dep_start,
            deps=deps.astype(np.uint64),
            open_order=np.ascontiguousarray(open_order),
            is_last=is_last,
        )
        if number is None:
            raise TraceError(
                f"{layers[0].tasks_file}: more than 32 layers are unfinished at one time; a rank "
                "runs that far ahead of another"
            )
        self.loaded[number] = _Loaded(layers, flows, tasks)
        self._check_new_streams(layers[0], tasks)

    def _check_new_streams(self, chunk: TraceChunk, tasks: np.ndarray) -> None:
        """Refuse a stream that begins in this layer and could have begun before it was loaded.

        A layer is loaded when a stream runs out of tasks. A stream that had none so far does
        not call for them, and would begin late.
        """
        streams, first = np.unique(tasks["stream"], return_index=True)
        first = first[~np.isin(streams, self.known_streams)]
        self.known_streams = np.union1d(self.known_streams, streams)
        started = tasks["start_ps"][first] >= 0
        late = first[started & (tasks["ready_ps"][first] < tasks["start_ps"][first])]
        if len(late):
            row = int(late.min())
            rank = chunk.tasks["rank"][row].as_py()
            stream = chunk.tasks["stream"][row].as_py()
            raise TraceError(
                f"{chunk.tasks_file}: row {chunk.first_task_row + row + 1}: stream {stream} of "
                f"rank {rank} has its first task in layer {chunk.layer} and could begin it before "
                "that layer is needed; give the stream a task, of no duration, in the first layer"
            )

    def _records(self, chunk: TraceChunk) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return a layer's flow and task records and its dependencies."""
        table, config = chunk.flows, self.config
        src = table["src"].to_numpy()
        dst = table["dst"].to_numpy()
        network = _codes(table["network"], NETWORKS)
        self.reach.check(chunk, src, dst, network)
        flows = np.zeros(table.num_rows, _bridge.FLOW_RECORD)
        flows["src"] = self.rank_node[src]
        flows["dst"] = self.rank_node[dst]
        flows["messages"] = table["messages"].to_numpy()
        flows["message_bytes"] = table["message_bytes"].to_numpy()
        packets = _packets(flows, config.payload_bytes)
        if len(packets) and packets.max() > _MAX_PACKETS:
            row = int(np.argmax(packets > _MAX_PACKETS))
            raise TraceError(
                f"{chunk.flows_file}: row {chunk.first_flow_row + row + 1}: found "
                f"{packets[row]} packets of {config.payload_bytes} B, allowed {_MAX_PACKETS}"
            )
        flows["start_ps"] = table["start_ps"].to_numpy()
        flows["network"] = network
        flows["lane"] = table["service_level"].to_numpy() % config.n_virtual_lanes
        sender, waiter = link_flows(chunk, self.trace.n_ranks)
        flows["send_task"] = np.where(sender < 0, _bridge.NONE, sender)
        flows["wait_task"] = np.where(waiter < 0, _bridge.NONE, waiter)

        table = chunk.tasks
        rank = table["rank"].to_numpy()
        tasks = np.zeros(table.num_rows, _bridge.TASK_RECORD)
        tasks["duration_ps"] = table["duration_ps"].to_numpy()
        tasks["endpoint"] = self.rank_node[rank]
        tasks["stream"] = table["stream"].to_numpy().astype(np.uint32) * len(self.rank_node) + rank
        lists = table["depends_on"].combine_chunks()
        counts = np.diff(np.asarray(lists.offsets))
        needed = np.asarray(lists.flatten(), np.int64)
        deps = np.searchsorted(self.known_tasks, needed)
        return flows, tasks, counts, deps

    def _collect(self) -> None:
        """Write what is complete, in the order of the trace."""
        self.done.update(self.engine.take_complete())
        while self.n_written in self.done:
            self.done.remove(self.n_written)
            loaded = self.loaded.pop(self.n_written)
            self.n_written += 1
            flow_row = task_row = 0
            for chunk in loaded.layers:
                flows = loaded.flows[flow_row : flow_row + chunk.flows.num_rows]
                tasks = loaded.tasks[task_row : task_row + chunk.tasks.num_rows]
                flow_row += len(flows)
                task_row += len(tasks)
                self.writer.write_flows(
                    chunk.layer, _flows_table(chunk.flows, flows, self.config.payload_bytes)
                )
                self.writer.write_tasks(_tasks_table(chunk.tasks, tasks))
                self.n_layers += 1


class _Reach:
    """Which ranks each network connects."""

    def __init__(self, arrays: FabricArrays, rank_nodes: list[str], node: np.ndarray) -> None:
        self.rank_nodes = rank_nodes
        attached = arrays.endpoint_class[:, node] >= 0
        self.planes = np.zeros((len(NETWORKS), len(node)), np.uint64)
        for plane in range(arrays.n_planes):
            bit = attached[plane].astype(np.uint64) << np.uint64(plane)
            self.planes[arrays.plane_network[plane]] |= bit
        self.direct: set[tuple[int, int, int]] = set()
        rank_of = {int(n): rank for rank, n in enumerate(node)}
        for n, rank in rank_of.items():
            for at in range(arrays.direct_start[n], arrays.direct_start[n + 1]):
                other = rank_of.get(int(arrays.direct_dst[at]))
                if other is not None:
                    plane = arrays.link_plane[arrays.direct_link[at]]
                    self.direct.add((int(arrays.plane_network[plane]), rank, other))

    def check(
        self, chunk: TraceChunk, src: np.ndarray, dst: np.ndarray, network: np.ndarray
    ) -> None:
        """Refuse a flow between ranks that its network does not connect."""
        shared = self.planes[network, src] & self.planes[network, dst]
        for row in np.flatnonzero((shared == 0) & (src != dst)):
            pair = (int(network[row]), int(src[row]), int(dst[row]))
            if pair not in self.direct:
                raise TraceError(
                    f"{chunk.flows_file}: row {chunk.first_flow_row + row + 1}: network "
                    f"{NETWORKS[pair[0]]!r} does not lead from rank {pair[1]} on "
                    f"{self.rank_nodes[pair[1]]} to rank {pair[2]} on {self.rank_nodes[pair[2]]}"
                )


def _has_start_times(chunk: TraceChunk) -> bool:
    return bool((chunk.flows["start_ps"].to_numpy() >= 0).any())


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _codes(column: pa.ChunkedArray, names: tuple[str, ...]) -> np.ndarray:
    """Return the position in ``names`` of each value of a text column."""
    codes = [np.empty(0, np.uint8)]
    for part in column.chunks:
        encoded = part if pa.types.is_dictionary(part.type) else part.dictionary_encode()
        code = np.array([names.index(v) for v in encoded.dictionary.to_pylist()], np.uint8)
        codes.append(code[np.asarray(encoded.indices)])
    return np.concatenate(codes)


def _packets(flows: np.ndarray, payload_bytes: int) -> np.ndarray:
    """Return the number of packets of each flow; a packet never spans messages."""
    each: np.ndarray = -(-flows["message_bytes"].astype(np.int64) // payload_bytes)
    packets: np.ndarray = flows["messages"].astype(np.int64) * each
    return packets


def _flows_table(asked: pa.Table, flows: np.ndarray, payload_bytes: int) -> pa.Table:
    messages = flows["messages"].astype(np.int64)
    size = flows["message_bytes"].astype(np.int64)
    kept = ["phase", "layer", "microbatch", "src", "dst", "network", "service_level"]
    columns = {name: asked[name] for name in [*kept, "messages", "message_bytes"]}
    columns |= {
        "bytes": messages * size,
        "packets": _packets(flows, payload_bytes),
        "start_ps": flows["start_ps"],
        "first_byte_ps": flows["first_byte_ps"],
        "finish_ps": flows["finish_ps"],
        "fct_ps": flows["finish_ps"] - flows["start_ps"],
        "hops": flows["hops"].astype(np.int16),
        "queueing_ps": flows["queueing_ps"],
    }
    return pa.table(columns)


def _tasks_table(asked: pa.Table, tasks: np.ndarray) -> pa.Table:
    kept = ["task", "rank", "stream", "kind", "layer", "microbatch", "duration_ps"]
    columns = {name: asked[name] for name in kept}
    measured = ["ready_ps", "start_ps", "finish_ps", "issued_ps", "arrived_ps"]
    return pa.table(columns | {name: tasks[name] for name in measured})


def _links_table(graph: nx.Graph, arrays: FabricArrays, stats: dict[str, np.ndarray]) -> pa.Table:
    names = arrays.node_names
    kinds = [str(graph.nodes[name]["kind"]) for name in names]
    return pa.table(
        {
            "link": np.arange(arrays.n_links, dtype=np.int32),
            "src": [names[node] for node in arrays.link_src],
            "dst": [names[node] for node in arrays.link_dst],
            "plane": [arrays.plane_names[plane] for plane in arrays.link_plane],
            "level": [
                f"{kinds[a]}-{kinds[b]}"
                for a, b in zip(arrays.link_src, arrays.link_dst, strict=True)
            ],
            "bandwidth_bytes_per_s": arrays.link_rate_bytes_per_s.astype(np.int64),
            **stats,
        }
    )


def _summary(
    graph: nx.Graph,
    trace: Trace,
    rank_nodes: list[str],
    config: ReplayConfig,
    engine: _bridge.Engine,
    session: _Session,
    wall_s: float,
) -> dict[str, Any]:
    counters = engine.counters
    packages = ("ns3", "cppyy", "numpy", "networkx", "pandas", "pyarrow")
    return {
        "ubfabric": metadata.version("ubfabric"),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in packages},
        "seed": config.seed,
        "topology": str(graph.graph.get("name", "")),
        "topology_spec": graph.graph.get("spec"),
        "trace": trace.metadata,
        "rank_nodes": rank_nodes,
        "payload_bytes": config.payload_bytes,
        "header_bytes": config.header_bytes,
        "n_virtual_lanes": config.n_virtual_lanes,
        "plane_policy": config.plane_policy,
        "path_policy": config.path_policy,
        **counters,
        "simulated_ps": engine.now_ps,
        "wall_s": wall_s,
        "packet_hops_per_s": counters["packet_hops"] / max(wall_s, 1e-9),
    }
