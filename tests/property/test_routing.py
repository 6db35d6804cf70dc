"""Routes over random graphs, held against networkx."""

from __future__ import annotations

import networkx as nx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import topologies

from ubfabric.routing import FabricArrays, compile_fabric

few = settings(max_examples=60, deadline=None)


def plane_graph(graph: nx.MultiGraph, plane: str, *endpoints: str) -> nx.MultiGraph:
    """Return the switches of a plane with the given endpoints and the links among them."""
    nodes = {name for name, data in graph.nodes(data=True) if data["plane"] == plane}
    nodes |= set(endpoints)
    switches = nodes - set(endpoints)
    result = nx.MultiGraph()
    result.add_nodes_from(nodes)
    result.add_edges_from(
        (u, v)
        for u, v, data in graph.edges(data=True)
        if data["plane"] == plane and {u, v} <= nodes and ({u, v} & switches)
    )
    return result


def attached(fabric: FabricArrays, plane: int) -> np.ndarray:
    return np.flatnonzero(fabric.endpoint_class[plane] >= 0)


@few
@given(topologies())
def test_next_links_are_all_those_that_get_one_closer(graph):
    fabric = compile_fabric(graph)
    for plane, name in enumerate(fabric.plane_names):
        out_of: dict[int, list[int]] = {}
        for link in np.flatnonzero(fabric.link_plane == plane):
            out_of.setdefault(int(fabric.link_src[link]), []).append(int(link))
        for destination in attached(fabric, plane):
            end = fabric.node_names[destination]
            there = nx.single_source_shortest_path_length(plane_graph(graph, name, end), end)
            switches = [node for node in fabric.node_names if graph.nodes[node]["plane"] == name]
            for node in [*switches, *(fabric.node_names[at] for at in attached(fabric, plane))]:
                if node == end:
                    continue
                here = fabric.node_names.index(node)
                near = {
                    link: there[fabric.node_names[fabric.link_dst[link]]]
                    for link in out_of[here]
                    if fabric.node_names[fabric.link_dst[link]] in there
                    # A direct link to the destination is no part of the tables.
                    and not (
                        fabric.node_is_endpoint[here]
                        and fabric.node_is_endpoint[fabric.link_dst[link]]
                    )
                }
                expected = [link for link in near if near[link] == min(near.values())]
                if node in there:
                    assert min(near.values()) == there[node] - 1
                found = fabric.next_links(here, plane, int(destination))
                if fabric.endpoint_out[plane, here] <= -2:
                    # One switch: the same ports whatever the destination.
                    assert sorted(set(found.tolist())) == sorted(near)
                assert sorted(set(found.tolist())) == sorted(expected)


@few
@given(topologies(), st.randoms(use_true_random=False))
def test_any_choice_of_links_arrives_over_a_shortest_path(graph, random):
    fabric = compile_fabric(graph)
    for plane, name in enumerate(fabric.plane_names):
        ends = attached(fabric, plane)
        for source in ends:
            for destination in ends:
                if source == destination:
                    continue
                u, v = fabric.node_names[source], fabric.node_names[destination]
                length = nx.shortest_path_length(plane_graph(graph, name, u, v), u, v)
                here, visited = int(source), [int(source)]
                while here != destination:
                    choice = fabric.next_links(here, plane, int(destination))
                    assert choice.size, f"{u} to {v} stops at {fabric.node_names[here]}"
                    link = random.choice(choice.tolist())
                    assert fabric.link_src[link] == here
                    assert fabric.link_plane[link] == plane
                    here = int(fabric.link_dst[link])
                    visited.append(here)
                    assert len(visited) <= length + 1
                assert len(visited) == length + 1
                assert not any(fabric.node_is_endpoint[node] for node in visited[1:-1])


@few
@given(topologies())
def test_every_edge_is_two_links_and_every_direct_link_is_listed(graph):
    fabric = compile_fabric(graph)
    position = {name: index for index, name in enumerate(graph)}
    direct = []
    for edge, (u, v, data) in enumerate(graph.edges(data=True)):
        for link, (src, dst) in ((2 * edge, (u, v)), (2 * edge + 1, (v, u))):
            assert (fabric.link_src[link], fabric.link_dst[link]) == (position[src], position[dst])
            assert fabric.link_rate_bytes_per_s[link] == data["bandwidth_bytes_per_s"]
            assert fabric.link_delay_ps[link] == data["delay_ps"]
            assert fabric.plane_names[fabric.link_plane[link]] == data["plane"]
            if {graph.nodes[u]["role"], graph.nodes[v]["role"]} == {"endpoint"}:
                direct.append((position[src], position[dst], link))
    rows = [
        (node, int(fabric.direct_dst[at]), int(fabric.direct_link[at]))
        for node in range(fabric.n_nodes)
        for at in range(fabric.direct_start[node], fabric.direct_start[node + 1])
    ]
    assert rows == sorted(direct)


@few
@given(topologies())
def test_groups_hold_each_link_as_often_as_its_rate_asks_for(graph):
    fabric = compile_fabric(graph)
    assert fabric.group_start[0] == 0
    assert fabric.group_start[-1] == len(fabric.group_link)
    for plane in range(fabric.n_planes):
        for destination in attached(fabric, plane):
            for node in range(fabric.n_nodes):
                if node == destination or (
                    not fabric.node_is_endpoint[node]
                    and graph.nodes[fabric.node_names[node]]["plane"] != fabric.plane_names[plane]
                ):
                    continue
                links = fabric.next_links(node, plane, int(destination)).tolist()
                rates = {link: int(fabric.link_rate_bytes_per_s[link]) for link in links}
                if len(set(rates.values())) == 1:
                    assert links == sorted(set(links))
                for link, rate in rates.items():
                    # To half a step of eight; slower links are not left out.
                    share = 8 * rate / max(rates.values())
                    of_fastest = links.count(link) / max(map(links.count, rates))
                    assert abs(8 * of_fastest - max(1, share)) <= 0.5
    groups = [
        tuple(fabric.group_link[begin:end])
        for begin, end in zip(fabric.group_start[:-1], fabric.group_start[1:], strict=True)
    ]
    assert all(groups)
    assert len(set(groups)) == len(groups)
