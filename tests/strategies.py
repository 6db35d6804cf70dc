"""Hypothesis strategies that several test files share."""

from __future__ import annotations

from itertools import combinations, pairwise

import networkx as nx
from fabrics import flow, make_trace, task
from hypothesis import strategies as st

from ubfabric.trace import Trace

rates = st.sampled_from([10**9, 7 * 10**9, 22_857_142_857, 28 * 10**9, 10**11])
delays_ps = st.sampled_from([0, 1, 5_000, 50_000, 333_333])
latencies_ps = st.sampled_from([0, 1, 10_000, 200_000, 777_777])


@st.composite
def topologies(
    draw,
    max_endpoints: int = 12,
    max_planes: int = 3,
    max_levels: int = 3,
    direct_links: bool = True,
) -> nx.MultiGraph:
    """Draw a small valid topology graph with all attributes.

    1 to 3 planes of 1 to 3 switch levels, some endpoints with several ports in a plane,
    parallel links, direct links. The first plane is of network ub and joins all endpoints.
    Routes go up and then down, or along a tree, so no set of full buffers can wait for one
    another in a circle.

    Parameters
    ----------
    max_endpoints, max_planes, max_levels : int
    direct_links : bool
        Whether endpoints may also be joined directly.
    """
    graph, packet, endpoints = _endpoints(draw, draw(st.integers(2, max_endpoints)))
    for number in range(draw(st.integers(1, max_planes))):
        network = "ub" if number == 0 else draw(st.sampled_from(["ub", "rdma"]))
        attached = endpoints
        if number:
            attached = sorted(
                draw(st.sets(st.sampled_from(endpoints), min_size=2)), key=endpoints.index
            )
        levels = draw(st.integers(1, max_levels))
        _add_plane(draw, graph, f"{network}{number}", network, attached, levels, packet)
    if direct_links and draw(st.booleans()):
        pairs = list(combinations(endpoints, 2))
        for u, v in draw(st.lists(st.sampled_from(pairs), max_size=4)):
            _add_link(draw, graph, u, v, "package", "ub")
    return _with_ports(draw, graph)


@st.composite
def leaf_spines(draw) -> nx.MultiGraph:
    """Draw a plane of leaves and spines with long cables between them, which threads cut.

    Dies take half a microsecond to see what has arrived, far longer than any of the cables.
    """
    leaves, per_leaf = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    graph, packet, endpoints = _endpoints(draw, leaves * per_leaf)
    spines = [
        _add_switch(draw, graph, f"l2-ub0-0-{n}", 2, "ub0", packet)
        for n in range(draw(st.integers(1, 3)))
    ]
    for number in range(leaves):
        leaf = _add_switch(draw, graph, f"l1-ub0-0-{number}", 1, "ub0", packet)
        for name in endpoints[number * per_leaf : (number + 1) * per_leaf]:
            _add_link(draw, graph, name, leaf, "ub0", "ub")
        for spine in spines:
            delay_ps = draw(st.sampled_from([5_000, 9_000, 50_000]))
            _add_link(draw, graph, leaf, spine, "ub0", "ub", delay_ps)
    for name in endpoints:
        graph.nodes[name]["receive_latency_ps"] = 500_000
    return _with_ports(draw, graph)


def _with_ports(draw, graph: nx.MultiGraph) -> nx.MultiGraph:
    """Say how many ports nodes have; some have one that nothing is plugged into."""
    for name, degree in graph.degree():
        graph.nodes[name]["n_ports"] = degree + draw(st.integers(0, 1))
    return graph


def _endpoints(draw, n: int) -> tuple[nx.MultiGraph, int, list[str]]:
    """Return a graph of ``n`` dies and nothing else, bytes of a packet, and the dies."""
    payload = draw(st.sampled_from([64, 512, 1_000, 4_096]))
    header = draw(st.sampled_from([0, 28, 64]))
    packet = payload + header
    graph = nx.MultiGraph(
        name="random",
        schema=1,
        packet_payload_bytes=payload,
        transports={name: {"header_bytes": header} for name in ("ub", "rdma")},
        max_payload_bytes=payload + draw(st.integers(0, 4_096)),
    )
    endpoints = [f"die-{number}" for number in range(n)]
    per_server = draw(st.integers(1, 4))
    for number, name in enumerate(endpoints):
        graph.add_node(
            name,
            kind="die",
            role="endpoint",
            level=0,
            server=number // per_server,
            rack=-1,
            plane="",
            npu=number,
            buffer_bytes=packet * draw(st.integers(1, 4)),
            issue_engines=draw(st.integers(1, 4)),
            issue_cost_ps=draw(st.sampled_from([0, 1, 100_000, 500_000])),
            engine_bytes_per_s=draw(rates),
            egress_bytes_per_s=draw(rates),
            receive_latency_ps=draw(st.sampled_from([1, 1_000, 500_000])),
            copy_bytes_per_s=draw(rates),
        )
    return graph, packet, endpoints


