"""Freedom from deadlock of random networks, held against networkx on an explicit graph."""

from __future__ import annotations

import networkx as nx
import pytest
from fabrics import FabricBuilder
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import topologies

from ubfabric.deadlock import check_deadlock_free
from ubfabric.errors import TopologyError
from ubfabric.routing import compile_fabric


@st.composite
def switch_networks(draw) -> nx.MultiGraph:
    """Draw a connected network of up to 8 switches, some with endpoints, some of those at two."""
    builder = FabricBuilder()
    n = draw(st.integers(2, 8))
    for at in range(n):
        builder.switch(f"s{at}")
    is_ring = n > 3 and draw(st.booleans())
    for at in range(1, n):
        builder.link(f"s{at}", f"s{at - 1 if is_ring else draw(st.integers(0, at - 1))}")
    if is_ring:
        builder.link("s0", f"s{n - 1}")
    pairs = [(u, v) for v in range(n) for u in range(v)]
    for u, v in draw(st.lists(st.sampled_from(pairs), max_size=0 if is_ring else 8)):
        builder.link(f"s{u}", f"s{v}")
    places = draw(st.lists(st.sets(st.integers(0, n - 1), min_size=1, max_size=2), min_size=2))
    for die, where in zip(builder.dies(len(places)), places, strict=True):
        for at in sorted(where):
            builder.link(die, f"s{at}")
    return builder.build()


def dependencies(graph: nx.MultiGraph) -> nx.DiGraph:
    """Return all two links in a row that packets take, followed packet by packet."""
    fabric = compile_fabric(graph)
    result = nx.DiGraph()
    ends = [node for node in range(fabric.n_nodes) if fabric.node_is_endpoint[node]]
    for plane in range(fabric.n_planes):
        for destination in ends:
            sources = [node for node in ends if node != destination]
            todo = [
                link for node in sources for link in fabric.next_links(node, plane, destination)
            ]
            seen = set()
            while todo:
                link = int(todo.pop())
                if link in seen or fabric.link_dst[link] == destination:
                    continue
                seen.add(link)
                for after in fabric.next_links(int(fabric.link_dst[link]), plane, destination):
                    result.add_edge(link, int(after))
                    todo.append(after)
    return result


def has_circle(graph: nx.DiGraph) -> bool:
    try:
        nx.find_cycle(graph)
    except nx.NetworkXNoCycle:
        return False
    return True


@settings(max_examples=200, deadline=None)
@given(switch_networks())
def test_a_circle_is_reported_if_and_only_if_there_is_one(graph):
    depends = dependencies(graph)
    if not has_circle(depends):
        check_deadlock_free(graph)
        return
    with pytest.raises(TopologyError) as caught:
        check_deadlock_free(graph)
    fabric = compile_fabric(graph)
    steps = str(caught.value).split(" links, ")[1].split("; ")[0].split(", ")

    # Parallel links have one name; there are links of these names that depend in a circle.
    def name(link: int) -> str:
        ends = fabric.link_src[link], fabric.link_dst[link]
        return "->".join(fabric.node_names[end] for end in ends)

    named = nx.DiGraph([(name(u), name(v)) for u, v in depends.edges])
    assert all(named.has_edge(u, v) for u, v in zip(steps, steps[1:] + steps[:1], strict=True))


@settings(max_examples=60, deadline=None)
@given(topologies())
def test_what_goes_up_and_then_down_cannot_deadlock(graph):
    assert not has_circle(dependencies(graph))
    check_deadlock_free(graph)
