"""Whatever fails, every byte arrives exactly once.

Random small fabrics of three kinds, with any transport, any switch and any link layer; links
with bit errors, and schedules of faults that come back or leave another way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest
from fabrics import GB, NS, US, FabricBuilder, flow, make_trace, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ubfabric.trace import Trace

#: Largest schedule, in microseconds: traffic is over after a few tens of them.
_LATEST_US = 30
#: The way back of a link of which all depends, counted in the timeouts of a transport.
_OUTAGES_US = st.integers(1, 40)


@st.composite
def graphs(draw) -> nx.MultiGraph:
    """Draw dies at one or two low switches a plane, and high switches that join them."""
    builder = FabricBuilder(payload=draw(st.sampled_from([512, 1_000])), header=20)
    n_low, n_high = draw(st.sampled_from([(1, 0), (2, 2), (2, 3)]))
    n_planes = draw(st.integers(1, 2))
    dies = builder.dies(
        draw(st.integers(2, 3)) * n_low,
        issue_engines=draw(st.integers(1, 3)),
        issue_cost_ps=draw(st.sampled_from([0, 200 * NS])),
        overlaps_issue=draw(st.integers(0, 1)),
        sdma_engines=1,
        sdma_bytes_per_s=20 * GB,
        buffer_bytes=16_384,
    )
    buffer_bytes = draw(st.sampled_from([2_400, 8_192, 65_536]))
    for plane in range(n_planes):
        name = f"ub{plane}"
        low = [
            builder.switch(f"low-{plane}-{k}", name, buffer_bytes=buffer_bytes)
            for k in range(n_low)
        ]
        for number, die in enumerate(dies):
            builder.link(die, low[number % n_low], 10 * GB, plane=name)
        for k in range(n_high):
            high = builder.switch(
                f"high-{plane}-{k}", name, kind="l2", level=2, buffer_bytes=buffer_bytes
            )
            for chip in low:
                builder.link(chip, high, 10 * GB, 50 * NS, plane=name)
    graph = builder.build()
    if draw(st.booleans()):
        for _, _, data in graph.edges(data=True):
            data["lanes"] = 4
    return graph


@st.composite
def mechanisms(draw, graph: nx.MultiGraph) -> str:
    """Set transport, link layer and switching of a graph; return the transport's name."""
    name = draw(st.sampled_from(["posted", "load-store", "reliable", "compact"]))
    graph.graph["transports"]["ub"] = {
        "name": name,
        "header_bytes": 20,
        "acknowledge_header_bytes": 24,
        "acknowledge_every": draw(st.integers(1, 4)),
        "acknowledge_delay_ps": 500 * NS,
        "request_payload_bytes": draw(st.sampled_from([256, 512])),
        "window_requests": draw(st.integers(1, 16)),
        "mtu_bytes": draw(st.sampled_from([300, 1_000])),
        "work_request_bytes": draw(st.sampled_from([1_000, 65_536])),
        "window_bytes": draw(st.sampled_from([2_000, 50_000])),
        "reorder_window": draw(st.sampled_from([1, 16, 256])),
        "retransmission": draw(st.sampled_from(["go-back-n", "selective"])),
        "timeout_ps": 15 * US,
        "timeout_limit": 31,
        "congestion_control": draw(
            st.sampled_from(
                ["none", "dcqcn"] if name == "compact" else ["none", "ldcp", "caqm", "dcqcn"]
            )
        ),
    }
    graph.graph["link_layer"] = {
        "flit_bytes": draw(st.sampled_from([0, 20])),
        "credit_return": draw(st.sampled_from(["ideal", "piggyback", "control"])),
        "credit_grain_cells": draw(st.sampled_from([1, 4])),
        "buffer_sharing": draw(st.sampled_from(["exclusive", "shared"])),
        "lane_arbitration": draw(st.sampled_from(["round-robin", "strict", "deficit"])),
        "retry_limit": 31,
        "retrain_time_ps": 1 * US,
    }
    graph.graph["switching"] = {
        "allocator": draw(st.sampled_from(["unlimited", "islip", "output-queued"])),
        "input_queues": draw(st.sampled_from(["voq", "fifo"])),
    }
    return name


@st.composite
def noise(draw, graph: nx.MultiGraph) -> None:
    """Give some cables bit errors, up to one packet in three spoilt."""
    edges = list(graph.edges(keys=True))
    for edge in draw(st.lists(st.sampled_from(edges), max_size=3, unique=True)):
        graph.edges[edge]["bit_error_rate"] = draw(st.sampled_from([1e-7, 1e-6, 1e-5, 5e-5]))