def _add_switch(
    draw, graph: nx.MultiGraph, name: str, level: int, plane: str, packet_bytes: int
) -> str:
    """Add a switch whose buffers hold a few packets, and return its name."""
    graph.add_node(
        name,
        kind=f"l{level}",
        role="switch",
        level=level,
        server=-1,
        rack=-1,
        plane=plane,
        npu=-1,
        buffer_bytes=packet_bytes * draw(st.integers(1, 4)),
        forward_latency_ps=draw(latencies_ps),
    )
    return name


def _add_link(
    draw,
    graph: nx.MultiGraph,
    u: str,
    v: str,
    plane: str,
    network: str,
    delay_ps: int | None = None,
) -> None:
    graph.add_edge(
        u,
        v,
        plane=plane,
        network=network,
        bandwidth_bytes_per_s=draw(rates),
        delay_ps=draw(delays_ps) if delay_ps is None else delay_ps,
        lanes=1,
    )


def _add_plane(
    draw,
    graph: nx.MultiGraph,
    plane: str,
    network: str,
    attached: list[str],
    levels: int,
    packet_bytes: int,
) -> None:
    """Add switches in pods that level 3 joins; pods have their own level 2."""

    def switch(level: int, pod: int, index: int) -> str:
        name = f"l{level}-{plane}-{pod}-{index}"
        return _add_switch(draw, graph, name, level, plane, packet_bytes)

    def some(names: list[str]) -> list[str]:
        """Return the first name, so that every pair has a common one, and perhaps others."""
        return names[:1] + [name for name in names[1:] if draw(st.booleans())]

    n_pods = draw(st.integers(1, 3)) if levels == 3 else 1
    first = []
    top = [switch(3, 0, n) for n in range(draw(st.integers(1, 2)))] if levels == 3 else []
    for pod in range(n_pods):
        low = [switch(1, pod, n) for n in range(draw(st.integers(1, 3)))]
        first += low
        if levels == 1:
            for u, v in pairwise(low):
                _add_link(draw, graph, u, v, plane, network)
            continue
        middle = [switch(2, pod, n) for n in range(draw(st.integers(1, 3)))]
        # Every switch of the level has a link, so none is left alone.
        for u in low:
            for v in middle[:1] if u != low[0] else middle:
                _add_link(draw, graph, u, v, plane, network)
            for v in some(middle)[1:]:
                _add_link(draw, graph, u, v, plane, network)
        for u in middle:
            for v in top[:1] if u != middle[0] else top:
                _add_link(draw, graph, u, v, plane, network)
            for v in some(top)[1:]:
                _add_link(draw, graph, u, v, plane, network)
    for name in attached:
        for target in draw(st.lists(st.sampled_from(first), min_size=1, max_size=2)):
            _add_link(draw, graph, name, target, plane, network)


def connected_pairs(graph: nx.Graph) -> dict[str, list[tuple[int, int]]]:
    """Return the pairs of ranks that each network connects; rank ``n`` is on the n-th die.

    A rank reaches itself on the ub network.
    """
    dies = [name for name, kind in graph.nodes(data="kind") if kind == "die"]
    number = {name: rank for rank, name in enumerate(dies)}
    attached: dict[tuple[str, str], set[int]] = {}
    pairs: dict[str, set[tuple[int, int]]] = {"ub": {(rank, rank) for rank in number.values()}}
    for u, v, data in graph.edges(data=True):
        ends = [number[name] for name in (u, v) if name in number]
        if len(ends) == 2:
            pairs.setdefault(data["network"], set()).update([tuple(ends), tuple(ends[::-1])])
        else:
            attached.setdefault((data["network"], data["plane"]), set()).update(ends)
    for (network, _), ranks in attached.items():
        among = {(a, b) for a in ranks for b in ranks if a != b}
        pairs.setdefault(network, set()).update(among)
    return {network: sorted(among) for network, among in sorted(pairs.items())}


