"""Settings of a graph reach the engine, under the names and in the units that it uses."""

from __future__ import annotations

import numpy as np
import pytest
from fabrics import GB, NS, FabricBuilder, line, star

from ubfabric import _bridge
from ubfabric.attributes import (
    buffer_bytes,
    credit_warnings,
    engine_attributes,
    lanes_of_service_levels,
    packet_bytes,
)
from ubfabric.fabric_settings import (
    PLAIN_LINK_LAYER,
    PLAIN_SWITCHING,
    TRANSPORT_KEYS,
    link_layer,
    transports,
    wire_bytes,
)
from ubfabric.routing import compile_fabric
from ubfabric.specs import NETWORKS
from ubfabric.topology import build_topology

#: Another value than the plain one for each setting, the attribute that it sets, and its value
#: there as ns-3 writes it.
LINK_LAYER = {
    "flit_bytes": (20, "FlitBytes", "20"),
    "block_flits": (16, "BlockFlits", "16"),
    "block_header_bytes": (3, "BlockHeaderBytes", "3"),
    "block_check_bytes": (8, "BlockCheckBytes", "8"),
    "credit_grain_cells": (4, "CreditGrainCells", "4"),
    "credit_return": ("piggyback", "CreditReturn", "Piggyback"),
    "credit_timeout_ps": (123_000, "CreditTimeout", "+123000ps"),
    "buffer_sharing": ("shared", "ShareBuffer", "true"),
    "lane_floor_cells": (2, "LaneFloorCells", "2"),
    "lane_arbitration": ("deficit", "LaneArbitration", "Deficit"),
    "retry_limit": (3, "RetryLimit", "3"),
    "retrain_limit": (1, "RetrainLimit", "1"),
    "retrain_time_ps": (7_000, "RetrainTime", "+7000ps"),
}
SWITCHING = {
    "allocator": ("islip", "Allocator", "Islip"),
    "input_queues": ("fifo", "InputFifo", "true"),
    "iterations": (3, "AllocatorIterations", "3"),
    "speedup": (1.5, "Speedup", "1.5"),
}
#: Settings that the engine is told in another way: as rates of links, as a lane of each flow, by
#: an argument, or together with another setting.
ELSEWHERE = {
    "fec_data_symbols",
    "fec_total_symbols",
    "virtual_lanes",
    "service_levels",
    "cell_flits",
    "lane_weights",
}
#: Settings that reach the engine as one attribute together.
TOGETHER = {"retry_buffer_bytes", "acknowledge_flits"}


def told(graph, n_virtual_lanes: int = 1, payload_bytes: int = 1_000) -> dict:
    return engine_attributes(graph, payload_bytes=payload_bytes, n_virtual_lanes=n_virtual_lanes)


def read_back(graph, attributes: dict) -> dict[str, str]:
    """Return what the C++ fabric says its attributes are."""
    namespace = _bridge.load()
    with _bridge.Engine(compile_fabric(graph), attributes) as engine:
        found = {}
        for name in attributes:
            value = namespace.StringValue()
            engine.fabric.GetAttribute(name, value)
            found[name] = str(value.Get())
        return found


def test_every_setting_is_covered_here():
    assert {*LINK_LAYER, *ELSEWHERE, *TOGETHER} == set(PLAIN_LINK_LAYER)
    assert set(SWITCHING) == set(PLAIN_SWITCHING)


def test_retry_buffer_is_used_but_for_the_last_grain_of_acknowledgements():
    graph = star(2)
    graph.graph["link_layer"] = {"retry_buffer_bytes": 9_000, "acknowledge_flits": 11}
    graph.graph["link_layer"] |= {"flit_bytes": 20}
    assert told(graph)["RetryBufferBytes"] == 9_000 - 10 * 20
    graph.graph["link_layer"]["retry_buffer_bytes"] = 10  # a packet is kept in any case
    assert told(graph)["RetryBufferBytes"] == wire_bytes(link_layer(graph), 0, 1_000)


