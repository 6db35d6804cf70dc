"""From a YAML specification to the NetworkX graph of a supernode, and to files and back.

The graph is a :class:`networkx.MultiGraph`. A node is an endpoint (die, CPU) or a switch
chip, an edge is one full-duplex cable. Attributes carry their unit in their name and are
plain strings and numbers; :data:`NODE_ATTRIBUTES` and :data:`EDGE_ATTRIBUTES` list them.
Any graph that carries them runs, whoever built it. What holds for the whole fabric (link
layer, switching, transports) is described in :mod:`ubfabric.fabric_settings`.
"""

from __future__ import annotations

import copy
import json
import numbers
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import networkx as nx
from pydantic import BeforeValidator, Field, model_validator

from ubfabric.errors import SpecError, TopologyError
from ubfabric.fabric_settings import (
    LinkLayerSpec,
    SwitchingSpec,
    TransportsSpec,
    buffered_bytes,
    link_layer,
    settings_of,
    switching,
    transports,
)
from ubfabric.quantities import Bytes, BytesPerSecond, Count, Fraction, Picoseconds, unwrap
from ubfabric.specs import NETWORKS, Spec, load_yaml, override, validate_spec

#: Version of the graph's attributes, kept in ``graph.graph["schema"]``.
SCHEMA = 1

#: Endings of saved graphs: node-link JSON and GraphML.
SAVED_GRAPHS = (".json", ".graphml")

NODE_KINDS = ("die", "cpu", "l1", "l2", "l3", "rdma", "vpc")

#: Attributes of the graph itself: name to (type, meaning).
GRAPH_ATTRIBUTES: dict[str, tuple[type, str]] = {
    "name": (str, "name of the topology"),
    "schema": (int, "version of these attributes, 1"),
    "packet_payload_bytes": (int, "payload of a packet unless the replay says otherwise, bytes"),
    "max_payload_bytes": (int, "largest payload a packet may have, bytes"),
}
#: Attributes of the graph that are dicts, each read by the function of its name in
#: :mod:`ubfabric.fabric_settings`; all may be left out. GraphML has them as JSON text.
GRAPH_SETTINGS = ("link_layer", "switching", "transports")
#: Attributes of every node: name to (type, meaning).
NODE_ATTRIBUTES: dict[str, tuple[type, str]] = {
    "kind": (str, "die, cpu, l1, l2, l3, rdma or vpc"),
    "role": (str, "endpoint or switch"),
    "level": (int, "0 for an endpoint, 1, 2, 3 for switch levels"),
    "server": (int, "number of the server, -1 for none"),
    "rack": (int, "number of the rack, -1 for none"),
    "plane": (str, "plane of a switch, empty for an endpoint"),
    "n_ports": (int, "ports of the chip; links attached must not exceed it"),
    "npu": (int, "number of a die's NPU in the whole machine, -1 for other kinds"),
    "buffer_bytes": (int, "input buffer of each port and virtual lane, bytes"),
}
#: Attributes of switches, beside those of every node.
SWITCH_ATTRIBUTES: dict[str, tuple[type, str]] = {
    "forward_latency_ps": (int, "packet head in until it may leave (cut-through), ps"),
}
#: Attributes of endpoints, beside those of every node.
ENDPOINT_ATTRIBUTES: dict[str, tuple[type, str]] = {
    "issue_engines": (int, "messages issued at the same time"),
    "issue_cost_ps": (int, "time an engine takes to set up one message, ps"),
    "engine_bytes_per_s": (int, "rate at which one engine streams, bytes/s"),
    "egress_bytes_per_s": (int, "limit of the endpoint into all its ports together, bytes/s"),
    "receive_latency_ps": (int, "last byte at the port until the rank sees it, ps"),
    "copy_bytes_per_s": (int, "rate of a copy from the endpoint to itself, bytes/s"),
}
#: Attributes that an endpoint may leave out; :func:`endpoint_defaults` says what it has then.
OPTIONAL_ENDPOINT_ATTRIBUTES: dict[str, tuple[type, str]] = {
    "memory_write_share_ppm": (
        int,
        "share of a link's rate at which a port can take writes into memory, parts per million",
    ),
    "memory_read_latency_ps": (int, "read request in until its response may leave, ps"),
    "acknowledge_latency_ps": (int, "packet in until its acknowledgement may leave, ps"),
    "overlaps_issue": (int, "1 if an engine prepares its next message while it streams one"),
    "sdma_engines": (int, "SDMA engines, beside the issue engines"),
    "sdma_start_ps": (int, "start-up cost of a transfer by SDMA, ps"),
    "sdma_bytes_per_s": (int, "rate of one SDMA engine, bytes/s"),
    "sdma_read_bytes_per_s": (
        int,
        "rate at which one SDMA engine of another endpoint reads this one's memory, bytes/s; 0 for "
        "that of the engine",
    ),
    "sdma_write_bytes_per_s": (int, "the same of writes"),
}
#: Attributes of edges: name to (type, meaning).
EDGE_ATTRIBUTES: dict[str, tuple[type, str]] = {
    "plane": (str, "plane of the link, such as ub0, package, rdma, vpc"),
    "network": (str, "ub, rdma or vpc; the planes of one network carry the same traffic"),
    "bandwidth_bytes_per_s": (int, "rate in each direction, bytes/s"),
    "delay_ps": (int, "propagation delay, ps"),
    "lanes": (int, "electrical or optical lanes of the link"),
}
#: Attributes that an edge may leave out.
OPTIONAL_EDGE_ATTRIBUTES: dict[str, tuple[type, str]] = {
    "bit_error_rate": (float, "share of bits wrong after error correction; 0 if left out"),
}
#: Integer attributes that must be at least 1; the others must not be negative. Names that
#: may be -1 (server, rack, npu) are in neither group.
_AT_LEAST_ONE = {
    "packet_payload_bytes",
    "max_payload_bytes",
    "n_ports",
    "buffer_bytes",
    "issue_engines",
    "engine_bytes_per_s",
    "egress_bytes_per_s",
    "receive_latency_ps",
    "copy_bytes_per_s",
    "memory_write_share_ppm",
    "memory_read_latency_ps",
    "acknowledge_latency_ps",
    "bandwidth_bytes_per_s",
    "lanes",
}
_MAY_BE_MINUS_ONE = {"server", "rack", "npu"}
_ABSENT = object()
#: Largest integers that the simulator's arrays hold.
_HIGHEST = 2**62
_HIGHEST_SMALL = {"issue_engines": 2**31, "level": 2**15, "memory_write_share_ppm": 10**6}
_HIGHEST_SMALL |= {"overlaps_issue": 1, "sdma_engines": 64}

