"""Describe a topology: counts, ports, bandwidth a level, bisection, diameter, path diversity.

Nothing here assumes CloudMatrix384: kinds, levels, planes and networks are read from the
graph. Endpoints of one class (see :mod:`ubfabric.routing`) stand for one another, so that
thousands of dies cost no more than the switches above them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np

from ubfabric.fabric_settings import (
    PLAIN_LINK_LAYER,
    buffered_bytes,
    link_layer,
    switching,
    transports,
    used_settings,
    wire_bytes,
)
from ubfabric.quantities import provenance
from ubfabric.routing import UNREACHED, Plane, compile_planes
from ubfabric.specs import NETWORKS

BISECTION_DEFINITION = (
    "largest rate at which the endpoints of the first half of the servers can send to those of "
    "the second half (maximum flow over all links, one direction)"
)
BISECTION_DEFINITION_ONE_SERVER = (
    "largest rate at which the first half of the endpoints of each kind can send to the second "
    "half (maximum flow over all links, one direction), as there are no two servers to part"
)


def describe_topology(graph: nx.Graph) -> dict[str, Any]:
    """Describe a topology in numbers.

    Parameters
    ----------
    graph : networkx.Graph or networkx.MultiGraph
        Any valid graph.

    Returns
    -------
    dict
        JSON-able. Keys:

        ``name``, ``nodes``, ``links``, ``servers``, ``racks``
            Name and totals.
        ``kinds``
            For each kind of node: count and ports (a chip, in all, used, free).
        ``planes``
            For each plane: network, endpoints, switches, links, classes of endpoints, and
            diameter between its endpoints in links and in switches (None if fewer than two
            are attached to its switches).
        ``levels``
            For each network and pair of kinds (``die-l1``): links, rates of a link, sum of
            rates, bytes/s a direction.
        ``switch_levels``
            For each network and kind of switch: down- and uplink rate of a chip (least and
            largest), sums, and oversubscription (sum of downlinks over sum of uplinks), with
            all endpoints and with dies only; None at the top.
        ``link_layer``, ``switching``, ``transports``
            As :mod:`ubfabric.fabric_settings` returns them; of a transport, what it reads.
        ``packet``
            A full packet of the default payload in each network: payload, bytes on the wire,
            share of the link's rate that is payload (after forward error correction), and
            bytes of a buffer that it takes.
        ``endpoints``
            For each kind of endpoint and network: rate a node (least and largest) over the
            planes with switches, and over direct links.
        ``bisection``
            Definition, rate for each plane and each network, bytes/s.
        ``paths``
            From the first endpoint of each kind to endpoints of its kind: for each network
            and relation (same or other server), the number of switches on the way, shortest
            paths (least and largest), and how many endpoints that holds for.

    Raises
    ------
    TopologyError
        If the graph is not valid, or a plane does not join its endpoints.

    Notes
    -----
    Two paths that differ only in which of several parallel links they take count as two.
    Rates are those of the cables, before forward error correction takes its share.
    """
    arrays, planes = compile_planes(graph)
    cables = [int(rate) for _, _, rate in graph.edges(data="bandwidth_bytes_per_s")]
    arrays["link_rate_bytes_per_s"] = np.repeat(np.array(cables, np.uint64), 2)
    data = [attributes for _, attributes in graph.nodes(data=True)]
    kinds = np.array([item["kind"] for item in data])
    servers = np.array([item["server"] for item in data], np.int64)
    network_of = {plane.name: NETWORKS[arrays["plane_network"][plane.index]] for plane in planes}
    networks = list(dict.fromkeys(network_of.values()))
    return {
        "name": graph.graph["name"],
        "nodes": len(data),
        "links": graph.number_of_edges(),
        "servers": len({item["server"] for item in data} - {-1}),
        "racks": len({item["rack"] for item in data} - {-1}),
        "kinds": _ports(graph),
        "planes": {
            plane.name: _plane_row(plane, arrays, network_of[plane.name]) for plane in planes
        },
        "levels": _levels(graph, networks),
        "link_layer": link_layer(graph),
        "switching": switching(graph),
        "transports": {name: used_settings(transports(graph)[name]) for name in networks},
        "packet": _packets(graph, networks),
        "switch_levels": _switch_levels(graph, networks),
        "endpoints": _endpoint_rates(graph, networks),
        "bisection": _bisection(arrays, planes, kinds, servers, network_of),
        "paths": _paths(arrays, planes, kinds, servers, network_of),
    }


def spec_sources(graph: nx.Graph) -> list[dict[str, str]]:
    """List the numbers behind a graph with where each comes from.

    Returns
    -------
    list of dict
        Keys ``key``, ``value``, ``source``, ``strength``, ``note``, as in
        :func:`ubfabric.quantities.provenance`; empty for a graph without a specification.
    """
    return provenance(graph.graph.get("spec", {}))


def _ports(graph: nx.Graph) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    degrees = dict(graph.degree())
    for node, data in graph.nodes(data=True):
        row = rows.setdefault(
            data["kind"], {"count": 0, "ports_per_chip": [], "ports": 0, "ports_used": 0}
        )
        row["count"] += 1
        if data["n_ports"] not in row["ports_per_chip"]:
            row["ports_per_chip"].append(int(data["n_ports"]))
        row["ports"] += int(data["n_ports"])
        row["ports_used"] += degrees[node]
    for row in rows.values():
        row["ports_free"] = row["ports"] - row["ports_used"]
    return rows


def _packets(graph: nx.Graph, networks: list[str]) -> dict[str, dict[str, Any]]:
    payload = int(graph.graph["packet_payload_bytes"])
    rows = {}
    for network in networks:
        # Framing, cells and code rate are UB's; elsewhere a packet is headers and payload.
        layer = link_layer(graph) if network == "ub" else PLAIN_LINK_LAYER
        header = transports(graph)[network]["header_bytes"]
        on_wire = wire_bytes(layer, header, payload)
        code_rate = layer["fec_data_symbols"] / layer["fec_total_symbols"]
        rows[network] = {
            "payload_bytes": payload,
            "wire_bytes": on_wire,
            "efficiency": payload / on_wire * code_rate,
            "buffer_bytes": buffered_bytes(layer, header, payload),
        }
    return rows


def _plane_row(plane: Plane, arrays: dict, network: str) -> dict[str, Any]:
    n_links = int(np.count_nonzero(arrays["link_plane"] == plane.index)) // 2
    diameter = None
    if plane.n_classes and len(plane.endpoints) > 1:
        # From a class to itself it is one link up and one down, to another one link up and
        # then the distance of its nearest switch.
        steps = [plane.distance[attached].min(axis=0) for attached in plane.class_switches]
        longest = np.stack(steps).astype(np.int64) + 1
        alone = np.array(plane.class_size) == 1
        longest[np.diag_indices(plane.n_classes)] = np.where(alone, 0, 2)
        diameter = int(longest.max())
    return {
        "network": network,
        "endpoints": len(plane.endpoints),
        "switches": len(plane.switches),
        "links": n_links,
        "endpoint_classes": plane.n_classes,
        "diameter_links": diameter,
        "diameter_switches": None if diameter is None else diameter - 1,
    }


def _levels(graph: nx.Graph, networks: list[str]) -> list[dict[str, Any]]:
    node = graph.nodes
    counts: Counter[tuple[str, str, int]] = Counter()
    order: dict[tuple[str, str], tuple[int, int]] = {}
    for u, v, data in graph.edges(data=True):
        low, high = sorted((u, v), key=lambda name: node[name]["level"])
        level = f"{node[low]['kind']}-{node[high]['kind']}"
        counts[data["network"], level, int(data["bandwidth_bytes_per_s"])] += 1
        order.setdefault((data["network"], level), (node[low]["level"], node[high]["level"]))
    rows = []
    for network, level in sorted(order, key=lambda key: (networks.index(key[0]), order[key])):
        rates = {rate: n for (a, b, rate), n in counts.items() if (a, b) == (network, level)}
        rows.append(
            {
                "network": network,
                "level": level,
                "links": sum(rates.values()),
                "link_bytes_per_s": sorted(rates),
                "total_bytes_per_s": sum(rate * n for rate, n in rates.items()),
            }
        )
    return rows


def _switch_levels(graph: nx.Graph, networks: list[str]) -> list[dict[str, Any]]:
    node = graph.nodes
    down: dict[str, Counter[str]] = defaultdict(Counter)
    up: Counter[str] = Counter()
    network_of: dict[str, str] = {}
    for u, v, data in graph.edges(data=True):
        rate = int(data["bandwidth_bytes_per_s"])
        for here, there in ((u, v), (v, u)):
            if node[here]["role"] == "switch":
                network_of[here] = data["network"]
                # Links within a level (a mesh of switches) are neither up nor down.
                if node[there]["level"] < node[here]["level"]:
                    down[here][node[there]["kind"]] += rate
                elif node[there]["level"] > node[here]["level"]:
                    up[here] += rate
    chips: dict[tuple[str, int, str], list[str]] = defaultdict(list)
    for name, network in network_of.items():
        chips[network, node[name]["level"], node[name]["kind"]].append(name)
    rows = []
    for network, level, kind in sorted(chips, key=lambda key: (networks.index(key[0]), *key[1:])):
        names = chips[network, level, kind]
        total_up = sum(up[name] for name in names)
        by_kind: Counter[str] = Counter()
        for name in names:
            by_kind.update(down[name])
        totals = [sum(down[name].values()) for name in names]
        rows.append(
            {
                "network": network,
                "kind": kind,
                "level": int(level),
                "chips": len(names),
                "downlink_bytes_per_s": [min(totals), max(totals)],
                "uplink_bytes_per_s": [
                    min(up[name] for name in names),
                    max(up[name] for name in names),
                ],
                "total_downlink_bytes_per_s": sum(totals),
                "total_uplink_bytes_per_s": total_up,
                "oversubscription": sum(totals) / total_up if total_up else None,
                "oversubscription_without_cpus": (
                    (sum(totals) - by_kind["cpu"]) / total_up if total_up else None
                ),
            }
        )
    return rows


def _endpoint_rates(graph: nx.Graph, networks: list[str]) -> list[dict[str, Any]]:
    node = graph.nodes
    switched: Counter[tuple[str, str]] = Counter()
    direct: Counter[tuple[str, str]] = Counter()
    for u, v, data in graph.edges(data=True):
        both = node[u]["role"] == node[v]["role"] == "endpoint"
        for here in (u, v):
            if node[here]["role"] == "endpoint":
                (direct if both else switched)[here, data["network"]] += int(
                    data["bandwidth_bytes_per_s"]
                )
    groups: dict[str, list[str]] = defaultdict(list)
    for name, attributes in graph.nodes(data=True):
        if attributes["role"] == "endpoint":
            groups[attributes["kind"]].append(name)
    rows = []
    for kind, names in groups.items():
        for network in networks:
            rates = [switched[name, network] for name in names]
            beside = [direct[name, network] for name in names]
            if any(rates) or any(beside):
                rows.append(
                    {
                        "kind": kind,
                        "network": network,
                        "count": sum(a > 0 or b > 0 for a, b in zip(rates, beside, strict=True)),
                        "switched_bytes_per_s": [min(rates), max(rates)],
                        "direct_bytes_per_s": [min(beside), max(beside)],
                    }
                )
    return rows


def _bisection(
    arrays: dict,
    planes: list[Plane],
    kinds: np.ndarray,
    servers: np.ndarray,
    network_of: dict[str, str],
) -> dict[str, Any]:
    is_endpoint = arrays["node_is_endpoint"].astype(bool)
    numbers = np.unique(servers[is_endpoint & (servers >= 0)])
    side = np.full(len(servers), -1, np.int64)
    if len(numbers) >= 2:
        by_server = np.isin(servers, numbers[: len(numbers) // 2])
        first, second = by_server, (servers >= 0) & ~by_server
        definition = BISECTION_DEFINITION
    else:
        first = np.zeros(len(servers), bool)
        for kind in np.unique(kinds[is_endpoint]):
            ids = np.flatnonzero(is_endpoint & (kinds == kind))
            first[ids[: len(ids) // 2]] = True
        second, definition = ~first, BISECTION_DEFINITION_ONE_SERVER
    side[is_endpoint & first], side[is_endpoint & second] = 0, 1
    per_plane = {plane.name: _max_flow(arrays, plane.index, side) for plane in planes}
    per_network: Counter[str] = Counter()
    for name, rate in per_plane.items():
        per_network[network_of[name]] += rate
    return {
        "definition": definition,
        "planes_bytes_per_s": per_plane,
        "networks_bytes_per_s": dict(per_network),
    }


def _max_flow(arrays: dict, plane: int, side: np.ndarray) -> int:
    """Return the maximum flow of a plane from endpoints of side 0 to those of side 1.

    Nodes that look alike (same side, same links to nodes that look alike) are merged first
    and their links added up. The maximum flow stays the same: a flow of the merged graph
    divides evenly over alike nodes and links, and every flow of the plane adds up to one of
    the merged graph. A regular machine shrinks to a handful of nodes.
    """
    links = np.flatnonzero(arrays["link_plane"] == plane)
    src, dst = arrays["link_src"][links], arrays["link_dst"][links]
    nodes, ends = np.unique(np.concatenate([src, dst]), return_inverse=True)
    src, dst = ends[: len(links)], ends[len(links) :]
    rate = arrays["link_rate_bytes_per_s"][links].astype(np.int64)
    colour = _alike(src, dst, rate, side[nodes])
    n_colours = int(colour.max()) + 1
    pair = colour[src].astype(np.int64) * n_colours + colour[dst]
    keys, inverse = np.unique(pair, return_inverse=True)
    capacity = np.zeros(len(keys), np.int64)
    np.add.at(capacity, inverse, rate)
    graph = nx.DiGraph()
    graph.add_nodes_from(("from", "to"))
    for key, total in zip(keys.tolist(), capacity.tolist(), strict=True):
        u, v = divmod(key, n_colours)
        if u != v:
            graph.add_edge(u, v, capacity=total)
    # An edge without a capacity has no limit.
    graph.add_edges_from(("from", one) for one in np.unique(colour[side[nodes] == 0]).tolist())
    graph.add_edges_from((one, "to") for one in np.unique(colour[side[nodes] == 1]).tolist())
    return int(nx.maximum_flow_value(graph, "from", "to"))


def _alike(src: np.ndarray, dst: np.ndarray, rate: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return a colour a node: equal for nodes with equal links to nodes of equal colours."""
    colour = np.unique(start, return_inverse=True)[1]
    n_colours = 0
    while n_colours != int(colour.max()) + 1:
        n_colours = int(colour.max()) + 1
        order = np.lexsort((rate, colour[dst], src))
        seen: dict[tuple[int, bytes], int] = {}
        what = np.stack([colour[dst][order], rate[order]], axis=1)
        bounds = np.searchsorted(src[order], np.arange(len(colour) + 1))
        colour = np.array(
            [
                seen.setdefault(
                    (int(colour[node]), what[bounds[node] : bounds[node + 1]].tobytes()), len(seen)
                )
                for node in range(len(colour))
            ]
        )
    return colour


