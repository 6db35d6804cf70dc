"""Circles of links that wait for one another."""

from __future__ import annotations

import time

import networkx as nx
import pytest
from fabrics import FabricBuilder
from pace import pace_s

from ubfabric.deadlock import check_deadlock_free
from ubfabric.errors import TopologyError
from ubfabric.routing import compile_fabric
from ubfabric.specs import shipped
from ubfabric.topology import build_topology, cloudmatrix384


def of_switches(edges: list[tuple[int, int]], without_endpoint: tuple[int, ...] = ()):
    """Return switches s0, s1, ... joined by the edges, each with one endpoint."""
    builder = FabricBuilder()
    switches = sorted({end for edge in edges for end in edge})
    dies = builder.dies(len(switches) - len(without_endpoint))
    for number in switches:
        builder.switch(f"s{number}")
    for u, v in edges:
        builder.link(f"s{u}", f"s{v}")
    for number in switches:
        if number not in without_endpoint:
            builder.link(dies.pop(0), f"s{number}")
    return builder.build()


def ring(n: int) -> list[tuple[int, int]]:
    return [(at, (at + 1) % n) for at in range(n)]


@pytest.mark.parametrize("n", [4, 5, 6, 9])
def test_a_ring_of_four_or_more_switches_names_its_circle(n):
    with pytest.raises(TopologyError) as caught:
        check_deadlock_free(of_switches(ring(n)))
    line = str(caught.value)
    assert line.startswith("by-hand: plane ub0: ")
    assert "\n" not in line
    steps = line.split(" links, ")[1].split("; ")[0].split(", ")
    ends = [step.split("->") for step in steps]
    assert [end for _, end in ends] == [start for start, _ in ends[1:] + ends[:1]]
    assert {end for _, end in ends} == {f"s{at}" for at in range(n)}


@pytest.mark.parametrize(
    "graph",
    [
        of_switches(ring(3)),
        of_switches([(at, at + 1) for at in range(6)]),
        of_switches([(0, at) for at in range(1, 6)]),
        # A ring that a packet never takes more than two links of in one direction.
        of_switches(ring(4), without_endpoint=(1, 3)),
    ],
    ids=["ring of three", "line", "star", "ring with two endpoints"],
)
def test_networks_without_a_circle_pass(graph):
    check_deadlock_free(graph)


def test_only_links_that_packets_take_count():
    # By the tables alone the ring of six is closed: from s3 two links in a row lead to s0, and so
    # on around. But every other switch has no endpoint, and packets turn at these only.
    check_deadlock_free(of_switches(ring(6), without_endpoint=(1, 3, 5)))
    with pytest.raises(TopologyError, match="circle of 6 links"):
        check_deadlock_free(of_switches(ring(6), without_endpoint=(1,)))


def test_a_second_plane_is_looked_at_too():
    graph = of_switches([(0, 1), (1, 2), (2, 3)])
    names = [f"r{at}" for at in range(4)]
    for at, name in enumerate(names):
        graph.add_node(name, **graph.nodes["s0"] | {"plane": "ub1", "n_ports": 3})
        graph.nodes[f"die-{at}"]["n_ports"] = 2
    for at, name in enumerate(names):
        common = graph.edges["s0", "s1", 0] | {"plane": "ub1"}
        graph.add_edge(name, names[(at + 1) % 4], **common)
        graph.add_edge(f"die-{at}", name, **common)
    with pytest.raises(TopologyError, match=r"plane ub1: .* circle of 4 links, r\d->r\d, "):
        check_deadlock_free(graph)


@pytest.mark.parametrize("name", [name for name in shipped("topologies") if "8192" not in name])
def test_shipped_topologies_cannot_deadlock(name):
    check_deadlock_free(build_topology(name))


def test_a_clos_of_three_levels_cannot_deadlock():
    graph = build_topology(
        {
            "base": "supernode-8192",
            "name": "three-pods",
            "servers": 6,
            "ub": {"planes": 2, "l2": {"servers_per_pod": 2}, "l3": {"uplinks_per_l2_chip": 4}},
        }
    )
    check_deadlock_free(graph)


def test_a_machine_that_lost_links_may_deadlock():
    # Four L1 and four L2 chips of which every L1 chip keeps two uplinks: a ring of eight.
    builder = FabricBuilder()
    dies = builder.dies(4)
    for at in range(4):
        builder.switch(f"low-{at}", level=1)
    for at in range(4):
        builder.switch(f"top-{at}", level=2, kind="l2")
    for at, die in enumerate(dies):
        builder.link(die, f"low-{at}")
    for at in range(4):
        for top in range(4):
            builder.link(f"low-{at}", f"top-{top}")
    graph = builder.build()
    check_deadlock_free(graph)
    edges = list(graph.edges())
    dead = [
        2 * edges.index((f"low-{at}", f"top-{top}"))
        for at in range(4)
        for top in ((at + 2) % 4, (at + 3) % 4)
    ]
    with pytest.raises(TopologyError, match="circle of 8 links"):
        check_deadlock_free(graph, dead)


def test_cloudmatrix384_is_checked_fast():
    graph = cloudmatrix384()
    compile_fabric(graph)
    start = time.process_time()
    check_deadlock_free(graph)
    assert time.process_time() - start < 10 * pace_s()  # 1.3 times, as a rule


def test_a_wrong_graph_is_refused_first():
    graph = of_switches(ring(4))
    nx.set_edge_attributes(graph, 0, "bandwidth_bytes_per_s")
    with pytest.raises(TopologyError, match="bandwidth_bytes_per_s is 0"):
        check_deadlock_free(graph)
