"""A run folder computed by hand-checkable arithmetic, for tests of tokens and plots.

Closed loop as in the engine, with the network replaced by one rule: a rank issues its
messages one after another every ``issue_ps``, and a flow's last byte is seen
``latency_ps`` after its own last message was issued. Flows go in the order
``dst = src, src + 1, ...`` (modulo the number of ranks), all messages of one flow
before the next. Streams, order and dependencies are those of the decode step: stream 0
runs attention, stream 1 gate, dispatch, expert, combine; layer by layer and within it
microbatch by microbatch.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ubfabric.results import LINK_SCHEMA, RunResult, RunWriter

US = 1_000_000


@dataclass(frozen=True)
class Synthetic:
    """Parameters of a synthetic run; times in picoseconds."""

    n_ranks: int = 8
    layers: tuple[int, ...] = (3, 4, 5)
    n_microbatches: int = 2
    attention_ps: int = 100 * US
    gate_ps: int = 10 * US
    send_compute_ps: int = 5 * US
    expert_ps: int = 50 * US
    issue_ps: int = US // 10
    latency_ps: int = 2 * US
    messages: int = 1  # of each flow, before skew
    skew: float = 0.0  # 0: all flows alike; otherwise sigma of a log-normal factor
    jitter: float = 0.0  # the same for the durations of attention and expert
    two_streams: bool = True
    seed: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)


def write_run(path: Path, spec: Synthetic, *, n_links: int | None = None) -> RunResult:
    """Write the run folder of ``spec`` and open it."""
    rng = np.random.default_rng(spec.seed)
    n = spec.n_ranks
    ranks = np.arange(n)
    streams = (0, 1) if spec.two_streams else (0, 0)
    free = {0: np.zeros(n, np.int64), 1: np.zeros(n, np.int64)}
    combined = [np.zeros(n, np.int64) for _ in range(spec.n_microbatches)]
    ids = itertools.count()
    task_parts: list[dict[str, Any]] = []

    def run(kind, stream, layer, microbatch, duration, ready, send=None):
        duration = np.broadcast_to(np.asarray(duration, np.int64), (n,))
        start = np.maximum(free[stream], ready)
        finish = start + duration
        issued = arrived = np.full(n, -1)
        if send is not None:
            issued, arrived = send(finish)
            finish = np.maximum(issued, arrived)
        free[stream] = finish
        task_parts.append(
            {
                "task": np.array([next(ids) for _ in ranks]),
                "rank": ranks,
                "stream": np.full(n, stream),
                "kind": np.full(n, kind),
                "layer": np.full(n, layer),
                "microbatch": np.full(n, microbatch),
                "duration_ps": duration,
                "ready_ps": np.broadcast_to(ready, (n,)),
                "start_ps": start,
                "finish_ps": finish,
                "issued_ps": issued,
                "arrived_ps": arrived,
            }
        )
        return finish

    def noisy(duration_ps):
        return (duration_ps * rng.lognormal(0.0, spec.jitter, n)).astype(np.int64)

    with RunWriter(path) as writer:
        for layer in spec.layers:
            flow_parts: list[dict[str, Any]] = []
            for microbatch in range(spec.n_microbatches):
                counts = np.full((n, n), spec.messages, np.int64)
                if spec.skew:
                    popularity = rng.lognormal(0.0, spec.skew, n)
                    counts = rng.poisson(spec.messages * popularity / popularity.mean(), (n, n))

                def exchange(
                    phase, matrix, size, layer=layer, microbatch=microbatch, out=flow_parts
                ):
                    def send(begin):
                        turn = (ranks[:, None] + ranks) % n  # destinations in the order of issue
                        in_turn = np.take_along_axis(matrix, turn, axis=1)
                        done = begin[:, None] + np.cumsum(in_turn, axis=1) * spec.issue_ps
                        source, place = np.nonzero(in_turn)
                        target, messages = turn[source, place], in_turn[source, place]
                        last = done[source, place]
                        finish = last + spec.latency_ps
                        arrived = np.full(n, -1)
                        np.maximum.at(arrived, target, finish)
                        packets = messages * -(-size // 4096)
                        out.append(
                            {
                                "phase": np.full(len(source), phase),
                                "layer": np.full(len(source), layer),
                                "microbatch": np.full(len(source), microbatch),
                                "src": source,
                                "dst": target,
                                "network": np.full(len(source), "ub"),
                                "operation": np.full(len(source), "write"),
                                "service_level": np.zeros(len(source), np.int64),
                                "messages": messages,
                                "message_bytes": np.full(len(source), size),
                                "bytes": messages * size,
                                "packets": packets,
                                "start_ps": begin[source],
                                "first_byte_ps": last - messages * spec.issue_ps + spec.latency_ps,
                                "finish_ps": finish,
                                "fct_ps": finish - begin[source],
                                "hops": np.where(source == target, 0, 4),
                                "queueing_ps": packets * spec.issue_ps,
                            }
                        )
                        return done[:, -1], arrived

                    return send

                ready = run(
                    "attention",
                    streams[0],
                    layer,
                    microbatch,
                    noisy(spec.attention_ps),
                    combined[microbatch],
                )
                ready = run("gate", streams[1], layer, microbatch, spec.gate_ps, ready)
                ready = run(
                    "dispatch",
                    streams[1],
                    layer,
                    microbatch,
                    spec.send_compute_ps,
                    ready,
                    exchange("dispatch", counts, 7_680),
                )
                load = counts.sum(axis=0) / max(counts.sum() / n, 1)
                ready = run(
                    "expert",
                    streams[1],
                    layer,
                    microbatch,
                    (noisy(spec.expert_ps) * load).astype(np.int64),
                    ready,
                )
                combined[microbatch] = run(
                    "combine",
                    streams[1],
                    layer,
                    microbatch,
                    spec.send_compute_ps,
                    ready,
                    exchange("combine", counts.T, 14_336),
                )
            writer.write_flows(layer, _table(flow_parts))
        tasks = _table(task_parts)
        writer.write_tasks(tasks)
        writer.write_links(_links(spec, rng, n_links))
        end = int(np.max(tasks.column("finish_ps").to_numpy()))
        return writer.finish(
            {
                "ubfabric": "test",
                "seed": spec.seed,
                "topology": "synthetic",
                "trace": {"n_ranks": n, **spec.metadata},
                "rank_nodes": [f"die-{rank // 16}-{rank % 16}" for rank in ranks],
                "simulated_ps": end,
                "wall_s": 1.0,
            }
        )


def _table(parts: list[dict[str, Any]]) -> pa.Table:
    return pa.table({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _links(spec: Synthetic, rng: np.random.Generator, n_links: int | None) -> pa.Table:
    """Seven planes of one die-L1 cable a rank and, above 16 ranks, 16 L1-L2 cables a server."""
    rows = []
    n_servers = -(-spec.n_ranks // 16)
    for plane in range(7):
        for rank in range(spec.n_ranks):
            die, l1 = f"die-{rank // 16}-{rank % 16}", f"l1-{rank // 16}-{plane}"
            rows += [(die, l1, plane, "die-l1"), (l1, die, plane, "l1-die")]
        for server in range(n_servers if n_servers > 1 else 0):
            for chip in range(16):
                l1, l2 = f"l1-{server}-{plane}", f"l2-{plane}-{chip}"
                rows += [(l1, l2, plane, "l1-l2"), (l2, l1, plane, "l2-l1")]
    rows = rows[:n_links]
    n = len(rows)
    scale = np.array([1.0 if "die" in row[3] else 0.4 for row in rows])
    busy = (scale * rng.lognormal(0.0, 0.25, n) * 60 * US).astype(np.int64)
    sent = busy * 28 // 1_000  # 28 GB/s
    columns = {
        "link": np.arange(n),
        "src": [row[0] for row in rows],
        "dst": [row[1] for row in rows],
        "plane": [f"ub{row[2]}" for row in rows],
        "level": [row[3] for row in rows],
        "bandwidth_bytes_per_s": np.full(n, 28_000_000_000),
        "packets": sent // 4_150,
        "bytes": sent,
        "busy_ps": busy,
        "max_queue_bytes": rng.integers(0, 30, n) * 4_150,
        "no_credit_ps": (busy * rng.beta(1, 20, n)).astype(np.int64),
    }
    assert list(columns) == LINK_SCHEMA.names
    return pa.table(columns)
