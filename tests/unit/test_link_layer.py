"""Cells, credits and their way back, lanes, bit errors and retries, to the picosecond."""

from __future__ import annotations

import numpy as np
import pytest

from ..engine import drive, link_number
from ..fabrics import GB, NS, US, FabricBuilder, line, serialise_ps, star

RATE = 10 * GB
WIRE = 1_000
SER = serialise_ps(WIRE, RATE)
FLIT = serialise_ps(20, RATE)
DELAY = 5 * NS
FORWARD = 200 * NS
RECEIVE = 100 * NS
#: A packet alone, over one switch.
ALONE = 2 * DELAY + FORWARD + SER + RECEIVE


def two_packets(buffer_bytes: int, **attributes):
    """Return the finish of two packets of one source through a switch with a small buffer."""
    graph = line([RATE, RATE], switch={"buffer_bytes": buffer_bytes})
    result = drive(graph, [{"src": 0, "dst": 1, "messages": 2}], attributes)
    assert result.leftover == ""
    return int(result.flows["finish_ps"][0])


@pytest.mark.parametrize(
    ("cell_bytes", "buffer_bytes", "waits"),
    [(160, 2_239, True), (160, 2_240, False), (1, 1_999, True), (1, 2_000, False)],
)
def test_a_packet_takes_whole_cells(cell_bytes, buffer_bytes, waits):
    """1,000 B are 7 cells of 160 B: two packets need 14 cells, which 2,239 B do not hold."""
    finish = two_packets(buffer_bytes, CellBytes=cell_bytes)
    # the second starts when the first has left the switch and the news is back
    start = 2 * DELAY + FORWARD + SER if waits else SER
    assert finish == start + ALONE


@pytest.mark.parametrize(
    ("mode", "late_ps"), [("Ideal", 0), ("Control", FLIT), ("Piggyback", 300 * NS + FLIT)]
)
def test_credit_takes_its_time_to_come_back(mode, late_ps):
    finish = two_packets(1_000, CreditReturn=mode, CreditTimeout="300ns")
    assert finish == 2 * DELAY + FORWARD + SER + late_ps + ALONE


def reverse_packet(start_ps: int, **attributes):
    """Return the finish of two packets, with a third that leaves the other way."""
    graph = star(3, rate=RATE, switch={"buffer_bytes": 1_000})
    flows = [{"src": 0, "dst": 1, "messages": 2}, {"src": 2, "dst": 0, "start_ps": start_ps}]
    result = drive(graph, flows, {"CreditReturn": "Piggyback", "CreditTimeout": "5us"} | attributes)
    assert result.leftover == ""
    return int(result.flows["finish_ps"][0])


def test_credit_rides_on_the_next_packet():
    """The packet of die 2 leaves the switch towards die 0 after the buffer is free."""
    free = DELAY + FORWARD + SER
    start = 700 * NS
    leaves = start + DELAY + FORWARD
    assert leaves > free
    assert reverse_packet(start) == leaves + FLIT + DELAY + ALONE


def test_credit_cannot_ride_on_an_earlier_packet():
    """Leaving before the buffer is free, a packet takes nothing along."""
    free = DELAY + FORWARD + SER
    assert reverse_packet(0) == free + 5 * US + FLIT + DELAY + ALONE


def test_header_counts_whole_grains():
    """7 cells in grains of 4: four ride, three follow in a control block after the timeout."""
    attributes = {"CellBytes": 160, "CreditGrainCells": 4}
    graph = star(3, rate=RATE, switch={"buffer_bytes": 7 * 160})
    flows = [{"src": 0, "dst": 1, "messages": 2}, {"src": 2, "dst": 0, "start_ps": 700 * NS}]
    mode = {"CreditReturn": "Piggyback", "CreditTimeout": "5us"}
    result = drive(graph, flows, attributes | mode)
    assert result.leftover == ""
    free = DELAY + FORWARD + SER
    assert result.flows["finish_ps"][0] == free + 5 * US + FLIT + DELAY + ALONE


def test_cells_whose_control_block_has_left_wait_for_no_others():
    """A second packet leaves the buffer while three cells of the first are on their way."""
    graph = line([RATE, RATE], switch={"buffer_bytes": 14 * 160})
    timeout, second = 300 * NS, 303 * NS
    flows = [{"src": 0, "dst": 1}, {"src": 0, "dst": 1, "messages": 2, "start_ps": second}]
    mode = {"CreditReturn": "Piggyback", "CreditTimeout": "300ns"}
    result = drive(graph, flows, mode | {"CellBytes": 160, "CreditGrainCells": 4})
    assert result.leftover == ""
    free = DELAY + FORWARD + SER
    back = free + timeout + FLIT + DELAY
    assert free + timeout < free + second < back
    # the third packet has all seven cells of the first by then, and not four
    assert result.flows["finish_ps"][1] == back + ALONE