Positive = Annotated[Count, Field(ge=1)]
NonNegative = Annotated[Count, Field(ge=0)]
Rate = Annotated[BytesPerSecond, Field(gt=0)]
Size = Annotated[Bytes, Field(gt=0)]
Duration = Annotated[Picoseconds, Field(gt=0)]


class LinkSpec(Spec):
    """One full-duplex cable; both directions are alike."""

    bandwidth: Rate
    delay: Picoseconds
    lanes: Positive
    bit_error_rate: Annotated[Fraction, Field(ge=0, lt=1)] = 0.0


class PortSpec(LinkSpec):
    """The links of one endpoint to its L1 chip in each plane."""

    links: Positive


class SdmaSpec(Spec):
    """Engines that move data by themselves once they have been told what."""

    engines: Annotated[Count, Field(ge=1, le=48)]
    start: Picoseconds
    bandwidth: Rate


class EndpointSpec(Spec):
    """A die or a CPU: how it issues, sends and receives."""

    ports: Positive
    buffer: Size
    issue_engines: Positive
    issue_cost: Picoseconds
    engine_bandwidth: Rate
    egress_bandwidth: Rate
    receive_latency: Duration
    copy_bandwidth: Rate
    memory_write_share: Annotated[Fraction, Field(ge=1e-6, le=1)]
    overlaps_issue: Annotated[bool, BeforeValidator(unwrap)] = False
    sdma: SdmaSpec | None = None
    sdma_read_bandwidth: Rate | None = None
    sdma_write_bandwidth: Rate | None = None
    memory_read_latency: Duration
    acknowledge_latency: Duration


class EndpointsSpec(Spec):
    """The kinds of endpoint."""

    die: EndpointSpec
    cpu: EndpointSpec | None = None


class ServerSpec(Spec):
    """What one server holds, beside one L1 chip a plane."""

    npus: Positive
    dies_per_npu: Positive
    cpus: NonNegative


class PacketsSpec(Spec):
    """Payloads of packets; what is added on the wire, transports and link layer say."""

    payload: Size
    max_payload: Size

    @model_validator(mode="after")
    def _payload_fits(self) -> PacketsSpec:
        if self.payload > self.max_payload:
            raise ValueError(
                f"found payload of {self.payload} B; allowed up to max_payload, "
                f"{self.max_payload} B"
            )
        return self


class ChipSpec(Spec):
    """A UB switch chip."""

    ports: Positive
    forward_latency: Picoseconds
    buffer: Size


class L2Spec(ChipSpec):
    """Level 2: in each pod and plane ``chips`` chips, each linked once to every L1 chip."""

    chips: Positive
    servers_per_pod: Positive
    chips_per_rack: Positive
    downlink: LinkSpec


class L3Spec(ChipSpec):
    """Level 3: chip j of every pod is linked once to each of the L3 chips of group j."""

    uplinks_per_l2_chip: Positive
    chips_per_rack: Positive
    downlink: LinkSpec


class UbSpec(Spec):
    """The UB planes. L1 chip k of a server belongs to plane k."""

    planes: Positive
    die_link: PortSpec
    cpu_link: PortSpec | None = None
    l1: ChipSpec
    l2: L2Spec | None = None
    l3: L3Spec | None = None


