"""The flat arrays of known machines and hand-made graphs."""

from __future__ import annotations

import time

import networkx as nx
import numpy as np
import pytest
from pace import pace_s

from ubfabric.errors import TopologyError
from ubfabric.routing import FabricArrays, compile_fabric, reroute, unreachable_pairs
from ubfabric.topology import build_topology, cloudmatrix384


@pytest.fixture(scope="module")
def machine() -> FabricArrays:
    return compile_fabric(cloudmatrix384())


def hand_made(*edges: tuple[str, str] | tuple[str, str, str]) -> nx.MultiGraph:
    """Return a graph of endpoints e* and switches s* with the given edges (plane ub0)."""
    graph = nx.MultiGraph(
        name="hand-made",
        schema=1,
        packet_payload_bytes=512,
        transports={"ub": {"header_bytes": 28}},
        max_payload_bytes=4096,
    )
    common = {"server": -1, "rack": -1, "npu": -1, "n_ports": 8, "buffer_bytes": 4096}
    for node in dict.fromkeys(end for edge in edges for end in edge[:2]):
        if node.startswith("e"):
            graph.add_node(
                node,
                kind="die",
                role="endpoint",
                level=0,
                plane="",
                issue_engines=2,
                issue_cost_ps=3,
                engine_bytes_per_s=4,
                egress_bytes_per_s=5,
                receive_latency_ps=6,
                copy_bytes_per_s=7,
                **common,
            )
        else:
            graph.add_node(
                node,
                kind="l1",
                role="switch",
                level=1,
                plane="ub0",
                forward_latency_ps=9,
                **common,
            )
    for u, v, *plane in edges:
        graph.add_edge(
            u,
            v,
            plane=plane[0] if plane else "ub0",
            network="ub",
            bandwidth_bytes_per_s=10,
            delay_ps=11,
            lanes=1,
        )
    return graph


def names(fabric: FabricArrays, links: np.ndarray) -> list[str]:
    return [fabric.node_names[fabric.link_dst[link]] for link in links]


def hops(fabric: FabricArrays, node: str, destination: str, plane: int = 0) -> list[str]:
    at = fabric.node_names.index
    return names(fabric, fabric.next_links(at(node), plane, at(destination)))


