"""Laws that hold whatever the settings of links and switches: random fabrics, flows, settings."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..engine import drive
from ..fabrics import GB, NS, FabricBuilder

PAYLOAD = 4_096


@st.composite
def fabrics(draw):
    """Draw two low switches with dies and some high switches, with little buffer."""
    per_switch, n_high = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    builder = FabricBuilder(payload=PAYLOAD)
    buffers = st.integers(14_000, 60_000)
    dies = builder.dies(2 * per_switch, issue_engines=4, buffer_bytes=draw(buffers))
    low = [builder.switch(f"low-{k}", buffer_bytes=draw(buffers)) for k in (0, 1)]
    for number, name in enumerate(dies):
        builder.link(name, low[number // per_switch], 10 * GB)
    for k in range(n_high):
        high = builder.switch(f"high-{k}", kind="l2", level=2, buffer_bytes=draw(buffers))
        for name in low:
            builder.link(name, high, draw(st.sampled_from([5, 10])) * GB, 50 * NS)
    graph = builder.build()
    share = draw(st.sampled_from([1_000_000, 800_000]))
    for _, node in graph.nodes(data=True):
        if node["kind"] == "die":
            node["memory_write_share_ppm"] = share
    return graph, 2 * per_switch


@st.composite
def cases(draw):
    """Draw a fabric, flows with a hot destination, and settings of links and switches."""
    graph, n_dies = draw(fabrics())
    seed = draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    flows = [
        {
            "src": src,
            "dst": dst,
            "messages": int(rng.integers(1, 30)),
            "message_bytes": int(rng.integers(1, 15_000)),
            "start_ps": int(rng.integers(0, 10**6)),
            "lane": int(rng.integers(3)),
        }
        for src in range(n_dies)
        for dst in range(n_dies)
        if src != dst and (dst == 0 or rng.random() < 0.5)
    ]
    cell = draw(st.sampled_from([1, 160]))
    how = {
        "Seed": seed,
        "NumVirtualLanes": 3,
        "CellBytes": cell,
        "CreditGrainCells": draw(st.sampled_from([1, 4])),
        "CreditReturn": draw(st.sampled_from(["Ideal", "Control", "Piggyback"])),
        "CreditTimeout": draw(st.sampled_from(["0ps", "30ns", "400ns"])),
        "Allocator": draw(st.sampled_from(["Unlimited", "Islip", "OutputQueued"])),
        "InputFifo": draw(st.sampled_from(["false", "true"])),
        "AllocatorIterations": draw(st.integers(1, 3)),
        "Speedup": draw(st.sampled_from(["1.0", "1.5", "2.0"])),
        "LaneArbitration": draw(st.sampled_from(["RoundRobin", "Strict", "Deficit"])),
        "LaneWeights": "1 2 3",
        "ShareBuffer": draw(st.sampled_from(["false", "true"])),
        "LaneFloorCells": draw(st.sampled_from([0, 4_320 // cell])),
        "PathPolicy": "ns3::UbPath"
        + draw(st.sampled_from(["RoundRobin", "FlowHash", "LoadBalance", "Adaptive"])),
    }
    return graph, flows, how


HOW = settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@given(cases())
@HOW
def test_every_byte_arrives_once_and_every_credit_comes_back(case):
    graph, flows, how = case
    result = drive(graph, flows, how)
    assert result.leftover == ""
    wanted = sum(flow["messages"] * flow["message_bytes"] for flow in flows)
    assert result.counters["bytes_delivered"] == result.counters["bytes_sent"] == wanted
    assert (result.flows["finish_ps"] > result.flows["start_ps"]).all()


@given(cases())
@HOW
def test_looking_often_changes_nothing(case):
    """Samples cut the run into other windows and let sources send at their time only."""
    graph, flows, how = case
    plain = drive(graph, flows, how)
    looked = drive(graph, flows, how | {"SampleInterval": "150ns"})
    for name in ("finish_ps", "first_byte_ps", "queueing_ps", "hops"):
        assert np.array_equal(plain.flows[name], looked.flows[name]), name
    assert np.array_equal(plain.links["bytes"], looked.links["bytes"])