def test_control_blocks_take_bandwidth():
    """Both directions busy: each packet one way costs a control block the other way."""
    graph = line([RATE, RATE])
    flows = [{"src": a, "dst": 1 - a, "messages": 2_000} for a in (0, 1)]
    ideal = drive(graph, flows).fct_ps.max()
    control = drive(graph, flows, {"CreditReturn": "Control"}).fct_ps.max()
    assert control / ideal == pytest.approx(1 + FLIT / SER, rel=2e-3)
    one_way = drive(graph, flows[:1], {"CreditReturn": "Control"}).fct_ps.max()
    assert one_way == drive(graph, flows[:1]).fct_ps.max()  # the other way is idle


def test_credit_that_rides_takes_no_bandwidth():
    graph = line([RATE, RATE])
    flows = [{"src": a, "dst": 1 - a, "messages": 2_000} for a in (0, 1)]
    ideal = drive(graph, flows).fct_ps.max()
    assert drive(graph, flows, {"CreditReturn": "Piggyback"}).fct_ps.max() == ideal


@pytest.mark.parametrize("mode", ["Ideal", "Control", "Piggyback"])
def test_all_credits_come_back(mode):
    """Cells too few for a grain are not lost either."""
    graph = star(5, rate=RATE, switch={"buffer_bytes": 4_000})
    flows = [
        {"src": s, "dst": d, "messages": 7, "message_bytes": 130 + 97 * s, "lane": (s + d) % 3}
        for s in range(5)
        for d in range(5)
        if s != d
    ]
    attributes = {"CellBytes": 160, "CreditGrainCells": 4, "NumVirtualLanes": 3}
    result = drive(graph, flows, attributes | {"CreditReturn": mode})
    assert result.leftover == ""


# ------------------------------------------------------------------------------ lanes


def incast(lanes: list[int], messages: int = 400, **attributes):
    """Return a drive of one flow a lane, from a source of its own each, to one die."""
    graph = star(len(lanes) + 1, rate=RATE)
    flows = [
        {"src": n, "dst": len(lanes), "messages": messages, "lane": lane}
        for n, lane in enumerate(lanes)
    ]
    return drive(graph, flows, {"NumVirtualLanes": max(lanes) + 1} | attributes)


def test_strict_priority_serves_the_highest_lane_first():
    result = incast([0, 1, 2], LaneArbitration="Strict")
    finish = result.flows["finish_ps"]
    assert finish[2] < finish[1] < finish[0]
    # the highest lane is all but undisturbed: at most one packet is in its way
    assert finish[2] <= 400 * SER + ALONE + SER
    fair = incast([0, 1, 2]).flows["finish_ps"]
    assert np.ptp(fair) <= 3 * SER


def test_deficit_round_robin_shares_by_weight():
    """Weights 1 and 3, in bytes, though the packets of lane 0 are three times as long."""
    graph = star(3, rate=RATE, payload=3_000)
    flows = [
        {"src": 0, "dst": 2, "messages": 1_000, "message_bytes": 3_000, "lane": 0},
        {"src": 1, "dst": 2, "messages": 3_000, "message_bytes": 1_000, "lane": 1},
    ]
    weights = {"NumVirtualLanes": 2, "LaneArbitration": "Deficit", "QuantumBytes": 3_000}
    result = drive(graph, flows, weights | {"LaneWeights": "1 3"})
    finish = result.flows["finish_ps"]
    # lane 1 has 3/4 of the port until its 3 MB are gone, lane 0 the rest after that
    assert finish[1] == pytest.approx(4 / 3 * 3_000 * SER, rel=0.01)
    assert finish[0] == pytest.approx(2 * 3_000 * SER, rel=0.01)


