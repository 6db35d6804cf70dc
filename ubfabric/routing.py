"""From the graph to the flat arrays that the simulator reads: links, and next-hop tables.

Routes are shortest paths, plane by plane, counted in links and through switches only.
Endpoints attached to the same set of switches of a plane (the dies and CPUs of one server,
say) have the same routes up to the last switch; they form a *class*, and a switch keeps one
entry a class and not one an endpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields

import networkx as nx
import numpy as np

from ubfabric.errors import TopologyError
from ubfabric.fabric_settings import link_layer
from ubfabric.specs import NETWORKS
from ubfabric.topology import check_topology, endpoint_defaults

#: How often a link may occur in a group whose links have different rates.
MOST_REPEATS = 8
#: Distance of a switch that does not reach a class.
UNREACHED = np.iinfo(np.uint16).max


@dataclass(frozen=True, eq=False)
class FabricArrays:
    """A fabric as flat, C-contiguous arrays.

    A node's id is its position in the graph. Edge ``e`` of the graph gives two directed
    links: ``2 * e`` from its first node to its second, ``2 * e + 1`` back. Planes are
    numbered in the order in which they first appear in the edge list. A *group* is a set of
    links of one node among which a packet may choose, in ascending order. Where their rates
    differ, faster links occur several times, in proportion and spread out.

    Attributes
    ----------
    node_names : list of str
    node_is_endpoint : uint8[n_nodes]
    node_forward_latency_ps : int64[n_nodes]
        0 for endpoints.
    node_buffer_bytes : int64[n_nodes]
        Input buffer of each port and virtual lane.
    node_issue_engines : uint32[n_nodes]
        This and the following node arrays are 0 for switches.
    node_issue_cost_ps : int64[n_nodes]
    node_engine_bytes_per_s : uint64[n_nodes]
    node_egress_bytes_per_s : uint64[n_nodes]
    node_receive_latency_ps : int64[n_nodes]
    node_copy_bytes_per_s : uint64[n_nodes]
    node_memory_write_ppm : uint32[n_nodes]
        Share of a link's rate at which a port takes writes into memory, parts per million.
    node_memory_read_latency_ps : int64[n_nodes]
    node_acknowledge_latency_ps : int64[n_nodes]
    node_overlaps_issue : uint8[n_nodes]
    node_sdma_engines : uint32[n_nodes]
    node_sdma_start_ps : int64[n_nodes]
    node_sdma_bytes_per_s : uint64[n_nodes]
    node_sdma_read_bytes_per_s, node_sdma_write_bytes_per_s : uint64[n_nodes]
        Rates at which one SDMA engine of another endpoint reads its memory and writes to it; 0 for
        no limit but the engine's own rate.
    link_src, link_dst, link_plane : uint32[n_links]
    link_rate_bytes_per_s : uint64[n_links]
        What forward error correction leaves of a UB link to or from a switch, rounded down;
        the bandwidth itself on all other links.
    link_delay_ps : int64[n_links]
    link_bit_error_rate : float64[n_links]
    link_lanes : uint32[n_links]
    link_reverse : uint32[n_links]
        The other direction of the same cable.
    plane_names : list of str
    plane_network : uint32[n_planes]
        0 for ub, 1 for rdma, 2 for vpc.
    plane_n_classes : uint32[n_planes]
    endpoint_class : int32[n_planes, n_nodes]
        Class of an endpoint in a plane, -1 without a link to a switch there.
    endpoint_slot : int32[n_planes, n_nodes]
        Position of the endpoint within its class, -1 likewise.
    switch_row : int64[n_nodes]
        Offset of a switch's row in ``table``, -1 for endpoints. A row has one entry for each
        class of the switch's plane.
    endpoint_out : int64[n_planes, n_nodes]
        -1: not attached. -2 or less: group ``-(value + 2)``, for every destination. 0 or
        more: offset of a row of its own in ``table``, for an endpoint that is attached to
        several switches of the plane, or whose only switch does not reach every class.
    table : int32[...]
        0 or more: group. -1: unreachable. -2 or less: the class is attached to this switch;
        the group is ``local[-(value + 2) + slot]``.
    local : int32[...]
    group_start : uint32[n_groups + 1]
    group_link : uint32[...]
        Links of group ``g`` are ``group_link[group_start[g]:group_start[g + 1]]``.
    direct_start : uint32[n_nodes + 1]
    direct_dst, direct_link : uint32[...]
        Links between two endpoints, by source, ascending destination.
    """

    node_names: list[str]
    node_is_endpoint: np.ndarray
    node_forward_latency_ps: np.ndarray
    node_buffer_bytes: np.ndarray
    node_issue_engines: np.ndarray
    node_issue_cost_ps: np.ndarray
    node_engine_bytes_per_s: np.ndarray
    node_egress_bytes_per_s: np.ndarray
    node_receive_latency_ps: np.ndarray
    node_copy_bytes_per_s: np.ndarray
    node_memory_write_ppm: np.ndarray
    node_memory_read_latency_ps: np.ndarray
    node_acknowledge_latency_ps: np.ndarray
    node_overlaps_issue: np.ndarray
    node_sdma_engines: np.ndarray
    node_sdma_start_ps: np.ndarray
    node_sdma_bytes_per_s: np.ndarray
    node_sdma_read_bytes_per_s: np.ndarray
    node_sdma_write_bytes_per_s: np.ndarray
    link_src: np.ndarray
    link_dst: np.ndarray
    link_plane: np.ndarray
    link_rate_bytes_per_s: np.ndarray
    link_delay_ps: np.ndarray
    link_bit_error_rate: np.ndarray
    link_lanes: np.ndarray
    link_reverse: np.ndarray
    plane_names: list[str]
    plane_network: np.ndarray
    plane_n_classes: np.ndarray
    endpoint_class: np.ndarray
    endpoint_slot: np.ndarray
    switch_row: np.ndarray
    endpoint_out: np.ndarray
    table: np.ndarray
    local: np.ndarray
    group_start: np.ndarray
    group_link: np.ndarray
    direct_start: np.ndarray
    direct_dst: np.ndarray
    direct_link: np.ndarray

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return len(self.node_names)

    @property
    def n_links(self) -> int:
        """Number of directed links, twice the number of edges."""
        return len(self.link_src)

    @property
    def n_planes(self) -> int:
        """Number of planes."""
        return len(self.plane_names)

    @property
    def nbytes(self) -> int:
        """Memory of all arrays together, bytes."""
        values = (getattr(self, field.name) for field in fields(self))
        return sum(value.nbytes for value in values if isinstance(value, np.ndarray))

    def same_as(self, other: FabricArrays) -> bool:
        """Return whether all names and arrays are equal, types included."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, np.ndarray):
                if mine.dtype != theirs.dtype or not np.array_equal(mine, theirs):
                    return False
            elif mine != theirs:
                return False
        return True

    def next_links(self, node: int, plane: int, destination: int) -> np.ndarray:
        """Return the links that a packet may take next, read as the simulator reads them.

        Parameters
        ----------
        node : int
            Where the packet is: its source endpoint, or a switch of the plane.
        plane : int
        destination : int
            An endpoint other than ``node``.

        Returns
        -------
        ndarray of uint32
            The group; empty when the plane does not lead there.
        """
        nothing = self.group_link[:0]
        klass = self.endpoint_class[plane, destination]
        if klass < 0:
            return nothing
        row = self.switch_row[node]
        if self.node_is_endpoint[node]:
            row = self.endpoint_out[plane, node]
            if row == -1:
                return nothing
            if row <= -2:
                return self._group(-(row + 2))
        entry = int(self.table[row + klass])
        if entry == -1:
            return nothing
        if entry <= -2:
            entry = self.local[-(entry + 2) + self.endpoint_slot[plane, destination]]
        return self._group(entry)

    def _group(self, group: int) -> np.ndarray:
        return self.group_link[self.group_start[group] : self.group_start[group + 1]]


