"""Allocators, input queues, path policies, slow memory, samples and the watchdog."""

from __future__ import annotations

import numpy as np
import pytest

from ..engine import drive, link_number
from ..fabrics import GB, NS, US, FabricBuilder, line, serialise_ps, star

RATE = 10 * GB
SER = serialise_ps(1_000, RATE)
ISLIP = {"Allocator": "Islip"}
FIFO = ISLIP | {"InputFifo": "true"}


def saturated(n: int, packets: int, seed: int = 1):
    """Return flows that keep every port of an ``n``-port switch busy with random destinations.

    Each source sends single packets, back to back, each to a destination drawn at random.
    """
    rng = np.random.default_rng(seed)
    flows = []
    for src in range(n):
        for number in range(packets):
            flows.append({"src": src, "dst": n + int(rng.integers(n)), "start_ps": number * SER})
    return flows


def throughput(n: int, attributes, packets: int = 400) -> float:
    """Return delivered over offered rate, in the middle of a saturated run."""
    graph = star(2 * n, rate=RATE, issue_engines=16, switch={"buffer_bytes": 64_000})
    result = drive(graph, saturated(n, packets), attributes)
    assert result.leftover == ""
    finish = np.sort(result.flows["finish_ps"])
    inside = (finish > 0.25 * packets * SER) & (finish < 0.75 * packets * SER)
    return float(inside.sum() * SER / (0.5 * packets * SER) / n)


def test_fifo_inputs_lose_to_head_of_line_blocking():
    """Karol, Hluchyj, Morgan (1987), table I: 0.586 for many ports, 0.6184 for 8."""
    assert throughput(8, FIFO) == pytest.approx(0.6184, abs=0.03)


def test_virtual_output_queues_remove_head_of_line_blocking():
    assert throughput(8, ISLIP | {"AllocatorIterations": 3}) > 0.9
    assert throughput(8, {"Allocator": "OutputQueued"}) > 0.95


def test_speedup_lets_an_input_feed_two_outputs():
    """One input holds packets for two outputs that were busy; then both are free at once."""
    graph = star(5, rate=RATE)
    # die 0 fills its input buffer while dies 1 and 2 keep outputs 3 and 4 busy, on a higher lane
    flows = [{"src": s, "dst": d, "messages": 60, "lane": 1} for s, d in ((1, 3), (2, 4))]
    flows += [{"src": 0, "dst": 3 + k % 2, "start_ps": 1 * US + k} for k in range(20)]
    lanes = {"NumVirtualLanes": 2, "LaneArbitration": "Strict"}
    makespan = {
        speedup: int(
            drive(graph, flows, lanes | ISLIP | {"Speedup": speedup}).flows["finish_ps"].max()
        )
        for speedup in (1, 2)
    }
    free = int(drive(graph, flows, lanes).flows["finish_ps"].max())
    assert abs(makespan[2] - free) <= SER
    assert makespan[1] > free + 5 * SER


def test_islip_starves_nobody():
    """Every input has packets for every output, all at once; all finish near each other."""
    n = 4
    graph = star(2 * n, rate=RATE, issue_engines=8)
    flows = [{"src": s, "dst": n + d, "messages": 200} for s in range(n) for d in range(n)]
    result = drive(graph, flows, ISLIP)
    assert result.leftover == ""
    finish = result.flows["finish_ps"].reshape(n, n)
    assert finish.max() < 1.05 * (n * 200 * SER)
    assert finish.min() > 0.85 * finish.max()


def test_islip_moves_what_the_ideal_switch_moves():
    graph = star(6, rate=RATE, switch={"buffer_bytes": 8_000})
    flows = [
        {"src": s, "dst": d, "messages": 20, "message_bytes": 500 + 100 * s}
        for s in range(6)
        for d in range(6)
        if s != d
    ]
    for attributes in (ISLIP, FIFO, {"Allocator": "OutputQueued"}, {}):
        result = drive(graph, flows, attributes)
        assert result.leftover == ""
        assert result.counters["bytes_delivered"] == sum(20 * f["message_bytes"] for f in flows)