def test_cloudmatrix384_has_a_class_for_each_server_and_plane(machine):
    assert machine.plane_names == [*(f"ub{k}" for k in range(7)), "package", "rdma", "vpc"]
    assert machine.plane_network.tolist() == [0] * 8 + [1, 2]
    assert machine.plane_n_classes.tolist() == [48] * 7 + [0, 1, 1]
    assert machine.endpoint_class[:7, :768].tolist() == [[die // 16 for die in range(768)]] * 7
    assert machine.endpoint_slot[:7, :768].tolist() == [[die % 16 for die in range(768)]] * 7
    assert (machine.endpoint_class[7] == -1).all()
    assert machine.n_links == 2 * 13_296


def test_cloudmatrix384_spreads_over_16_uplinks_and_comes_down_by_one(machine):
    for plane in range(7):
        up = hops(machine, f"l1-0-{plane}", "die-47-3", plane)
        assert up == [f"l2-{plane}-{index}" for index in range(16)]
        assert hops(machine, "die-0-0", "die-47-3", plane) == [f"l1-0-{plane}"]
        assert hops(machine, f"l2-{plane}-9", "die-47-3", plane) == [f"l1-47-{plane}"]
        assert hops(machine, f"l1-47-{plane}", "die-47-3", plane) == ["die-47-3"]
    # All off-server destinations share one group at an L1 chip.
    row = machine.switch_row[machine.node_names.index("l1-5-2")]
    entries = machine.table[row : row + 48]
    assert entries[5] <= -2
    assert len(set(np.delete(entries, 5).tolist())) == 1


def test_dies_of_one_package_have_a_direct_link(machine):
    sibling = {0: 1, 1: 0, 766: 767, 767: 766}
    for die, other in sibling.items():
        begin, end = machine.direct_start[die : die + 2]
        assert machine.direct_dst[begin:end].tolist() == [other]
        link = machine.direct_link[begin]
        assert (machine.link_src[link], machine.link_dst[link]) == (die, other)
        assert machine.plane_names[machine.link_plane[link]] == "package"
    cpu = machine.node_names.index("cpu-0-0")
    assert machine.direct_start[cpu] == machine.direct_start[cpu + 1] == 768


def test_node_arrays_carry_the_attributes(machine):
    graph = cloudmatrix384()
    for name in ("die-1-1", "cpu-0-0", "l2-3-4"):
        node, data = machine.node_names.index(name), graph.nodes[name]
        is_endpoint = data["role"] == "endpoint"
        assert machine.node_is_endpoint[node] == is_endpoint
        carried = {
            "node_forward_latency_ps": 0 if is_endpoint else data["forward_latency_ps"],
            "node_buffer_bytes": data["buffer_bytes"],
        }
        for array, attribute in (
            ("node_issue_engines", "issue_engines"),
            ("node_issue_cost_ps", "issue_cost_ps"),
            ("node_engine_bytes_per_s", "engine_bytes_per_s"),
            ("node_egress_bytes_per_s", "egress_bytes_per_s"),
            ("node_receive_latency_ps", "receive_latency_ps"),
            ("node_copy_bytes_per_s", "copy_bytes_per_s"),
            ("node_memory_write_ppm", "memory_write_share_ppm"),
            ("node_memory_read_latency_ps", "memory_read_latency_ps"),
            ("node_acknowledge_latency_ps", "acknowledge_latency_ps"),
            ("node_overlaps_issue", "overlaps_issue"),
            ("node_sdma_engines", "sdma_engines"),
            ("node_sdma_start_ps", "sdma_start_ps"),
            ("node_sdma_bytes_per_s", "sdma_bytes_per_s"),
            ("node_sdma_read_bytes_per_s", "sdma_read_bytes_per_s"),
            ("node_sdma_write_bytes_per_s", "sdma_write_bytes_per_s"),
        ):
            carried[array] = data[attribute] if is_endpoint else 0
        assert {array: int(getattr(machine, array)[node]) for array in carried} == carried


def test_optional_attributes_of_an_endpoint_are_carried_or_off():
    graph = hand_made(("e0", "s0"), ("e1", "s0"))
    given = {"overlaps_issue": 1, "sdma_engines": 2, "sdma_start_ps": 3, "sdma_bytes_per_s": 4}
    given |= {"sdma_read_bytes_per_s": 5, "sdma_write_bytes_per_s": 6}
    graph.nodes["e1"].update(given)
    arrays = compile_fabric(graph)
    at = [arrays.node_names.index(name) for name in ("e0", "e1", "s0")]
    for name, value in given.items():
        assert getattr(arrays, f"node_{name}")[at].tolist() == [0, value, 0]


def test_arrays_have_the_agreed_types_and_are_contiguous(machine):
    types = {
        "node_is_endpoint": np.uint8,
        "node_forward_latency_ps": np.int64,
        "node_buffer_bytes": np.int64,
        "node_issue_engines": np.uint32,
        "node_issue_cost_ps": np.int64,
        "node_engine_bytes_per_s": np.uint64,
        "node_egress_bytes_per_s": np.uint64,
        "node_receive_latency_ps": np.int64,
        "node_copy_bytes_per_s": np.uint64,
        "node_memory_write_ppm": np.uint32,
        "node_memory_read_latency_ps": np.int64,
        "node_acknowledge_latency_ps": np.int64,
        "node_overlaps_issue": np.uint8,
        "node_sdma_engines": np.uint32,
        "node_sdma_start_ps": np.int64,
        "node_sdma_bytes_per_s": np.uint64,
        "node_sdma_read_bytes_per_s": np.uint64,
        "node_sdma_write_bytes_per_s": np.uint64,
        "link_src": np.uint32,
        "link_dst": np.uint32,
        "link_plane": np.uint32,
        "link_rate_bytes_per_s": np.uint64,
        "link_delay_ps": np.int64,
        "link_bit_error_rate": np.float64,
        "link_lanes": np.uint32,
        "link_reverse": np.uint32,
        "plane_network": np.uint32,
        "plane_n_classes": np.uint32,
        "endpoint_class": np.int32,
        "endpoint_slot": np.int32,
        "switch_row": np.int64,
        "endpoint_out": np.int64,
        "table": np.int32,
        "local": np.int32,
        "group_start": np.uint32,
        "group_link": np.uint32,
        "direct_start": np.uint32,
        "direct_dst": np.uint32,
        "direct_link": np.uint32,
    }
    found = {name: value for name, value in vars(machine).items() if hasattr(value, "dtype")}
    assert {name: value.dtype.type for name, value in found.items()} == types
    assert all(value.flags.c_contiguous for value in found.values())


def test_cloudmatrix384_compiles_fast_and_small(machine):
    graph = cloudmatrix384()
    start = time.process_time()
    again = compile_fabric(graph)
    assert time.process_time() - start < 10 * pace_s()  # 1.4 times, as a rule
    assert again.same_as(machine)
    assert machine.nbytes < 4 * 2**20


def test_unequal_arrays_are_told_apart(machine):
    other = build_topology("one-node")
    first = compile_fabric(other)
    other.edges["die-0-0", "l1-0-0", 0]["delay_ps"] += 1
    assert not first.same_as(compile_fabric(other))
    assert not first.same_as(machine)


def test_parallel_links_are_alternatives():
    graph = hand_made(("e0", "s0"), ("e0", "s0"), ("e1", "s0"), ("s0", "s1"), ("s0", "s1"),
                      ("e2", "s1"))  # fmt: skip
    fabric = compile_fabric(graph)
    assert fabric.endpoint_out[0, 0] <= -2
    assert hops(fabric, "e0", "e2") == ["s0", "s0"]
    assert hops(fabric, "s0", "e2") == ["s1", "s1"]
    assert hops(fabric, "s0", "e0") == ["e0", "e0"]


def test_an_endpoint_at_two_switches_takes_the_nearer_one():
    graph = hand_made(
        ("e0", "s0"), ("e0", "s2"), ("e1", "s0"), ("e2", "s1"), ("e3", "s2"),
        ("s0", "s1"), ("s1", "s2"),
    )  # fmt: skip
    fabric = compile_fabric(graph)
    assert fabric.endpoint_out[0, 0] >= 0
    assert hops(fabric, "e0", "e1") == ["s0"]
    assert hops(fabric, "e0", "e2") == ["s0", "s2"]
    assert hops(fabric, "e0", "e3") == ["s2"]
    assert hops(fabric, "e1", "e3") == ["s0"]
    # A packet for e1 never passes through e0, although that would be no longer.
    assert hops(fabric, "s2", "e1") == ["s1"]
    assert hops(fabric, "s1", "e0") == ["s0", "s2"]


def test_classes_are_sets_of_switches_whatever_the_number_of_links():
    graph = hand_made(
        ("e0", "s0"), ("e0", "s1"), ("e1", "s1"), ("e1", "s0"), ("e1", "s0"), ("e2", "s0"),
    )  # fmt: skip
    fabric = compile_fabric(graph)
    at = fabric.node_names.index
    klass = [int(fabric.endpoint_class[0, at(name)]) for name in ("e0", "e1", "e2")]
    slot = [int(fabric.endpoint_slot[0, at(name)]) for name in ("e0", "e1", "e2")]
    assert (klass, slot) == ([0, 0, 1], [0, 1, 0])
    assert hops(fabric, "s0", "e1") == ["e1", "e1"]
    assert hops(fabric, "s1", "e1") == ["e1"]
    # No link joins s0 and s1, so s1 cannot lead to e2 at all.
    assert hops(fabric, "s1", "e2") == []
    assert hops(fabric, "e0", "e2") == ["s0"]


def test_a_plane_of_direct_links_only_has_no_tables():
    fabric = compile_fabric(hand_made(("e0", "e1", "near"), ("e2", "e1", "near")))
    assert fabric.plane_n_classes.tolist() == [0]
    assert (fabric.endpoint_out == -1).all()
    assert len(fabric.table) == len(fabric.local) == len(fabric.group_link) == 0
    # The end points are e0, e1, e2: sources 0, 1, 1, 2.
    assert fabric.direct_start.tolist() == [0, 1, 3, 4]
    assert fabric.direct_dst.tolist() == [1, 0, 2, 1]
    assert hops(fabric, "e0", "e1") == []


def test_a_plane_in_two_pieces_is_refused_with_one_pair():
    graph = hand_made(("e0", "s0"), ("e1", "s0"), ("e2", "s1"), ("e1", "e2", "near"))
    with pytest.raises(
        TopologyError, match=r"hand-made: plane ub0 does not join e0 and e2; expected a path"
    ):
        compile_fabric(graph)


def test_endpoints_do_not_join_a_plane():
    """e1 is attached to both switches, but endpoints do not forward."""
    graph = hand_made(("e0", "s0"), ("e1", "s0"), ("e1", "s1"), ("e2", "s1"))
    with pytest.raises(TopologyError, match="does not join e0 and e2"):
        compile_fabric(graph)


def test_two_switches_without_a_link_serve_an_endpoint_at_both():
    graph = hand_made(("e0", "s0"), ("e0", "s1"), ("e1", "s1"), ("e2", "s1"), ("e2", "s0"))
    fabric = compile_fabric(graph)
    assert hops(fabric, "e0", "e1") == ["s1"]
    assert hops(fabric, "e1", "e0") == ["s1"]
    assert hops(fabric, "e0", "e2") == ["s0", "s1"]


def test_a_plain_graph_compiles_like_a_multigraph():
    graph = hand_made(("e0", "s0"), ("e1", "s1"), ("s0", "s1"))
    plain = nx.Graph(**graph.graph)
    plain.add_nodes_from(graph.nodes(data=True))
    plain.add_edges_from(graph.edges(data=True))
    assert compile_fabric(plain).same_as(compile_fabric(graph))


def test_a_wrong_graph_is_refused():
    graph = hand_made(("e0", "s0"), ("e1", "s0"))
    graph.nodes["s0"]["n_ports"] = 1
    with pytest.raises(TopologyError, match="hand-made: node s0: found 2 links"):
        compile_fabric(graph)
    with pytest.raises(TopologyError, match="topology: found NoneType"):
        compile_fabric(None)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([28, 28, 28], [0, 1, 2]),
        ([28, 14], [0, 1, 0]),
        ([14, 28, 28], [1, 2, 0, 1, 2]),
        ([8, 1], [0] * 4 + [1] + [0] * 4),
        ([30, 20], [0, 1, 0, 1, 0]),
        # More than eight to one is rounded, and nobody is left out.
        ([100, 50, 1], [0, 1, 0, 0, 1, 0, 2, 0, 1, 0, 0, 1, 0]),
    ],
)
def test_links_of_unlike_rates_occur_in_proportion_and_spread_out(rates, expected):
    graph = hand_made(*[("e0", "s0")] * len(rates), ("e1", "s0"))
    links = []
    for edge, (u, v, data) in enumerate(graph.edges(data=True)):
        if "e0" in (u, v):
            data["bandwidth_bytes_per_s"] = rates[len(links)]
            links.append(2 * edge)
    fabric = compile_fabric(graph)
    out = fabric.next_links(fabric.node_names.index("e0"), 0, fabric.node_names.index("e1"))
    assert [links.index(link) for link in out] == expected
    back = fabric.next_links(fabric.node_names.index("s0"), 0, fabric.node_names.index("e0"))
    assert [links.index(link - 1) for link in back] == expected