class IdealSwitchSpec(Spec):
    """A non-blocking switch with as many ports as are attached."""

    forward_latency: Picoseconds
    buffer: Size


class RdmaSpec(Spec):
    """The RDMA plane: every die attached to one ideal switch."""

    die_link: LinkSpec
    switch: IdealSwitchSpec


class VpcSpec(Spec):
    """The VPC plane: the first CPU of every server attached to one ideal switch."""

    cpu_link: LinkSpec
    host_bandwidth: Rate
    switch: IdealSwitchSpec


class TopologySpec(Spec):
    """A supernode: every number that :func:`build_topology` uses.

    ``topologies/README.md`` explains it key by key.
    """

    name: Annotated[str, Field(min_length=1)]
    servers: Positive
    servers_per_rack: Positive
    server: ServerSpec
    packets: PacketsSpec
    transports: TransportsSpec
    link_layer: LinkLayerSpec | None = None
    switching: SwitchingSpec | None = None
    endpoints: EndpointsSpec
    ub: UbSpec
    package: LinkSpec | None = None
    rdma: RdmaSpec | None = None
    vpc: VpcSpec | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> TopologySpec:
        ub, cpus = self.ub, self.server.cpus
        if cpus and self.endpoints.cpu is None:
            raise ValueError(f"found server.cpus {cpus} without endpoints.cpu; give both or none")
        if self.vpc is not None and not cpus:
            raise ValueError("found vpc with server.cpus 0; the VPC plane needs a CPU a server")
        for network in ("rdma", "vpc"):
            if getattr(self, network) is not None and getattr(self.transports, network) is None:
                raise ValueError(f"found {network} without transports.{network}; give both")
        if self.package is not None and self.server.dies_per_npu < 2:
            raise ValueError("found package with server.dies_per_npu 1; it links dies of one NPU")
        if ub.l2 is None and self.servers > 1:
            raise ValueError(f"found servers {self.servers} without ub.l2; allowed without it: 1")
        if ub.l3 is not None and ub.l2 is None:
            raise ValueError("found ub.l3 without ub.l2; level 3 joins L2 chips")
        if ub.l2 is not None and ub.l3 is None and self.servers > ub.l2.servers_per_pod:
            raise ValueError(
                f"found servers {self.servers} without ub.l3; allowed without it: up to "
                f"ub.l2.servers_per_pod, {ub.l2.servers_per_pod}"
            )
        return self