def shared_buffer(**attributes):
    """Return when the second of two bursts on two lanes through one slow port is all sent."""
    graph = line([RATE, RATE // 10], switch={"buffer_bytes": 8_000}, issue_engines=2)
    flows = [{"src": 0, "dst": 1, "messages": 8, "lane": 0}]
    result = drive(graph, flows, {"NumVirtualLanes": 2} | attributes)
    assert result.leftover == ""
    return int(result.links["no_credit_ps"].sum())


def test_shared_buffer_lends_idle_lanes_space():
    """8 packets fit if one lane may have all of the port's 8,000 B, not if it has half."""
    assert shared_buffer() == 0
    assert shared_buffer(ShareBuffer="true", LaneFloorCells=0) == 0
    assert shared_buffer(ShareBuffer="true", LaneFloorCells=4_000) > 0


def test_shared_buffer_keeps_a_floor_for_each_lane():
    """A lane that fills the pool cannot lock out another with a floor."""
    graph = star(4, rate=RATE, switch={"buffer_bytes": 4_000})
    flows = [{"src": s, "dst": 3, "messages": 200, "lane": 0} for s in (0, 1)]
    flows += [{"src": 0, "dst": 2, "messages": 1, "lane": 1, "start_ps": 20 * US}]
    shared = {"NumVirtualLanes": 2, "ShareBuffer": "true"}
    locked = drive(graph, flows, shared | {"LaneFloorCells": 0})
    kept = drive(graph, flows, shared | {"LaneFloorCells": 1_000})
    assert locked.leftover == kept.leftover == ""
    assert kept.fct_ps[2] < locked.fct_ps[2]


# ------------------------------------------------------------------------------ retry


def noisy(rate: float, **attributes):
    """Return a drive of 3,000 packets over one noisy link and a switch."""
    graph = line([RATE, RATE])
    return drive(
        graph,
        [{"src": 0, "dst": 1, "messages": 3_000}],
        attributes,
        prepare=lambda engine, arrays: engine.schedule_link(
            0, link_number(arrays, "die-0", "hub-0-0"), RATE, rate
        ),
    )


def test_a_spoilt_packet_costs_its_time_and_the_news_of_it():
    rate = 1e-5
    result = noisy(rate)
    assert result.leftover == ""
    assert result.counters["bytes_delivered"] == 3_000_000
    retries = int(result.links["retries"][result.link("die-0", "hub-0-0")])
    spoilt = 1 - (1 - rate) ** (8 * WIRE)
    assert retries == pytest.approx(3_000 * spoilt / (1 - spoilt), rel=0.15)
    cost = SER + 2 * DELAY + FLIT
    assert result.flows["finish_ps"][0] == 2_999 * SER + retries * cost + ALONE


def test_a_link_without_errors_never_retries():
    result = noisy(0.0)
    assert result.links["retries"].sum() == 0
    assert result.flows["finish_ps"][0] == 2_999 * SER + ALONE


def test_too_many_retries_halve_the_lanes():
    """With no retry allowed, the first error costs a training and half of the rate."""
    result = noisy(1e-7, RetryLimit=0, RetrainLimit=1_000, RetrainTime="30us")
    assert result.leftover == ""
    retries = int(result.links["retries"].sum())
    assert retries > 0
    assert result.flows["finish_ps"][0] > 2_999 * SER + ALONE + retries * 30 * US
    # from the first training on half of the rate is left, from the second a quarter
    assert result.flows["finish_ps"][0] - retries * 30 * US > 1.5 * 2_999 * SER


def test_a_link_that_cannot_be_trained_gives_up():
    result = noisy(0.5, RetryLimit=2, RetrainLimit=2, RetrainTime="30us")
    assert [link for link, _ in result.broken] == [result.link("die-0", "hub-0-0")]
    assert result.broken[0][1] >= 2 * 30 * US
    assert "packets are still inside" in result.leftover


def test_bit_errors_do_not_depend_on_who_looks():
    """The same luck whether the run goes in windows or instant by instant."""
    fast = noisy(1e-5)
    slow = noisy(1e-5, PlanePolicy="ns3::UbPlaneAdaptive")
    assert np.array_equal(fast.flows, slow.flows)


def test_other_traffic_shares_the_delay_of_a_retry():
    """Nothing overtakes on a link that waits for a retry."""
    builder = FabricBuilder()
    dies = builder.dies(3)
    hub = builder.switch("hub")
    for name in dies:
        builder.link(name, hub, RATE)
    graph = builder.build()

    def prepare(engine, arrays):
        engine.schedule_link(0, link_number(arrays, "hub", "die-2"), RATE, 5e-5)

    flows = [{"src": s, "dst": 2, "messages": 500} for s in (0, 1)]
    result = drive(graph, flows, prepare=prepare)
    retries = int(result.links["retries"].sum())
    assert retries > 100
    last = int(result.flows["finish_ps"].max())
    assert last == 999 * SER + retries * (SER + 2 * DELAY + FLIT) + ALONE


@pytest.mark.parametrize("buffer_bytes", [1_000, 2_000, 5_000, 0])
def test_retry_buffer_limits_what_is_not_acknowledged(buffer_bytes):
    """A packet is acknowledged a round trip and a control block after its last byte."""
    graph = line([RATE, RATE], [200 * NS, 200 * NS])
    flows = [{"src": 0, "dst": 1, "messages": 1_000}]
    result = drive(graph, flows, {"RetryBufferBytes": buffer_bytes})
    assert result.leftover == ""
    loop = SER + 2 * 200 * NS + FLIT
    room = buffer_bytes // WIRE
    turn = SER if not room else max(loop / room, SER)
    assert result.fct_ps[0] == pytest.approx(1_000 * turn, rel=0.01)
