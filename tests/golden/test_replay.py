"""Runs whose every picosecond is committed: nothing moves unnoticed.

A result that changes on purpose is rewritten by ``pytest tests/golden --update-golden``; the
change and its reason then belong in CHANGELOG.md, since every user's numbers move with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fabrics import GB, NS, FabricBuilder, Outcome, flow, make_trace, run, task

from ubfabric.decode import generate_trace
from ubfabric.topology import build_topology
from ubfabric.trace import Trace


def deployment(topology: str, workload: str, **options: Any):
    """Return a run of the first MoE layer of a sample workload, with the layers around it."""
    return build_topology(topology), generate_trace(workload, layers=[3]), options


def pressure():
    """Return a small fabric with little buffer, mixed rates and every kind of flow.

    Made of integers alone, so that it says whether the engine or the workload moved.
    """
    builder = FabricBuilder(payload=1_000, header=24)
    die = {"buffer_bytes": 4_096, "issue_engines": 3, "issue_cost_ps": 70 * NS}
    rates = {"engine_bytes_per_s": 7 * GB, "egress_bytes_per_s": 33 * GB}
    dies = builder.dies(8, **die, **rates)
    for plane in ("ub0", "ub1"):
        low = [builder.switch(f"l1-{plane}-{n}", plane, buffer_bytes=4_096) for n in (0, 1)]
        high = [
            builder.switch(f"l2-{plane}-{n}", plane, buffer_bytes=8_192, kind="l2", level=2)
            for n in range(3)
        ]
        for number, name in enumerate(dies):
            builder.link(name, low[number // 4], 9 * GB, 5 * NS, plane)
        for u in low:
            for number, v in enumerate(high):
                builder.link(u, v, (7 + 3 * number) * GB, 50 * NS, plane)
    for pair in zip(dies[::2], dies[1::2], strict=True):
        builder.link(*pair, 90 * GB, 1 * NS, "package")
    flows, tasks = [], []
    for layer in range(2):
        for microbatch in (0, 1):
            place = {"layer": layer, "microbatch": microbatch}
            for phase in ("dispatch", "combine"):
                for src in range(8):
                    for step in range(5):
                        dst = (src * 3 + step * step + layer) % 8
                        size = 300 + 457 * ((src + 2 * step + microbatch) % 7)
                        row = flow(src, dst, phase=phase, start_ps=-1, **place)
                        row |= {"messages": 1 + (src + step) % 4, "message_bytes": size}
                        row |= {"service_level": microbatch}
                        if not any(
                            all(row[k] == f[k] for k in (*place, "phase", "src", "dst"))
                            for f in flows
                        ):
                            flows.append(row)
            for kind in ("attention", "dispatch", "expert", "combine"):
                for rank in range(8):
                    last = [
                        t["task"]
                        for t in tasks
                        if (t["rank"], t["microbatch"]) == (rank, microbatch)
                    ][-1:]
                    spent = 0 if kind in ("dispatch", "combine") else 900 * NS + 131 * NS * rank
                    row = task(len(tasks), rank, kind=kind, duration_ps=spent, **place)
                    row |= {"stream": int(kind != "attention"), "depends_on": last}
                    if not spent:
                        row |= {"sends": kind, "waits": kind}
                    tasks.append(row)
    how = {"n_virtual_lanes": 2, "path_policy": "random", "plane_policy": "random", "seed": 11}
    return builder.build(), make_trace(flows, tasks), how


SCENARIOS = {
    "one-node-ep8": lambda: deployment("one-node", "decode-ep8-sample"),
    "two-nodes-ep32": lambda: deployment("two-nodes", "decode-ep32-sample"),
    "two-nodes-ep32-flow-hash-512": lambda: deployment(
        "two-nodes",
        "decode-ep32-sample",
        payload_bytes=512,
        path_policy="flow-hash",
        plane_policy="flow-hash",
    ),
    "pressure": pressure,
}


def digest(frame: pd.DataFrame) -> str:
    """Return a hash of a table's content, whatever wrote it."""
    state = hashlib.sha256()
    for name in sorted(frame.columns):
        state.update(name.encode())
        values = frame[name]
        if pd.api.types.is_integer_dtype(values):
            state.update(values.to_numpy().astype("<i8").tobytes())
        else:
            state.update("\0".join(values.astype(str)).encode())
    return state.hexdigest()


