"""Open-loop traces in parts: the same bytes however they are spread, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from fabrics import GB, NS, US, FabricBuilder, flow, make_trace, star, task

from ubfabric.errors import SimulationError, SpecError, TraceError
from ubfabric.parts import replay_in_parts
from ubfabric.replay import replay
from ubfabric.results import RunResult


def fabric():
    """Return eight dies under four chips with two chips above, less rate above than below."""
    builder = FabricBuilder()
    dies = builder.dies(8, issue_engines=2, issue_cost_ps=50 * NS)
    low = [builder.switch(f"l1-{n}") for n in range(4)]
    high = [builder.switch(f"l2-{n}", kind="l2", level=2) for n in range(2)]
    for number, name in enumerate(dies):
        builder.link(name, low[number // 2])
    for u in low:
        for v in high:
            builder.link(u, v, 7 * GB)
    return builder.build()


def layer(number, start_ps, seed, n_flows=40):
    """Return flows of one layer that meet each other: random pairs and sizes within 2 us."""
    rng = np.random.default_rng(seed)
    rows = {}
    for _ in range(n_flows):
        src, dst = (int(x) for x in rng.integers(8, size=2))
        size = {"messages": int(rng.integers(1, 4)), "message_bytes": int(rng.integers(1, 5_000))}
        start = {"start_ps": start_ps + int(rng.integers(2 * US)), "layer": number}
        rows[src, dst] = flow(src, dst, **size, **start)
    first = min(row["start_ps"] for row in rows.values())
    for row in rows.values():
        row["start_ps"] += start_ps - first
    return list(rows.values())


def trace(*seeds, gap_ps=500 * US, **changes):
    rows = [
        row
        for number, seed in enumerate(seeds)
        for row in layer(3 + 2 * number, 7 * US + number * gap_ps, seed, **changes)
    ]
    return make_trace(rows, n_ranks=8, seed=5)


def files(result: RunResult) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(result.path.glob("*.parquet"))}


SETTINGS = [
    {},
    {"path_policy": "flow-hash", "plane_policy": "flow-hash", "payload_bytes": 512},
    {"path_policy": "adaptive", "account": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_reused_and_spread_parts_have_the_bytes_of_simulated_ones(tmp_path, cluster, settings):
    graph, flows = fabric(), trace(1, 2, 1, 1, 3, 2)
    every = replay_in_parts(graph, flows, tmp_path / "every", reuse=False, **settings)
    reused = replay_in_parts(graph, flows, tmp_path / "reused", **settings)
    spread = replay_in_parts(graph, flows, tmp_path / "spread", scheduler=cluster, **settings)
    assert files(every) == files(reused) == files(spread)
    assert every.summary["parts"] == {"layers": [[3], [5], [7], [9], [11], [13]], "simulated": 6}
    assert reused.summary["parts"]["simulated"] == spread.summary["parts"]["simulated"] == 3
    for name in ("packets", "packet_hops", "bytes_delivered", "simulated_ps", "fabric_events"):
        assert every.summary[name] == reused.summary[name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["every", "reused", "spread"]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_parts_carry_what_one_replay_carries(tmp_path, settings):
    """Turns may differ from the second part on; what is carried, and the first part, may not."""
    graph, flows = fabric(), trace(1, 2, 1)
    parts = replay_in_parts(graph, flows, tmp_path / "parts", **settings)
    whole = replay(graph, flows, tmp_path / "whole", progress=False, **settings)
    columns = ["layer", "src", "dst", "messages", "message_bytes", "bytes", "packets", "start_ps"]
    assert parts.flows(columns).equals(whole.flows(columns))
    assert parts.flows(layers=[3]).equals(whole.flows(layers=[3]))
    for name in ("packets", "packet_hops", "bytes_sent", "bytes_delivered"):
        assert parts.summary[name] == whole.summary[name]
    if settings.get("path_policy") == "flow-hash":
        links = ["src", "dst", "packets", "bytes"]
        assert parts.links(links).astype(str).equals(whole.links(links).astype(str))
        # each part's busy time is rounded to the picosecond, and so is the sum's
        apart_ps = parts.links(["busy_ps"]) - whole.links(["busy_ps"])
        assert apart_ps["busy_ps"].abs().max() <= 3
    late = parts.flows(["fct_ps"], layers=[7]), parts.flows(["fct_ps"], layers=[3])
    assert late[0]["fct_ps"].tolist() == late[1]["fct_ps"].tolist()


def test_links_have_sums_and_the_highest_queue(tmp_path):
    graph = fabric()
    alone = [
        replay(graph, trace(seed), tmp_path / str(seed), progress=False).links() for seed in (1, 2)
    ]
    both = replay_in_parts(graph, trace(1, 2), tmp_path / "both").links()
    for name in ("packets", "bytes", "busy_ps", "no_credit_ps", "retries"):
        assert (both[name] == alone[0][name] + alone[1][name]).all()
    highest = np.maximum(alone[0]["max_queue_bytes"], alone[1]["max_queue_bytes"])
    assert (both["max_queue_bytes"] == highest).all()
    assert (highest > alone[0]["max_queue_bytes"]).any()


def test_without_a_meeting_parts_are_the_one_replay_to_the_byte(tmp_path):
    """Each source sends one flow to a destination of its own: no turn decides anything."""
    rows = [
        flow(src, src + 4, layer=number, start_ps=number * 100 * US + src * NS, messages=3)
        for number in range(3)
        for src in range(4)
    ]
    graph, flows = star(8), make_trace(rows)
    parts = replay_in_parts(graph, flows, tmp_path / "parts")
    whole = replay(graph, flows, tmp_path / "whole", progress=False)
    assert parts.summary["parts"]["simulated"] == 1
    assert files(parts) == files(whole)
    same = ("packets", "packet_hops", "simulated_ps", "seed", "rank_nodes", "trace", "rows")
    assert {n: parts.summary[n] for n in same} == {n: whole.summary[n] for n in same}


@pytest.mark.parametrize(
    "change", ["messages", "message_bytes", "dst", "service_level", "start_ps"]
)
def test_a_part_that_differs_in_anything_is_simulated(tmp_path, change):
    rows = [*layer(0, 0, 1), *layer(1, 500 * US, 1)]
    used = {(row["src"], row["dst"]) for row in rows}
    other = next(d for d in range(8) if (rows[-1]["src"], d) not in used)
    rows[-1][change] = other if change == "dst" else rows[-1][change] + 1
    graph = fabric()
    result = replay_in_parts(graph, make_trace(rows, n_ranks=8), tmp_path / "run")
    assert result.summary["parts"]["simulated"] == 2


def test_layers_that_start_into_each_other_are_one_part(tmp_path):
    rows = [*layer(0, 0, 1), *layer(1, US, 2), *layer(2, 600 * US, 1), *layer(3, 601 * US, 2)]
    result = replay_in_parts(fabric(), make_trace(rows, n_ranks=8), tmp_path / "run")
    assert result.summary["parts"] == {"layers": [[0, 1], [2, 3]], "simulated": 1}
    first, second = (result.flows(["fct_ps"], layers=layers) for layers in ([0, 1], [2, 3]))
    assert first["fct_ps"].tolist() == second["fct_ps"].tolist()


def test_a_layer_under_way_when_the_next_starts_is_refused(tmp_path):
    flows = trace(1, 2, gap_ps=3 * US, n_flows=200)
    with pytest.raises(TraceError, match="layer 3 is under way until .* us, and layer 5 starts at"):
        replay_in_parts(fabric(), flows, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def with_transport(**changes):
    graph = fabric()
    graph.graph["transports"]["ub"] = {"header_bytes": 0} | changes
    return graph


def with_bit_errors():
    graph = fabric()
    for _, _, edge in graph.edges(data=True):
        edge["bit_error_rate"] = 1e-9
    return graph


def tasked():
    return make_trace(layer(0, 0, 1), [task(0, 0, duration_ps=5)], n_ranks=8)


REFUSED = {
    "random paths": (fabric, lambda: trace(1), {"path_policy": "random"}, "path_policy"),
    "random planes": (fabric, lambda: trace(1), {"plane_policy": "random"}, "plane_policy"),
    "samples": (fabric, lambda: trace(1), {"sample_interval_ps": US}, "samples"),
    "faults": (fabric, lambda: trace(1), {"faults": {"faults": []}}, "faults"),
    "bit errors": (with_bit_errors, lambda: trace(1), {}, "bit_error_rate"),
    "congestion control": (
        lambda: with_transport(name="reliable", congestion_control="dcqcn"),
        lambda: trace(1),
        {},
        "found dcqcn",
    ),
    "tasks": (fabric, tasked, {}, "has tasks"),
    "closed loop": (fabric, lambda: make_trace([flow(0, 1, start_ps=-1)]), {}, "without start_ps"),
    "nothing": (fabric, lambda: make_trace([], n_ranks=8), {}, "no flows"),
    "both": (fabric, lambda: trace(1), {"spread": 2, "scheduler": "x"}, "one of them"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_parts_cannot_do_is_refused(tmp_path, name):
    graph, flows, settings, part = REFUSED[name]
    with pytest.raises((SpecError, TraceError), match=part) as refused:
        replay_in_parts(graph(), flows(), tmp_path / "run", **settings)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_fails_is_named(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise SimulationError("no packet moved")

    monkeypatch.setattr("ubfabric.parts.replay", stop)
    with pytest.raises(SimulationError, match="layer 3: no packet moved"):
        replay_in_parts(fabric(), trace(1), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_replays_in_parts(tmp_path, ubfabric):
    (tmp_path / "t").mkdir()
    header = "phase,layer,src,dst,messages,message_bytes,start_ps"
    rows = [f"p,{n},{src},{src + 1},4,7680,{n * 500 * US}" for n in range(3) for src in range(4)]
    (tmp_path / "t" / "flows.csv").write_text("\n".join([header, *rows]) + "\n")
    code, out, _ = ubfabric("replay", "one-node", "t", "-o", "run", "--spread", "1")
    assert code == 0 and "3 parts, 1 simulated, each from rest" in out
    code, _, err = ubfabric(
        "replay", "one-node", "t", "-o", "other", "--spread", "1", "--path-policy", "random"
    )
    assert code == 2 and "path_policy" in err and not (tmp_path / "other").exists()
