"""How fast packets move: the engine, stock ns-3 links, and a bare event loop, in one run.

    python tests/bench/bench_engine.py [--case full|small] [--payload 4096] [--repeat 3] [--json F]

moves one dispatch of all experts: EP320 on the whole CloudMatrix384 (``full``), EP32 on a slice of
32 dies (``small``). All three move the same messages from the same sources to the same
destinations, cut into the same packets, sprayed round robin over planes and uplinks:

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
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ubfabric import _bridge
from ubfabric.attributes import engine_attributes, packet_bytes
from ubfabric.decode import generate_trace
from ubfabric.placement import place_ranks
from ubfabric.routing import FabricArrays, compile_fabric
from ubfabric.topology import build_topology

FOLDER = Path(__file__).parent
CASES = {
    "full": ("cloudmatrix384", "deepseek-r1-decode-ep320"),
    "small": ("slice-32-dies", "decode-ep32-sample"),
}
_PS_PER_S = 10**12


@dataclass(frozen=True)
class Case:
    """One dispatch on one fabric."""

    name: str
    arrays: FabricArrays
    header_bytes: int  #: what a full packet has on the wire beside its payload
    payload_bytes: int
    attributes: dict[str, str | int]  #: of the engine, as a replay sets them
    src: np.ndarray  #: by flow: node
    dst: np.ndarray
    messages: np.ndarray
    message_bytes: np.ndarray


def load_case(name: str, payload_bytes: int, share: float = 1.0) -> Case:
    """Return the first microbatch's dispatch of the first MoE layer.

    Parameters
    ----------
    name : {'full', 'small'}
    payload_bytes : int
    share : float
        Share of each flow's messages to move.
    """
    topology, workload = CASES[name]
    graph = build_topology(topology)
    trace = generate_trace(workload, layers=1, seed=1)
    chunk = next(chunk for chunk in trace.chunks() if chunk.label == "moe")
    flows = chunk.flows.to_pandas()
    flows = flows[(flows["phase"] == "dispatch") & (flows["microbatch"] == 0)]
    flows = flows[flows["src"] != flows["dst"]]
    messages = np.floor(flows["messages"].to_numpy() * share + 0.5).astype(np.int64)
    flows, messages = flows[messages > 0], messages[messages > 0]
    arrays = compile_fabric(graph)
    number = {node: n for n, node in enumerate(arrays.node_names)}
    policy = trace.metadata.get("rank_placement") or "packed"
    node = np.array([number[name] for name in place_ranks(graph, policy, trace.n_ranks)])
    return Case(
        name=name,
        arrays=arrays,
        header_bytes=packet_bytes(graph, payload_bytes)["ub"] - payload_bytes,
        payload_bytes=payload_bytes,
        attributes=engine_attributes(graph, payload_bytes=payload_bytes, n_virtual_lanes=1),
        src=node[flows["src"]],
        dst=node[flows["dst"]],
        messages=messages,
        message_bytes=flows["message_bytes"].to_numpy().astype(np.int64),
    )


# ------------------------------------------------------------------------------ engine


def run_engine(case: Case) -> dict[str, Any]:
    """Move the case by the engine; every source sends its flows as one task, from time 0."""
    sources, task = np.unique(case.src, return_inverse=True)
    flows = np.zeros(len(case.src), _bridge.FLOW_RECORD)
    for name in ("src", "dst", "messages", "message_bytes"):
        flows[name] = getattr(case, name)
    flows["send_task"], flows["wait_task"] = task, _bridge.NONE
    tasks = np.zeros(len(sources), _bridge.TASK_RECORD)
    tasks["endpoint"], tasks["stream"] = sources, np.arange(len(sources))
    tasks["send_count"] = np.bincount(task)
    tasks["send_first"] = np.cumsum(tasks["send_count"]) - tasks["send_count"]
    with _bridge.Engine(
        case.arrays,
        case.attributes | {"Seed": 1},
    ) as engine:
        engine.add_chunk(
            flows,
            tasks,
            first_task=0,
            send_order=np.argsort(task, kind="stable").astype(np.uint32),
            dep_start=np.zeros(len(tasks) + 1, np.uint64),
            deps=np.zeros(0, np.uint64),
            open_order=np.zeros(0, np.uint32),
            is_last=True,
        )
        start = time.process_time()
        engine.run()
        cpu_s = time.process_time() - start
        left = engine.leftover()
        if left:
            raise RuntimeError(f"the engine left something behind: {left}")
        counters = engine.counters
    return {
        "packets": counters["packets"],
        "bytes": counters["bytes_delivered"],
        "packet_hops": counters["packet_hops"],
        "events": counters["fabric_events"],
        "simulated_ps": int(flows["finish_ps"].max()),
        "cpu_s": cpu_s,
    }


# ------------------------------------------------------------------------ the other two


def packet_order(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return flow and payload of every packet by source, as the engine issues them, and bounds.

    Messages round robin over the flows of a source, in table order.
    """
    flow = np.repeat(np.arange(len(case.src)), case.messages)
    turn = np.arange(len(flow)) - np.repeat(np.cumsum(case.messages) - case.messages, case.messages)
    flow = flow[np.lexsort((flow, turn, case.src[flow]))]
    size = case.message_bytes[flow]
    count = -(-size // case.payload_bytes)
    last = np.cumsum(count) - 1
    payload = np.full(count.sum(), case.payload_bytes, np.int64)
    payload[last] = size - (count - 1) * case.payload_bytes
    flow = np.repeat(flow, count)
    _, first = np.unique(case.src[flow], return_index=True)
    return flow, payload, np.append(first, len(flow))


def write_moves(case: Case, path: Path) -> int:
    """Write the case for the C++ programs (``moves.h``) and return its packet-hops."""
    arrays = case.arrays
    is_ub = arrays.plane_network[arrays.link_plane] == 0
    destinations = np.unique(case.dst)
    group = np.full((arrays.n_nodes, len(destinations)), -1, np.int64)
    for node in np.flatnonzero(arrays.switch_row >= 0):
        plane = arrays.link_plane[np.flatnonzero(arrays.link_src == node)[0]]
        if arrays.plane_network[plane] != 0:
            continue
        klass = arrays.endpoint_class[plane, destinations]
        entry = arrays.table[arrays.switch_row[node] + klass].astype(np.int64)
        near = entry <= -2
        slot = arrays.endpoint_slot[plane, destinations[near]]
        entry[near] = arrays.local[-(entry[near] + 2) + slot]
        group[node] = entry

    flow, payload, bounds = packet_order(case)
    direct = {
        (node, int(arrays.direct_dst[at])): int(arrays.direct_link[at])
        for node in range(arrays.n_nodes)
        for at in range(arrays.direct_start[node], arrays.direct_start[node + 1])
    }
    link = np.empty(len(flow), np.int64)
    gaps = []
    for source, (begin, end) in enumerate(pairwise(bounds.tolist())):
        node = int(case.src[flow[begin]])
        ports = np.flatnonzero((arrays.link_src == node) & is_ub)
        ports = ports[~np.isin(ports, arrays.direct_link)]
        mine = slice(begin, end)
        own = np.array([direct.get((node, int(d)), -1) for d in case.dst[flow[mine]]])
        turn = np.cumsum(own < 0) - 1 + source  # sources begin at different planes
        link[mine] = np.where(own >= 0, own, ports[turn % len(ports)])
        # The mean rate of the issue model: all engines take their messages one after another.
        issue = arrays.node_issue_cost_ps[node] * case.messages[case.src == node].sum()
        stream = payload[mine].sum() * _PS_PER_S / arrays.node_engine_bytes_per_s[node]
        gaps.append(int((issue + stream) / arrays.node_issue_engines[node] / (end - begin)))

    columns = [
        arrays.node_is_endpoint,
        arrays.node_forward_latency_ps,
        arrays.node_buffer_bytes,
        arrays.link_src,
        arrays.link_dst,
        arrays.link_rate_bytes_per_s,
        arrays.link_delay_ps,
        is_ub,
        group.reshape(-1),
        arrays.group_start,
        arrays.group_link,
        case.src[flow[bounds[:-1]]],
        bounds,
        gaps,
        np.searchsorted(destinations, case.dst[flow]),
        link,
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


def measure(name: str, payload_bytes: int, repeat: int, share: float = 1.0) -> dict[str, Any]:
    """Move a case by all three and return what each did.

    Returns
    -------
    dict
        ``case``, ``engine``, ``stock``, ``bare``. The last three hold packets, bytes,
        packet_hops, events, simulated_ps, cpu_s (best), all_cpu_s, packet_hops_per_s,
        events_per_packet_hop, ns_per_packet_hop.

    Raises
    ------
    RuntimeError
        If the three did not move the same packets over the same number of links.
    """
    case = load_case(name, payload_bytes, share)
    with tempfile.TemporaryDirectory() as folder:
        moves = Path(folder) / "moves.bin"
        write_moves(case, moves)
        stock = compile_program("stock_p2p", Path(folder))
        bare = compile_program("bare_loop", Path(folder))
        movers = {
            "engine": lambda: run_engine(case),
            "stock": lambda: run_program(stock, moves),
            "bare": lambda: run_program(bare, moves),
        }
        result: dict[str, Any] = {}
        times: dict[str, list[float]] = {mover: [] for mover in movers}
        for _ in range(repeat):  # in turn, so that a busy moment of the machine hits all
            for mover, move in movers.items():
                result[mover] = move()
                times[mover].append(result[mover]["cpu_s"])
    for mover, row in result.items():
        for key in ("packets", "bytes", "packet_hops"):
            if row[key] != result["engine"][key]:
                raise RuntimeError(
                    f"{mover}: {key} {row[key]}, the engine has {result['engine'][key]}"
                )
        row["cpu_s"], row["all_cpu_s"] = min(times[mover]), times[mover]
        row["packet_hops_per_s"] = row["packet_hops"] / row["cpu_s"]
        row["events_per_packet_hop"] = row["events"] / row["packet_hops"]
        row["ns_per_packet_hop"] = row["cpu_s"] * 1e9 / row["packet_hops"]
    topology, workload = CASES[name]
    result["case"] = {
        "name": name,
        "topology": topology,
        "workload": workload,
        "phase": "dispatch",
        "share": share,
        "payload_bytes": payload_bytes,
        "header_bytes": case.header_bytes,
        "sources": len(np.unique(case.src)),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    return result


def table(result: dict[str, Any]) -> str:
    """Return a measurement as text for people."""
    case, engine = result["case"], result["engine"]
    lines = [
        f"{case['name']}: one {case['phase']} of {case['workload']} on {case['topology']}, "
        f"{case['payload_bytes']:,} B packets, one core"
        + (f", {case['share']:.0%} of the messages" if case["share"] != 1 else ""),
        f"{engine['packets']:,} packets, {engine['packet_hops']:,} packet-hops, "
        f"{engine['bytes'] / 1e6:,.0f} MB",
        "",
        f"{'':8}{'M hops/s':>10}{'ns/hop':>9}{'events/hop':>12}{'CPU s':>9}{'simulated us':>14}"
        f"{'engine is':>14}",
    ]
    for mover in ("engine", "stock", "bare"):
        row = result[mover]
        ratio = row["cpu_s"] / engine["cpu_s"]
        lines.append(
            f"{mover:8}{row['packet_hops_per_s'] / 1e6:10.2f}{row['ns_per_packet_hop']:9.0f}"
            f"{row['events_per_packet_hop']:12.2f}{row['cpu_s']:9.3f}"
            f"{row['simulated_ps'] / 1e6:14.1f}" + (f"{ratio:12.2f} x" if mover != "engine" else "")
        )
    return "\n".join(lines)


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
    results = []
    for name in names:
        results.append(measure(name, options.payload, options.repeat, options.share))
        sys.stdout.write(table(results[-1]) + "\n\n")
        sys.stdout.flush()
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