def test_rates_given_beside_the_graph_replace_its_own():
    graph = hand_made(("e0", "s0"), ("e0", "s0"), ("e1", "s0"))
    rate = int(compile_fabric(graph).link_rate_bytes_per_s[0])
    fabric = compile_fabric(graph, link_rates={0: 3 * rate})
    assert fabric.link_rate_bytes_per_s.tolist() == [3 * rate] + [rate] * 5
    assert fabric.next_links(0, 0, 2).tolist() == [0, 0, 2, 0]
    assert reroute(compile_fabric(graph), link_rates={0: 3 * rate}).same_as(fabric)


def test_dead_links_leave_pairs_apart_only_where_that_is_allowed():
    graph = hand_made(("e0", "s0"), ("s0", "s1"), ("s1", "e1"))
    middle = 2 * list(graph.edges()).index(("s0", "s1"))
    with pytest.raises(TopologyError, match="plane ub0 does not join e0 and e1"):
        compile_fabric(graph, [middle])
    fabric = compile_fabric(graph, [middle], partial=True)
    ends = [fabric.node_names.index(name) for name in ("e0", "e1")]
    assert unreachable_pairs(fabric, "ub", ends, ends[::-1]).tolist() == [True, True]
    assert unreachable_pairs(fabric, "ub", ends, ends).tolist() == [False, False]
    whole = compile_fabric(graph)
    assert unreachable_pairs(whole, "ub", ends, ends[::-1]).tolist() == [False, False]
    assert unreachable_pairs(whole, "rdma", ends, ends[::-1]).tolist() == [True, True]


def test_links_that_do_not_exist_are_refused():
    graph = hand_made(("e0", "s0"), ("e1", "s0"))
    with pytest.raises(ValueError, match="found 4 to 4; allowed 0 to 3"):
        compile_fabric(graph, [4])
    with pytest.raises(ValueError, match="found 0 for link 1; allowed 1 or more"):
        compile_fabric(graph, link_rates={1: 0})
    with pytest.raises(ValueError, match="found 5 for link -1"):
        reroute(compile_fabric(graph), link_rates={-1: 5})
