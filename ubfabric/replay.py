"""The replay: a trace on a fabric, every packet moved by ns-3.

Layers of the trace are loaded into the engine when a rank needs them and leave it when
their last flow is seen, so memory holds two or three layers whatever the length of the
step. Loading stops the simulation at the very instant at which it is needed, so the
result is the one of loading everything at once.
"""

from __future__ import annotations

import os
import platform
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
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
from ubfabric.attributes import (
    buffer_bytes,
    credit_warnings,
    cuts,
    engine_attributes,
    lanes_of_service_levels,
    packet_bytes,
)
from ubfabric.deadlock import check_routes_deadlock_free
from ubfabric.errors import (
    SimulationError,
    SpecError,
    TopologyError,
    TraceError,
    UbfabricWarning,
)
from ubfabric.fabric_settings import link_layer, switching, transports, used_settings
from ubfabric.faults import DEFAULT_DETECTION_TIME, FaultPlan, plan_faults
from ubfabric.placement import place_ranks
from ubfabric.quantities import parse_time_ps
from ubfabric.results import RunResult, RunWriter, check_run_target
from ubfabric.routing import FabricArrays, compile_fabric, reroute
from ubfabric.specs import NETWORKS
from ubfabric.trace import OPERATIONS, Trace, TraceChunk, check_and_link

#: How a switch picks among the shortest paths, by name.
PATH_POLICIES = {
    "flow-hash": "ns3::UbPathFlowHash",
    "round-robin": "ns3::UbPathRoundRobin",
    "random": "ns3::UbPathRandom",
    "load-balance": "ns3::UbPathLoadBalance",
    "adaptive": "ns3::UbPathAdaptive",
}
#: How a source picks the plane of a packet, by name.
PLANE_POLICIES = {
    "flow-hash": "ns3::UbPlaneFlowHash",
    "round-robin": "ns3::UbPlaneRoundRobin",
    "random": "ns3::UbPlaneRandom",
    "adaptive": "ns3::UbPlaneAdaptive",
}
#: Packet-hops between two looks at the progress bar and at Ctrl-C.
_SLICE_PACKET_HOPS = 1_000_000
#: Most flows of one chunk; the engine keeps their number in 26 bits.
_MAX_FLOWS = 1 << 26
#: Batches whose tables may wait to be written.
_MAX_BEING_WRITTEN = 2
#: Most packets of one flow; the engine counts them down in 32 bits.
_MAX_PACKETS = (1 << 32) - 1
#: Further limits of the engine, which would end the process if they were exceeded.
_MAX_ENGINES = 64
_MAX_PLANES = 64
_MAX_PAYLOAD_BYTES = 60_000
_MAX_PORTS = (1 << 16) - 1
_MAX_PACKET_BYTES = (1 << 16) - 1


@dataclass(frozen=True)
class ReplayConfig:
    """How packets are cut and steered.

    Attributes
    ----------
    payload_bytes : int
        Most bytes of a message in one packet.
    plane_policy, path_policy : str
        A key of :data:`PLANE_POLICIES` and of :data:`PATH_POLICIES`.
    n_virtual_lanes : int
        Virtual lanes of each port.
    seed : int
        Seed of hashes and random choices.
    account : bool
        Whether the time of each flow is kept by cause.
    sample_interval_ps : int
        Time between looks at all links, 0 for none.
    watchdog_ps : int
        Time without any packet moving after which the run ends.
    threads : int
        Threads that run the planes.
    """

    payload_bytes: int
    plane_policy: str
    path_policy: str
    n_virtual_lanes: int
    seed: int
    account: bool
    sample_interval_ps: int
    watchdog_ps: int
    threads: int


