"""Proof before a run that full buffers cannot wait for one another in a circle.

A packet holds the buffer behind one link while it waits for a buffer behind the next. If
these dependencies between links (Dally and Seitz's channel dependency graph) form no circle,
some packet can always move, whatever the load. The graph here has a dependency for every two
links in a row that some packet may take: over all shortest paths, from all endpoints, to all
destinations.

Virtual lanes do not come into it: a packet keeps its lane from end to end, so each lane has
the same dependencies and more lanes break no circle. Endpoints always take in what arrives;
they wait for nothing that is in the fabric, and never forward.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

import networkx as nx
import numpy as np

from ubfabric.errors import TopologyError
from ubfabric.routing import UNREACHED, FabricArrays, Plane, compile_planes, measure_planes

#: Links whose routes are looked at together, to bound memory on large machines.
_BLOCK = 4_096


def check_deadlock_free(
    graph: nx.Graph, dead_links: Collection[int] = (), partial: bool = False
) -> None:
    """Check that the shortest paths of a fabric cannot deadlock.

    Parameters
    ----------
    graph : networkx.Graph or networkx.MultiGraph
        Any valid graph.
    dead_links : collection of int, optional
        Directed links that carry nothing; see :func:`ubfabric.routing.compile_fabric`.
    partial : bool, optional
        Whether endpoints may be left apart.

    Raises
    ------
    TopologyError
        One line with the plane and one circle of links, such as ``a->b, b->c, c->a``. Also if
        the graph is not valid or a plane does not join its endpoints.

    Notes
    -----
    Whether buffers behind links are large or small, shared or not, plays no part. Networks in
    which packets go up and then down never fail; a ring of four or more switches that all have
    endpoints does, and so may a machine that lost links.
    """
    label = str(graph.graph.get("name", "topology")) if isinstance(graph, nx.Graph) else "topology"
    _, planes = compile_planes(graph, dead_links, partial=partial)
    _check(planes, label)


def check_routes_deadlock_free(
    fabric: FabricArrays, dead_links: Collection[int] = (), label: str = "topology"
) -> None:
    """Check the routes that :func:`ubfabric.routing.reroute` makes around dead links.

    Parameters
    ----------
    fabric : FabricArrays
        The fabric without dead links.
    dead_links : collection of int, optional
    label : str, optional
        How an error begins.

    Raises
    ------
    TopologyError
        As of :func:`check_deadlock_free`; endpoints may be left apart.
    """
    _check(measure_planes(vars(fabric), dead_links), label)


def _check(planes: list[Plane], label: str) -> None:
    for plane in planes:
        circle = find_circle(plane)
        if circle:
            names = plane.node_names
            steps = [f"{names[plane.src[link]]}->{names[plane.dst[link]]}" for link in circle]
            raise TopologyError(
                f"{label}: plane {plane.name}: packets on shortest paths can wait for one another "
                f"in a circle of {len(steps)} links, {', '.join(steps)}; expected none "
                "(virtual lanes do not help: a packet keeps its lane)"
            )


def find_circle(plane: Plane) -> list[int]:
    """Return links of a plane that can wait for one another in a circle, in order.

    Returns
    -------
    list of int
        Directed links, each dependent on the next and the last on the first; empty if there is
        no circle. The same plane always gives the same circle.
    """
    holder, awaited = _dependencies(plane)
    return _circle(len(plane.between), holder, awaited, plane.between)


def _dependencies(plane: Plane) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of positions in ``plane.between``: who holds a buffer, what it waits for.

    Only links between switches count: nothing depends on a link out of an endpoint, and a link
    into an endpoint depends on nothing.
    """
    src = np.searchsorted(plane.switches, plane.src[plane.between])
    dst = np.searchsorted(plane.switches, plane.dst[plane.between])
    ahead = _ahead(plane, src, dst)
    present = _present(plane, ahead, src, dst)
    taken = ahead & present[src]  # bits: classes to which packets take the link
    holders, awaited = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    by_end = np.argsort(dst, kind="stable")
    end_start = np.searchsorted(dst[by_end], np.arange(len(plane.switches) + 1))
    for switch in range(len(plane.switches)):
        into = by_end[end_start[switch] : end_start[switch + 1]]
        begin, end = plane.between_start[switch : switch + 2]
        if not into.size or begin == end:
            continue
        both = taken[into][:, None, :] & ahead[None, begin:end, :]
        one, other = np.nonzero(both.any(axis=2))
        holders.append(into[one])
        awaited.append(begin + other)
    return np.concatenate(holders), np.concatenate(awaited)


