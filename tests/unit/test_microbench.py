"""Rates of SDMA engines on a star of dies, where they follow by hand."""

from __future__ import annotations

import pytest
from fabrics import GB, NS, US, star

from ubfabric.errors import SpecError, TopologyError, TraceError
from ubfabric.microbench import sdma_bandwidth_bytes_per_s
from ubfabric.topology import build_topology

START, RATE, LINK = 3 * US, 2 * GB, 10 * GB
#: Two cables and a switch, one way; and what an endpoint adds to what it receives.
WAY, RECEIVE = 2 * 5 * NS + 200 * NS, 100 * NS


def machine(engines: int = 1, work_request: int = 10_000):
    """Return two dies of ``engines`` engines each, with packets of 1,000 B and no headers."""
    limits = {"sdma_engines": engines, "sdma_start_ps": START, "sdma_bytes_per_s": RATE}
    graph = star(2, rate=LINK, **limits)
    graph.graph["transports"]["ub"]["work_request_bytes"] = work_request
    return graph


def time_ps(n_bytes: int, rate: int) -> int:
    """Return how long bytes take at a rate."""
    return n_bytes * 10**12 // rate


@pytest.mark.parametrize(
    ("engines", "blocks", "turns", "at_last"),
    [(1, 1, 1, 1), (1, 4, 4, 1), (2, 4, 2, 2), (2, 5, 3, 1), (8, 5, 1, 5)],
)
@pytest.mark.parametrize("block", [1_000, 3_000])
def test_engines_write_blocks_in_turn_each_with_a_start(engines, blocks, turns, at_last, block):
    rate = sdma_bandwidth_bytes_per_s(
        machine(engines), "die-0", "die-1", "write", block, total_bytes=blocks * block
    )
    # Engines of the last turn end together, and their last packets share the link.
    taken = turns * (START + time_ps(block, RATE)) + at_last * time_ps(1_000, LINK) + WAY + RECEIVE
    assert rate == pytest.approx(blocks * block / taken * 1e12, rel=1e-9)


@pytest.mark.parametrize(("engines", "blocks", "turns"), [(1, 1, 1), (1, 4, 4), (2, 5, 3)])
@pytest.mark.parametrize("block", [1_000, 3_000])
def test_engines_ask_for_blocks_in_turn_each_with_a_start(engines, blocks, turns, block):
    rate = sdma_bandwidth_bytes_per_s(
        machine(engines), "die-0", "die-1", "read", block, total_bytes=blocks * block
    )
    # The last block is asked for when its engine has started; it comes at the rate of the link.
    asked = turns * START + (turns - 1) * time_ps(block, RATE)
    taken = asked + 2 * (WAY + RECEIVE) + time_ps(block, LINK)
    assert rate == pytest.approx(blocks * block / taken * 1e12, rel=1e-9)


def test_over_rdma_a_transfer_has_one_start_and_fills_the_link():
    """Whatever its transport cuts it into; memory that takes UB slowly does not slow the card."""
    graph = build_topology("two-nodes")
    die, block = graph.nodes["die-0-0"], 4 << 20
    assert graph.graph["transports"]["rdma"]["work_request_bytes"] < block // 50
    assert die["memory_write_share_ppm"] < 900_000
    rate = sdma_bandwidth_bytes_per_s(
        graph, "die-0-0", "die-1-0", "write", block, total_bytes=block, network="rdma"
    )
    wire_ps, start_ps = time_ps(block, 25 * GB), die["sdma_start_ps"]
    assert wire_ps + start_ps < block / rate * 1e12 < 1.05 * wire_ps + start_ps


def test_bytes_that_do_not_fill_a_block_are_left_out():
    rates = [
        sdma_bandwidth_bytes_per_s(machine(), "die-0", "die-1", "write", 1_000, total_bytes=total)
        for total in (2_000, 2_999)
    ]
    assert rates[0] == rates[1]


def test_transfers_go_over_the_network_that_is_asked_for():
    graph = machine()
    with pytest.raises(TraceError, match="network 'rdma'"):
        sdma_bandwidth_bytes_per_s(graph, "die-0", "die-1", "write", 1_000, network="rdma")


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"operation": "send"}, SpecError, r"^operation: found 'send', allowed read, write$"),
        ({"block_bytes": 0}, SpecError, r"^block_bytes: found 0, allowed 1 to 5000$"),
        ({"block_bytes": 5_001}, SpecError, r"^block_bytes: found 5001, allowed 1 to 5000$"),
        (
            {"graph": star(2)},
            TopologyError,
            r"^node 'die-0': sdma_engines is 0; this needs 1 or more$",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(wrong, error, message):
    asked = {"graph": machine(), "operation": "write", "block_bytes": 1_000}
    with pytest.raises(error, match=message):
        sdma_bandwidth_bytes_per_s(src="die-0", dst="die-1", total_bytes=5_000, **asked | wrong)