def _paths(
    arrays: dict,
    planes: list[Plane],
    kinds: np.ndarray,
    servers: np.ndarray,
    network_of: dict[str, str],
) -> list[dict[str, Any]]:
    is_endpoint = arrays["node_is_endpoint"].astype(bool)
    rows = []
    for kind in dict.fromkeys(kinds[is_endpoint].tolist()):
        ids = np.flatnonzero(is_endpoint & (kinds == kind))
        source, others = ids[0], ids[1:]
        for network in dict.fromkeys(network_of.values()):
            counts = np.zeros(len(kinds), np.int64)
            least = np.full(len(kinds), UNREACHED, np.int64)
            for plane in planes:
                if network_of[plane.name] != network:
                    continue
                switches, paths = _count_paths(plane, source)
                better, equal = switches < least, (switches == least) & (paths > 0)
                counts[equal] += paths[equal]
                counts[better], least[better] = paths[better], switches[better]
            same = (servers[others] == servers[source]) & (servers[others] >= 0)
            for relation, chosen in (("same server", same), ("other server", ~same)):
                for length in np.unique(least[others[chosen]]):
                    ends = others[chosen][least[others[chosen]] == length]
                    if length == UNREACHED:
                        continue
                    rows.append(
                        {
                            "network": network,
                            "kind": kind,
                            "relation": relation,
                            "switches": int(length),
                            "shortest_paths": [int(counts[ends].min()), int(counts[ends].max())],
                            "endpoints": len(ends),
                        }
                    )
    return rows