@pytest.mark.parametrize("key", [*LINK_LAYER, *SWITCHING])
def test_each_setting_reaches_the_engine(key):
    part = "link_layer" if key in LINK_LAYER else "switching"
    value, attribute, expected = (LINK_LAYER | SWITCHING)[key]
    plain = star(2)
    graph = star(2)
    # flits are needed for blocks to mean something; credit return changes nothing else
    for given in (plain, graph):
        given.graph["link_layer"] = {} if key == "flit_bytes" else {"flit_bytes": 20}
    graph.graph[part] = graph.graph.get(part, {}) | {key: value}
    assert read_back(graph, told(graph))[attribute] == expected
    assert read_back(plain, told(plain))[attribute] != expected
    changed = {name for name, said in told(graph).items() if said != told(plain)[name]}
    assert attribute in changed
    # what else changes follows from the bytes of a packet on the wire
    assert changed <= {attribute, "QuantumBytes", "ControlBytes", "CellBytes"}


def test_lanes_cells_and_weights_reach_the_engine():
    graph = star(2)
    graph.graph["link_layer"] = {
        "flit_bytes": 20,
        "cell_flits": 8,
        "virtual_lanes": 3,
        "lane_weights": [1, 2, 5],
    }
    found = read_back(graph, told(graph, n_virtual_lanes=3))
    assert found["NumVirtualLanes"] == "3"
    assert found["CellBytes"] == "160"
    assert found["LaneWeights"] == "1 2 5"
    assert found["PayloadBytes"] == "1000"
    assert found["ControlBytes"] == "20"
    graph.graph["link_layer"]["lane_weights"] = 4
    assert read_back(graph, told(graph, n_virtual_lanes=3))["LaneWeights"] == "4 4 4"


def test_service_levels_become_lanes():
    graph = star(2)
    assert lanes_of_service_levels(graph, 3).tolist() == [0, 1, 2] * 5 + [0]
    levels = [3, 2, 1, 0] * 4
    graph.graph["link_layer"] = {"virtual_lanes": 4, "service_levels": levels}
    assert lanes_of_service_levels(graph, 4).tolist() == levels
    assert lanes_of_service_levels(graph, 2).tolist() == [level % 2 for level in levels]
    assert lanes_of_service_levels(graph, 2).dtype == np.uint8


#: A value of each key of a transport, and how the transport's text says it.
TRANSPORT = {
    "acknowledge_every": (3, "AcknowledgeEvery=3"),
    "acknowledge_delay_ps": (5_000, "AcknowledgeDelay=5000ps"),
    "request_payload_bytes": (256, "RequestBytes=256"),
    "window_requests": (9, "WindowRequests=9"),
    "mtu_bytes": (2_048, "Mtu=2048"),
    "work_request_bytes": (8_192, "WorkRequestBytes=8192"),
    "window_bytes": (70_000, "WindowBytes=70000"),
    "reorder_window": (64, "ReorderWindow=64"),
    "retransmission": ("go-back-n", "Retransmission=GoBackN"),
    "timeout_ps": (31_000_000, "Timeout=31000000ps"),
    "timeout_limit": (4, "RetryLimit=4"),
}
ANSWERS = {"load-store": "ResponseHeaderBytes=24", "reliable": "AcknowledgementBytes=24"}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", TRANSPORT_KEYS)
def test_each_key_of_a_transport_reaches_it(name, network):
    graph = star(2)
    given = {key: value for key, (value, _) in TRANSPORT.items()}
    given |= {"acknowledge_header_bytes": 24, "congestion_control": "none"}
    graph.graph["transports"][network] = given | {"name": name, "header_bytes": 30}
    attribute = {"ub": "UbTransport", "rdma": "RdmaTransport", "vpc": "VpcTransport"}[network]
    kind, _, rest = str(told(graph)[attribute]).removesuffix("]").partition("[")
    classes = {"posted": "Posted", "load-store": "LoadStore"}
    assert kind == f"ns3::Ub{classes.get(name, name.title())}"
    expected = {"HeaderBytes=30"}
    expected |= {said for key, (_, said) in TRANSPORT.items() if key in TRANSPORT_KEYS[name]}
    if name in ANSWERS:
        expected.add(ANSWERS[name])
    assert set(rest.split("|")) == expected
    assert read_back(graph, told(graph))[attribute] == told(graph)[attribute]


def test_marks_reach_the_switches_with_the_controls_that_need_them():
    graph = star(2)
    marks = {"mark_bytes": 5_000, "mark_all_bytes": 9_000, "mark_share": 0.25}
    settings = {"name": "reliable", "congestion_control": "caqm"} | marks
    graph.graph["transports"]["ub"] |= settings
    assert not [name for name in told(graph) if name.startswith("Mark")]
    for control in ("ldcp", "dcqcn"):
        graph.graph["transports"]["ub"]["congestion_control"] = control
        found = read_back(graph, told(graph))
        assert found["MarkBytes"] == "5000"
        assert found["MarkAllBytes"] == "9000"
        assert found["MarkShare"] == "0.25"
    graph.graph["transports"]["ub"] = {"name": "reliable", "congestion_control": "dcqcn"}
    assert read_back(graph, told(graph))["MarkBytes"] == "40960"


