"""Random faults: who reaches whom, held against networkx."""

from __future__ import annotations

from functools import cache

import networkx as nx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import topologies

from ubfabric.faults import plan_faults
from ubfabric.routing import FabricArrays, compile_fabric, reroute, unreachable_pairs
from ubfabric.specs import NETWORKS
from ubfabric.topology import build_topology


@cache
def two_nodes() -> tuple[nx.MultiGraph, FabricArrays]:
    graph = build_topology("two-nodes")
    return graph, compile_fabric(graph)


def joined(graph: nx.MultiGraph, fabric: FabricArrays, dead: set[int], network: str) -> set:
    """Return the pairs of endpoints with a path through switches of one plane, or directly."""
    planes: dict[str, nx.Graph] = {}
    pairs = set()
    is_endpoint = {node: role == "endpoint" for node, role in graph.nodes(data="role")}
    for edge, (u, v, data) in enumerate(graph.edges(data=True)):
        if data["network"] != network or 2 * edge in dead:
            continue
        if is_endpoint[u] and is_endpoint[v]:
            pairs |= {(u, v), (v, u)}
        else:
            planes.setdefault(data["plane"], nx.Graph()).add_edge(u, v)
    for plane in planes.values():
        switches = plane.subgraph([node for node in plane if not is_endpoint[node]])
        for part in nx.connected_components(switches):
            ends = {end for node in part for end in plane[node] if is_endpoint[end]}
            pairs |= {(u, v) for u in ends for v in ends if u != v}
    number = {name: at for at, name in enumerate(fabric.node_names)}
    return {(number[u], number[v]) for u, v in pairs}


def found(fabric: FabricArrays, network: str) -> set:
    ends = np.flatnonzero(fabric.node_is_endpoint)
    src, dst = (grid.reshape(-1) for grid in np.meshgrid(ends, ends))
    apart = unreachable_pairs(fabric, network, src, dst)
    assert not apart[src == dst].any()
    keep = ~apart & (src != dst)
    return set(zip(src[keep].tolist(), dst[keep].tolist(), strict=True))


def check_routes(fabric: FabricArrays, dead: set[int]) -> None:
    """Check that no group has a dead link and that every choice gets to the destination."""
    assert not dead & set(fabric.group_link.tolist())
    assert not dead & set(fabric.direct_link.tolist())
    for plane in range(fabric.n_planes):
        ends = np.flatnonzero(fabric.endpoint_class[plane] >= 0)
        for destination in ends[:: max(1, len(ends) // 3)].tolist():
            for source in ends[:: max(1, len(ends) // 5)].tolist():
                here, steps = {source} - {destination}, 0
                while here:
                    links = [fabric.next_links(node, plane, destination) for node in here]
                    if steps:
                        # Nobody is sent where there is no way on.
                        assert all(choice.size for choice in links)
                    here = {int(fabric.link_dst[at]) for choice in links for at in choice}
                    here -= {destination}
                    steps += 1
                    assert steps < 100


@st.composite
def faults_of_two_nodes(draw) -> list[dict]:
    """Draw dead chips, dies and cables, and a few planes that lose most of a server's uplinks."""
    rows: list[dict] = []

    def down(element: dict) -> None:
        rows.append({"at": f"{draw(st.integers(0, 3))} us", "element": element, "event": "down"})

    for server, plane in draw(st.sets(st.tuples(st.integers(0, 1), st.integers(0, 6)))):
        kept = draw(st.sets(st.integers(0, 15), max_size=2))
        for chip in sorted(set(range(16)) - kept):
            down({"link": [f"l1-{server}-{plane}", f"l2-{plane}-{chip}"]})
    for plane, chip in draw(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 15)), max_size=4)):
        down({"switch": f"l2-{plane}-{chip}"})
    for server, plane in draw(st.sets(st.tuples(st.integers(0, 1), st.integers(0, 6)), max_size=3)):
        down({"switch": f"l1-{server}-{plane}"})
    for server, die in draw(st.sets(st.tuples(st.integers(0, 1), st.integers(0, 15)), max_size=2)):
        down({"die": f"die-{server}-{die}"})
    for server, die, plane in draw(
        st.sets(st.tuples(st.integers(0, 1), st.integers(0, 15), st.integers(0, 6)), max_size=6)
    ):
        down({"link": [f"die-{server}-{die}", f"l1-{server}-{plane}"]})
    if draw(st.booleans()):
        down({"switch": draw(st.sampled_from(["rdma-switch", "vpc-switch"]))})
    return rows


@settings(max_examples=50, deadline=None)
@given(faults_of_two_nodes())
def test_after_random_faults_a_pair_is_reachable_iff_networkx_says_so(rows):
    graph, fabric = two_nodes()
    plan = plan_faults(fabric, {"faults": rows, "detection_time": "0 ns"})
    dead: set[int] = set()
    for (time_ps, routes), listed in zip(plan.routes, plan.route_dead_links, strict=True):
        now = plan.time_ps == time_ps - plan.detection_ps
        assert not plan.rate_bytes_per_s[now].any()
        dead |= set(plan.link[now].tolist())
        assert dead == set(listed)
        for network in NETWORKS:
            assert found(routes, network) == joined(graph, fabric, dead, network)
        check_routes(routes, dead)


@settings(max_examples=100, deadline=None)
@given(topologies(), st.data())
def test_random_graphs_are_routed_around_any_dead_cables(graph, data):
    fabric = compile_fabric(graph)
    numbers = st.sets(st.integers(0, fabric.n_links // 2 - 1))
    dead = {2 * cable + way for cable in data.draw(numbers) for way in (0, 1)}
    routes = reroute(fabric, dead)
    for network in NETWORKS:
        assert found(routes, network) == joined(graph, fabric, dead, network)
    check_routes(routes, dead)
    # Either direction stands for its cable, and the graph itself gives the same.
    assert routes.same_as(compile_fabric(graph, {link & ~1 for link in dead}, partial=True))
    assert reroute(fabric).same_as(fabric)


@settings(max_examples=100, deadline=None)
@given(topologies(), st.data())
def test_a_plan_ends_where_it_began_when_all_is_repaired(graph, data):
    fabric = compile_fabric(graph)
    nodes = data.draw(st.sets(st.sampled_from(fabric.node_names), min_size=1, max_size=4))
    is_endpoint = dict(zip(fabric.node_names, fabric.node_is_endpoint, strict=True))
    order = data.draw(st.permutations(sorted(nodes)))
    rows = []
    for at, (first, second) in enumerate(zip(sorted(nodes), order, strict=True)):
        for start, node, event in ((1, first, "down"), (10, second, "up")):
            element = {"die" if is_endpoint[node] else "switch": node}
            rows.append({"at": f"{start + at} us", "element": element, "event": event})
    plan = plan_faults(fabric, {"faults": rows})
    assert plan.routes[-1][1].same_as(fabric)
    rate = fabric.link_rate_bytes_per_s.copy()
    for time_ps in np.unique(plan.time_ps):
        now = plan.time_ps == time_ps
        assert (rate[plan.link[now]] != plan.rate_bytes_per_s[now]).all()
        rate[plan.link[now]] = plan.rate_bytes_per_s[now]
    assert np.array_equal(rate, fabric.link_rate_bytes_per_s)