def _count_paths(plane: Plane, source: int) -> tuple[np.ndarray, np.ndarray]:
    """Return switches on the way and number of shortest paths from ``source`` to each node."""
    n_nodes = len(plane.node_names)
    switches = np.full(n_nodes, UNREACHED, np.int64)
    paths = np.zeros(n_nodes, np.int64)
    n_switches = len(plane.switches)
    near = np.zeros(n_switches, np.int64)
    mine = plane.up[plane.src[plane.up] == source]
    np.add.at(near, np.searchsorted(plane.switches, plane.dst[mine]), 1)
    ends = np.searchsorted(plane.switches, plane.dst[plane.up])
    src = np.searchsorted(plane.switches, plane.src[plane.between])
    dst = np.searchsorted(plane.switches, plane.dst[plane.between])
    visited = near > 0
    length = 1
    while near.any():
        arrived = np.zeros(n_nodes, np.int64)
        np.add.at(arrived, plane.src[plane.up], near[ends])
        new = (arrived > 0) & (switches == UNREACHED)
        switches[new], paths[new] = length, arrived[new]
        following = np.zeros(n_switches, np.int64)
        np.add.at(following, dst, near[src])
        following[visited] = 0
        visited |= following > 0
        near, length = following, length + 1
    return switches, paths