@pytest.mark.parametrize("control", ["ldcp", "caqm", "dcqcn"])
def test_congestion_control_reaches_the_network_that_names_it(control):
    graph = star(2)
    assert not [name for name in told(graph) if name.endswith("Congestion")]
    graph.graph["transports"]["rdma"] |= {"name": "reliable", "congestion_control": control}
    found = read_back(graph, told(graph))
    classes = {"ldcp": "ns3::UbLdcp", "caqm": "ns3::UbCaqm", "dcqcn": "ns3::UbDcqcn"}
    assert found["RdmaCongestion"] == classes[control]
    assert not {"UbCongestion", "VpcCongestion"} & set(found)


@pytest.mark.parametrize("topology", ["one-node", "two-nodes"])
def test_shipped_settings_are_all_accepted(topology):
    graph = build_topology(topology)
    attributes = told(graph, link_layer(graph)["virtual_lanes"], 4_096)
    found = read_back(graph, attributes)
    for name, value in attributes.items():
        if not name.endswith(("Timeout", "Time", "Speedup")):
            assert found[name] == str(value)


def test_packets_take_flits_on_ub_and_cells_of_buffers():
    graph = star(2, header=28)
    graph.graph["link_layer"] = {"flit_bytes": 20, "cell_flits": 8}
    graph.graph["transports"]["rdma"] = {"header_bytes": 82}
    assert packet_bytes(graph, 512) == {"ub": 560, "rdma": 594, "vpc": 540}
    assert buffer_bytes(graph, 512) == {"ub": 640, "rdma": 594, "vpc": 540}


# ----------------------------------------------------------------------------- warnings


def warned(graph, payload_bytes: int = 1_000) -> list[str]:
    return credit_warnings(graph, compile_fabric(graph), payload_bytes)


def test_a_buffer_of_the_loop_is_enough_and_less_is_not():
    """100 ns on the wire, 2 x 5 ns in cables, 200 ns in the switch: 310 ns, 4 packets."""
    assert warned(star(2, switch={"buffer_bytes": 4_000})) == []
    (line_,) = warned(star(2, switch={"buffer_bytes": 3_999}))
    assert line_ == (
        "link die-0 to hub-0 and others of its kind: a buffer of 3999 B does not cover the round "
        "trip of credits, so a lone lane sends at most 9.7 of 10.0 GB/s"
    )


def test_credits_that_ride_take_a_flit_more():
    graph = star(2, switch={"buffer_bytes": 4_000}, delay_ps=50 * NS)
    assert warned(graph) == []  # 100 + 100 + 200 ns are just covered
    graph.graph["link_layer"] = {"credit_return": "control"}
    assert len(warned(graph)) == 1


def test_each_kind_of_link_is_named_once_and_endpoints_never():
    graph = line([10 * GB] * 4, switch={"buffer_bytes": 1_000}, planes=2, buffer_bytes=1_000)
    lines = warned(graph)
    assert [text.split(" and others")[0] for text in lines] == [
        "link die-0 to hub-0-0",
        "link hub-0-0 to hub-0-1",
    ]


def test_other_networks_count_their_own_packets():
    builder = FabricBuilder(header=64)
    dies = builder.dies(2)
    hub = builder.switch("hub", buffer_bytes=1 << 20)
    far = builder.switch("rdma", "rdma", kind="rdma", buffer_bytes=3_200)
    for die in dies:
        builder.link(die, hub)
        builder.link(die, far, plane="rdma", network="rdma")
    graph = builder.build()
    assert warned(graph) == []
    graph.graph["transports"]["rdma"]["header_bytes"] = 100  # two packets, no longer three
    (text,) = warned(graph)
    assert text.startswith("link die-0 to rdma")


def test_shipped_machines_cover_their_credit_loops():
    for name in ("one-node", "two-nodes", "cloudmatrix384"):
        graph = build_topology(name)
        assert warned(graph, graph.graph["packet_payload_bytes"]) == []
        assert transports(graph)["ub"]["header_bytes"] == 28
