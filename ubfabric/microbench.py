"""The measurements that people make on a real machine, made on a simulated one.

Latency and bandwidth of reads and writes of remote memory between two endpoints, by cores and by
SDMA, and the fused dispatch and combine of a mixture-of-experts layer among all ranks. Each runs
packet by packet through :func:`ubfabric.replay`; what it returns can be held against a published
figure.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import networkx as nx
import numpy as np
import pyarrow as pa

from ubfabric.errors import SpecError, TopologyError, UbfabricWarning
from ubfabric.placement import place_ranks
from ubfabric.replay import replay
from ubfabric.results import RunResult
from ubfabric.trace import FLOW_SCHEMA, TASK_SCHEMA, Trace, TraceChunk

#: Payload of one load or store (UB-Mem, ns-3-UB: 512 B; the latency test of the paper's table 1).
REQUEST_BYTES = 512

Operation = Literal["read", "write"]


def with_settings(
    graph: nx.Graph,
    *,
    transport: Mapping[str, Any] | None = None,
    die: Mapping[str, Any] | None = None,
) -> nx.Graph:
    """Return a copy of a fabric with another transport of network ub or other dies.

    Parameters
    ----------
    graph : networkx.Graph
    transport : mapping, optional
        Settings of ``transports["ub"]`` to replace, such as ``{"name": "load-store"}``.
    die : mapping, optional
        Attributes of all dies to replace, such as ``{"issue_engines": 48}``.
    """
    changed = copy.deepcopy(graph)
    if transport:
        settings = dict(changed.graph.get("transports", {}))
        settings["ub"] = dict(settings.get("ub", {})) | dict(transport)
        changed.graph["transports"] = settings
    for _, node in changed.nodes(data=True):
        if die and node["kind"] == "die":
            node.update(die)
    return changed


def _flow(src: int, dst: int, phase: str, messages: int, size: int, operation: str) -> dict:
    row: dict[str, Any] = {"phase": phase, "layer": 0, "microbatch": 0, "src": src, "dst": dst}
    row |= {"messages": messages, "message_bytes": size, "network": "ub", "service_level": 0}
    return row | {"start_ps": -1, "operation": operation}


def _task(number: int, rank: int, kind: str, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"task": number, "rank": rank, "stream": 0, "kind": kind, "layer": 0}
    row |= {"microbatch": 0, "duration_ps": 0, "sends": "", "waits": "", "depends_on": []}
    return row | {"message_cost_ps": 0, "memory_ps": 0} | changes


def _run(
    graph: nx.Graph, flows: pa.Table, tasks: list[dict[str, Any]], nodes: Sequence[str], **how: Any
) -> tuple[Any, Any]:
    """Return flows and tasks of a replay of one layer, as DataFrames."""
    chunk = TraceChunk(0, "", flows, pa.Table.from_pylist(tasks, schema=TASK_SCHEMA))
    metadata = {"schema": 1, "n_ranks": len(nodes), "spec": None, "seed": how.pop("seed", 1)}
    trace = Trace(metadata | {"rank_nodes": list(nodes)}, 1, lambda: iter([chunk]))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UbfabricWarning)
        out = Path(folder) / "run"
        result: RunResult = replay(graph, trace, out, compress=False, progress=False, **how)
        return result.flows(), result.tasks()


def _probe(
    graph: nx.Graph, src: str, dst: str, operation: Operation, flow: Mapping[str, Any], **how: Any
) -> tuple[int, int]:
    """Return when a flow of rank 0 is over, and when rank 0 knows that all is issued."""
    reads = operation == "read"
    flows = pa.Table.from_pylist([dict(flow)], schema=FLOW_SCHEMA)
    waits = {"waits": "probe"}
    tasks = [_task(0, 0, "probe", sends="probe", **(waits if reads else {}))]
    if not reads:
        tasks.append(_task(1, 1, "probe", **waits))
    found, done = _run(graph, flows, tasks, [src, dst], **how)
    return int(found["finish_ps"].max()), int(done["issued_ps"].max())


def _check_operation(operation: str) -> None:
    if operation not in ("read", "write"):
        raise SpecError(f"operation: found {operation!r}, allowed read, write")


def _two_ranks(
    graph: nx.Graph, src: str, dst: str, operation: Operation, messages: int, size: int, **how: Any
) -> int:
    """Return the time until rank 0 has read all, or knows that all is written."""
    _check_operation(operation)
    flow = _flow(0, 1, "probe", messages, size, operation)
    finish_ps, issued_ps = _probe(graph, src, dst, operation, flow, **how)
    return finish_ps if operation == "read" else issued_ps


def memory_latency_ps(
    graph: nx.Graph, src: str, dst: str, operation: Operation, n_bytes: int = REQUEST_BYTES
) -> int:
    """Return the time of one load or store of one core, there and back.

    Parameters
    ----------
    graph : networkx.Graph
    src, dst : str
        Names of the endpoint whose core asks and of the one whose memory is read or written.
    operation : {'read', 'write'}
    n_bytes : int
        Size, at most a request's.

    Returns
    -------
    int
        Picoseconds from the start of issuing until the data are there (read), or the answer
        that they are written (write).
    """
    memory = with_settings(graph, transport={"name": "load-store"})
    return _two_ranks(memory, src, dst, operation, 1, n_bytes, payload_bytes=REQUEST_BYTES)


def memory_bandwidth_bytes_per_s(
    graph: nx.Graph,
    src: str,
    dst: str,
    operation: Operation,
    *,
    cores: int = 48,
    bytes_a_core: int = 1 << 20,
) -> float:
    """Return the rate at which all cores of an endpoint read or write another's memory.

    Parameters
    ----------
    graph : networkx.Graph
    src, dst : str
        Names of the endpoint whose cores ask and of the one whose memory is read or written.
    operation : {'read', 'write'}
    cores : int
        Cores that ask at the same time.
    bytes_a_core : int
        Size of the block that each moves.
    """
    memory = with_settings(graph, transport={"name": "load-store"})
    memory.nodes[src]["issue_engines"] = cores
    time_ps = _two_ranks(
        memory, src, dst, operation, cores, bytes_a_core, payload_bytes=REQUEST_BYTES
    )
    return cores * bytes_a_core / time_ps * 1e12


def sdma_bandwidth_bytes_per_s(
    graph: nx.Graph,
    src: str,
    dst: str,
    operation: Operation,
    block_bytes: int,
    *,
    total_bytes: int = 128 << 20,
    network: str = "ub",
) -> float:
    """Return the rate at which the SDMA engines of an endpoint read or write another's memory.

    All blocks are asked for at once, one transfer each; engines take them in turn.

    Parameters
    ----------
    graph : networkx.Graph
    src, dst : str
        Names of the endpoint whose engines work and of the one whose memory is read or written.
    operation : {'read', 'write'}
    block_bytes : int
        Size of a block.
    total_bytes : int
        Size of all blocks together; what does not fill a block is left out.
    network : {'ub', 'rdma', 'vpc'}
        Its transport has to carry reads, if memory is read: ``posted`` with a work request, as
        on network ub of CloudMatrix384, or ``load-store``.

    Returns
    -------
    float
        Bytes a second, until the last one is in the memory where it belongs. The answer that
        tells a writer so is not waited for: a microsecond of the milliseconds that 128 MiB take.

    Raises
    ------
    SpecError
        If a block has no bytes, or more than there are in all.
    TopologyError
        If the endpoint has no SDMA engines.
    """
    _check_operation(operation)
    if not 1 <= block_bytes <= total_bytes:
        raise SpecError(f"block_bytes: found {block_bytes}, allowed 1 to {total_bytes}")
    if not graph.nodes[src].get("sdma_engines", 0):
        raise TopologyError(f"node {src!r}: sdma_engines is 0; this needs 1 or more")
    messages = total_bytes // block_bytes
    flow = _flow(0, 1, "probe", messages, block_bytes, f"sdma-{operation}") | {"network": network}
    finish_ps, _ = _probe(graph, src, dst, operation, flow)
    return messages * block_bytes / finish_ps * 1e12


@dataclass(frozen=True)
class FusedOperator:
    """One dispatch or combine of all ranks, as AIV-direct does it.

    Each rank writes its messages, message by message, to where they go; when all have left, the
    flags: of dispatch one to every rank, with the count, of combine one a result. A rank that has
    all flags and all data copies what came to where the next operator wants it (arXiv 2506.12708,
    section 4.2.1).

    Attributes
    ----------
    phase : {'dispatch', 'combine'}
    ranks : int
        Degree of expert parallelism.
    tokens : int
        Tokens of each rank.
    top_k : int
        Experts of a token.
    experts : int
        Routed experts, spread evenly over the ranks.
    message_bytes : int
        Bytes of one token on the wire.
    launch_ps : int
        What the operator costs before its first message.
    completion_ps : int
        Between its last message and its first flag.
    message_cost_ps, flag_cost_ps : int
        What a core spends on a message, or on a flag, that leaves the package, beside the
        hardware's issue cost.
    flag_bytes : int
        Bytes of a flag.
    copy_bytes : int
        Bytes that a rank reads and writes in its own memory for each message received.
    copy_bytes_per_s : float
        Rate of that.
    """

    phase: Literal["dispatch", "combine"]
    ranks: int
    tokens: int
    top_k: int
    experts: int
    message_bytes: int
    launch_ps: int
    completion_ps: int
    message_cost_ps: int
    flag_cost_ps: int
    flag_bytes: int
    copy_bytes: int
    copy_bytes_per_s: float


def fused_operator_ps(
    graph: nx.Graph, operator: FusedOperator, *, cores: int = 48, seed: int = 1
) -> np.ndarray:
    """Return when each rank is through with a fused dispatch or combine.

    Parameters
    ----------
    graph : networkx.Graph
    operator : FusedOperator
    cores : int
        Vector cores of a die that issue.
    seed : int
        Seed of the experts that tokens choose: uniform, without repetition within a token.

    Returns
    -------
    ndarray of int64, shape (ranks,)
        Picoseconds from the common start.

    Raises
    ------
    SpecError
        If the experts do not divide evenly among the ranks.
    """
    n = operator.ranks
    if operator.experts % n:
        raise SpecError(f"ranks: found {n}, which does not divide {operator.experts} experts")
    machine = with_settings(graph, die={"issue_engines": cores})
    rng = np.random.default_rng([seed, n])
    chosen = np.argsort(rng.random((n * operator.tokens, operator.experts)), axis=1)
    expert_rank = chosen[:, : operator.top_k] // (operator.experts // n)
    counts = np.zeros((n, n), np.int64)
    token_rank = np.repeat(np.arange(n), operator.tokens * operator.top_k)
    np.add.at(counts, (token_rank, expert_rank.ravel()), 1)
    if operator.phase == "combine":
        counts = counts.T  # results go back where the tokens came from
    src, dst = np.nonzero(counts)
    # each rank begins with its successor, or all would begin with rank 0
    order = np.lexsort(((dst - src) % n, src))
    src, dst = src[order], dst[order]
    messages = counts[src, dst]
    flag_src, flag_dst, flags = src, dst, messages
    if operator.phase == "dispatch":  # one to every rank, with the count
        flag_src, flag_dst = (part.ravel() for part in np.indices((n, n)))
        order = np.lexsort(((flag_dst - flag_src) % n, flag_src))
        flag_src, flag_dst, flags = flag_src[order], flag_dst[order], np.ones(n * n, np.int64)
    both = [len(src), len(flags)]
    size = np.repeat(np.array([operator.message_bytes, operator.flag_bytes], np.int32), both)
    total = len(size)
    phases = np.repeat(np.array([operator.phase, "flag"], object), both)
    flows = pa.table(
        {
            "phase": pa.array(phases, pa.string()),
            "layer": np.zeros(total, np.int16),
            "microbatch": np.zeros(total, np.int8),
            "src": np.concatenate([src, flag_src]).astype(np.int32),
            "dst": np.concatenate([dst, flag_dst]).astype(np.int32),
            "messages": np.concatenate([messages, flags]).astype(np.int32),
            "message_bytes": size,
            "network": pa.array(["ub"] * total, pa.string()),
            "service_level": np.zeros(total, np.int8),
            "start_ps": np.full(total, -1, np.int64),
            "operation": pa.array(["write"] * total, pa.string()),
        }
    ).cast(FLOW_SCHEMA)
    arrived = counts.sum(axis=0)
    copy_ps = arrived * operator.copy_bytes / operator.copy_bytes_per_s * 1e12
    tasks = []
    for rank in range(n):
        parts: list[dict[str, Any]] = [
            {
                "duration_ps": operator.launch_ps,
                "sends": operator.phase,
                "message_cost_ps": operator.message_cost_ps,
            },
            {
                "duration_ps": operator.completion_ps,
                "sends": "flag",
                "waits": "flag",
                "message_cost_ps": operator.flag_cost_ps,
            },
            {"waits": operator.phase},
            {"duration_ps": round(copy_ps[rank])},
        ]
        names = (operator.phase, "flag", "receive", "copy")
        tasks += [
            _task(4 * rank + at, rank, name, **part)
            for at, (name, part) in enumerate(zip(names, parts, strict=True))
        ]
    nodes = place_ranks(machine, "packed", n)
    _, done = _run(machine, flows, tasks, nodes, seed=seed)
    last = done[done["kind"] == "copy"].sort_values("rank")
    finish: np.ndarray = last["finish_ps"].to_numpy()
    return finish