def _ahead(plane: Plane, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
    """Return for each link between switches the classes it leads closer to, as packed bits."""
    packed = np.zeros((len(src), (plane.n_classes + 7) // 8), np.uint8)
    for begin in range(0, len(src), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        here = plane.distance[src[block]]
        # At distance 1 the next link leads to the endpoint; UNREACHED has no neighbour.
        closer = (plane.distance[dst[block]] == here - 1) & (here > 1)
        packed[block] = np.packbits(closer, axis=1)
    return packed


def _present(plane: Plane, ahead: np.ndarray, src: np.ndarray, dst: np.ndarray) -> np.ndarray:
    """Return for each switch the classes to which packets pass through it, as packed bits."""
    first = np.zeros(plane.distance.shape, bool)
    for attached in plane.class_switches:
        near = plane.distance[attached]
        closest = near.min(axis=0)
        if len(attached) == 1:
            first[attached] |= near != UNREACHED
        else:
            # Endpoints at several switches begin at those nearest to the destination.
            first[attached] |= (near == closest) & (closest != UNREACHED)
    present = np.packbits(first, axis=1)
    by_end = np.argsort(dst, kind="stable")
    ends, starts = np.unique(dst[by_end], return_index=True)
    while ends.size:
        come = np.bitwise_or.reduceat((ahead & present[src])[by_end], starts, axis=0)
        grown = present[ends] | come
        if np.array_equal(grown, present[ends]):
            break
        present[ends] = grown
    return present


def _circle(
    n_channels: int, holder: np.ndarray, awaited: np.ndarray, links: np.ndarray
) -> list[int]:
    """Return one circle of a directed graph as links, or nothing."""
    order = np.lexsort((awaited, holder))
    holder, awaited = holder[order], awaited[order]
    start = np.searchsorted(holder, np.arange(n_channels + 1))
    waiting = np.bincount(awaited, minlength=n_channels)  # dependencies on a channel
    left = np.ones(n_channels, bool)
    free = np.flatnonzero(waiting == 0)
    while free.size:
        # Whatever nothing depends on is in no circle; what only that depended on comes next.
        left[free] = False
        counts = start[free + 1] - start[free]
        at = np.repeat(start[free] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        waiting -= np.bincount(awaited[at], minlength=n_channels)
        free = np.unique(awaited[at][waiting[awaited[at]] == 0])
    if not left.any():
        return []
    # All that is left is in a circle or behind one. Walking back finds a channel in one.
    inside = left[holder] & left[awaited]
    holder, awaited = holder[inside], awaited[inside]
    before = np.full(n_channels, -1, np.int64)
    before[awaited[::-1]] = holder[::-1]
    channel, seen = int(np.argmax(left)), set()
    while channel not in seen:
        seen.add(channel)
        channel = int(before[channel])
    return [int(links[at]) for at in _shortest(channel, holder, awaited, n_channels)]


def _shortest(root: int, holder: np.ndarray, awaited: np.ndarray, n_channels: int) -> list[int]:
    """Return a shortest circle through a channel that is known to be in one."""
    start = np.searchsorted(holder, np.arange(n_channels + 1))
    came: dict[int, int] = {}
    queue = deque([root])
    while root not in came:
        channel = queue.popleft()
        for following in awaited[start[channel] : start[channel + 1]].tolist():
            if following not in came:
                came[following] = channel
                queue.append(following)
    path = [came[root]]
    while path[-1] != root:
        path.append(came[path[-1]])
    return path[::-1]