def compile_fabric(
    graph: nx.Graph,
    dead_links: Collection[int] = (),
    link_rates: Mapping[int, int] | None = None,
    partial: bool = False,
) -> FabricArrays:
    """Turn a topology graph into the arrays that the simulator reads.

    Parameters
    ----------
    graph : networkx.Graph or networkx.MultiGraph
        Any graph that :func:`ubfabric.topology.check_topology` accepts.
    dead_links : collection of int, optional
        Directed links that no route may take. A cable with a dead direction is dead both ways.
    link_rates : mapping of int to int, optional
        Rates of directed links, bytes/s, that replace ``link_rate_bytes_per_s``; for links
        that lost lanes.
    partial : bool, optional
        Whether a plane may leave endpoints apart; their routes say so then.

    Returns
    -------
    FabricArrays

    Raises
    ------
    TopologyError
        If the graph is not valid; unless ``partial``, if a plane does not join all endpoints
        attached to it (the line names one pair that it leaves apart).
    ValueError
        If a link does not exist or a rate is not 1 or more.
    """
    arrays, planes = compile_planes(graph, dead_links, link_rates, partial)
    return _with_routes(arrays, planes, _dead_mask(len(arrays["link_src"]), dead_links))


def reroute(
    fabric: FabricArrays,
    dead_links: Collection[int] = (),
    link_rates: Mapping[int, int] | None = None,
) -> FabricArrays:
    """Return a fabric's arrays with routes around dead links.

    Parameters
    ----------
    fabric : FabricArrays
        Arrays without dead links, as :func:`compile_fabric` makes them from the graph alone.
    dead_links, link_rates
        As in :func:`compile_fabric`.

    Returns
    -------
    FabricArrays
        Nodes, links and planes keep their numbers; classes and groups get new ones. Endpoints
        may be left apart: see :func:`unreachable_pairs`.

    Raises
    ------
    ValueError
        If a link does not exist or a rate is not 1 or more.
    """
    arrays = dict(vars(fabric))
    arrays["link_rate_bytes_per_s"] = _changed_rates(arrays["link_rate_bytes_per_s"], link_rates)
    return _with_routes(
        arrays, measure_planes(arrays, dead_links), _dead_mask(fabric.n_links, dead_links)
    )