@st.composite
def _phases(draw, graph: nx.Graph, max_flows: int) -> list[dict]:
    """Draw the flows of one phase: distinct pairs, each on a network that connects it."""
    connected = connected_pairs(graph)
    payload = graph.graph["packet_payload_bytes"]
    choices = sorted((pair, network) for network in connected for pair in connected[network])
    chosen = draw(st.lists(st.sampled_from(choices), max_size=max_flows, unique_by=lambda c: c[0]))
    sizes = [1, payload - 1, payload, payload + 1, 2 * payload, 3 * payload + 7]
    return [
        {
            "src": src,
            "dst": dst,
            "network": network,
            "operation": "write",
            "messages": draw(st.integers(1, 4)),
            "message_bytes": draw(st.sampled_from(sizes)),
            "service_level": draw(st.integers(0, 3)),
        }
        for (src, dst), network in chosen
    ]


@st.composite
def open_loop_traces(draw, graph: nx.Graph, max_flows: int = 15) -> Trace:
    """Draw flows with start times on a graph's dies, without tasks."""
    starts = st.sampled_from([0, 0, 0, 1, 100_000, 2_500_000])
    flows = draw(_phases(graph, max_flows))
    flows = [flow(**row, phase="open") | {"start_ps": draw(starts)} for row in flows]
    return make_trace(flows, n_ranks=len([1 for _, k in graph.nodes(data="kind") if k == "die"]))


@st.composite
def exchanges(draw, graph: nx.Graph) -> Trace:
    """Draw an exchange between all dies of a graph, so that its links are busy at a time."""
    n_ranks = len([1 for _, kind in graph.nodes(data="kind") if kind == "die"])
    payload = graph.graph["packet_payload_bytes"]
    sizes = draw(st.lists(st.integers(1, 3 * payload), min_size=1, max_size=3))
    messages = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    gap_ps = draw(st.sampled_from([0, 1, 7_777]))
    flows = [
        flow(
            src,
            dst,
            messages=messages[(src + dst) % len(messages)],
            message_bytes=sizes[(src + 2 * dst) % len(sizes)],
            start_ps=gap_ps * ((5 * src + dst) % 8),
        )
        for src in range(n_ranks)
        for dst in range(n_ranks)
    ]
    return make_trace(flows, n_ranks=n_ranks)


@st.composite
def closed_loop_traces(draw, graph: nx.Graph, max_layers: int = 3, max_flows: int = 10) -> Trace:
    """Draw a decode step in the small: compute, exchange, compute, exchange, layer by layer.

    One or two microbatches on one or two streams; exchanges either in one task that sends and
    waits, or in two. Every rank does the same tasks in the same order, so none waits forever.
    """
    n_ranks = len([1 for _, kind in graph.nodes(data="kind") if kind == "die"])
    n_layers = draw(st.integers(1, max_layers))
    n_microbatches = draw(st.integers(1, 2))
    second_stream = draw(st.integers(0, 1))
    split = draw(st.booleans())
    durations = st.sampled_from([0, 1, 500_000, 3_000_000])
    gap = draw(st.integers(1, 3))  # ids of tasks need not be dense
    flows: list[dict] = []
    tasks: list[dict] = []
    last: dict[tuple[int, int], int] = {}
    for layer in range(n_layers):
        for microbatch in range(n_microbatches):
            place = {"layer": layer, "microbatch": microbatch}
            steps: list[dict] = [{"kind": "attention", "stream": 0}]
            for phase in ("dispatch", "combine"):
                rows = draw(_phases(graph, max_flows))
                flows += [flow(**row, phase=phase, **place) | {"start_ps": -1} for row in rows]
                if split:
                    steps += [{"kind": phase, "sends": phase}, {"kind": phase, "waits": phase}]
                else:
                    steps += [{"kind": phase, "sends": phase, "waits": phase}]
                steps += [{"kind": "expert"}] if phase == "dispatch" else []
            for step in steps:
                for rank in range(n_ranks):
                    before = last.get((rank, microbatch))
                    number = gap * len(tasks) + 3
                    last[rank, microbatch] = number
                    tasks.append(
                        task(number, rank, duration_ps=draw(durations), **place)
                        | {
                            "stream": second_stream,
                            "depends_on": [] if before is None else [before],
                            "message_cost_ps": 0,
                            "memory_ps": 0,
                        }
                        | step
                    )
    return make_trace(flows, tasks, n_ranks=n_ranks)


def traces(graph: nx.Graph) -> st.SearchStrategy[Trace]:
    """Return a strategy of small traces that fit a graph of :func:`topologies`."""
    return st.one_of(open_loop_traces(graph), closed_loop_traces(graph))