def replay(
    graph: nx.Graph,
    trace: Trace,
    out: str | Path,
    *,
    payload_bytes: int | None = None,
    plane_policy: str = "round-robin",
    path_policy: str = "round-robin",
    n_virtual_lanes: int | None = None,
    seed: int | None = None,
    faults: str | Path | Mapping[str, Any] | None = None,
    account: bool = False,
    sample_interval_ps: int | None = None,
    watchdog_ps: int = 100_000_000_000,
    threads: int | None = None,
    overwrite: bool = False,
    compress: bool = True,
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
    plane_policy : {'round-robin', 'flow-hash', 'random', 'adaptive'}
        How a source picks the plane of each packet. ``adaptive`` takes the port with least to
        send; it couples the planes, so the run proceeds instant by instant and takes longer.
    path_policy : {'round-robin', 'flow-hash', 'random', 'load-balance', 'adaptive'}
        How a switch picks among the shortest paths. ``flow-hash`` keeps a pair of endpoints on
        one path, ``load-balance`` hashes UB's load-balance factor, which counts up from packet
        to packet, ``adaptive`` looks at bytes and credits of the chip's own ports.
    n_virtual_lanes : int, optional
        Virtual lanes of each port, 1 to 16; the graph's ``link_layer`` says how many if not
        given.
    seed : int, optional
        Seed of hashes and random choices; the trace's seed if not given.
    faults : path or mapping, optional
        Schedule of faults, a YAML file or its content; see :mod:`ubfabric.faults`.
    account : bool
        Keep where the time of each flow went: ``RunResult.account()``.
    sample_interval_ps : int, optional
        Look at load and queue of all links so often: ``RunResult.samples()``.
    watchdog_ps : int
        End the run with an error if packets are under way and none moves for so long.
    threads : int, optional
        Threads that run the planes, 1 to 256; as many as the process may use cores if not given.
        The tables do not depend on it. Where there are fewer planes than threads, parts of a plane
        run at the same time, if nothing changes or watches it. What couples the planes
        (``adaptive`` choice of plane, trace sinks) runs on one thread all the same.
    overwrite : bool
        Whether a complete run folder of that name may be replaced.
    compress : bool
        Compress the tables. Those of a run that is read once and thrown away are written and
        read sooner without.
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
    checked = check_replay(
        graph,
        trace,
        payload_bytes=payload_bytes,
        plane_policy=plane_policy,
        path_policy=path_policy,
        n_virtual_lanes=n_virtual_lanes,
        seed=seed,
        faults=faults,
        account=account,
        sample_interval_ps=sample_interval_ps,
        watchdog_ps=watchdog_ps,
        threads=threads,
    )
    arrays, config, plan = checked.arrays, checked.config, checked.faults
    rank_nodes = checked.rank_nodes
    for line in credit_warnings(graph, arrays, config.payload_bytes):
        warnings.warn(line, UbfabricWarning, stacklevel=2)
    started = time.perf_counter()
    with (
        RunWriter(out, overwrite=overwrite, compress=compress) as writer,
        _bridge.Engine(
            arrays,
            engine_attributes(
                graph,
                payload_bytes=config.payload_bytes,
                n_virtual_lanes=config.n_virtual_lanes,
            )
            | {
                "Seed": config.seed,
                "PathPolicy": PATH_POLICIES[config.path_policy],
                "PlanePolicy": PLANE_POLICIES[config.plane_policy],
                "KeepAccount": str(config.account).lower(),
                "SampleInterval": f"{config.sample_interval_ps}ps",
                "Watchdog": f"{config.watchdog_ps}ps",
                "Threads": config.threads,
            },
        ) as engine,
    ):
        if attach is not None:
            attach(engine, arrays)
        if plan is not None:
            _schedule(engine, plan)
        engine.report_broken_links()
        lanes = lanes_of_service_levels(graph, config.n_virtual_lanes)
        session = _Session(engine, graph, arrays, trace, rank_nodes, config, lanes, writer, plan)
        session.run(_progress_bar(progress))
        writer.write_links(_links_table(graph, arrays, engine.link_stats()))
        wall_s = time.perf_counter() - started
        return writer.finish(_summary(graph, trace, rank_nodes, config, engine, plan, wall_s))


@dataclass(frozen=True)
class CheckedReplay:
    """What a replay needs beside graph and trace, checked.

    Attributes
    ----------
    arrays : FabricArrays
        The fabric as the engine takes it.
    config : ReplayConfig
        Settings, with those of the topology and the trace where none were given.
    rank_nodes : list of str
        Node of each rank.
    faults : FaultPlan or None
        What fails, and when.
    """

    arrays: FabricArrays
    config: ReplayConfig
    rank_nodes: list[str]
    faults: FaultPlan | None


def check_replay(
    graph: nx.Graph,
    trace: Trace,
    *,
    payload_bytes: int | None = None,
    plane_policy: str = "round-robin",
    path_policy: str = "round-robin",
    n_virtual_lanes: int | None = None,
    seed: int | None = None,
    faults: str | Path | Mapping[str, Any] | None = None,
    account: bool = False,
    sample_interval_ps: int | None = None,
    watchdog_ps: int = 100_000_000_000,
    threads: int | None = None,
    same_fabric: CheckedReplay | None = None,
) -> CheckedReplay:
    """Check all that can be checked before the flows of a trace are read.

    Parameters
    ----------
    graph, trace
        As in :func:`replay`, and so are the settings.
    same_fabric : CheckedReplay, optional
        What an earlier call returned for this graph: routes are neither made nor checked again.

    Returns
    -------
    CheckedReplay

    Raises
    ------
    TopologyError, SpecError
        One line: what was found and what is allowed.
    """
    arrays = compile_fabric(graph) if same_fabric is None else same_fabric.arrays
    config = ReplayConfig(
        payload_bytes=_payload(graph, payload_bytes),
        plane_policy=_one_of("plane_policy", plane_policy, PLANE_POLICIES),
        path_policy=_one_of("path_policy", path_policy, PATH_POLICIES),
        n_virtual_lanes=_in_range(
            "n_virtual_lanes",
            link_layer(graph)["virtual_lanes"] if n_virtual_lanes is None else n_virtual_lanes,
            1,
            16,
        ),
        seed=_in_range(
            "seed", int(trace.metadata.get("seed") or 0) if seed is None else seed, 0, (1 << 64) - 1
        ),
        account=account,
        sample_interval_ps=0
        if sample_interval_ps is None
        else _in_range("sample_interval_ps", sample_interval_ps, 1, 1 << 60),
        watchdog_ps=_in_range("watchdog_ps", watchdog_ps, 1, 1 << 60),
        threads=_in_range("threads", _usable_cores() if threads is None else threads, 1, 256),
    )
    rank_nodes = _rank_nodes(graph, trace)
    _check_limits(arrays)
    _check_transports(graph, arrays, config.payload_bytes)
    _check_buffers(graph, arrays, config)
    if same_fabric is None:
        check_routes_deadlock_free(arrays, label=str(graph.graph["name"]))
    plan = None if faults is None else plan_faults(arrays, faults)
    if plan is not None:
        plan.check_deadlock_free(str(faults) if isinstance(faults, (str, Path)) else "faults")
    return CheckedReplay(arrays, config, rank_nodes, plan)


def _schedule(engine: _bridge.Engine, plan: FaultPlan) -> None:
    """Tell the engine what will fail and when."""
    for time_ps, link, rate, bit_error_rate in zip(
        plan.time_ps.tolist(),
        plan.link.tolist(),
        plan.rate_bytes_per_s.tolist(),
        plan.bit_error_rate.tolist(),
        strict=True,
    ):
        engine.schedule_link(time_ps, link, rate, bit_error_rate)
    for time_ps, node, is_dead in zip(
        plan.node_time_ps.tolist(), plan.node.tolist(), plan.node_is_dead.tolist(), strict=True
    ):
        engine.schedule_switch(time_ps, node, is_dead=bool(is_dead))
    for time_ps, arrays in plan.routes:
        engine.schedule_routes(time_ps, arrays)


def _one_of(key: str, value: str, table: Mapping[str, str]) -> str:
    if value not in table:
        raise SpecError(f"{key}: found {value!r}, allowed {', '.join(table)}")
    return value


def _in_range(key: str, value: int, lowest: int, highest: int) -> int:
    if not lowest <= value <= highest:
        limit = "2**64 - 1" if highest == (1 << 64) - 1 else str(highest)
        raise SpecError(f"{key}: found {value}, allowed {lowest} to {limit}")
    return value


def _usable_cores() -> int:
    """Return how many cores the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _payload(graph: nx.Graph, payload_bytes: int | None) -> int:
    """Return the payload of a full packet, checked."""
    largest = min(int(graph.graph["max_payload_bytes"]), _MAX_PAYLOAD_BYTES)
    payload = int(graph.graph["packet_payload_bytes"] if payload_bytes is None else payload_bytes)
    if not 1 <= payload <= largest:
        raise SpecError(
            f"payload_bytes: found {payload}, {graph.graph['name']} allows 1 to {largest}"
        )
    return payload


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
        (
            arrays.node_issue_engines.astype(np.int64) + arrays.node_sdma_engines,
            "issue_engines and sdma_engines are",
            _MAX_ENGINES,
        ),
        (np.bincount(arrays.link_dst, minlength=arrays.n_nodes), "links:", _MAX_PORTS),
    ):
        node = int(np.argmax(values))
        if values[node] > limit:
            raise TopologyError(
                f"node {arrays.node_names[node]!r}: {what} {values[node]}; allowed up to {limit}"
            )


def _check_transports(graph: nx.Graph, arrays: FabricArrays, payload_bytes: int) -> None:
    """Refuse what transports and endpoints cannot do together."""
    name = graph.graph["name"]
    for network, size in packet_bytes(graph, payload_bytes).items():
        if size > _MAX_PACKET_BYTES:
            raise SpecError(
                f"payload_bytes: found {payload_bytes}, with headers {size} B a packet in network "
                f"{network} of {name}; allowed up to {_MAX_PACKET_BYTES} B"
            )
    bare = (arrays.node_sdma_engines > 0) & (arrays.node_sdma_bytes_per_s == 0)
    if bare.any():
        node = int(np.argmax(bare))
        raise TopologyError(
            f"node {arrays.node_names[node]!r}: sdma_bytes_per_s is 0; allowed 1 or more with "
            f"sdma_engines of {arrays.node_sdma_engines[node]}"
        )
    stacks = {network: used_settings(one) for network, one in transports(graph).items()}
    answering = [network for network, one in stacks.items() if _answers(one)]
    is_endpoint = arrays.node_is_endpoint == 1
    latency, answer = arrays.node_receive_latency_ps, arrays.node_acknowledge_latency_ps
    late = is_endpoint & (answer > latency)
    if answering and late.any():
        node = int(np.argmax(late))
        raise TopologyError(
            f"node {arrays.node_names[node]!r}: acknowledge_latency_ps is {answer[node]}; allowed "
            f"up to receive_latency_ps, {latency[node]}, as network {answering[0]} has transport "
            f"{stacks[answering[0]]['name']}"
        )
    if not is_endpoint.any():
        return
    shortest = int(latency[is_endpoint].min())
    for network, one in stacks.items():
        if one.get("timeout_ps", shortest) < shortest:
            raise TopologyError(
                f"{name}: transports.{network}: timeout_ps is {one['timeout_ps']}; allowed from "
                f"the least receive_latency_ps of an endpoint on, {shortest}"
            )


def _answers(transport: Mapping[str, Any]) -> bool:
    """Return whether a receiver sends anything back."""
    if transport["name"] == "compact":
        return bool(transport.get("congestion_control", "none") != "none")
    return bool(transport["name"] != "posted")


def _check_buffers(graph: nx.Graph, arrays: FabricArrays, config: ReplayConfig) -> None:
    """Refuse buffers that do not hold one packet."""
    taken = buffer_bytes(graph, config.payload_bytes)
    network = np.asarray(arrays.plane_network)[arrays.link_plane]
    needed = np.array([taken[name] for name in NETWORKS])[network]
    small = np.flatnonzero(arrays.node_buffer_bytes[arrays.link_dst] < needed)
    if len(small):
        link = int(small[0])
        node = int(arrays.link_dst[link])
        raise TopologyError(
            f"node {arrays.node_names[node]!r}: buffer_bytes is {arrays.node_buffer_bytes[node]}, "
            f"a packet of {config.payload_bytes} B payload needs {needed[link]} B a port and "
            "virtual lane"
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


#: Columns of the trace that the engine's records do not hold.
_KEPT_FLOWS = ("phase", "microbatch", "src", "dst", "service_level")
_KEPT_TASKS = ("task", "rank", "stream", "kind", "layer", "microbatch", "duration_ps")
#: Columns that the records hold as numbers, and what the numbers stand for.
_NUMBERED = {"network": NETWORKS, "operation": OPERATIONS}


class _Asked:
    """What is kept of a layer's tables while the engine works on it.

    A layer may have millions of flows that wait, so nothing is kept that the records hold; of
    the names in a column their order only, which is that of the table written at the end.
    """

    def __init__(self, chunk: TraceChunk) -> None:
        self.layer = chunk.layer
        self.flows = chunk.flows.select(_KEPT_FLOWS)
        self.tasks = chunk.tasks.select(_KEPT_TASKS)
        self.names = {name: _names(chunk.flows[name]) for name in _NUMBERED}
        self.tasks_file, self.first_task_row = chunk.tasks_file, chunk.first_task_row


@dataclass
class _Batch:
    """Layers that the engine works on as one chunk, as records; see :meth:`Engine.add_chunk`."""

    layers: list[_Asked]
    flows: np.ndarray
    tasks: np.ndarray
    first_task: int
    send_order: np.ndarray
    open_order: np.ndarray
    dep_start: np.ndarray
    deps: np.ndarray
    accounts: np.ndarray | None


class _Session:
    """The loop between trace, engine and run folder."""

    def __init__(
        self,
        engine: _bridge.Engine,
        graph: nx.Graph,
        arrays: FabricArrays,
        trace: Trace,
        rank_nodes: list[str],
        config: ReplayConfig,
        lanes: np.ndarray,
        writer: RunWriter,
        plan: FaultPlan | None,
    ) -> None:
        self.engine = engine
        self.plan = plan
        self.gave_up: list[int] = []
        cut = cuts(graph, config.payload_bytes)
        self.cut = np.array([cut[name] for name in NETWORKS], np.int64)
        self.arrays = arrays
        self.trace = trace
        self.config = config
        self.lanes = lanes
        self.writer = writer
        self.sampled_bytes = np.zeros(arrays.n_links, np.uint64)
        number = {name: node for node, name in enumerate(arrays.node_names)}
        self.rank_node = np.array([number[name] for name in rank_nodes], np.uint32)
        self.loaded: dict[int, _Batch] = {}
        self.done: set[int] = set()
        self.known_tasks = np.empty(0, np.int64)
        self.known_streams = np.empty(0, np.uint32)
        self.n_written = 0
        self.n_layers = 0
        self.reach = _Reach(arrays, rank_nodes, self.rank_node)
        self.tables: ThreadPoolExecutor
        self.being_written: deque[Future[None]] = deque()

    def run(self, bar: Progress) -> None:
        """Simulate the whole trace.

        The engine does not hold the interpreter: while it works on layers, one thread makes
        records of the next and another writes tables of those that are done.
        """
        engine = self.engine
        started = time.perf_counter()
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(1) as self.tables, bar:
            line = bar.add_task("", total=self.trace.n_chunks, rate="", now="")
            batches = self._batches()
            coming = next(batches, None)
            following = ahead.submit(next, batches, None)
            while True:
                if coming is not None:
                    batch, coming = coming, following.result()
                    following = ahead.submit(next, batches, None)
                    self._load(batch, is_last=coming is None)
                    if engine.needs_chunk():
                        continue
                self._run_on(bar, line, started)
                if coming is None:
                    break
            for written in self.being_written:
                written.result()
        left = engine.leftover()
        if left:
            ports = self._stalled_ports()
            raise SimulationError(f"the run ended unfinished: {left}{ports}")

    def _run_on(self, bar: Progress, line: Any, started: float) -> None:
        """Simulate until the next layer is needed or nothing is left."""
        engine = self.engine
        while True:
            engine.run(_SLICE_PACKET_HOPS)
            self._collect()
            if self.config.sample_interval_ps:
                self._sample()
            self._check_alive()
            rate = engine.counters["packet_hops"] / max(time.perf_counter() - started, 1e-9)
            bar.update(
                line,
                completed=self.n_layers,
                rate=f"{rate / 1e6:.1f} M packet-hops/s",
                now=f"{engine.now_ps / 1e9:.3f} ms simulated",
            )
            if engine.needs_chunk() or engine.is_finished():
                return

    def _stalled_ports(self) -> str:
        """Return the ports that hold packets, for the end of a message."""
        links = self.engine.stalled_links()
        if not len(links):
            return ""
        names = self.arrays.node_names
        ports = [
            f"{names[self.arrays.link_src[link]]} to {names[self.arrays.link_dst[link]]} in "
            f"{self.arrays.plane_names[self.arrays.link_plane[link]]}"
            for link in links[:4]
        ]
        more = f" and {len(links) - len(ports)} more" if len(links) > len(ports) else ""
        return f"; packets wait for the ports {', '.join(ports)}{more}"

    def _check_alive(self) -> None:
        self._route_around_broken_links()
        failure = self.engine.failure()
        if failure is not None:
            src, dst, network, time_ps, has_way = failure
            names = self.arrays.node_names
            text = (
                f"{names[src]} got no answer from {names[dst]} in network {NETWORKS[network]}"
                if has_way
                else f"no way from {names[src]} to {names[dst]} in network {NETWORKS[network]}"
            )
            why = "" if self.plan is None else f"; {'; '.join(self.plan.describe())}"
            if self.plan is not None and not has_way:
                cut = self.plan.cut_off(
                    NETWORKS[network], np.array([src]), np.array([dst]), time_ps
                )
                why = f"; {cut}" if cut else why
            raise SimulationError(f"{text} at {time_ps / 1e6:g} us{why}")
        if self.engine.is_stalled():
            raise SimulationError(
                f"no packet moved for {self.config.watchdog_ps / 1e9:g} ms until "
                f"{self.engine.now_ps / 1e9:g} ms{self._stalled_ports()}"
            )

    def _route_around_broken_links(self) -> None:
        """Give the switches routes without the links that gave up for bit errors."""
        broken = self.engine.take_broken()
        if not broken:
            return
        link, time_ps = broken[0]
        if self.plan is not None and any(start > time_ps for start, _ in self.plan.routes):
            names = self.arrays.node_names
            raise SimulationError(
                f"the link {names[self.arrays.link_src[link]]} to "
                f"{names[self.arrays.link_dst[link]]} gave up for bit errors at "
                f"{time_ps / 1e6:g} us, before scheduled changes of routes that do not know of it; "
                "schedule it as down as well"
            )
        self.gave_up += [link for link, _ in broken]
        known = self.plan.route_dead_links[-1] if self.plan and self.plan.routes else []
        detection_ps = (
            self.plan.detection_ps
            if self.plan is not None
            else parse_time_ps(DEFAULT_DETECTION_TIME["value"])
        )
        seen_ps = max(time for _, time in broken) + detection_ps
        routes = reroute(self.arrays, sorted({*self.gave_up, *known}))
        self.engine.schedule_routes(max(seen_ps, self.engine.now_ps), routes)

    def _sample(self) -> None:
        """Write what the links did since the last call."""
        times, sent, waiting = self.engine.take_samples()
        if not len(times):
            return
        step = np.diff(np.concatenate([self.sampled_bytes[None], sent]), axis=0)
        self.sampled_bytes = sent[-1]
        at, link = np.nonzero((step > 0) | (waiting > 0))
        self._behind(
            self.writer.write_samples,
            pa.table(
                {
                    "time_ps": times[at],
                    "link": link.astype(np.int32),
                    "bytes": step[at, link].astype(np.int64),
                    "waiting_bytes": waiting[at, link].astype(np.int64),
                }
            ),
        )

    def _batches(self) -> Iterator[_Batch]:
        """Yield the records of what is loaded at once."""
        for layers in self._layers():
            yield self._records_of(layers)

    def _layers(self) -> Iterator[list[TraceChunk]]:
        """Yield what is loaded at once: a layer, or everything if the trace is open loop."""
        chunks = self.trace.chunks()
        first = next(chunks, None)
        if first is None:
            return
        if _has_start_times(first):
            yield [first, *chunks]
            return
        yield [first]
        del first  # a layer that is loaded is nobody's any more
        for chunk in chunks:
            if _has_start_times(chunk):
                raise TraceError(
                    f"{chunk.flows_file}: row {chunk.first_flow_row + 1}: layer {chunk.layer} has "
                    "flows with start_ps, and the first layer has none; a trace with start times "
                    "has them from its first layer on"
                )
            yield [chunk]

    def _records_of(self, layers: list[TraceChunk]) -> _Batch:
        """Check layers against those before and make records of them."""
        parts = []
        for chunk in layers:
            self.known_tasks, sender, waiter = check_and_link(
                chunk, self.trace.n_ranks, self.known_tasks
            )
            parts.append(self._records(chunk, sender, waiter))
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
        return _Batch(
            layers=[_Asked(chunk) for chunk in layers],
            flows=flows,
            tasks=tasks,
            first_task=first_task,
            send_order=send_order,
            open_order=np.ascontiguousarray(open_order),
            dep_start=dep_start,
            deps=deps.astype(np.uint64),
            accounts=np.zeros(len(flows), _bridge.ACCOUNT_RECORD) if self.config.account else None,
        )

    def _load(self, batch: _Batch, *, is_last: bool) -> None:
        number = self.engine.add_chunk(
            batch.flows,
            batch.tasks,
            first_task=batch.first_task,
            send_order=batch.send_order,
            dep_start=batch.dep_start,
            deps=batch.deps,
            open_order=batch.open_order,
            is_last=is_last,
            accounts=batch.accounts,
        )
        if number is None:
            raise TraceError(
                f"{batch.layers[0].tasks_file}: more than 32 layers are unfinished at one time; a "
                "rank runs that far ahead of another"
            )
        self.loaded[number] = batch
        self._check_new_streams(batch.layers[0], batch.tasks)

    def _check_new_streams(self, asked: _Asked, tasks: np.ndarray) -> None:
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
            rank = asked.tasks["rank"][row].as_py()
            stream = asked.tasks["stream"][row].as_py()
            raise TraceError(
                f"{asked.tasks_file}: row {asked.first_task_row + row + 1}: stream {stream} of "
                f"rank {rank} has its first task in layer {asked.layer} and could begin it before "
                "that layer is needed; give the stream a task, of no duration, in the first layer"
            )

    def _records(
        self, chunk: TraceChunk, sender: np.ndarray, waiter: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return a layer's flow and task records and its dependencies."""
        table = chunk.flows
        src = table["src"].to_numpy()
        dst = table["dst"].to_numpy()
        network = _codes(table["network"], NETWORKS)
        self.reach.check(chunk, src, dst, network)
        flows = _bridge.flow_records(table.num_rows)
        flows["src"] = self.rank_node[src]
        flows["dst"] = self.rank_node[dst]
        flows["messages"] = table["messages"].to_numpy()
        flows["message_bytes"] = table["message_bytes"].to_numpy()
        flows["network"] = network
        flows["operation"] = _codes(table["operation"], OPERATIONS)
        self._check_operations(chunk, flows)
        # no packet is empty, so that few bytes are few packets
        many = len(flows) and int(flows["messages"].max()) * int(flows["message_bytes"].max())
        if many > _MAX_PACKETS and (packets := _packets(flows, self.cut)).max() > _MAX_PACKETS:
            row = int(np.argmax(packets > _MAX_PACKETS))
            raise TraceError(
                f"{chunk.flows_file}: row {chunk.first_flow_row + row + 1}: found "
                f"{packets[row]} packets of {self.cut[network[row], 2]} B, allowed {_MAX_PACKETS}"
            )
        flows["start_ps"] = table["start_ps"].to_numpy()
        flows["lane"] = self.lanes[table["service_level"].to_numpy()]
        flows["send_task"] = np.where(sender < 0, _bridge.NONE, sender)
        flows["wait_task"] = np.where(waiter < 0, _bridge.NONE, waiter)

        table = chunk.tasks
        rank = table["rank"].to_numpy()
        tasks = np.zeros(table.num_rows, _bridge.TASK_RECORD)
        tasks["duration_ps"] = table["duration_ps"].to_numpy()
        tasks["memory_ps"] = table["memory_ps"].to_numpy()
        tasks["message_ps"] = table["message_cost_ps"].to_numpy()
        tasks["endpoint"] = self.rank_node[rank]
        tasks["stream"] = table["stream"].to_numpy().astype(np.uint32) * len(self.rank_node) + rank
        lists = table["depends_on"].combine_chunks()
        counts = np.diff(np.asarray(lists.offsets))
        needed = np.asarray(lists.flatten(), np.int64)
        deps = np.searchsorted(self.known_tasks, needed)
        return flows, tasks, counts, deps

    def _check_operations(self, chunk: TraceChunk, flows: np.ndarray) -> None:
        """Refuse reads where the transport cannot read, and SDMA where there is none."""
        is_read = flows["operation"] & 1 == 1
        by_sdma = flows["operation"] & 2 == 2
        silent = is_read & (self.cut[flows["network"], 1] == 0)
        bare = by_sdma & (self.arrays.node_sdma_engines[flows["src"]] == 0)
        for bad, why in (
            (silent, "transports.{network}.name to be load-store, or posted with work_request"),
            (bare, "sdma engines on the endpoint of rank {src}"),
        ):
            if bad.any():
                row = int(np.argmax(bad))
                network = NETWORKS[flows["network"][row]]
                src = chunk.flows["src"][row].as_py()
                operation = OPERATIONS[flows["operation"][row]]
                raise TraceError(
                    f"{chunk.flows_file}: row {chunk.first_flow_row + row + 1}: operation "
                    f"{operation} needs {why.format(network=network, src=src)}"
                )

    def _collect(self) -> None:
        """Have what is complete written, in the order of the trace."""
        self.done.update(self.engine.take_complete())
        while self.n_written in self.done:
            self.done.remove(self.n_written)
            batch = self.loaded.pop(self.n_written)
            self.n_written += 1
            self.n_layers += len(batch.layers)
            self._behind(self._write, batch)

    def _behind(self, write: Callable[[Any], None], what: Any) -> None:
        """Have something written beside the simulation, after all that was asked for before."""
        if len(self.being_written) >= _MAX_BEING_WRITTEN:
            self.being_written.popleft().result()
        self.being_written.append(self.tables.submit(write, what))

    def _write(self, batch: _Batch) -> None:
        """Write the tables of layers."""
        flow_row = task_row = 0
        for asked in batch.layers:
            flows = batch.flows[flow_row : flow_row + asked.flows.num_rows]
            tasks = batch.tasks[task_row : task_row + asked.tasks.num_rows]
            if batch.accounts is not None:
                account = batch.accounts[flow_row : flow_row + len(flows)]
                self.writer.write_account(_account_table(asked, account))
            flow_row += len(flows)
            task_row += len(tasks)
            self.writer.write_flows(asked.layer, _flows_table(asked, flows, self.cut))
            self.writer.write_tasks(_tasks_table(asked, tasks))


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
        planes, first = self.planes.ravel(), network * np.int64(self.planes.shape[1])
        shared = planes.take(first + src) & planes.take(first + dst)
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


def _packets(flows: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Return the number of packets of each flow; ``cut`` has a row a network, see ``cuts``."""
    size = flows["message_bytes"].astype(np.int64)
    network = flows["network"]
    written, read, packet = (column.take(network) for column in cut.T)
    piece = np.where(flows["operation"] & 1, read, written)
    piece = np.where(flows["src"] == flows["dst"], size, piece)  # a copy is not cut into pieces
    whole, rest = np.divmod(size, piece)
    packets: np.ndarray = flows["messages"] * (whole * -(-piece // packet) + -(-rest // packet))
    return packets


def _names(column: pa.ChunkedArray) -> list[str]:
    """Return the texts of a column, in the order of its dictionary."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    chunks = column.unify_dictionaries().chunks
    names: list[str] = chunks[0].dictionary.to_pylist() if chunks else []
    return names


def _flows_table(asked: _Asked, flows: np.ndarray, cut: np.ndarray) -> pa.Table:
    messages = flows["messages"].astype(np.int64)
    size = flows["message_bytes"].astype(np.int64)
    columns = {name: asked.flows[name] for name in _KEPT_FLOWS}
    for name, known in _NUMBERED.items():
        names = asked.names[name]
        place = np.array([names.index(text) if text in names else 0 for text in known], np.int32)
        columns[name] = pa.DictionaryArray.from_arrays(
            pa.array(place[flows[name]]), pa.array(names, pa.string())
        )
    columns |= {
        "layer": np.full(len(flows), asked.layer, np.int16),
        "messages": messages.astype(np.int32),
        "message_bytes": size.astype(np.int32),
        "bytes": messages * size,
        "packets": _packets(flows, cut),
        "start_ps": flows["start_ps"],
        "first_byte_ps": flows["first_byte_ps"],
        "finish_ps": flows["finish_ps"],
        "fct_ps": flows["finish_ps"] - flows["start_ps"],
        "hops": flows["hops"].astype(np.int16),
        "queueing_ps": flows["queueing_ps"],
    }
    return pa.table(columns)


def _account_table(asked: _Asked, account: np.ndarray) -> pa.Table:
    columns: dict[str, Any] = {"layer": np.full(len(account), asked.layer, np.int16)}
    return pa.table(columns | {name: account[name] for name in _bridge.ACCOUNT_RECORD.names or ()})


def _tasks_table(asked: _Asked, tasks: np.ndarray) -> pa.Table:
    columns = {name: asked.tasks[name] for name in _KEPT_TASKS}
    measured = ["ready_ps", "start_ps", "finish_ps", "issued_ps", "arrived_ps"]
    return pa.table(columns | {name: tasks[name] for name in measured})


def _links_table(graph: nx.Graph, arrays: FabricArrays, stats: dict[str, np.ndarray]) -> pa.Table:
    names = arrays.node_names
    kinds = [str(graph.nodes[name]["kind"]) for name in names]
    known = list(dict.fromkeys(kinds))
    kind = np.array([known.index(name) for name in kinds], np.int64)
    levels = [f"{a}-{b}" for a in known for b in known]
    return pa.table(
        {
            "link": np.arange(arrays.n_links, dtype=np.int32),
            "src": _labels(arrays.link_src, names),
            "dst": _labels(arrays.link_dst, names),
            "plane": _labels(arrays.link_plane, arrays.plane_names),
            "level": _labels(kind[arrays.link_src] * len(known) + kind[arrays.link_dst], levels),
            "bandwidth_bytes_per_s": arrays.link_rate_bytes_per_s.astype(np.int64),
            **stats,
        }
    )


def _labels(codes: np.ndarray, names: list[str]) -> pa.DictionaryArray:
    """Return ``names[codes]``, with each name once and in the order in which they occur."""
    used, first, position = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(used), np.int32)
    place[order] = np.arange(len(used), dtype=np.int32)
    texts = pa.array([names[code] for code in used[order]], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(place[position]), texts)


def _summary(
    graph: nx.Graph,
    trace: Trace,
    rank_nodes: list[str],
    config: ReplayConfig,
    engine: _bridge.Engine,
    plan: FaultPlan | None,
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
        "n_virtual_lanes": config.n_virtual_lanes,
        "plane_policy": config.plane_policy,
        "path_policy": config.path_policy,
        "link_layer": link_layer(graph),
        "switching": switching(graph),
        "transports": {name: used_settings(one) for name, one in transports(graph).items()},
        "faults": [] if plan is None else plan.describe(),
        "fault_times_ps": []
        if plan is None
        else [[fault.time_ps, fault.time_ps + plan.detection_ps] for fault in plan.faults],
        **counters,
        "simulated_ps": engine.now_ps,
        "wall_s": wall_s,
        "packet_hops_per_s": counters["packet_hops"] / max(wall_s, 1e-9),
    }
