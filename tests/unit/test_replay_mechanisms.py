"""What a replay adds to the engine: operations, accounts, samples and schedules of faults."""

from __future__ import annotations

import tempfile
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from fabrics import GB, NS, US, FabricBuilder, flow, line, make_trace, run, serialise_ps, star, task

from ubfabric.errors import ResultError, SimulationError, SpecError, TraceError, UbfabricWarning
from ubfabric.replay import replay

RATE = 10 * GB
SER = serialise_ps(1_000, RATE)
RECEIVE = 100 * NS
ACCOUNT = [
    "issue_ps",
    "source_wait_ps",
    "first_wait_ps",
    "second_wait_ps",
    "further_wait_ps",
    "serialise_ps",
    "propagate_ps",
    "switch_ps",
]


def load_store(graph: nx.MultiGraph, **changes) -> nx.MultiGraph:
    """Return the graph with load and store on its UB network."""
    graph.graph["transports"]["ub"] |= {"name": "load-store"} | changes
    return graph


def two_tier(n_dies: int = 4, n_up: int = 4, **transport) -> nx.MultiGraph:
    """Return two low switches of ``n_dies`` dies each and ``n_up`` high switches."""
    builder = FabricBuilder()
    dies = builder.dies(2 * n_dies, issue_engines=8)
    low = [builder.switch(f"low-{k}") for k in (0, 1)]
    for number, name in enumerate(dies):
        builder.link(name, low[number // n_dies], RATE)
    for k in range(n_up):
        high = builder.switch(f"high-{k}", kind="l2", level=2)
        for name in low:
            builder.link(name, high, RATE, 50 * NS)
    builder.graph.graph["transports"]["ub"] |= {"timeout_ps": 20 * US} | transport
    return builder.build()


def crossing(messages: int = 400):
    """Return a flow from each die of the first low switch to its like at the second."""
    return make_trace([flow(s, 4 + s, messages=messages) for s in range(4)])


def faults(*events, detection: str = "2 us") -> dict:
    """Return a schedule of ``(at, element, event)``."""
    rows = [{"at": at, "element": element, "event": event} for at, element, event in events]
    return {"detection_time": detection, "faults": rows}


def kept(tmp_path, graph, trace, **options):
    """Replay into a folder and return the opened result."""
    return replay(graph, trace, tmp_path / "run", progress=False, **options)


def test_tasks_of_a_die_share_its_memory():
    # 75 % of the memory each on rank 0, one of them from 40 ns on; rank 1 has memory of its own
    read = {"duration_ps": 100 * NS, "memory_ps": 75 * NS}
    rows = [
        task(0, 0, **read),
        task(1, 0, stream=1, duration_ps=40 * NS),
        task(2, 0, stream=1, **read),
        task(3, 1, **read),
    ]
    tasks = run(star(2), make_trace([], rows)).tasks
    # 60 ns are left at 40 ns and take 90, then 40 ns of the other are left
    assert tasks.finish_ps.tolist() == [130 * NS, 40 * NS, 170 * NS, 100 * NS]


# --------------------------------------------------------------------------- operations


def test_read_and_write_move_the_same_bytes_in_opposite_directions():
    graph = load_store(star(2, header=20))
    trace = make_trace(
        [flow(0, 1, phase=name, messages=3, operation=name) for name in ("read", "write")]
    )
    result = run(graph, trace)
    assert result.flows["operation"].tolist() == ["read", "write"]
    assert result.summary["bytes_delivered"] == 6_000
    # what is read leaves the port of die 1, what is written that of die 0
    assert result.link("die-0", "hub-0")["bytes"] >= 3_000
    assert result.link("die-1", "hub-0")["bytes"] >= 3_000
    only = run(graph, make_trace([flow(0, 1, messages=3, operation="read")]))
    assert only.link("die-0", "hub-0")["bytes"] < 1_000
    assert only.link("hub-0", "die-0")["bytes"] >= 3_000


@pytest.mark.parametrize("operation", ["read", "sdma-read"])
def test_read_of_a_transport_that_cannot_is_refused(operation, tmp_path):
    graph = star(2, sdma_engines=1, sdma_bytes_per_s=GB)
    trace = make_trace([flow(0, 1), flow(1, 0, operation=operation)])
    needs = r"transports\.ub\.name to be load-store, or posted with work_request"
    message = rf"row 2: operation {operation} needs {needs}"
    with pytest.raises(TraceError, match=message):
        kept(tmp_path, graph, trace)
    assert list(tmp_path.iterdir()) == []


def test_posted_reads_ask_once_a_work_request_and_count_packets_of_each():
    graph = star(2, header=20, sdma_engines=1, sdma_bytes_per_s=GB)
    graph.graph["transports"]["ub"]["work_request_bytes"] = 2_500
    flows = [flow(0, 1, messages=2, message_bytes=6_000, operation="sdma-read")]
    result = run(graph, make_trace(flows), payload_bytes=1_000)
    # 2,500 in three packets, twice, and 1,000 in one, of each message
    assert result.flows["packets"].tolist() == [14]
    assert result.link("die-0", "hub-0")["bytes"] == 6 * 20
    assert result.link("die-1", "hub-0")["bytes"] == 12_000 + 14 * 20


@pytest.mark.parametrize("operation", ["sdma-write", "sdma-read"])
def test_sdma_without_engines_is_refused(operation, tmp_path):
    trace = make_trace([flow(0, 1), flow(1, 0, operation=operation)])
    message = f"row 2: operation {operation} needs sdma engines on the endpoint of rank 1"
    with pytest.raises(TraceError, match=message):
        kept(tmp_path, load_store(star(2)), trace)
    assert list(tmp_path.iterdir()) == []


def test_sdma_has_a_start_and_a_rate_of_its_own():
    limits = {"sdma_engines": 1, "sdma_start_ps": 3 * US, "sdma_bytes_per_s": 2 * GB}
    graph = star(2, issue_cost_ps=500 * NS, engine_bytes_per_s=5 * GB, **limits)
    finish = {}
    for operation in ("write", "sdma-write"):
        result = run(graph, make_trace([flow(0, 1, operation=operation)]))
        finish[operation] = int(result.flows["finish_ps"][0])
    way = 2 * 5 * NS + 200 * NS + SER + RECEIVE
    assert finish["write"] == 500 * NS + serialise_ps(1_000, 5 * GB) + way
    assert finish["sdma-write"] == 3 * US + serialise_ps(1_000, 2 * GB) + way


@pytest.mark.parametrize("operation", ["sdma-write", "sdma-read"])
def test_sdma_goes_at_the_rate_of_the_memory_at_the_other_end(operation):
    """Not that of its own endpoint, and cores do not."""

    def finish_ps(operation=operation, **limits):
        graph = star(2, sdma_engines=1, sdma_bytes_per_s=2 * GB, engine_bytes_per_s=2 * GB)
        graph.nodes["die-1"].update(limits)
        graph.nodes["die-0"].update(sdma_read_bytes_per_s=1, sdma_write_bytes_per_s=1)
        graph.graph["transports"]["ub"]["work_request_bytes"] = 1_000
        moved = flow(0, 1, messages=2, message_bytes=6_000, operation=operation)
        return int(run(graph, make_trace([moved])).flows["finish_ps"][0])

    mine, other = ("write", "read") if operation == "sdma-write" else ("read", "write")
    free = finish_ps()
    slow = finish_ps(**{f"sdma_{mine}_bytes_per_s": GB})
    # of a read the last packet is only asked for
    streamed = 12_000 if mine == "write" else 11_000
    assert slow - free == serialise_ps(streamed, GB) - serialise_ps(streamed, 2 * GB)
    assert finish_ps(**{f"sdma_{other}_bytes_per_s": GB}) == free
    assert finish_ps(**{f"sdma_{mine}_bytes_per_s": 3 * GB}) == free
    by_cores = operation.removeprefix("sdma-")
    assert finish_ps(by_cores, **{f"sdma_{mine}_bytes_per_s": 1}) == finish_ps(by_cores)


@pytest.mark.parametrize("message", [1, 300, 700, 1_000, 1_001, 2_500])
@pytest.mark.parametrize(
    ("settings", "cuts"),
    [
        ({"name": "posted", "mtu_bytes": 300}, [1_000]),
        ({"name": "compact", "mtu_bytes": 300, "work_request_bytes": 700}, [700, 300]),
        ({"name": "compact", "mtu_bytes": 4_000}, [65_536, 1_000]),
        ({"name": "reliable"}, [65_536, 1_000]),
        ({"name": "load-store", "request_payload_bytes": 250}, [250]),
        ({"name": "load-store"}, [512]),
    ],
)
def test_packets_of_a_flow_are_those_of_its_transport(settings, cuts, message):
    graph = star(2)
    graph.graph["transports"]["ub"] |= settings
    row = run(graph, make_trace([flow(0, 1, messages=2, message_bytes=message)]))
    parts = [message]
    for most in cuts:
        parts = [min(most, part - begin) for part in parts for begin in range(0, part, most)]
    assert row.flows["packets"].tolist() == [2 * len(parts)]
    assert row.link("hub-0", "die-1")["packets"] == 2 * len(parts)


# ------------------------------------------------------------------------------ account


def test_account_of_a_lone_packet_is_exact(tmp_path):
    rates, delays = [10 * GB, 20 * GB, 5 * GB], [5 * NS, 50 * NS, 7 * NS]
    graph = line(rates, delays, issue_cost_ps=500 * NS, engine_bytes_per_s=5 * GB)
    result = kept(tmp_path, graph, make_trace([flow(0, 1, start_ps=12_345)]), account=True)
    (row,) = result.account().to_dict("records")
    assert row == {
        "layer": 0,
        "issue_ps": 500 * NS + serialise_ps(1_000, 5 * GB),
        "source_wait_ps": 0,
        "first_wait_ps": 0,
        "second_wait_ps": 0,
        "further_wait_ps": 0,
        # cut through: the tail is half a packet late before the faster link
        "serialise_ps": 50 * NS + serialise_ps(1_000, 5 * GB),
        "propagate_ps": sum(delays),
        "switch_ps": 2 * 200 * NS,
    }
    assert sum(row[name] for name in ACCOUNT) == result.flows()["fct_ps"][0] - RECEIVE


def test_account_of_each_packet_adds_up_to_its_time(tmp_path):
    """Flows of one packet each, over one, two or three switches, into few ports."""
    builder = FabricBuilder()
    dies = builder.dies(9, issue_engines=4, issue_cost_ps=70 * NS)
    low = [builder.switch(f"low-{k}", buffer_bytes=3_000) for k in range(3)]
    for number, name in enumerate(dies):
        builder.link(name, low[number // 3], RATE)
    for k in range(2):
        high = builder.switch(f"high-{k}", level=2, buffer_bytes=3_000)
        for name in low:
            builder.link(name, high, RATE, 50 * NS)
    flows = [
        flow(s, d, message_bytes=300 + 70 * s, start_ps=11 * NS * d)
        for s in range(9)
        for d in (0, 4, 8)
        if s != d
    ]
    with pytest.warns(UbfabricWarning):  # the buffers are small on purpose
        result = kept(tmp_path, builder.build(), make_trace(flows), account=True)
    account, rows = result.account(), result.flows()
    total = account[ACCOUNT].sum(axis=1)
    assert (account[ACCOUNT] >= 0).all(axis=None)
    assert total.tolist() == (rows["finish_ps"] - RECEIVE - rows["start_ps"]).tolist()
    waits = account[["source_wait_ps", "first_wait_ps", "second_wait_ps", "further_wait_ps"]]
    assert (waits.sum() > 0).all()
    assert (account["further_wait_ps"][rows["hops"] < 4] == 0).all()
    assert (account["propagate_ps"] == np.where(rows["hops"] == 2, 10 * NS, 110 * NS)).all()
    assert (account["switch_ps"] == (rows["hops"].astype("int64") - 1) * 200 * NS).all()


def test_account_of_a_long_flow_is_summed_over_its_packets(tmp_path):
    """Ten packets handed over at once: packet ``i`` waits for ``i`` others at the source."""
    trace = make_trace([flow(0, 1, message_bytes=10_000)])
    result = kept(tmp_path, star(2, egress_bytes_per_s=10**18), trace, account=True)
    row = result.account().iloc[0]
    assert row["source_wait_ps"] == pytest.approx(SER * 45, abs=100)
    assert row["serialise_ps"] == 10 * SER
    assert row["propagate_ps"] == 10 * 2 * 5 * NS
    assert row["switch_ps"] == 10 * 200 * NS
    alone = 2 * 5 * NS + 200 * NS + SER
    assert row[ACCOUNT].sum() == pytest.approx(SER * 45 + 10 * alone, abs=100)


def test_account_and_samples_change_no_time_and_are_there_on_demand_only(tmp_path):
    graph, trace = two_tier(), crossing(50)
    plain = run(graph, trace)
    seen = run(graph, trace, account=True, sample_interval_ps=1 * US)
    assert set(seen.files) - set(plain.files) == {"account.parquet", "samples.parquet"}
    for name, content in plain.files.items():
        assert seen.files[name] == content
    result = kept(tmp_path, graph, trace)
    with pytest.raises(ResultError, match=r"has no account; replay with account=True"):
        result.account()
    with pytest.raises(ResultError, match=r"has no samples; replay with sample_interval_ps"):
        result.samples()


# ------------------------------------------------------------------------------ samples


def test_samples_add_up_to_what_the_links_sent(tmp_path):
    flows = [flow(s, 3, messages=100) for s in range(3)]
    flows.append(flow(3, 0, start_ps=100 * US))  # looks go on until everything else is sent
    result = kept(tmp_path, star(4), make_trace(flows), sample_interval_ps=2 * US)
    samples, links = result.samples(), result.links()
    assert (samples["time_ps"] % (2 * US) == 0).all()
    assert samples["time_ps"].is_monotonic_increasing
    assert ((samples["bytes"] > 0) | (samples["waiting_bytes"] > 0)).all()
    early = samples[samples["time_ps"] <= 90 * US].groupby("link")["bytes"].sum()
    late = {("die-3", "hub-0"): 1_000, ("hub-0", "die-0"): 1_000}
    for row in links.itertuples():
        sent = row.bytes - late.get((row.src, row.dst), 0)
        assert early.get(row.link, 0) == sent
    hot = samples[
        samples["link"] == links.query("src == 'hub-0' and dst == 'die-3'")["link"].item()
    ]
    busy = hot[hot["time_ps"].between(4 * US, 28 * US)]
    assert (busy["bytes"] == 20_000).all()  # 10 B a nanosecond
    assert (busy["waiting_bytes"] > 0).all()


@pytest.mark.parametrize(
    ("option", "value"), [("sample_interval_ps", 0), ("sample_interval_ps", -1), ("watchdog_ps", 0)]
)
def test_times_without_sense_are_refused(option, value, tmp_path):
    with pytest.raises(SpecError, match=rf"{option}: found {value}, allowed 1 to"):
        kept(tmp_path, star(2), make_trace([flow(0, 1)]), **{option: value})
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------- faults


def test_link_that_fails_is_routed_around_from_the_detection_on():
    graph = two_tier()
    down = faults(("5 us", {"link": ["low-0", "high-1"]}, "down"))
    result = run(graph, crossing(), faults=down)
    assert result.summary["faults"] == [
        "at 5 us: link low-0 - high-1 (ub0) down, 1 cable; new routes at 7 us"
    ]
    assert result.summary["bytes_delivered"] == result.flows["bytes"].sum() == 1_600_000
    dead = result.link("low-0", "high-1")
    # 5 us at 10 B a nanosecond, and nothing after it
    assert 40_000 < dead["bytes"] <= 51_000
    others = [result.link("low-0", f"high-{k}")["bytes"] for k in (0, 2, 3)]
    assert sum(others) + dead["bytes"] >= 1_600_000
    whole = run(graph, crossing())
    ratio = result.flows["finish_ps"].max() / whole.flows["finish_ps"].max()
    assert 1.15 < ratio < 1.6  # three links of four for the rest


@pytest.mark.parametrize("lost", [[], [0], [2], [1, 4], [5]])
def test_links_that_are_left_of_a_group_take_turns(lost):
    # a link that is gone leaves a gap: the others are no longer the same number apart
    events = [("0 us", {"link": ["low-0", f"high-{k}"]}, "down") for k in lost]
    result = run(two_tier(n_up=6), crossing(), faults=faults(*events, detection="0 us"))
    packets = [result.link("low-0", f"high-{k}")["packets"] for k in range(6)]
    assert [packets[k] for k in lost] == [0] * len(lost)
    left = [packets[k] for k in range(6) if k not in lost]
    assert sum(left) == 1_600
    assert max(left) - min(left) <= 1


@pytest.mark.parametrize("after_ps", [-1, 0, 1, 2])
def test_routes_that_follow_at_once_leave_no_packet_behind(after_ps):
    """The head is ready to leave a high switch at the instant at which its link goes down."""
    graph, trace = two_tier(n_dies=1), make_trace([flow(0, 1)])
    alone = run(graph, trace)
    ready_ps = alone.flows["finish_ps"][0] - RECEIVE - SER - 255 * NS + after_ps
    used = [k for k in range(4) if alone.link(f"high-{k}", "low-1")["bytes"]]
    event = (f"{ready_ps} ps", {"link": [f"high-{used[0]}", "low-1"]}, "down")
    result = run(graph, trace, faults=faults(event, detection="0 us"))
    assert result.summary["bytes_delivered"] == 1_000
    if after_ps <= 1:  # later it is on its way
        assert result.link(f"high-{used[0]}", "low-1")["bytes"] == 0


def test_link_that_comes_back_is_used_again():
    graph = two_tier()
    link = {"link": ["low-0", "high-1"]}
    events = faults(("5 us", link, "down"), ("15 us", link, "up"))
    result = run(graph, crossing(), faults=events)
    assert result.summary["bytes_delivered"] == 1_600_000
    assert result.link("low-0", "high-1")["bytes"] > 150_000


def test_chip_that_dies_loses_what_it_holds_and_sources_send_it_again():
    dead = faults(("5 us", {"switch": "high-2"}, "down"))
    result = run(two_tier(), crossing(), faults=dead)
    assert result.summary["packets_lost"] > 0
    assert result.summary["bytes_delivered"] == result.flows["bytes"].sum() == 1_600_000
    assert (result.flows["finish_ps"] > 0).all()
    assert result.link("high-2", "low-1")["bytes"] <= 51_000
    # what was lost is sent again after the timeout
    assert result.flows["finish_ps"].max() > 25 * US


@pytest.mark.parametrize("allocator", ["unlimited", "islip", "output-queued"])
@pytest.mark.parametrize("element", [{"link": ["low-1", "high-2"]}, {"switch": "high-2"}])
def test_credit_is_whole_after_a_fault_whatever_the_switch(element, allocator):
    """Packets that must turn round have a place in one buffer each, and give it back once."""
    graph = two_tier()
    graph.graph["switching"] = {"allocator": allocator}
    result = run(graph, crossing(), faults=faults(("5 us", element, "down")))
    assert result.summary["bytes_delivered"] == 1_600_000


def test_die_that_dies_ends_the_run_and_the_error_names_pair_and_fault(tmp_path):
    dead = faults(("5 us", {"die": "die-6"}, "down"))
    message = r"no way from die-2 to die-6 in network ub .*after die die-6 down at 5 us"
    with pytest.raises(SimulationError, match=message) as caught:
        kept(tmp_path, two_tier(), crossing(), faults=dead)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_link_that_gives_up_for_bit_errors_is_routed_around():
    graph = two_tier()
    graph.graph["link_layer"] = {"retry_limit": 1, "retrain_limit": 0}
    graph.edges["low-0", "high-3", 0]["bit_error_rate"] = 0.01  # every packet is spoilt
    result = run(graph, crossing())
    assert result.summary["bytes_delivered"] == result.flows["bytes"].sum() == 1_600_000
    assert result.link("low-0", "high-3")["retries"] > 0
    # what was tried and no more; the other three carry all
    assert result.link("low-0", "high-3")["bytes"] < 20_000
    assert result.summary["faults"] == []


def test_faults_of_a_file_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    file = tmp_path / "faults.yaml"
    file.write_text("faults:\n  - {at: 1 us, element: {switch: high-9}, event: down}\n")
    with pytest.raises(SpecError, match=r"faults\.yaml: faults\[0\]: .*found 'high-9'"):
        kept(tmp_path, two_tier(), crossing(), faults=file)
    assert list(tmp_path.iterdir()) == [file]


def test_small_buffers_are_warned_of_with_the_rate_they_cost(tmp_path):
    graph = star(2, switch={"buffer_bytes": 2_000})
    message = r"a buffer of 2000 B does not cover the round trip .* at most 6\.5 of 10\.0 GB/s"
    with pytest.warns(UbfabricWarning, match=message):
        result = kept(tmp_path, graph, make_trace([flow(0, 1, messages=400)]))
    rate = 400_000 / result.flows()["fct_ps"][0] * 1e3
    assert rate == pytest.approx(2_000 / 310, rel=0.01)


def outage(detection: str) -> dict:
    """Return the schedule of a last link that is away from 1 us to 900 us."""
    link = {"link": ["hub-0", "die-2"]}
    return faults(("1 us", link, "down"), ("900 us", link, "up"), detection=detection)


@pytest.mark.parametrize("detection", ["1 us", "50 us", "2 ms"])
def test_die_that_is_away_gets_its_packets_when_it_is_back(detection):
    """Whether routes know of it or not: nothing reaches another die instead."""
    graph = star(3)
    graph.graph["transports"]["ub"] |= {"timeout_ps": 200 * US, "timeout_limit": 20}
    result = run(graph, make_trace([flow(0, 2, messages=100)]), faults=outage(detection))
    assert result.flows["finish_ps"][0] > 900 * US
    assert result.summary["bytes_delivered"] == 100_000
    assert result.link("hub-0", "die-2")["bytes"] == 100_000
    assert result.link("hub-0", "die-1")["bytes"] == 0
    assert result.link("hub-0", "die-0")["bytes"] == 0


def test_watchdog_ends_a_run_that_stands_still_and_names_the_port(tmp_path):
    message = (
        r"no packet moved for 0\.1 ms until 0\.9 ms; packets wait for the ports hub-0 to die-2 "
        r"in ub0$"
    )
    trace = make_trace([flow(0, 2, messages=100)])
    with pytest.raises(SimulationError, match=message):
        kept(tmp_path, star(3), trace, faults=outage("2 ms"), watchdog_ps=100 * US)
    assert list(tmp_path.iterdir()) == []
    assert run(star(3), trace, faults=outage("2 ms")).flows["finish_ps"][0] > 900 * US


def test_layer_times_say_what_was_before_during_and_after_a_fault():
    """Four layers of one exchange; the link is away for the second and back for the fourth."""
    graph = star(2)
    flows, tasks = [], []
    for layer in range(4):
        place = {"layer": layer, "phase": "dispatch"}
        flows += [flow(a, 1 - a, messages=1_000, start_ps=-1, **place) for a in (0, 1)]
        tasks += [
            task(2 * layer + a, a, layer=layer, kind="dispatch", sends="dispatch", waits="dispatch")
            for a in (0, 1)
        ]
    link = {"link": ["hub-0", "die-1"]}
    schedule = faults(("110 us", link, "down"), ("250 us", link, "up"))
    with tempfile.TemporaryDirectory() as folder:
        result = kept(Path(folder), graph, make_trace(flows, tasks), faults=schedule)
        layers = result.layer_times()
    assert list(layers["layer"]) == [0, 1, 2, 3]
    assert list(layers["when"]) == ["before", "during", "after", "after"]
    step = layers["step_ps"].tolist()
    assert step[0] == pytest.approx(step[3], rel=0.01)
    assert step[1] > step[0] + 130 * US
    assert sum(step) == layers["finish_ps"].max()