def _dead_mask(n_links: int, dead_links: Collection[int]) -> np.ndarray:
    """Return bool[n_links], both directions of a cable alike."""
    dead = np.zeros(n_links, bool)
    numbers = np.array(sorted(dead_links), np.int64)
    if numbers.size and not 0 <= numbers[0] <= numbers[-1] < n_links:
        raise ValueError(
            f"dead_links: found {numbers[0]} to {numbers[-1]}; allowed 0 to {n_links - 1}"
        )
    dead[numbers] = dead[numbers ^ 1] = True
    return dead


def _changed_rates(rates: np.ndarray, link_rates: Mapping[int, int] | None) -> np.ndarray:
    if not link_rates:
        return rates
    rates = rates.copy()
    for link, rate in link_rates.items():
        if not 0 <= link < len(rates) or rate < 1:
            raise ValueError(
                f"link_rates: found {rate} for link {link}; allowed 1 or more for links 0 to "
                f"{len(rates) - 1}"
            )
        rates[link] = rate
    return rates


def _with_routes(arrays: dict, planes: list[Plane], dead: np.ndarray) -> FabricArrays:
    arrays |= _route_arrays(arrays, planes)
    arrays |= _direct_arrays(arrays, dead)
    return FabricArrays(**arrays)


def _node_arrays(graph: nx.Graph) -> dict:
    data = [attributes for _, attributes in graph.nodes(data=True)]

    def column(name: str, dtype: type, role: str | None = None) -> np.ndarray:
        values = (item[name] if role is None or item["role"] == role else 0 for item in data)
        return np.fromiter(values, dtype=dtype, count=len(data))

    nothing: dict[str, int] = {}
    optional = [endpoint_defaults(item) if item["role"] == "endpoint" else nothing for item in data]

    def optional_column(name: str, dtype: type) -> np.ndarray:
        return np.fromiter((item.get(name, 0) for item in optional), dtype, count=len(data))

    return {
        "node_names": list(graph),
        "node_is_endpoint": np.fromiter(
            (item["role"] == "endpoint" for item in data), dtype=np.uint8, count=len(data)
        ),
        "node_forward_latency_ps": column("forward_latency_ps", np.int64, "switch"),
        "node_buffer_bytes": column("buffer_bytes", np.int64),
        "node_issue_engines": column("issue_engines", np.uint32, "endpoint"),
        "node_issue_cost_ps": column("issue_cost_ps", np.int64, "endpoint"),
        "node_engine_bytes_per_s": column("engine_bytes_per_s", np.uint64, "endpoint"),
        "node_egress_bytes_per_s": column("egress_bytes_per_s", np.uint64, "endpoint"),
        "node_receive_latency_ps": column("receive_latency_ps", np.int64, "endpoint"),
        "node_copy_bytes_per_s": column("copy_bytes_per_s", np.uint64, "endpoint"),
        "node_memory_write_ppm": optional_column("memory_write_share_ppm", np.uint32),
        "node_memory_read_latency_ps": optional_column("memory_read_latency_ps", np.int64),
        "node_acknowledge_latency_ps": optional_column("acknowledge_latency_ps", np.int64),
        "node_overlaps_issue": optional_column("overlaps_issue", np.uint8),
        "node_sdma_engines": optional_column("sdma_engines", np.uint32),
        "node_sdma_start_ps": optional_column("sdma_start_ps", np.int64),
        "node_sdma_bytes_per_s": optional_column("sdma_bytes_per_s", np.uint64),
        "node_sdma_read_bytes_per_s": optional_column("sdma_read_bytes_per_s", np.uint64),
        "node_sdma_write_bytes_per_s": optional_column("sdma_write_bytes_per_s", np.uint64),
    }