def digest_of_trace(trace: Trace) -> str:
    """Return a hash of all rows of a trace."""
    state = hashlib.sha256()
    for chunk in trace.chunks():
        for table in (chunk.flows, chunk.tasks):
            state.update(json.dumps(table.to_pydict()).encode())
    return state.hexdigest()


def span(values: Iterable[int]) -> dict[str, int]:
    """Return sum, least and most."""
    values = np.asarray(list(values), np.int64)
    return {"sum": int(values.sum()), "min": int(values.min()), "max": int(values.max())}


def measured(trace: Trace, result: Outcome) -> dict[str, Any]:
    """Return what is committed of a run: integers, and hashes of everything else."""
    totals = ("packets", "packet_hops", "bytes_sent", "bytes_delivered", "simulated_ps")
    phases = result.flows.groupby(["layer", "microbatch", "phase"], observed=True)
    kinds = result.tasks.groupby("kind", observed=True)
    levels = result.links.groupby("level", observed=True)
    counted = ("packets", "bytes", "busy_ps", "no_credit_ps", "max_queue_bytes")
    return {
        "trace_sha256": digest_of_trace(trace),
        "totals": {name: int(result.summary[name]) for name in totals},
        "fct_ps": {"/".join(map(str, k)): span(v) for k, v in phases["fct_ps"]},
        "queueing_ps": {"/".join(map(str, k)): span(v) for k, v in phases["queueing_ps"]},
        "task_finish_ps": {str(kind): span(values) for kind, values in kinds["finish_ps"]},
        "links": {
            str(level): {name: int(rows[name].sum()) for name in counted} for level, rows in levels
        },
        "sha256": {name: digest(getattr(result, name)) for name in ("flows", "tasks", "links")},
    }


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_moved(name, request):
    path = Path(__file__).with_name(f"{name}.json")
    graph, trace, how = SCENARIOS[name]()
    found = measured(trace, run(graph, trace, **how))
    if request.config.getoption("--update-golden"):
        path.write_text(json.dumps(found, indent=1) + "\n")
        pytest.skip(f"wrote {path.name}")
    golden = json.loads(path.read_text())
    advice = (
        f"{name} moved. If that is meant, run `pytest tests/golden --update-golden` and say in "
        "CHANGELOG.md what changed in users' results, and why"
    )
    assert found["trace_sha256"] == golden["trace_sha256"], (
        f"the trace of {advice.replace('moved', 'moved, before anything was simulated')}"
    )
    for key in golden:  # the smallest difference first
        assert found[key] == golden[key], advice
    assert set(found) == set(golden)


def test_golden_runs_cover_what_they_are_meant_to():
    """Copies, direct links, three switches, queueing, and back-pressure are all in there."""
    golden = {
        name: json.loads(Path(__file__).with_name(f"{name}.json").read_text()) for name in SCENARIOS
    }
    for name, one in golden.items():
        assert one["totals"]["bytes_sent"] == one["totals"]["bytes_delivered"]
        assert one["links"]["die-die"]["packets"] > 0, name
        assert sum(values["sum"] for values in one["queueing_ps"].values()) > 0, name
    assert golden["two-nodes-ep32"]["links"]["l1-l2"]["packets"] > 0
    assert golden["pressure"]["links"]["l2-l1"]["no_credit_ps"] > 0
    assert golden["pressure"]["links"]["die-l1"]["no_credit_ps"] > 0
    assert len({one["sha256"]["flows"] for one in golden.values()}) == len(golden)