@st.composite
def schedules(draw, graph: nx.MultiGraph) -> dict[str, Any]:
    """Draw faults after which every pair is connected, at once or when something is back.

    One cable between switches or one high switch of a plane may stay away, as another is left;
    whatever else fails comes back.
    """
    rows: list[dict[str, Any]] = []

    def add(at_us: int, element: dict[str, Any], event: str, **values: Any) -> None:
        rows.append({"at": f"{at_us} us", "element": element, "event": event, **values})

    cables = [(u, v) for u, v in graph.edges()]
    chips = [name for name, data in graph.nodes(data=True) if data["role"] == "switch"]
    high = [name for name in chips if name.startswith("high")]
    dies = [name for name in graph if name.startswith("die")]
    elements: list[dict[str, Any]] = [{"link": list(cable)} for cable in cables]
    elements += [{"switch": name} for name in chips] + [{"die": name} for name in dies]
    taken: set[str] = set()
    if high and draw(st.booleans()):
        lost = draw(st.sampled_from(high))  # for good
        plane = graph.nodes[lost]["plane"]
        whole = draw(st.booleans())
        element = {"switch": lost} if whole else {"link": [f"low-{plane[2:]}-0", lost]}
        add(draw(st.integers(0, _LATEST_US)), element, "down")
        taken.update([lost, f"low-{plane[2:]}-0"])
    for element in draw(st.lists(st.sampled_from(elements), max_size=3)):
        names = {
            name
            for value in element.values()
            for name in ([value] if isinstance(value, str) else value)
        }
        if names & taken:
            continue  # one fault an element, or one may bring back what another took away
        taken |= names
        at = draw(st.integers(0, _LATEST_US))
        event = draw(st.sampled_from(["down", "down", "degrade", "noise"]))
        lanes = graph.edges[cables[0] + (0,)]["lanes"]
        if event == "degrade" and lanes > 1:
            add(at, element, "degrade", lanes=draw(st.integers(1, lanes - 1)))
            if draw(st.booleans()):
                add(at + draw(_OUTAGES_US), element, "up")
        elif event == "noise":
            add(at, element, "noise", bit_error_rate=draw(st.sampled_from([0.0, 1e-6, 2e-5])))
        else:
            add(at, element, "down")
            add(at + draw(_OUTAGES_US), element, "up")
    return {"detection_time": f"{draw(st.sampled_from([0, 1, 10]))} us", "faults": rows}


@st.composite
def traffic(draw, graph: nx.MultiGraph, transport: str) -> Trace:
    """Draw flows of a few packets each between dies, copies within a die among them."""
    n_dies = sum(role == "endpoint" for _, role in graph.nodes(data="role"))
    pair = st.tuples(st.integers(0, n_dies - 1), st.integers(0, n_dies - 1))
    known = ["write", "sdma-write"]
    known += ["read", "sdma-read"] if transport in ("posted", "load-store") else []
    flows = [
        flow(
            src,
            dst,
            messages=draw(st.integers(1, 12)),
            message_bytes=draw(st.sampled_from([1, 300, 512, 1_000, 1_001, 4_096])),
            start_ps=draw(st.integers(0, _LATEST_US)) * US // 2,
            operation=draw(st.sampled_from(known)),
            service_level=draw(st.integers(0, 3)),
        )
        for src, dst in draw(st.lists(pair, min_size=1, max_size=6, unique=True))
    ]
    return make_trace(flows, n_ranks=n_dies)


@st.composite
def cases(draw) -> tuple[nx.MultiGraph, Trace, dict[str, Any]]:
    """Draw all of a replay."""
    graph = draw(graphs())
    transport = draw(mechanisms(graph))
    draw(noise(graph))
    options = {
        "faults": draw(schedules(graph)),
        "path_policy": draw(
            st.sampled_from(["round-robin", "flow-hash", "random", "load-balance", "adaptive"])
        ),
        "plane_policy": draw(st.sampled_from(["round-robin", "flow-hash", "random", "adaptive"])),
        "n_virtual_lanes": draw(st.sampled_from([1, 2, 4])),
        "seed": draw(st.integers(0, 2**32)),
    }
    return graph, draw(traffic(graph, transport)), options


def delivered(graph: nx.MultiGraph, trace: Trace, options: dict[str, Any]) -> None:
    """Check that a replay delivers every byte once."""
    left: list[str] = []

    def attach(engine, arrays) -> None:
        ask: Callable[[], str] = engine.leftover
        engine.leftover = lambda: left.append(ask()) or left[-1]

    result = run(graph, trace, attach=attach, **options)
    assert left == [""]  # nothing inside, all credit back, all flows and tasks finished
    asked = [row for chunk in trace.chunks() for row in chunk.flows.to_pylist()]
    total = sum(row["messages"] * row["message_bytes"] for row in asked)
    assert result.summary["bytes_delivered"] == total
    flows = result.flows
    assert sorted(zip(flows["src"], flows["dst"], flows["bytes"], strict=True)) == sorted(
        (row["src"], row["dst"], row["messages"] * row["message_bytes"]) for row in asked
    )
    assert (flows["finish_ps"] > flows["start_ps"]).all()
    assert (flows["first_byte_ps"] <= flows["finish_ps"]).all()


@pytest.mark.filterwarnings("ignore::ubfabric.errors.UbfabricWarning")  # buffers are small
@settings(
    max_examples=500,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(cases())
def test_every_byte_is_delivered_exactly_once_whatever_fails(case):
    delivered(*case)
