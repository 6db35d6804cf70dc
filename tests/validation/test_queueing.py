"""Results of queueing and switching theory that the engine must reproduce."""

from __future__ import annotations

import numpy as np
import pytest
from engine import drive
from fabrics import GB, NS, FabricBuilder, serialise_ps, star

RATE = 10 * GB
SER = serialise_ps(1_000, RATE)


@pytest.mark.validation
@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_wait_at_a_port_is_that_of_a_queue_with_fixed_service(load):
    """M/D/1: mean wait = load / (2 (1 - load)) services (Pollaczek, Khinchine).

    Many sources on fast links make the arrivals at the slow port all but Poisson. Tolerance: three
    standard errors of the mean over batches of the run.
    """
    n_sources, n_packets = 40, 24_000
    builder = FabricBuilder()
    dies = builder.dies(n_sources + 1, issue_engines=16)
    hub = builder.switch("hub")
    for name in dies[:-1]:
        builder.link(name, hub, 100 * RATE)
    builder.link(dies[-1], hub, RATE)
    rng = np.random.default_rng(1)
    start = np.cumsum(rng.exponential(SER / load, n_packets)).astype(np.int64)
    src = rng.integers(n_sources, size=n_packets)
    flows = [
        {"src": int(s), "dst": n_sources, "start_ps": int(t)}
        for s, t in zip(src, start, strict=True)
    ]
    graph = builder.build()
    graph.nodes["hub"]["buffer_bytes"] = 1 << 24
    result = drive(graph, flows)
    assert result.leftover == ""
    # the packets of one source wait for each other's 1 ns at the source, too; nothing else
    wait = result.flows["queueing_ps"][n_packets // 10 :]
    batches = np.array([part.mean() for part in np.array_split(wait, 30)]) / SER
    expected = load / (2 * (1 - load))
    error = batches.std(ddof=1) / np.sqrt(len(batches))
    assert abs(batches.mean() - expected) < 3 * error
    assert error < 0.1 * expected + 0.05


def _throughput(n: int, attributes: dict, packets: int = 300) -> float:
    """Return delivered over offered rate of a switch with uniform random traffic at full load."""
    rng = np.random.default_rng(2)
    flows = [
        {"src": src, "dst": n + int(rng.integers(n)), "start_ps": number * SER}
        for src in range(n)
        for number in range(packets)
    ]
    graph = star(2 * n, rate=RATE, issue_engines=16, switch={"buffer_bytes": 256_000})
    result = drive(graph, flows, attributes)
    assert result.leftover == ""
    finish = result.flows["finish_ps"]
    inside = (finish > 0.3 * packets * SER) & (finish < 0.7 * packets * SER)
    return float(inside.sum() / (0.4 * packets) / n)


@pytest.mark.validation
@pytest.mark.parametrize(("n", "limit"), [(2, 0.75), (4, 0.6553), (8, 0.6184), (32, 0.5930)])
def test_fifo_inputs_reach_their_known_limit(n, limit):
    """Karol, Hluchyj and Morgan, IEEE Trans. Commun. 35 (1987), table I; 0.586 for many ports.

    The value for 32 ports lies between the table's 0.6184 for 8 and its limit; interpolated as
    0.5858 + 0.26 / n, which fits the table to 0.001. Tolerance: 0.03, the spread over seeds of
    300 packets a port.
    """
    found = _throughput(n, {"Allocator": "Islip", "InputFifo": "true"}, 1_200 // n + 260)
    assert found == pytest.approx(limit, abs=0.03)


@pytest.mark.validation
def test_virtual_output_queues_lift_the_limit():
    """iSLIP with as many iterations as log2 of the ports is close to full load (McKeown 1999)."""
    assert _throughput(8, {"Allocator": "Islip", "AllocatorIterations": 3}) > 0.93
    assert _throughput(8, {"Allocator": "OutputQueued"}) > 0.96


@pytest.mark.validation
def test_incast_pushes_back_as_a_tree():
    """Sources behind one switch are slowed only while the tree of full buffers reaches them.

    Two low switches and a high one; six dies behind the first send to one die behind the second.
    The buffers on the way fill from the hot die backwards, each link of the tree stands without
    credit, and a flow that shares the trunk suffers while one within its switch does not.
    """
    builder = FabricBuilder()
    dies = builder.dies(14, issue_engines=8)
    low = [builder.switch(f"low-{k}", buffer_bytes=8_000) for k in (0, 1)]
    high = builder.switch("high", kind="l2", level=2, buffer_bytes=8_000)
    for number, name in enumerate(dies):
        builder.link(name, low[number // 7], RATE)
    for name in low:
        builder.link(name, high, 4 * RATE, 50 * NS)
    flows = [{"src": s, "dst": 13, "messages": 200} for s in range(5)]
    flows += [
        {"src": 5, "dst": 12, "messages": 50, "start_ps": 20 * SER},  # shares the trunk
        {"src": 6, "dst": 1, "messages": 50, "start_ps": 20 * SER},  # does not
    ]
    result = drive(builder.build(), flows)
    assert result.leftover == ""
    tree = [("high", "low-1"), ("low-0", "high"), ("die-0", "low-0"), ("die-4", "low-0")]
    stalled = [int(result.links["no_credit_ps"][result.link(*ends)]) for ends in tree]
    assert all(time > 0 for time in stalled)
    alone = 50 * SER
    assert result.fct_ps[5] > 3 * alone
    assert result.fct_ps[6] < 1.1 * alone