def _rate(value: float) -> str:
    return f"{value / 1e9:,.2f}".rstrip("0").rstrip(".") + " GB/s"


def _setting(key: str, value: Any) -> list[str]:
    """Return name and value of a setting as text, with the unit at the value."""
    if key.endswith("_bytes"):
        return [_words(key.removesuffix("_bytes")), f"{value:,} B"]
    if key.endswith("_ps"):
        return [_words(key.removesuffix("_ps")), f"{value / 1000:,.10g} ns"]
    if isinstance(value, list):
        return [_words(key), " ".join(str(item) for item in value)]
    return [_words(key), f"{value:g}" if isinstance(value, float) else str(value)]


def _words(key: str) -> str:
    return key.replace("_", " ")


def _count(value: int, noun: str) -> str:
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def _range(values: list[int], text: Callable[[int], str] = str) -> str:
    low, high = text(values[0]), text(values[-1])
    return low if low == high else f"{low} to {high}"


def _table(title: str, header: list[str], rows: list[list[Any]]) -> list[str]:
    cells = [header, *([str(item) for item in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    numeric = [
        all(row[column][:1].isdigit() or row[column] == "-" for row in cells[1:])
        for column in range(len(header))
    ]
    lines = ["", title]
    for row in cells:
        parts = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        lines.append(("  " + "  ".join(parts)).rstrip())
    return lines


def render_description(description: dict[str, Any]) -> str:
    """Return the text that the command line prints for :func:`describe_topology`."""
    d = description
    totals = [_count(d[f"{noun}s"], noun) for noun in ("node", "link", "server", "rack")]
    lines = [f"{d['name']}: {', '.join(totals)}"]
    lines += _table(
        "Nodes and ports",
        ["kind", "count", "ports each", "ports", "used", "free"],
        [
            [
                kind,
                f"{row['count']:,}",
                _range(sorted(row["ports_per_chip"]), lambda n: f"{n:,}"),
                f"{row['ports']:,}",
                f"{row['ports_used']:,}",
                f"{row['ports_free']:,}",
            ]
            for kind, row in d["kinds"].items()
        ],
    )
    lines += _table(
        "Links by level (rates a direction)",
        ["network", "level", "links", "a link", "in all"],
        [
            [
                row["network"],
                row["level"],
                f"{row['links']:,}",
                _range(row["link_bytes_per_s"], _rate),
                _rate(row["total_bytes_per_s"]),
            ]
            for row in d["levels"]
        ],
    )
    lines += _table(
        "Endpoints (rates a direction)",
        ["kind", "network", "count", "through switches", "direct"],
        [
            [
                row["kind"],
                row["network"],
                f"{row['count']:,}",
                _range(row["switched_bytes_per_s"], _rate),
                _range(row["direct_bytes_per_s"], _rate),
            ]
            for row in d["endpoints"]
        ],
    )
    lines += _table(
        "Switch levels (downlink : uplink)",
        ["network", "kind", "chips", "down a chip", "up a chip", "ratio", "ratio without CPUs"],
        [
            [
                row["network"],
                row["kind"],
                f"{row['chips']:,}",
                _range(row["downlink_bytes_per_s"], _rate),
                _range(row["uplink_bytes_per_s"], _rate),
                _ratio(row["oversubscription"]),
                _ratio(row["oversubscription_without_cpus"]),
            ]
            for row in d["switch_levels"]
        ],
    )
    lines += _table(
        "Link layer of UB (links and switches)",
        ["setting", "value"],
        [_setting(*item) for item in (d["link_layer"] | d["switching"]).items()],
    )
    lines += _table(
        "Transports and a full packet of each",
        ["network", "transport", "headers", "payload", "on the wire", "in a buffer", "efficiency"],
        [
            [
                network,
                d["transports"][network]["name"],
                f"{d['transports'][network]['header_bytes']:,} B",
                f"{row['payload_bytes']:,} B",
                f"{row['wire_bytes']:,} B",
                f"{row['buffer_bytes']:,} B",
                f"{100 * row['efficiency']:.1f} %",
            ]
            for network, row in d["packet"].items()
        ],
    )
    for network, settings in d["transports"].items():
        others = [" ".join(_setting(key, settings[key])) for key in settings]
        lines.append(f"  {network}: {', '.join(others[2:]) or 'no other settings'}.")
    bisection = d["bisection"]
    lines += _table(
        "Planes",
        [
            "plane",
            "network",
            "endpoints",
            "switches",
            "links",
            "longest: links",
            "switches",
            "bisection",
        ],
        [
            [
                name,
                row["network"],
                f"{row['endpoints']:,}",
                f"{row['switches']:,}",
                f"{row['links']:,}",
                "-" if row["diameter_links"] is None else row["diameter_links"],
                "-" if row["diameter_links"] is None else row["diameter_switches"],
                _rate(bisection["planes_bytes_per_s"][name]),
            ]
            for name, row in d["planes"].items()
        ],
    )
    totals = [f"{name} {_rate(rate)}" for name, rate in bisection["networks_bytes_per_s"].items()]
    lines.append(f"  Bisection in all: {', '.join(totals)}.")
    lines.append(f"  Bisection: {bisection['definition']}.")
    lines += _table(
        "Shortest paths through switches, from the first endpoint of a kind",
        ["network", "between", "switches", "paths", "endpoints"],
        [
            [
                row["network"],
                f"{row['kind']} and {row['kind']}, {row['relation']}",
                row["switches"],
                _range(row["shortest_paths"], lambda n: f"{n:,}"),
                f"{row['endpoints']:,}",
            ]
            for row in d["paths"]
        ],
    )
    return "\n".join(lines) + "\n"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} : 1"
