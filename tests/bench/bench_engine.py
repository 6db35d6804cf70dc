"""How fast packets move: the engine, stock ns-3 links, and a bare event loop, in one run.

    python tests/bench/bench_engine.py [--case full|small] [--payload 4096] [--repeat 3] [--json F]

moves one dispatch of all experts: EP320 on the whole CloudMatrix384 (``full``), EP32 on a slice of
32 dies (``small``). ``make bench`` moves many more cases, see ``test_bench_engine.py``. All three
move the same messages from the same sources to the same destinations, cut into the same packets,
sprayed round robin over planes and uplinks:

engine
    ubfabric: credits and finite buffers, cut-through, the issue model of the dies.
stock
    ``stock_p2p.cc``: ns-3's own PointToPointNetDevice, PointToPointChannel and DropTailQueue;
    store and forward, no credits, unbounded queues.
bare
    ``bare_loop.cc``: a plain event loop with credits and round robin outside ns-3; the floor.

The two C++ programs are compiled here, with the system's compiler (``CXX``) and ``-O3``. Figures
are processor time of the run alone, without building the fabric; the best of the repeats. Copies
within a die are left out: they cross no link.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

import ubfabric
from ubfabric import _bridge
from ubfabric.attributes import engine_attributes, packet_bytes
from ubfabric.decode import generate_trace
from ubfabric.placement import place_ranks
from ubfabric.routing import FabricArrays, compile_fabric
from ubfabric.topology import build_topology

FOLDER = Path(__file__).parent
_PS_PER_S = 10**12
#: Bytes of a message of a dispatch, as in the workload.
_MESSAGE_BYTES = 7_680


def _ub_only(base: str, servers: int) -> dict[str, Any]:
    """Return a machine of so many servers with its dies and UB planes and nothing else."""
    return {
        "base": base,
        "name": f"{base}-{servers}-servers",
        "servers": servers,
        "server": {"cpus": 0},
        "endpoints": {"cpu": None},
        "ub": {"cpu_link": None},
        "rdma": None,
        "vpc": None,
    }


#: Machines by name: what ``build_topology`` takes. Those by number of dies are UB planes only.
MACHINES: dict[str, Any] = {
    "cloudmatrix384": "cloudmatrix384",
    "leaf-spine-384": "leaf-spine-384",
    "32 dies": "slice-32-dies",
    "192 dies": _ub_only("cloudmatrix384", 12),
    "768 dies": _ub_only("cloudmatrix384", 48),
    "3,072 dies": _ub_only("supernode-8192", 192),
    "16,384 dies": _ub_only("supernode-8192", 1024),
}


@dataclass(frozen=True)
class Spec:
    """What to move, and where.

    Attributes
    ----------
    name : str
    machine : str
        A key of :data:`MACHINES`.
    traffic : {'dispatch', 'uniform', 'all-to-all'}
        The first dispatch of a decode step; messages to destinations drawn at random; as
        ``ubfabric.all_to_all_trace``.
    ranks : int
        Dies that take part; all of the machine if 0.
    amount : float
        Of a dispatch its messages times this; of the others the messages of a rank, of 8 KiB in
        an ``all-to-all`` and 7,680 B otherwise.
    workload : str
        Of a dispatch.
    payload_bytes : int
    load : float
        Offered load as a share of the rate of a source's ports; as fast as its cores issue if 0.
    """

    name: str
    machine: str = "cloudmatrix384"
    traffic: str = "dispatch"
    ranks: int = 320
    amount: float = 1
    workload: str = "deepseek-r1-decode-ep320"
    payload_bytes: int = 4_096
    load: float = 0


CASES = {
    "full": Spec("EP320 on cloudmatrix384"),
    "small": Spec("EP32 on 32 dies", "32 dies", ranks=32, workload="decode-ep32-sample"),
}


@dataclass(frozen=True)
class Case:
    """Messages on one fabric."""

    spec: Spec
    arrays: FabricArrays
    header_bytes: int  #: what a full packet has on the wire beside its payload
    attributes: dict[str, str | int]  #: of the engine, as a replay sets them
    src: np.ndarray  #: by flow: node
    dst: np.ndarray
    messages: np.ndarray
    message_bytes: np.ndarray
    message_ps: int  #: what each message costs an engine beside its own cost


@functools.lru_cache(maxsize=1)
def fabric(machine: str) -> tuple[nx.MultiGraph, FabricArrays]:
    """Return a machine as a graph and as arrays."""
    graph = build_topology(MACHINES[machine])
    return graph, compile_fabric(graph)


@functools.lru_cache(maxsize=1)
def _dispatch(workload: str, ranks: int) -> tuple[np.ndarray, ...]:
    """Return src, dst, messages, bytes: first microbatch, dispatch of the first MoE layer."""
    overrides: dict[str, int | str] = {}
    if workload.endswith("ep320") and ranks != 320:
        # One replica of the shared expert to every 8 or so of the others; the slots that are left
        # replicate routed ones.
        a_rank = -(-288 // ranks)
        shared = max(ranks, 32) if ranks < 320 else ranks // 9
        slots = ranks * a_rank
        if slots - 256 - shared < 0:
            a_rank += 1
            slots = ranks * a_rank
        overrides = {
            "deployment.ranks": ranks,
            "deployment.experts_per_rank": a_rank,
            "deployment.shared_replicas": shared,
            "deployment.redundant_experts": slots - 256 - shared,
            # 40 experts of EP8 do not fit in a die; here only their messages count
            "machine.die.hbm_capacity": "1 TB",
        }
    trace = generate_trace(workload, layers=1, seed=1, overrides=overrides)
    chunk = next(chunk for chunk in trace.chunks() if chunk.label == "moe")
    flows = chunk.flows.to_pandas()
    flows = flows[(flows["phase"] == "dispatch") & (flows["microbatch"] == 0)]
    names = ("src", "dst", "messages", "message_bytes")
    return tuple(flows[name].to_numpy().astype(np.int64) for name in names)


def _flows(spec: Spec, ranks: int) -> tuple[np.ndarray, ...]:
    """Return src, dst (ranks), messages and bytes of each flow; in table order."""
    rng = np.random.default_rng(1)
    if spec.traffic == "dispatch":
        src, dst, messages, size = _dispatch(spec.workload, ranks)
        whole = int(spec.amount)
        messages = messages * whole + rng.binomial(messages, spec.amount - whole)
        return src, dst, messages, size
    if spec.traffic == "all-to-all":
        (chunk,) = ubfabric.all_to_all_trace(ranks, 8_192).chunks()
        src, dst = (chunk.flows[name].to_numpy().astype(np.int64) for name in ("src", "dst"))
        ones = np.ones(len(src), np.int64)
        return src, dst, ones * int(spec.amount), ones * 8_192
    src = np.repeat(np.arange(ranks), int(spec.amount))
    dst = (src + rng.integers(1, ranks, len(src))) % ranks
    ones = np.ones(len(src), np.int64)
    return src, dst, ones, ones * _MESSAGE_BYTES


def load_case(spec: Spec) -> Case:
    """Return what a specification describes."""
    graph, arrays = fabric(spec.machine)
    dies = [node for node, kind in graph.nodes(data="kind") if kind == "die"]
    ranks = spec.ranks or len(dies)
    src, dst, messages, size = _flows(spec, ranks)
    used = (src != dst) & (messages > 0)
    number = {node: n for n, node in enumerate(arrays.node_names)}
    node = np.array([number[name] for name in place_ranks(graph, "packed", ranks)])
    message_ps = 0
    if spec.load:
        first = int(node[0])
        ports = (arrays.link_src == first) & (arrays.plane_network[arrays.link_plane] == 0)
        ports[arrays.direct_link] = False
        rate = int(arrays.link_rate_bytes_per_s[ports].sum())
        period = int(arrays.node_issue_engines[first]) * _MESSAGE_BYTES * _PS_PER_S
        message_ps = int(period / (spec.load * rate)) - int(arrays.node_issue_cost_ps[first])
    return Case(
        spec=spec,
        arrays=arrays,
        header_bytes=packet_bytes(graph, spec.payload_bytes)["ub"] - spec.payload_bytes,
        attributes=engine_attributes(graph, payload_bytes=spec.payload_bytes, n_virtual_lanes=1),
        src=node[src[used]],
        dst=node[dst[used]],
        messages=messages[used],
        message_bytes=size[used],
        message_ps=message_ps,
    )


# ------------------------------------------------------------------------------ engine


def has_threads() -> bool:
    """Return whether a replay can be spread over threads."""
    return "threads" in inspect.signature(ubfabric.replay).parameters


class EngineRun:
    """The engine with a case loaded; every source sends its flows as one task, from time 0.

    Parameters
    ----------
    case : Case
    threads : int, optional
        Threads that planes are spread over, where the engine has them.
    """

    def __init__(self, case: Case, threads: int = 0) -> None:
        sources, task = np.unique(case.src, return_inverse=True)
        self.flows = _bridge.flow_records(len(case.src))
        for name in ("src", "dst", "messages", "message_bytes"):
            self.flows[name] = getattr(case, name)
        self.flows["send_task"], self.flows["wait_task"] = task, _bridge.NONE
        tasks = np.zeros(len(sources), _bridge.TASK_RECORD)
        tasks["endpoint"], tasks["stream"] = sources, np.arange(len(sources))
        tasks["message_ps"] = case.message_ps
        tasks["send_count"] = np.bincount(task)
        tasks["send_first"] = np.cumsum(tasks["send_count"]) - tasks["send_count"]
        extra: dict[str, str | int] = {"Threads": threads} if threads else {}
        self.engine = _bridge.Engine(case.arrays, case.attributes | {"Seed": 1} | extra)
        self.engine.add_chunk(
            self.flows,
            tasks,
            first_task=0,
            send_order=np.argsort(task, kind="stable").astype(np.uint32),
            dep_start=np.zeros(len(tasks) + 1, np.uint64),
            deps=np.zeros(0, np.uint64),
            open_order=np.zeros(0, np.uint32),
            is_last=True,
        )

    def run(self) -> None:
        """Move everything; this is what is timed."""
        cpu, wall = time.process_time(), time.perf_counter()
        self.engine.run()
        self.cpu_s, self.wall_s = time.process_time() - cpu, time.perf_counter() - wall

    def finish(self) -> dict[str, Any]:
        """Close the engine and return what it did."""
        left, counters = self.engine.leftover(), self.engine.counters
        self.engine.close()
        if left:
            raise RuntimeError(f"the engine left something behind: {left}")
        return {
            "packets": counters["packets"],
            "bytes": counters["bytes_delivered"],
            "packet_hops": counters["packet_hops"],
            "events": counters["fabric_events"],
            "simulated_ps": int(self.flows["finish_ps"].max()),
            "cpu_s": self.cpu_s,
            "wall_s": self.wall_s,
        }


def run_engine(case: Case, threads: int = 0) -> dict[str, Any]:
    """Move the case by the engine."""
    run = EngineRun(case, threads)
    run.run()
    return run.finish()


# ------------------------------------------------------------------------ the other two


def packet_order(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return flow and payload of every packet by source, as the engine issues them, and bounds.

    Messages round robin over the flows of a source, in table order.
    """
    flow = np.repeat(np.arange(len(case.src)), case.messages)
    turn = np.arange(len(flow)) - np.repeat(np.cumsum(case.messages) - case.messages, case.messages)
    flow = flow[np.lexsort((flow, turn, case.src[flow]))]
    size = case.message_bytes[flow]
    payload_bytes = case.spec.payload_bytes
    count = -(-size // payload_bytes)
    last = np.cumsum(count) - 1
    payload = np.full(count.sum(), payload_bytes, np.int64)
    payload[last] = size - (count - 1) * payload_bytes
    flow = np.repeat(flow, count)
    _, first = np.unique(case.src[flow], return_index=True)
    return flow, payload, np.append(first, len(flow))


def _source_links(case: Case, flow: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return the link on which each packet leaves its source: planes in turn, or a direct one."""
    arrays = case.arrays
    key = case.src[flow] * arrays.n_nodes + case.dst[flow]
    direct = arrays.link_src[arrays.direct_link].astype(np.int64) * arrays.n_nodes
    direct += arrays.direct_dst
    order = np.argsort(direct, kind="stable")
    at = np.minimum(np.searchsorted(direct[order], key), max(len(direct) - 1, 0))
    is_direct = direct[order][at] == key if len(direct) else np.zeros(len(key), bool)
    ports = np.flatnonzero(arrays.plane_network[arrays.link_plane] == 0)
    ports = ports[~np.isin(ports, arrays.direct_link)]
    ports = ports[np.argsort(arrays.link_src[ports], kind="stable")]
    first = np.searchsorted(arrays.link_src[ports], np.arange(arrays.n_nodes + 1))
    link = np.empty(len(flow), np.int64)
    for source, (begin, end) in enumerate(pairwise(bounds.tolist())):
        node = int(case.src[flow[begin]])
        mine = ports[first[node] : first[node + 1]]
        # sources begin at different planes
        turn = np.cumsum(~is_direct[begin:end]) - 1 + source
        link[begin:end] = mine[turn % len(mine)]
    if is_direct.any():
        link[is_direct] = arrays.direct_link[order][at[is_direct]]
    return link


def _source_gaps(
    case: Case, flow: np.ndarray, payload: np.ndarray, bounds: np.ndarray
) -> list[int]:
    """Return the mean time between packets of each source, as its engines issue them."""
    arrays = case.arrays
    total = np.bincount(case.src, case.messages, arrays.n_nodes)
    gaps = []
    for begin, end in pairwise(bounds.tolist()):
        node = int(case.src[flow[begin]])
        prepare = (int(arrays.node_issue_cost_ps[node]) + case.message_ps) * float(total[node])
        size = int(payload[begin:end].sum())
        stream = size * _PS_PER_S / int(arrays.node_engine_bytes_per_s[node])
        busy = max(prepare, stream) if arrays.node_overlaps_issue[node] else prepare + stream
        gaps.append(int(busy / int(arrays.node_issue_engines[node]) / (end - begin)))
    return gaps


def write_moves(case: Case, path: Path) -> int:
    """Write the case for the C++ programs (``moves.h``) and return its number of packets."""
    arrays = case.arrays
    is_ub = arrays.plane_network[arrays.link_plane] == 0
    plane_of = np.zeros(arrays.n_nodes, np.int64)
    plane_of[arrays.link_src] = arrays.link_plane
    destinations = np.unique(case.dst)
    flow, payload, bounds = packet_order(case)
    columns = [
        arrays.node_is_endpoint,
        arrays.node_forward_latency_ps,
        arrays.node_buffer_bytes,
        arrays.link_src,
        arrays.link_dst,
        arrays.link_rate_bytes_per_s,
        arrays.link_delay_ps,
        is_ub,
        plane_of,
        arrays.switch_row,
        arrays.endpoint_class[:, destinations].reshape(-1),
        arrays.endpoint_slot[:, destinations].reshape(-1),
        arrays.table,
        arrays.local,
        arrays.group_start,
        arrays.group_link,
        case.src[flow[bounds[:-1]]],
        bounds,
        _source_gaps(case, flow, payload, bounds),
        np.searchsorted(destinations, case.dst[flow]),
        _source_links(case, flow, bounds),
        payload,
    ]
    with path.open("wb") as file:
        for column in columns:
            values = np.ascontiguousarray(column, np.int64)
            np.array([len(values)], np.int64).tofile(file)
            values.tofile(file)
        np.array([len(destinations), case.header_bytes], np.int64).tofile(file)
    return len(flow)


def compile_program(name: str, folder: Path) -> Path:
    """Compile one of the C++ programs and return its path."""
    program = folder / name
    command = [os.environ.get("CXX", "g++"), "-std=c++20", "-O3", "-o", str(program)]
    command += [str(FOLDER / f"{name}.cc")]
    if name == "stock_p2p":
        ns3 = _bridge.ns3_path()
        libraries = ["point-to-point", "network", "stats", "core"]
        command += [f"-I{ns3 / 'include'}", f"-L{ns3 / 'lib64'}"]
        command += ["-DNS3_BUILD_PROFILE_RELEASE", "-DNS3_LOG_ENABLE", "-DNS3_ASSERT_ENABLE"]
        command += [f"-l:libns{_bridge.NS3_VERSION}-{library}.so" for library in libraries]
        command += [f"-Wl,-rpath,{ns3 / 'lib64'}", "-Wl,--allow-shlib-undefined"]
    subprocess.run(command, check=True)
    return program


def run_program(program: Path, moves: Path) -> dict[str, Any]:
    """Run a C++ program on a case and return its report."""
    done = subprocess.run([program, moves], check=True, capture_output=True, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


# ------------------------------------------------------------------------------ report


class Comparison:
    """One case moved by all three, in turn, so that a busy moment of the machine hits all.

    Parameters
    ----------
    case : Case
    programs : mapping of str to Path
        ``stock`` and ``bare``, compiled.
    folder : Path
        For a file that the programs read.
    threads : int, optional
        Of the engine.
    """

    def __init__(
        self, case: Case, programs: dict[str, Path], folder: Path, threads: int = 0
    ) -> None:
        self.case, self.programs, self.threads = case, programs, threads
        self.best: dict[str, dict[str, Any]] = {}
        self._moves = folder / "moves.bin"
        write_moves(case, self._moves)

    def run_programs(self) -> None:
        """Let the comparisons move the case once."""
        for mover, program in self.programs.items():
            self.note(mover, run_program(program, self._moves))

    def start_engine(self) -> EngineRun:
        """Return the engine, ready to run."""
        return EngineRun(self.case, self.threads)

    def note(self, mover: str, report: dict[str, Any]) -> None:
        """Keep a report if it is the quickest of its mover.

        Raises
        ------
        RuntimeError
            If it did not move the packets that another mover moved.
        """
        for other in self.best.values():
            for key in ("packets", "bytes", "packet_hops"):
                if report[key] != other[key]:
                    raise RuntimeError(f"{mover}: {key} {report[key]}, another has {other[key]}")
        report["packet_hops_per_s"] = report["packet_hops"] / report["cpu_s"]
        report["events_per_packet_hop"] = report["events"] / report["packet_hops"]
        report["ns_per_packet_hop"] = report["cpu_s"] * 1e9 / report["packet_hops"]
        before = self.best.get(mover)
        if before is None or report["cpu_s"] < before["cpu_s"]:
            self.best[mover] = report

    def row(self, group: str) -> dict[str, Any]:
        """Return one line of the report, flat."""
        engine, spec = self.best["engine"], self.case.spec
        row: dict[str, Any] = {
            "group": group,
            "case": spec.name,
            "threads": self.threads or 1,
            "payload_bytes": spec.payload_bytes,
            "packets": engine["packets"],
            "packet_hops": engine["packet_hops"],
            "simulated_us": engine["simulated_ps"] / 1e6,
            "m_hops_per_s": engine["packet_hops"] / engine["cpu_s"] / 1e6,
            "m_hops_per_wall_s": engine["packet_hops"] / engine["wall_s"] / 1e6,
            "ns_per_hop": engine["ns_per_packet_hop"],
            "events_per_hop": engine["events_per_packet_hop"],
        }
        for mover in ("stock", "bare"):
            report = self.best.get(mover)
            row[f"{mover}_ns_per_hop"] = report and report["ns_per_packet_hop"]
            row[f"{mover}_over_engine"] = report and report["cpu_s"] / engine["cpu_s"]
        return row


def compile_programs(folder: Path) -> dict[str, Path]:
    """Return the two C++ programs by mover."""
    return {
        "stock": compile_program("stock_p2p", folder),
        "bare": compile_program("bare_loop", folder),
    }


def measure(spec: Spec, repeat: int) -> Comparison:
    """Move a case by all three, the best of so many times."""
    with tempfile.TemporaryDirectory() as folder:
        compared = Comparison(load_case(spec), compile_programs(Path(folder)), Path(folder))
        for _ in range(repeat):
            run = compared.start_engine()
            run.run()
            compared.note("engine", run.finish())
            compared.run_programs()
    return compared


#: Columns of the report that people see: name in a row, heading, format.
COLUMNS = (
    ("case", "case", "{}"),
    ("packet_hops", "packet-hops", "{:,}"),
    ("m_hops_per_s", "M hops/s", "{:.2f}"),
    ("m_hops_per_wall_s", "by wall", "{:.2f}"),
    ("ns_per_hop", "ns/hop", "{:.0f}"),
    ("events_per_hop", "events/hop", "{:.2f}"),
    ("stock_over_engine", "stock ns-3", "{:.1f} x"),
    ("bare_over_engine", "bare loop", "{:.2f} x"),
)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return rows of :meth:`Comparison.row` as a table; times of the others over the engine's."""
    return "\n".join(_markdown_lines(rows))


def _markdown_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    cells = [[heading for _, heading, _ in COLUMNS]]
    for row in rows:
        cells.append(
            ["-" if row[key] is None else form.format(row[key]) for key, _, form in COLUMNS]
        )
    width = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    for number, line in enumerate(cells):
        yield "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, width, strict=True)) + " |"
        if number == 0:
            yield "| " + " | ".join("-" * w for w in width) + " |"


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=[*CASES, "all"], default="all")
    parser.add_argument("--payload", type=int, default=4_096, help="bytes of a packet's payload")
    parser.add_argument("--repeat", type=int, default=3, help="best of so many")
    parser.add_argument("--share", type=float, default=1.0, help="share of the messages")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    options = parser.parse_args(arguments)
    names = list(CASES) if options.case == "all" else [options.case]
    rows = []
    for name in names:
        spec = replace(CASES[name], payload_bytes=options.payload, amount=options.share)
        rows.append(measure(spec, options.repeat).row(name))
    sys.stdout.write(markdown(rows) + "\n")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