def load_topology_spec(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> tuple[TopologySpec, dict]:
    """Read a topology specification.

    A specification with a key ``base`` takes everything it does not say itself from
    another one: a shipped name, or a path beside the file. A key set to ``null`` is taken
    out.

    Parameters
    ----------
    source : str, Path or mapping
        A shipped name such as ``"cloudmatrix384"``, the path of a YAML file, or the content
        of one.
    overrides : mapping, optional
        Values to change, by dotted key: ``{"switching.speedup": 1}``.

    Returns
    -------
    spec : TopologySpec
    raw : dict
        The same as it stands in YAML, with ``base`` resolved and every source kept.

    Raises
    ------
    SpecError
        One line with file, key, what was found and what is allowed.
    """
    if isinstance(source, Mapping):
        label, raw = "specification", _resolved(source, "specification", Path(), [])
    else:
        label, own = load_yaml(source, "topologies")
        raw = _resolved(own, label, Path(source).parent, [label])
    if overrides:
        raw = copy.deepcopy(raw)
    for key, value in (overrides or {}).items():
        override(raw, key, value, label)
    return validate_spec(TopologySpec, raw, label), raw


def _resolved(own: Mapping[str, Any], label: str, folder: Path, seen: list[str]) -> dict[str, Any]:
    """Return a specification laid over its base, which is resolved first."""
    if "base" not in own:
        return dict(own)
    base = own["base"]
    if not isinstance(base, str):
        raise SpecError(f"{label}: base: found {base!r}; expected a shipped name or a .yaml path")
    if base.endswith((".yaml", ".yml")):
        base = str(folder / base)
    base_label, below = load_yaml(base, "topologies")
    if base_label in seen:
        raise SpecError(f"{label}: base: found a circle, {' -> '.join([*seen, base_label])}")
    below = _resolved(below, base_label, Path(base).parent, [*seen, base_label])
    return _merged(below, {key: value for key, value in own.items() if key != "base"})


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``own`` laid over it; a sourced value is replaced as a whole."""
    result = dict(base)
    for key, value in own.items():
        below = base.get(key)
        if value is None:
            result.pop(key, None)
        elif (
            isinstance(value, Mapping)
            and isinstance(below, Mapping)
            and "value" not in value
            and "value" not in below
        ):
            result[key] = _merged(below, value)
        else:
            result[key] = value
    return result


def build_topology(
    source: str | Path | Mapping[str, Any] | TopologySpec,
    overrides: Mapping[str, Any] | None = None,
) -> nx.MultiGraph:
    """Build the graph of a supernode from its specification.

    Parameters
    ----------
    source : str, Path, mapping or TopologySpec
        A shipped name (``"cloudmatrix384"``, ``"one-node"``, ``"two-nodes"``,
        ``"slice-32-dies"``, ``"leaf-spine-384"``, ``"supernode-8192"``), the path of a YAML
        file, its content, or a checked specification.
    overrides : mapping, optional
        Values to change, by dotted key: ``{"switching.speedup": 1}``; not of a checked
        specification.

    Returns
    -------
    networkx.MultiGraph
        Nodes in the order dies, CPUs, L1, L2, L3, RDMA, VPC switches. Attributes as in
        :data:`GRAPH_ATTRIBUTES`, :data:`NODE_ATTRIBUTES`, :data:`EDGE_ATTRIBUTES`; rates in
        bytes/s a direction, times in ps, sizes in bytes.

    Raises
    ------
    SpecError
        If the specification is wrong.
    TopologyError
        If what it describes cannot be built, such as more links than a chip has ports.

    Examples
    --------
    >>> graph = build_topology("two-nodes")
    >>> graph.number_of_nodes()
    168
    """
    if isinstance(source, TopologySpec):
        spec, raw = source, source.model_dump(mode="json", exclude_none=True)
    else:
        spec, raw = load_topology_spec(source, overrides)
    graph = nx.MultiGraph(
        name=spec.name,
        spec=json.loads(json.dumps(raw)),
        schema=SCHEMA,
        packet_payload_bytes=spec.packets.payload,
        max_payload_bytes=spec.packets.max_payload,
        transports={
            network: settings_of(transport)
            for network in NETWORKS
            if (transport := getattr(spec.transports, network)) is not None
        },
    )
    for name in ("link_layer", "switching"):
        if (part := getattr(spec, name)) is not None:
            graph.graph[name] = settings_of(part)
    graph.add_nodes_from(_endpoints(spec))
    graph.add_nodes_from(_switches(spec))
    graph.add_edges_from(_ub_links(spec))
    graph.add_edges_from(_other_links(spec))
    for plane in ("rdma", "vpc"):
        if f"{plane}-switch" in graph:
            graph.nodes[f"{plane}-switch"]["n_ports"] = graph.degree(f"{plane}-switch")
    check_topology(graph, spec.name)
    return graph


def load_topology(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> nx.MultiGraph:
    """Build a fabric from its specification, or read a saved graph.

    Parameters
    ----------
    source : str, Path or mapping
        As in :func:`build_topology`, or the path of a saved graph, ``.json`` or ``.graphml``.
    overrides : mapping, optional
        Values of the specification to change; a saved graph has none.

    Raises
    ------
    SpecError
        If the specification is wrong, or values of a saved graph are to be changed.
    TopologyError
        If the graph cannot be built or read.
    """
    if isinstance(source, (str, Path)) and str(source).endswith(SAVED_GRAPHS):
        if overrides:
            raise SpecError(
                f"{min(overrides)}: {source} is a saved graph; give a name or a .yaml file"
            )
        return read_topology(source)
    return build_topology(source, overrides)


def cloudmatrix384() -> nx.MultiGraph:
    """Return the graph of the whole CloudMatrix384: 384 NPUs, 192 CPUs, 448 UB switch chips.

    Sources of all numbers: ``topologies/cloudmatrix384.yaml``.
    """
    return build_topology("cloudmatrix384")


def _endpoint_attributes(spec: EndpointSpec, kind: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "role": "endpoint",
        "level": 0,
        "plane": "",
        "n_ports": spec.ports,
        "buffer_bytes": spec.buffer,
        "issue_engines": spec.issue_engines,
        "issue_cost_ps": spec.issue_cost,
        "engine_bytes_per_s": spec.engine_bandwidth,
        "egress_bytes_per_s": spec.egress_bandwidth,
        "receive_latency_ps": spec.receive_latency,
        "copy_bytes_per_s": spec.copy_bandwidth,
        "memory_write_share_ppm": max(1, round(spec.memory_write_share * 10**6)),
        "memory_read_latency_ps": spec.memory_read_latency,
        "acknowledge_latency_ps": spec.acknowledge_latency,
        "overlaps_issue": int(spec.overlaps_issue),
        "sdma_engines": spec.sdma.engines if spec.sdma else 0,
        "sdma_start_ps": spec.sdma.start if spec.sdma else 0,
        "sdma_bytes_per_s": spec.sdma.bandwidth if spec.sdma else 0,
        "sdma_read_bytes_per_s": spec.sdma_read_bandwidth or 0,
        "sdma_write_bytes_per_s": spec.sdma_write_bandwidth or 0,
    }


def _endpoints(spec: TopologySpec) -> Iterator[tuple[str, dict[str, Any]]]:
    common = _endpoint_attributes(spec.endpoints.die, "die")
    dies_per_npu = spec.server.dies_per_npu
    for server in range(spec.servers):
        place = {"server": server, "rack": server // spec.servers_per_rack}
        for die in range(spec.server.npus * dies_per_npu):
            npu = server * spec.server.npus + die // dies_per_npu
            yield f"die-{server}-{die}", {**common, **place, "npu": npu}
    if spec.endpoints.cpu is None:
        return
    common = _endpoint_attributes(spec.endpoints.cpu, "cpu") | {"npu": -1}
    for server in range(spec.servers):
        place = {"server": server, "rack": server // spec.servers_per_rack}
        for cpu in range(spec.server.cpus):
            yield f"cpu-{server}-{cpu}", {**common, **place}


def _n_pods(spec: TopologySpec) -> int:
    assert spec.ub.l2 is not None
    return -(-spec.servers // spec.ub.l2.servers_per_pod)


def _switches(spec: TopologySpec) -> Iterator[tuple[str, dict[str, Any]]]:
    def chip(kind: str, level: int, part: ChipSpec | IdealSwitchSpec) -> dict[str, Any]:
        return {
            "kind": kind,
            "role": "switch",
            "level": level,
            "server": -1,
            "rack": -1,
            "n_ports": part.ports if isinstance(part, ChipSpec) else 1,
            "npu": -1,
            "buffer_bytes": part.buffer,
            "forward_latency_ps": part.forward_latency,
        }

    ub = spec.ub
    common = chip("l1", 1, ub.l1)
    for server in range(spec.servers):
        place = {"server": server, "rack": server // spec.servers_per_rack}
        for plane in range(ub.planes):
            yield f"l1-{server}-{plane}", {**common, **place, "plane": f"ub{plane}"}
    # Communication racks are numbered after the compute racks and filled plane by plane.
    rack = -(-spec.servers // spec.servers_per_rack)
    for level, part in ((2, ub.l2), (3, ub.l3)):
        if part is None or ub.l2 is None:
            continue
        if isinstance(part, L3Spec):
            per_plane = ub.l2.chips * part.uplinks_per_l2_chip
        else:
            per_plane = ub.l2.chips * _n_pods(spec)
        common = chip(f"l{level}", level, part)
        for number in range(ub.planes * per_plane):
            plane, index = divmod(number, per_plane)
            yield (
                f"l{level}-{plane}-{index}",
                {**common, "plane": f"ub{plane}", "rack": rack + number // part.chips_per_rack},
            )
        rack += -(-ub.planes * per_plane // part.chips_per_rack)
    if spec.rdma is not None:
        yield "rdma-switch", chip("rdma", 1, spec.rdma.switch) | {"plane": "rdma"}
    if spec.vpc is not None:
        yield "vpc-switch", chip("vpc", 1, spec.vpc.switch) | {"plane": "vpc"}


def _link_attributes(spec: LinkSpec, plane: str, network: str) -> dict[str, Any]:
    return {
        "plane": plane,
        "network": network,
        "bandwidth_bytes_per_s": spec.bandwidth,
        "delay_ps": spec.delay,
        "lanes": spec.lanes,
        "bit_error_rate": spec.bit_error_rate,
    }


Edges = Iterator[tuple[str, str, dict[str, Any]]]


def _ub_links(spec: TopologySpec) -> Edges:
    ub = spec.ub
    n_dies = spec.server.npus * spec.server.dies_per_npu
    for plane in range(ub.planes):
        ports = [("die", n_dies, ub.die_link)]
        if ub.cpu_link is not None:
            ports.append(("cpu", spec.server.cpus, ub.cpu_link))
        for kind, count, part in ports:
            attributes = _link_attributes(part, f"ub{plane}", "ub")
            for server in range(spec.servers):
                for index in range(count):
                    for _ in range(part.links):
                        yield f"{kind}-{server}-{index}", f"l1-{server}-{plane}", attributes
        if ub.l2 is None:
            continue
        attributes = _link_attributes(ub.l2.downlink, f"ub{plane}", "ub")
        for server in range(spec.servers):
            first = server // ub.l2.servers_per_pod * ub.l2.chips
            for index in range(first, first + ub.l2.chips):
                yield f"l1-{server}-{plane}", f"l2-{plane}-{index}", attributes
        if ub.l3 is None:
            continue
        attributes = _link_attributes(ub.l3.downlink, f"ub{plane}", "ub")
        for index in range(ub.l2.chips * _n_pods(spec)):
            first = index % ub.l2.chips * ub.l3.uplinks_per_l2_chip
            for top in range(first, first + ub.l3.uplinks_per_l2_chip):
                yield f"l2-{plane}-{index}", f"l3-{plane}-{top}", attributes


def _other_links(spec: TopologySpec) -> Edges:
    n_dies, per_npu = spec.server.npus * spec.server.dies_per_npu, spec.server.dies_per_npu
    if spec.package is not None:
        attributes = _link_attributes(spec.package, "package", "ub")
        for server in range(spec.servers):
            for die in range(n_dies):
                for other in range(die + 1, (die // per_npu + 1) * per_npu):
                    yield f"die-{server}-{die}", f"die-{server}-{other}", attributes
    if spec.rdma is not None:
        attributes = _link_attributes(spec.rdma.die_link, "rdma", "rdma")
        for server in range(spec.servers):
            for die in range(n_dies):
                yield f"die-{server}-{die}", "rdma-switch", attributes
    if spec.vpc is not None:
        attributes = _link_attributes(spec.vpc.cpu_link, "vpc", "vpc")
        # the network stack of the CPUs works on every packet that the card sends or receives
        carried = min(spec.vpc.cpu_link.bandwidth, spec.vpc.host_bandwidth)
        attributes["bandwidth_bytes_per_s"] = carried
        for server in range(spec.servers):
            yield f"cpu-{server}-0", "vpc-switch", attributes


def check_topology(graph: nx.Graph, label: str = "topology") -> None:
    """Check that a graph of anyone's making can be simulated.

    Parameters
    ----------
    graph : networkx.Graph or networkx.MultiGraph
        Undirected: an edge is a full-duplex cable.
    label : str
        What to call the graph in an error, such as the name of its file.

    Raises
    ------
    TopologyError
        One line with the node or edge, what was found and what is allowed: attributes that
        are missing, of the wrong type or out of range, more links than ports, a switch with
        links of two planes, buffers smaller than a packet, nodes that no link reaches, a
        graph in several pieces.
    """
    if not isinstance(graph, nx.Graph) or graph.is_directed():
        raise TopologyError(
            f"{label}: found {type(graph).__name__}; expected an undirected networkx graph, "
            "one edge for each full-duplex cable"
        )
    _check_attributes(graph.graph, GRAPH_ATTRIBUTES, f"{label}: graph")
    if graph.graph["schema"] != SCHEMA:
        raise TopologyError(
            f"{label}: graph: schema is {graph.graph['schema']}; this version reads {SCHEMA}"
        )
    payload, limit = graph.graph["packet_payload_bytes"], graph.graph["max_payload_bytes"]
    if payload > limit:
        raise TopologyError(
            f"{label}: graph: packet_payload_bytes is {payload}; allowed up to "
            f"max_payload_bytes, {limit}"
        )
    where = f"{label}: graph"
    layer, stacks = link_layer(graph, where), transports(graph, where)
    switching(graph, where)
    # Framing and cells are UB's; elsewhere a packet is its headers and its payload.
    packet_bytes = {
        network: buffered_bytes(layer, stack["header_bytes"], payload)
        if network == "ub"
        else stack["header_bytes"] + payload
        for network, stack in stacks.items()
    }
    roles = _check_nodes(graph, label)
    _check_edges(graph, label, roles, packet_bytes)
    if not any(role == "endpoint" for role in roles.values()):
        raise TopologyError(f"{label}: found no node with role 'endpoint'; expected two or more")
    reached = nx.node_connected_component(graph, next(iter(graph)))
    if len(reached) != len(graph):
        first, other = next(iter(graph)), next(node for node in graph if node not in reached)
        raise TopologyError(
            f"{label}: no path joins {first} and {other}; expected a connected graph"
        )


def _check_nodes(graph: nx.Graph, label: str) -> dict[str, str]:
    """Check attributes and ports of all nodes; return the role of each."""
    degrees = dict(graph.degree())
    roles = {}
    for node, data in graph.nodes(data=True):
        where = f"{label}: node {node}"
        if not isinstance(node, str) or not node:
            raise TopologyError(
                f"{where}: found a name of type {type(node).__name__}; expected str"
            )
        _check_attributes(data, NODE_ATTRIBUTES, where)
        role = roles[node] = data["role"]
        if role == "switch":
            _check_attributes(data, SWITCH_ATTRIBUTES, where)
        elif role == "endpoint":
            _check_attributes(data, ENDPOINT_ATTRIBUTES, where)
            _check_attributes(data, OPTIONAL_ENDPOINT_ATTRIBUTES, where, optional=True)
        else:
            raise TopologyError(f"{where}: role is {role!r}; allowed: endpoint, switch")
        if data["kind"] not in NODE_KINDS:
            raise TopologyError(
                f"{where}: kind is {data['kind']!r}; allowed: {', '.join(NODE_KINDS)}"
            )
        if (role == "endpoint") != (data["level"] == 0):
            raise TopologyError(
                f"{where}: level is {data['level']} for role {role}; allowed: 0 for an endpoint, "
                "1 and up for a switch"
            )
        if degrees[node] > data["n_ports"]:
            raise TopologyError(
                f"{where}: found {degrees[node]} links; allowed up to n_ports, {data['n_ports']}"
            )
        if degrees[node] == 0:
            raise TopologyError(f"{where}: found no link; expected at least one")
    return roles


def _check_edges(
    graph: nx.Graph, label: str, roles: Mapping[str, str], packet_bytes: Mapping[str, int]
) -> None:
    """Check attributes of all edges, and that planes, networks, switches and buffers agree."""
    network_of: dict[str, str] = {}
    plane_of = dict(graph.nodes(data="plane"))
    buffer_of = dict(graph.nodes(data="buffer_bytes"))
    # A large machine has few kinds of link: what passed needs no second look. Compared as text,
    # since 1, 1.0 and True are equal.
    names: tuple[str, ...] = (*EDGE_ATTRIBUTES, *OPTIONAL_EDGE_ATTRIBUTES)
    passed: set[str] = set()
    for u, v, data in graph.edges(data=True):
        where = f"{label}: edge {u} - {v}"
        if u == v:
            raise TopologyError(f"{where}: found a link from a node to itself; expected two nodes")
        kind = repr([data.get(name, _ABSENT) for name in names])
        if kind not in passed:
            _check_attributes(data, EDGE_ATTRIBUTES, where)
            _check_attributes(data, OPTIONAL_EDGE_ATTRIBUTES, where, optional=True)
            passed.add(kind)
        plane, network = data["plane"], data["network"]
        if not plane:
            raise TopologyError(f"{where}: plane is empty; expected a name such as 'ub0'")
        if network not in NETWORKS:
            raise TopologyError(f"{where}: network is {network!r}; allowed: {', '.join(NETWORKS)}")
        if network_of.setdefault(plane, network) != network:
            raise TopologyError(
                f"{where}: plane {plane} is of network {network!r} here and of "
                f"{network_of[plane]!r} on another edge; expected one network a plane"
            )
        for node in (u, v):
            if roles[node] == "switch" and plane_of[node] != plane:
                raise TopologyError(
                    f"{where}: plane is {plane!r}, but switch {node} belongs to "
                    f"{plane_of[node]!r}; a switch has links of one plane only"
                )
            if buffer_of[node] < packet_bytes[network]:
                raise TopologyError(
                    f"{label}: node {node}: buffer_bytes is {buffer_of[node]}; expected at least "
                    f"one packet of network {network} with its headers, {packet_bytes[network]}"
                )


def _check_attributes(
    data: Mapping[str, Any],
    expected: Mapping[str, tuple[type, str]],
    where: str,
    optional: bool = False,
) -> None:
    for name, (kind, meaning) in expected.items():
        if optional and name not in data:
            continue
        value: Any = data.get(name)
        if kind is str:
            if isinstance(value, str):
                continue
        elif kind is float:
            if not isinstance(value, bool) and isinstance(value, numbers.Real):
                if 0 <= float(value) < 1:
                    continue
                raise TopologyError(
                    f"{where}: {name} is {value}; allowed: 0 up to, but not, 1 ({meaning})"
                )
        # The first test is a fast path for the second.
        elif type(value) is int or (
            not isinstance(value, bool) and isinstance(value, numbers.Integral)
        ):
            lowest = 1 if name in _AT_LEAST_ONE else -1 if name in _MAY_BE_MINUS_ONE else 0
            highest = _HIGHEST_SMALL.get(name, _HIGHEST)
            if lowest <= int(value) <= highest:
                continue
            raise TopologyError(
                f"{where}: {name} is {value}; allowed: {lowest} to {highest} ({meaning})"
            )
        if name not in data:
            raise TopologyError(f"{where}: attribute {name!r} is missing ({meaning})")
        wanted = {str: "text", float: "a number"}.get(kind, "an integer")
        raise TopologyError(
            f"{where}: {name} is {value!r} ({type(value).__name__}); expected {wanted} ({meaning})"
        )


def endpoint_defaults(attributes: Mapping[str, Any]) -> dict[str, int]:
    """Return the values of :data:`OPTIONAL_ENDPOINT_ATTRIBUTES` for one endpoint.

    Left out, ports take writes at the full rate of their links, and reads and acknowledgements
    are answered after the endpoint's receive latency.
    """
    latency = int(attributes["receive_latency_ps"])
    return {
        "memory_write_share_ppm": int(attributes.get("memory_write_share_ppm", 10**6)),
        "memory_read_latency_ps": int(attributes.get("memory_read_latency_ps", latency)),
        "acknowledge_latency_ps": int(attributes.get("acknowledge_latency_ps", latency)),
        "overlaps_issue": int(attributes.get("overlaps_issue", 0)),
        "sdma_engines": int(attributes.get("sdma_engines", 0)),
        "sdma_start_ps": int(attributes.get("sdma_start_ps", 0)),
        "sdma_bytes_per_s": int(attributes.get("sdma_bytes_per_s", 0)),
        "sdma_read_bytes_per_s": int(attributes.get("sdma_read_bytes_per_s", 0)),
        "sdma_write_bytes_per_s": int(attributes.get("sdma_write_bytes_per_s", 0)),
    }


def write_topology(graph: nx.Graph, path: str | Path) -> None:
    """Write a graph as node-link JSON (``.json``) or GraphML (``.graphml``).

    Nodes and edges keep their order, so the graph read back runs the same to the byte. Edge
    keys are renumbered from 0 between each pair of nodes.

    Raises
    ------
    TopologyError
        If the graph is not valid or the ending of ``path`` is another one. Nothing is
        written then.
    """
    path = Path(path)
    writer = {".json": _write_json, ".graphml": _write_graphml}.get(path.suffix)
    if writer is None:
        raise TopologyError(f"{path}: found ending {path.suffix!r}; allowed: .json, .graphml")
    check_topology(graph, str(graph.graph.get("name", path.name)))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        writer(graph, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise TopologyError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def read_topology(path: str | Path) -> nx.MultiGraph:
    """Read a graph written by :func:`write_topology`, or by hand in the same form.

    Raises
    ------
    TopologyError
        If the file is missing, damaged, or describes a graph that cannot be simulated.
    """
    path = Path(path)
    reader = {".json": _read_json, ".graphml": _read_graphml}.get(path.suffix)
    if reader is None:
        raise TopologyError(f"{path}: found ending {path.suffix!r}; allowed: .json, .graphml")
    if not path.is_file():
        raise TopologyError(f"{path}: no such file")
    graph = reader(path)
    if graph.is_directed():
        raise TopologyError(f"{path}: found a directed graph; expected an undirected one")
    # Rebuilt with keys 0, 1, ... so that a multigraph comes out whatever the file said.
    result = nx.MultiGraph(**graph.graph)
    result.add_nodes_from(graph.nodes(data=True))
    result.add_edges_from(graph.edges(data=True))
    check_topology(result, str(path))
    return result


def _plain(value: Any) -> Any:
    """Return numpy numbers as those of Python, so that JSON takes them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _renumbered(graph: nx.Graph) -> nx.MultiGraph:
    result = nx.MultiGraph(**{key: _plain(value) for key, value in graph.graph.items()})
    for node, data in graph.nodes(data=True):
        result.add_node(node, **{key: _plain(value) for key, value in data.items()})
    for u, v, data in graph.edges(data=True):
        result.add_edge(u, v, **{key: _plain(value) for key, value in data.items()})
    return result


def _write_json(graph: nx.Graph, path: Path) -> None:
    data = nx.node_link_data(_renumbered(graph), edges="edges")
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> nx.Graph:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise TopologyError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("nodes"), list):
        raise TopologyError(f"{path}: found no list 'nodes'; expected node-link JSON")
    edges = "edges" if "edges" in data else "links"
    if not isinstance(data.get(edges), list):
        raise TopologyError(f"{path}: found no list 'edges' or 'links'; expected node-link JSON")
    known = {node.get("id") for node in data["nodes"] if isinstance(node, dict)}
    for row, edge in enumerate(data[edges]):
        for end in ("source", "target"):
            name = edge.get(end) if isinstance(edge, dict) else None
            if name not in known:
                raise TopologyError(
                    f"{path}: {edges}[{row}]: {end} is {name!r}; expected the id of a node"
                )
    try:
        return nx.node_link_graph(data, edges=edges)
    except (KeyError, TypeError, nx.NetworkXException) as error:
        raise TopologyError(f"{path}: not node-link JSON: {error!r}") from None