def _link_arrays(graph: nx.Graph) -> dict:
    position = {node: index for index, node in enumerate(graph)}
    plane_of: dict[str, int] = {}
    network_of: list[int] = []
    n_edges = graph.number_of_edges()
    ends = np.empty((n_edges, 2), np.uint32)
    plane = np.empty(n_edges, np.uint32)
    rate = np.empty(n_edges, np.uint64)
    delay = np.empty(n_edges, np.int64)
    error_rate = np.empty(n_edges, np.float64)
    lanes = np.empty(n_edges, np.uint32)
    is_endpoint = {node: role == "endpoint" for node, role in graph.nodes(data="role")}
    layer = link_layer(graph)
    data_symbols, total_symbols = layer["fec_data_symbols"], layer["fec_total_symbols"]
    for edge, (u, v, data) in enumerate(graph.edges(data=True)):
        name = data["plane"]
        if name not in plane_of:
            plane_of[name] = len(plane_of)
            network_of.append(NETWORKS.index(data["network"]))
        ends[edge] = position[u], position[v]
        plane[edge] = plane_of[name]
        bytes_per_s = int(data["bandwidth_bytes_per_s"])
        if data["network"] == "ub" and not (is_endpoint[u] and is_endpoint[v]):
            bytes_per_s = max(1, bytes_per_s * data_symbols // total_symbols)
        rate[edge] = bytes_per_s
        delay[edge] = data["delay_ps"]
        error_rate[edge] = data.get("bit_error_rate", 0.0)
        lanes[edge] = data["lanes"]
    return {
        "link_src": ends.reshape(-1).copy(),
        "link_dst": ends[:, ::-1].reshape(-1).copy(),
        "link_plane": np.repeat(plane, 2),
        "link_rate_bytes_per_s": np.repeat(rate, 2),
        "link_delay_ps": np.repeat(delay, 2),
        "link_bit_error_rate": np.repeat(error_rate, 2),
        "link_lanes": np.repeat(lanes, 2),
        "link_reverse": (np.arange(2 * n_edges) ^ 1).astype(np.uint32),
        "plane_names": list(plane_of),
        "plane_network": np.array(network_of, np.uint32),
    }


def compile_planes(
    graph: nx.Graph,
    dead_links: Collection[int] = (),
    link_rates: Mapping[int, int] | None = None,
    partial: bool = False,
) -> tuple[dict, list[Plane]]:
    """Check a graph and measure its planes, without making tables.

    Parameters as of :func:`compile_fabric`.

    Returns
    -------
    arrays : dict
        The fields of :class:`FabricArrays` that describe nodes, links and plane names.
    planes : list of Plane

    Raises
    ------
    TopologyError
        As :func:`compile_fabric`.
    """
    label = str(graph.graph.get("name", "topology")) if isinstance(graph, nx.Graph) else "topology"
    check_topology(graph, label)
    arrays = _node_arrays(graph) | _link_arrays(graph)
    arrays["link_rate_bytes_per_s"] = _changed_rates(arrays["link_rate_bytes_per_s"], link_rates)
    planes = measure_planes(arrays, dead_links)
    if not partial:
        for plane in planes:
            plane.check_joined(label)
    return arrays, planes


def measure_planes(arrays: dict, dead_links: Collection[int] = ()) -> list[Plane]:
    """Return the planes of arrays that describe nodes and links, without dead links."""
    src, dst = arrays["link_src"].astype(np.int64), arrays["link_dst"].astype(np.int64)
    dead = _dead_mask(len(src), dead_links)
    return [Plane(arrays, plane, src, dst, dead) for plane in range(len(arrays["plane_names"]))]


class Plane:
    """Switches, attached endpoints, classes and distances of one plane.

    Attributes
    ----------
    name, index : str, int
    switches : int64[n_switches]
        Node ids, ascending; those that lost all their links as well.
    up : int64[...]
        Links from endpoints to switches, ascending by (endpoint, link).
    between : int64[...]
        Links from switch to switch, ascending by (source, link).
    between_start : int64[n_switches + 1]
        Where each switch's links begin in ``between``.
    endpoints, endpoint_class, endpoint_slot : int64[n_endpoints]
        Endpoints attached to a switch, ascending, with class and slot of each.
    class_switches : list of int64[...]
        Positions in ``switches`` of the switches each class is attached to, ascending.
    class_size : list of int
    distance : uint16[n_switches, n_classes]
        Links from a switch to the endpoints of a class; UNREACHED if there is no path.
    """

    def __init__(
        self, arrays: dict, plane: int, src: np.ndarray, dst: np.ndarray, dead: np.ndarray
    ) -> None:
        self.name: str = arrays["plane_names"][plane]
        self.index = plane
        self.node_names = arrays["node_names"]
        self.src, self.dst = src, dst
        is_endpoint = arrays["node_is_endpoint"].astype(bool)
        links = np.flatnonzero(arrays["link_plane"] == plane)
        ends = np.unique(src[links])
        self.switches = ends[~is_endpoint[ends]]
        links = links[~dead[links]]
        src_is_endpoint, dst_is_endpoint = is_endpoint[src[links]], is_endpoint[dst[links]]
        up = links[src_is_endpoint & ~dst_is_endpoint]
        self.up = up[np.argsort(src[up], kind="stable")]
        between = links[~src_is_endpoint & ~dst_is_endpoint]
        self.between = between[np.argsort(src[between], kind="stable")]
        self.between_start = np.searchsorted(
            src[self.between], np.append(self.switches, np.iinfo(np.int64).max)
        )
        self._classify()
        self._measure()

    @property
    def n_classes(self) -> int:
        """Number of classes of endpoints."""
        return len(self.class_switches)

    def _classify(self) -> None:
        """Give each class a number, in the order of their first endpoints."""
        self.endpoints, first = np.unique(self.src[self.up], return_index=True)
        bounds = np.append(first, len(self.up))
        switches = np.searchsorted(self.switches, self.dst[self.up])
        self.endpoint_class = np.empty(len(self.endpoints), np.int64)
        self.endpoint_slot = np.empty(len(self.endpoints), np.int64)
        self.class_switches: list[np.ndarray] = []
        self.class_size: list[int] = []
        number: dict[bytes, int] = {}
        for endpoint in range(len(self.endpoints)):
            attached = switches[bounds[endpoint] : bounds[endpoint + 1]]
            if len(attached) > 1:
                attached = np.unique(attached)
            klass = number.setdefault(attached.tobytes(), len(number))
            if klass == len(self.class_size):
                self.class_switches.append(attached)
                self.class_size.append(0)
            self.endpoint_class[endpoint] = klass
            self.endpoint_slot[endpoint] = self.class_size[klass]
            self.class_size[klass] += 1

    def _measure(self) -> None:
        """Breadth-first search from all classes at once, one bit a class and switch."""
        n_switches, n_classes = len(self.switches), self.n_classes
        self.distance = np.full((n_switches, n_classes), UNREACHED, np.uint16)
        for klass, attached in enumerate(self.class_switches):
            self.distance[attached, klass] = 1
        neighbour = np.searchsorted(self.switches, self.dst[self.between])
        linked = np.flatnonzero(np.diff(self.between_start))
        starts = self.between_start[linked]
        reached = self.distance == 1
        frontier, length = reached, 1
        while linked.size and frontier.any():
            length += 1
            packed = np.packbits(frontier, axis=1)
            near = np.zeros_like(packed)
            near[linked] = np.bitwise_or.reduceat(packed[neighbour], starts, axis=0)
            frontier = np.unpackbits(near, axis=1, count=n_classes).astype(bool) & ~reached
            self.distance[frontier] = length
            reached = reached | frontier

    def check_joined(self, label: str) -> None:
        """Raise TopologyError, naming one pair, unless all attached endpoints are joined."""
        for klass, attached in enumerate(self.class_switches):
            apart = np.flatnonzero((self.distance[attached] == UNREACHED).all(axis=0))
            if apart.size:
                one, other = (
                    self.node_names[self.endpoints[np.argmax(self.endpoint_class == wanted)]]
                    for wanted in (klass, apart[0])
                )
                raise TopologyError(
                    f"{label}: plane {self.name} does not join {one} and {other}; expected a path "
                    "through its switches between any two endpoints attached to it"
                )


class _Groups:
    """Sets of links, collected as blocks and joined into one CSR at the end."""

    def __init__(self) -> None:
        self.count = 0
        self._sizes: list[np.ndarray] = []
        self._links: list[np.ndarray] = []

    def add(self, sizes: np.ndarray, links: np.ndarray) -> int:
        """Append groups of the given sizes; return the number of the first."""
        first = self.count
        self.count += len(sizes)
        self._sizes.append(sizes)
        self._links.append(links)
        return first

    def arrays(self, rates: np.ndarray) -> dict:
        sizes = np.concatenate([*self._sizes, np.empty(0, np.int64)]).astype(np.int64)
        links = np.concatenate([*self._links, np.empty(0, np.int64)]).astype(np.int64)
        start = np.zeros(self.count + 1, np.int64)
        start[1:] = np.cumsum(sizes)
        if self.count:
            of_link = rates[links]
            least = np.minimum.reduceat(of_link, start[:-1])
            uneven = np.flatnonzero(least != np.maximum.reduceat(of_link, start[:-1]))
            if uneven.size:
                parts = np.split(links, start[1:-1])
                for group in uneven.tolist():
                    parts[group] = _weighted(parts[group], rates)
                links = np.concatenate(parts)
                start[1:] = np.cumsum([len(part) for part in parts])
        return {"group_start": start.astype(np.uint32), "group_link": links.astype(np.uint32)}


def _weighted(links: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Return links of unlike rates, each as often as its share of the rate asks for.

    The rates' ratio is kept if it is one of integers up to ``MOST_REPEATS``; otherwise it is
    rounded to such. Repeats are spread out, so that a turn through the group is smooth.
    """
    own = rates[links].astype(np.int64)
    weights = own // np.gcd.reduce(own)
    if weights.max() > MOST_REPEATS:
        weights = np.maximum(1, np.rint(MOST_REPEATS * (own / own.max()))).astype(np.int64)
        weights //= np.gcd.reduce(weights)
    due, order = np.zeros(len(links), np.int64), []
    for _ in range(int(weights.sum())):
        due += weights
        turn = int(np.argmax(due))
        due[turn] -= weights.sum()
        order.append(links[turn])
    return np.array(order, np.int64)


def _choices(ahead: np.ndarray, links: np.ndarray, groups: _Groups) -> np.ndarray:
    """Return the group of each class for one node, -1 where no link leads there.

    Parameters
    ----------
    ahead : bool[n_links_of_node, n_classes]
        Whether a link is on a shortest path to a class.
    links : int64[n_links_of_node]
        Ascending.
    """
    packed = np.ascontiguousarray(np.packbits(ahead, axis=0).T)
    keys = packed.view(np.dtype((np.void, packed.shape[1]))).reshape(-1)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    # Numbered by first class, so that the result does not depend on the order of the keys.
    order = np.argsort(first)
    chosen = ahead[:, first[order]]
    sizes = chosen.sum(axis=0)
    number = np.full(len(first), -1, np.int64)
    used = sizes > 0
    base = groups.add(sizes[used], links[np.nonzero(chosen[:, used].T)[1]])
    number[order[used]] = base + np.arange(used.sum())
    return number[inverse.reshape(-1)]


def _route_arrays(arrays: dict, planes: list[Plane]) -> dict:
    n_nodes, n_planes = len(arrays["node_names"]), len(planes)
    endpoint_class = np.full((n_planes, n_nodes), -1, np.int32)
    endpoint_slot = np.full((n_planes, n_nodes), -1, np.int32)
    endpoint_out = np.full((n_planes, n_nodes), -1, np.int64)
    switch_row = np.full(n_nodes, -1, np.int64)
    groups, rows, local = _Groups(), [], []
    n_table = n_local = 0
    for plane in planes:
        endpoint_class[plane.index, plane.endpoints] = plane.endpoint_class
        endpoint_slot[plane.index, plane.endpoints] = plane.endpoint_slot
        table = _switch_table(plane, groups)
        block, base_of = _local_groups(plane, groups)
        for (switch, klass), base in base_of.items():
            table[switch, klass] = -(n_local + base) - 2
        n_local += len(block)
        local.append(block)
        switch_row[plane.switches] = n_table + np.arange(len(plane.switches)) * plane.n_classes
        rows.append(table.reshape(-1))
        n_table += table.size
        for row in _endpoint_choices(plane, groups, endpoint_out[plane.index], n_table):
            rows.append(row)
            n_table += row.size
    return {
        "plane_n_classes": np.array([plane.n_classes for plane in planes], np.uint32),
        "endpoint_class": endpoint_class,
        "endpoint_slot": endpoint_slot,
        "switch_row": switch_row,
        "endpoint_out": endpoint_out,
        "table": np.concatenate([*rows, np.empty(0, np.int32)]).astype(np.int32),
        "local": np.concatenate([*local, np.empty(0, np.int32)]).astype(np.int32),
        **groups.arrays(arrays["link_rate_bytes_per_s"]),
    }


def _switch_table(plane: Plane, groups: _Groups) -> np.ndarray:
    """Return the groups towards other switches, int32[n_switches, n_classes]."""
    table = np.full(plane.distance.shape, -1, np.int32)
    neighbour = np.searchsorted(plane.switches, plane.dst[plane.between])
    for switch in range(len(plane.switches) if plane.n_classes else 0):
        begin, end = plane.between_start[switch : switch + 2]
        if begin == end:
            continue
        mine = plane.distance[switch]
        # An unreached class has UNREACHED here and at every neighbour, hence never equal.
        ahead = plane.distance[neighbour[begin:end]] == mine - 1
        ahead &= mine > 1
        table[switch] = _choices(ahead, plane.between[begin:end], groups)
    return table


def _local_groups(plane: Plane, groups: _Groups) -> tuple[np.ndarray, dict[tuple[int, int], int]]:
    """Return groups of last links by (switch, class, slot), and where each pair begins."""
    down = plane.up ^ 1  # the other direction of the same cable
    switch = np.searchsorted(plane.switches, plane.src[down])
    endpoint = np.searchsorted(plane.endpoints, plane.dst[down])
    klass, slot = plane.endpoint_class[endpoint], plane.endpoint_slot[endpoint]
    order = np.lexsort((down, slot, klass, switch))
    keys = np.stack([switch, klass, slot], axis=1)[order]
    new = np.ones(len(keys), bool)
    new[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    first = np.flatnonzero(new)
    base = groups.add(np.diff(np.append(first, len(keys))), down[order])
    keys = keys[first]
    begins = np.flatnonzero(keys[:, 2] == 0)
    base_of = {(int(keys[at, 0]), int(keys[at, 1])): int(at) for at in begins}
    return np.arange(base, base + len(keys), dtype=np.int32), base_of


def _endpoint_choices(
    plane: Plane, groups: _Groups, out: np.ndarray, n_table: int
) -> list[np.ndarray]:
    """Fill ``endpoint_out`` of a plane; return rows for endpoints at several switches."""
    rows: list[np.ndarray] = []
    switch = np.searchsorted(plane.switches, plane.dst[plane.up])
    bounds = np.append(np.searchsorted(plane.src[plane.up], plane.endpoints), len(plane.up))
    single = np.array([len(attached) == 1 for attached in plane.class_switches], bool)
    reaches_all = (plane.distance != UNREACHED).all(axis=1)
    if single.all() and all(reaches_all[attached[0]] for attached in plane.class_switches):
        first = groups.add(np.diff(bounds), plane.up)
        out[plane.endpoints] = -(first + np.arange(len(plane.endpoints))) - 2
        return rows
    for index, endpoint in enumerate(plane.endpoints):
        begin, end = bounds[index : index + 2]
        links = plane.up[begin:end]
        klass = plane.endpoint_class[index]
        if single[klass] and reaches_all[plane.class_switches[klass][0]]:
            out[endpoint] = -groups.add(np.array([len(links)]), links) - 2
            continue
        near = plane.distance[switch[begin:end]]
        closest = near.min(axis=0)
        ahead = (near == closest) & (closest != UNREACHED)
        rows.append(_choices(ahead, links, groups))
        out[endpoint] = n_table
        n_table += len(rows[-1])
    return rows


def _direct_arrays(arrays: dict, dead: np.ndarray) -> dict:
    src, dst = arrays["link_src"], arrays["link_dst"]
    is_endpoint = arrays["node_is_endpoint"].astype(bool)
    links = np.flatnonzero(is_endpoint[src] & is_endpoint[dst] & ~dead)
    links = links[np.lexsort((links, dst[links], src[links]))]
    start = np.searchsorted(src[links], np.arange(len(is_endpoint) + 1))
    return {
        "direct_start": start.astype(np.uint32),
        "direct_dst": dst[links].copy(),
        "direct_link": links.astype(np.uint32),
    }


def unreachable_pairs(
    fabric: FabricArrays, network: str, src: np.ndarray, dst: np.ndarray
) -> np.ndarray:
    """Return which pairs of endpoints a network does not join, in the direction given.

    Parameters
    ----------
    fabric : FabricArrays
    network : {'ub', 'rdma', 'vpc'}
    src, dst : ndarray of int, shape (n_pairs,)
        Node ids of endpoints; an endpoint always reaches itself.

    Returns
    -------
    ndarray of bool, shape (n_pairs,)
        True where neither a plane of the network nor a direct link of it leads from the source
        to the destination.
    """
    src, dst = np.asarray(src, np.int64), np.asarray(dst, np.int64)
    joined = src == dst
    number = NETWORKS.index(network)
    for plane in np.flatnonzero(fabric.plane_network == number):
        klass = fabric.endpoint_class[plane, dst].astype(np.int64)
        out = fabric.endpoint_out[plane, src]
        joined |= (klass >= 0) & (out <= -2)
        rows = np.flatnonzero((klass >= 0) & (out >= 0))
        joined[rows] |= fabric.table[out[rows] + klass[rows]] != -1
    direct = fabric.direct_link[
        fabric.plane_network[fabric.link_plane[fabric.direct_link]] == number
    ]
    key = fabric.link_src[direct].astype(np.int64) * fabric.n_nodes + fabric.link_dst[direct]
    joined |= np.isin(src * fabric.n_nodes + dst, key)
    apart: np.ndarray = ~joined
    return apart