def test_a_lone_packet_sees_no_allocator():
    graph = line([RATE, RATE, RATE])
    alone = drive(graph, [{"src": 0, "dst": 1}]).flows["finish_ps"][0]
    for attributes in (ISLIP, FIFO, {"Allocator": "OutputQueued"}):
        assert drive(graph, [{"src": 0, "dst": 1}], attributes).flows["finish_ps"][0] == alone


def test_output_queued_switch_never_pushes_back():
    graph = star(9, rate=RATE, switch={"buffer_bytes": 1_000})
    flows = [{"src": s, "dst": 8, "messages": 50} for s in range(8)]
    ideal = drive(graph, flows, {"Allocator": "OutputQueued"})
    real = drive(graph, flows)
    assert ideal.links["no_credit_ps"].sum() < real.links["no_credit_ps"].sum()
    assert ideal.links["max_queue_bytes"].max() > 100_000


# ------------------------------------------------------------------------------ paths


def two_tier(n_dies: int = 4, n_up: int = 4, *, up_rates: list[int] | None = None):
    """Return two low switches of ``n_dies`` dies each and ``n_up`` high switches."""
    builder = FabricBuilder()
    dies = builder.dies(2 * n_dies, issue_engines=8)
    low = [builder.switch(f"low-{k}") for k in (0, 1)]
    for number, name in enumerate(dies):
        builder.link(name, low[number // n_dies], RATE)
    for k in range(n_up):
        high = builder.switch(f"high-{k}", kind="l2", level=2)
        for name in low:
            builder.link(name, high, (up_rates or [RATE] * n_up)[k], 50 * NS)
    return builder.build()


def up_bytes(result, n_up: int = 4):
    return np.array([result.links["bytes"][result.link("low-0", f"high-{k}")] for k in range(n_up)])


PERMUTATION = [{"src": s, "dst": 4 + s, "messages": 400} for s in range(4)]


def test_hashed_flows_collide_and_spraying_does_not():
    graph = two_tier()
    hashed = [
        drive(graph, PERMUTATION, {"PathPolicy": "ns3::UbPathFlowHash", "Seed": seed})
        for seed in range(8)
    ]
    spray = drive(graph, PERMUTATION, {"PathPolicy": "ns3::UbPathRoundRobin"})
    wire = 400 * SER
    assert spray.fct_ps.max() < 1.1 * wire
    assert np.mean([h.fct_ps.max() for h in hashed]) > 1.5 * wire
    for result in hashed:  # a flow stays on one path
        assert set(up_bytes(result) % 400_000) == {0}


def test_adaptive_paths_avoid_a_slow_link():
    """A link loses nine lanes of ten in the run, and routes do not know: ports show it."""
    graph = two_tier()

    def slow_down(engine, arrays):
        engine.schedule_link(1, link_number(arrays, "low-0", "high-3"), RATE // 10)

    adaptive, blind = (
        drive(graph, PERMUTATION, {"PathPolicy": f"ns3::UbPath{name}"}, prepare=slow_down)
        for name in ("Adaptive", "Random")
    )
    assert up_bytes(adaptive)[3] < 0.6 * up_bytes(blind)[3]
    assert adaptive.fct_ps.max() < blind.fct_ps.max()


def test_routes_give_a_slow_link_its_share():
    """Of links of 10, 10, 10 and 1 GB/s the last gets a 31st of what is sent blindly."""
    graph = two_tier(up_rates=[RATE, RATE, RATE, RATE // 10])
    for name in ("Random", "RoundRobin"):
        sent = up_bytes(drive(graph, PERMUTATION, {"PathPolicy": f"ns3::UbPath{name}"}))
        assert sent[3] / sent.sum() == pytest.approx(1 / 31, rel=0.4)
        assert sent[:3] / sent.sum() == pytest.approx([10 / 31] * 3, rel=0.1)


def test_adaptive_paths_see_missing_credit():
    """Two paths; the buffers beyond one of them are full of packets for a busy die."""
    graph = two_tier(n_dies=3, n_up=2)
    graph.nodes["high-0"]["buffer_bytes"] = 2_000
    flows = [{"src": 0, "dst": 3, "messages": 300}, {"src": 1, "dst": 3, "messages": 300}]
    result = drive(graph, flows, {"PathPolicy": "ns3::UbPathAdaptive"})
    assert result.leftover == ""
    assert up_bytes(result, 2)[1] > up_bytes(result, 2)[0]


def test_load_balance_factor_spreads_a_flow_over_all_paths():
    graph = two_tier()
    flows = [{"src": 0, "dst": 4, "messages": 512}]
    result = drive(graph, flows, {"PathPolicy": "ns3::UbPathLoadBalance"})
    assert (up_bytes(result) > 60_000).all()
    # 256 factors: the second half of the packets takes the paths of the first
    assert set(up_bytes(result) // 1_000 % 2) == {0}


def test_adaptive_planes_avoid_the_busy_port():
    """Plane 0 is slow: its port fills, and packets go to the other planes."""
    builder = FabricBuilder()
    dies = builder.dies(2, issue_engines=8)
    for k in range(4):
        hub = builder.switch(f"hub-{k}", f"ub{k}")
        for name in dies:
            builder.link(name, hub, RATE // 10 if k == 0 else RATE, plane=f"ub{k}")
    graph = builder.build()
    flows = [{"src": 0, "dst": 1, "messages": 800}]
    results = {
        name: drive(graph, flows, {"PlanePolicy": f"ns3::UbPlane{name}"})
        for name in ("Adaptive", "RoundRobin")
    }
    wire = 800 * SER / 3.1
    assert results["Adaptive"].fct_ps.max() < 1.1 * wire
    assert results["RoundRobin"].fct_ps.max() > 5 * wire


# ------------------------------------------------------------------- seeing, and watching


def test_samples_add_up_and_change_nothing():
    graph = star(4, rate=RATE, switch={"buffer_bytes": 4_000})
    flows = [{"src": s, "dst": 3, "messages": 100} for s in range(3)]
    plain = drive(graph, flows)
    looked = drive(graph, flows, {"SampleInterval": "1us"})
    assert np.array_equal(plain.flows, looked.flows)
    times, sent, waiting = looked.samples
    assert (np.diff(times) % US == 0).all()
    assert times[0] == US
    assert (np.diff(sent.astype(np.int64), axis=0) >= 0).all()
    down = looked.link("hub-0", "die-3")
    # the port of the hot die is never idle: 10 bytes a nanosecond
    middle = (times > 2 * US) & (times < 25 * US)
    assert (np.abs(sent[middle, down] - times[middle] / 100) < 4_000).all()
    assert waiting[middle, down].min() > 0
    assert waiting[-1].sum() < waiting.sum(axis=1).max()


def test_an_input_feeds_the_outputs_that_want_it_by_turns():
    """Two ports of a star stand still until both have a long queue from the same input."""
    graph = star(3, rate=RATE, switch={"buffer_bytes": 1 << 20})

    def prepare(engine, arrays):
        for port in ("die-1", "die-2"):
            link = link_number(arrays, "hub-0", port)
            engine.schedule_link(0, link, 0)
            engine.schedule_link(100 * US, link, RATE)

    flows = [{"src": 0, "dst": dst, "messages": 40} for dst in (1, 2)]
    result = drive(graph, flows, {"Allocator": "Islip", "Speedup": "1.0"}, prepare=prepare)
    assert result.leftover == ""
    # the crossbar reads the input at the rate of a port, so 80 packets take 80 turns
    assert result.flows["finish_ps"].max() > 100 * US + 79 * SER
    assert abs(int(np.diff(result.flows["finish_ps"])[0])) <= SER


def test_watchdog_names_the_ports_of_a_stall():
    graph = star(3, rate=RATE)

    def prepare(engine, arrays):
        engine.schedule_link(1 * US, link_number(arrays, "hub-0", "die-2"), 0)
        engine.schedule_link(900 * US, link_number(arrays, "hub-0", "die-2"), RATE)

    flows = [{"src": 0, "dst": 2, "messages": 100}, {"src": 1, "dst": 0, "start_ps": 600 * US}]
    stalled = drive(graph, flows, {"Watchdog": "100us"}, prepare=prepare)
    assert stalled.is_stalled
    assert stalled.link("hub-0", "die-2") in stalled.stalled_links
    patient = drive(graph, flows, {"Watchdog": "10ms"}, prepare=prepare)
    assert not patient.is_stalled
    assert patient.leftover == ""
    assert patient.flows["finish_ps"][0] > 900 * US


# ----------------------------------------------------------------------- memory, congestion


def test_memory_takes_writes_at_its_share_of_the_rate():
    """A port that takes writes at a quarter of its rate holds its source back by credits."""
    graph = line([RATE, RATE], memory_write_share_ppm=250_000, buffer_bytes=4_000)
    result = drive(graph, [{"src": 0, "dst": 1, "messages": 500}])
    assert result.leftover == ""
    assert result.fct_ps[0] == pytest.approx(4 * 500 * SER, rel=0.01)
    assert result.links["no_credit_ps"][result.link("hub-0-0", "die-1")] > 0


RELIABLE = {
    "UbTransport": "ns3::UbReliable"
    "[HeaderBytes=64|WindowBytes=1048576|ReorderWindow=2048|Timeout=5ms]"
}
MARKS = {"MarkBytes": 20_000, "MarkAllBytes": 60_000, "MarkShare": "0.5"}


def settled_queue(attributes) -> tuple[float, int]:
    """Return the mean queue of a hot port in the second half of an incast, and its makespan."""
    graph = star(9, rate=RATE, payload=4_096, issue_engines=4, switch={"buffer_bytes": 1 << 24})
    flows = [{"src": s, "dst": 8, "messages": 60, "message_bytes": 60_000} for s in range(8)]
    result = drive(graph, flows, RELIABLE | {"SampleInterval": "10us"} | attributes)
    assert result.leftover == ""
    times, _, waiting = result.samples
    makespan = int(result.fct_ps.max())
    middle = (times > 0.5 * makespan) & (times < 0.8 * makespan)
    return float(waiting[middle, result.link("hub-0", "die-8")].mean()), makespan


@pytest.mark.parametrize(
    ("control", "marks", "cost"),
    [("ns3::UbCaqm", {}, 1.1), ("ns3::UbLdcp", MARKS, 1.1), ("ns3::UbDcqcn", MARKS, 3.0)],
)
def test_congestion_control_shortens_the_queue_of_a_hot_port(control, marks, cost):
    """Windows keep the port busy; the rates of DCQCN recover slowly, and leave it idle at times."""
    free, plain = settled_queue({})
    held, makespan = settled_queue(marks | {"UbCongestion": control})
    assert held < 0.5 * free
    assert makespan < cost * plain


def test_caqm_brings_the_queue_from_the_first_windows_down_to_its_target():
    """Eight first windows of ten packets are a queue of 330 kB; switches aim at ten packets.

    While much more waits a port has less than nothing to grant, and only marks shrink windows.
    """
    target = 10 * 4_096
    held, _ = settled_queue({"UbCongestion": "ns3::UbCaqm"})
    assert 0.2 * target < held < 2 * target


def test_marks_are_what_congestion_control_goes_by():
    """Without marks LDCP leaves the queue as long as the windows make it."""
    blind, _ = settled_queue({"UbCongestion": "ns3::UbLdcp"})
    told, _ = settled_queue(MARKS | {"UbCongestion": "ns3::UbLdcp"})
    assert told < 0.5 * blind


def test_a_switch_that_dies_loses_what_waits_in_it_and_sources_send_it_again():
    graph = star(4, rate=RATE, switch={"forward_latency_ps": 1 * NS})

    def prepare(engine, arrays):
        hub = arrays.node_names.index("hub-0")
        for time_ps, rate in ((5 * US, 0), (9 * US, RATE)):
            for link in range(arrays.n_links):
                engine.schedule_link(time_ps, link, rate)
        engine.schedule_switch(5 * US, hub, is_dead=True)
        engine.schedule_switch(9 * US, hub, is_dead=False)

    flows = [{"src": s, "dst": 3, "messages": 100} for s in range(3)]
    result = drive(graph, flows, prepare=prepare)
    assert result.leftover == ""
    assert result.counters["bytes_delivered"] == 300_000
    # three sources filled the hot queue for 5 us, of which a third could leave
    assert result.counters["packets_lost"] > 50