def _write_graphml(graph: nx.Graph, path: Path) -> None:
    # GraphML asks for edge ids that are unique in the file and has no nested values.
    result = nx.MultiGraph(
        **{
            key: json.dumps(_plain(value)) if isinstance(value, (dict, list)) else _plain(value)
            for key, value in graph.graph.items()
        }
    )
    for node, data in graph.nodes(data=True):
        result.add_node(node, **{key: _plain(value) for key, value in data.items()})
    for number, (u, v, data) in enumerate(graph.edges(data=True)):
        result.add_edge(u, v, key=number, **{key: _plain(value) for key, value in data.items()})
    nx.write_graphml_xml(result, path)


def _read_graphml(path: Path) -> nx.Graph:
    try:
        graph = nx.read_graphml(path, force_multigraph=True)
    except (SyntaxError, ValueError, KeyError, nx.NetworkXException) as error:
        raise TopologyError(f"{path}: not valid GraphML: {error}") from None
    graph.graph.pop("node_default", None)
    graph.graph.pop("edge_default", None)
    for name in ("spec", *GRAPH_SETTINGS):
        if isinstance(graph.graph.get(name), str):
            try:
                graph.graph[name] = json.loads(graph.graph[name])
            except ValueError as error:
                raise TopologyError(f"{path}: graph: {name} is not JSON: {error}") from None
    return graph
