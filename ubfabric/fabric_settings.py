"""What holds for a whole fabric: link layer, switching, and one transport a network.

A specification says it with units (``flit: 20 B``), a graph as plain JSON-able dicts with the
unit in the name (``flit_bytes: 20``), under ``graph.graph["link_layer"]``, ``["switching"]``
and ``["transports"]``. A graph may leave out any key, or all of it: :func:`link_layer`,
:func:`switching` and :func:`transports` return complete dicts, and what nobody asked for is
off. So a graph made by hand has no flits, no forward error correction, credits that return
for nothing, crossbars without limit and posted writes.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import networkx as nx
from pydantic import BeforeValidator, Field, PlainValidator, ValidationError, model_validator

from ubfabric.errors import TopologyError
from ubfabric.quantities import Bytes, Count, Fraction, Picoseconds, unwrap
from ubfabric.specs import NETWORKS, Spec

#: Most virtual lanes of a UB port, and number of service levels.
MAX_LANES = 16
#: Most flits of a UB packet (UB Base Specification 2.0, section 4).
MAX_PACKET_FLITS = 512

_Positive = Annotated[Count, Field(ge=1)]
_NonNegative = Annotated[Count, Field(ge=0)]
_Size = Annotated[Bytes, Field(gt=0)]
_Duration = Annotated[Picoseconds, Field(gt=0)]
#: What the simulator's attributes hold; beyond it ns-3 would end the process or, in the text of
#: a transport, say nothing.
_HIGHEST_COUNT = 2**32 - 1
_MAX_HEADER = 5_000
_MAX_PAYLOAD = 60_000
_MAX_CELL = 2_560
_unwrapped = BeforeValidator(unwrap)


def _is_count(value: Any, lowest: int, highest: int) -> bool:
    return type(value) is int and lowest <= value <= highest


def _lane_weights(value: Any) -> int | list[int]:
    value = unwrap(value)
    weights = list(value) if isinstance(value, (list, tuple)) else [value]
    if not weights or not all(_is_count(weight, 1, 2**16) for weight in weights):
        raise ValueError(
            f"found {value!r}; allowed: an integer of 1 to 65536, or one such for each lane"
        )
    return weights if isinstance(value, (list, tuple)) else weights[0]


def _service_levels(value: Any) -> str | list[int]:
    value = unwrap(value)
    if value == "modulo":
        return "modulo"
    lanes = list(value) if isinstance(value, (list, tuple)) else []
    if len(lanes) != MAX_LANES or not all(_is_count(lane, 0, MAX_LANES - 1) for lane in lanes):
        raise ValueError(
            f"found {value!r}; allowed: 'modulo', or a list of {MAX_LANES} lanes of 0 to "
            f"{MAX_LANES - 1}, one a service level"
        )
    return lanes


class LinkLayerSpec(Spec):
    """Framing, credits, lanes and retry of UB links; the other networks have none of it."""

    flit: Annotated[Bytes, Field(le=640)]
    block_flits: Annotated[_Positive, Field(le=1_024)]
    block_header: Annotated[Bytes, Field(le=64)]
    block_check: Annotated[Bytes, Field(le=64)]
    fec_data_symbols: _Positive
    fec_total_symbols: _Positive
    cell_flits: Annotated[_Positive, Field(le=128)]
    credit_grain_cells: Annotated[_Positive, Field(le=255)]
    credit_return: Annotated[Literal["ideal", "piggyback", "control"], _unwrapped]
    credit_timeout: Annotated[Picoseconds, Field(le=10**9)]
    buffer_sharing: Annotated[Literal["exclusive", "shared"], _unwrapped]
    lane_floor_cells: Annotated[_NonNegative, Field(le=65_535)]
    virtual_lanes: Annotated[_Positive, Field(le=MAX_LANES)]
    lane_arbitration: Annotated[Literal["round-robin", "strict", "deficit"], _unwrapped]
    lane_weights: Annotated[int | list[int], PlainValidator(_lane_weights)]
    service_levels: Annotated[str | list[int], PlainValidator(_service_levels)]
    retry_buffer: _Size
    retry_limit: Annotated[_NonNegative, Field(le=_HIGHEST_COUNT)]
    retrain_limit: Annotated[_NonNegative, Field(le=_HIGHEST_COUNT)]
    retrain_time: Picoseconds
    acknowledge_flits: _Positive

    @model_validator(mode="after")
    def _parts_fit(self) -> LinkLayerSpec:
        if self.fec_data_symbols > self.fec_total_symbols:
            raise ValueError(
                f"found fec_data_symbols {self.fec_data_symbols}; allowed up to "
                f"fec_total_symbols, {self.fec_total_symbols}"
            )
        if self.flit and self.flit * self.block_flits <= self.block_header + self.block_check:
            raise ValueError(
                f"found block_header and block_check of {self.block_header + self.block_check} B; "
                f"allowed less than a block of {self.flit * self.block_flits} B"
            )
        if self.flit * self.cell_flits > _MAX_CELL:
            raise ValueError(
                f"found cells of {self.cell_flits} flits of {self.flit} B; allowed: cells of up to "
                f"{_MAX_CELL} B"
            )
        if isinstance(self.lane_weights, list) and len(self.lane_weights) != self.virtual_lanes:
            raise ValueError(
                f"found {len(self.lane_weights)} lane_weights; allowed: one for each of "
                f"virtual_lanes, {self.virtual_lanes}, or a single integer"
            )
        if isinstance(self.service_levels, list):
            highest = max(self.service_levels)
            if highest >= self.virtual_lanes:
                raise ValueError(
                    f"found lane {highest} in service_levels; allowed: 0 to "
                    f"{self.virtual_lanes - 1}, as virtual_lanes is {self.virtual_lanes}"
                )
        return self


class SwitchingSpec(Spec):
    """How UB switch chips match their inputs and outputs."""

    allocator: Annotated[Literal["islip", "output-queued", "unlimited"], _unwrapped]
    input_queues: Annotated[Literal["voq", "fifo"], _unwrapped]
    iterations: Annotated[_Positive, Field(le=64)]
    speedup: Annotated[Fraction, Field(ge=1, le=64)]


class TransportSpec(Spec):
    """The transport of one network; :data:`TRANSPORT_KEYS` says which reads which key."""

    name: Annotated[Literal["posted", "load-store", "reliable", "compact"], _unwrapped]
    header: Annotated[Bytes, Field(le=_MAX_HEADER)]
    acknowledge_header: Annotated[_Size, Field(le=_MAX_HEADER)] | None = None
    acknowledge_every: Annotated[_Positive, Field(le=_HIGHEST_COUNT)] | None = None
    acknowledge_delay: _Duration | None = None
    request_payload: Annotated[_Size, Field(le=_MAX_PAYLOAD)] | None = None
    window_requests: Annotated[_Positive, Field(le=_HIGHEST_COUNT)] | None = None
    mtu: Annotated[_Size, Field(le=_MAX_PAYLOAD)] | None = None
    work_request: Annotated[_Size, Field(le=_HIGHEST_COUNT)] | None = None
    window: _Size | None = None
    reorder_window: Annotated[_Positive, Field(le=2**20)] | None = None
    retransmission: Annotated[Literal["go-back-n", "selective"], _unwrapped] | None = None
    timeout: _Duration | None = None
    timeout_limit: Annotated[_NonNegative, Field(le=31)] | None = None
    mark: Bytes | None = None
    mark_all: Bytes | None = None
    mark_share: Annotated[Fraction, Field(ge=0, le=1)] | None = None
    congestion_control: Annotated[Literal["none", "ldcp", "caqm", "dcqcn"], _unwrapped] | None = (
        None
    )

    @model_validator(mode="after")
    def _can_be_controlled(self) -> TransportSpec:
        if self.name == "compact" and self.congestion_control in ("ldcp", "caqm"):
            raise ValueError(
                f"found congestion_control {self.congestion_control} with compact, which sends no "
                "acknowledgements; allowed: none, dcqcn"
            )
        return self


class TransportsSpec(Spec):
    """One transport a network."""

    ub: TransportSpec
    rdma: TransportSpec | None = None
    vpc: TransportSpec | None = None


#: Keys that a transport reads beside ``name`` and ``header_bytes``. A specification may give
#: the others as well, so that changing the name is enough to change the transport.
TRANSPORT_KEYS: dict[str, tuple[str, ...]] = {
    "posted": ("work_request_bytes", "timeout_ps", "timeout_limit"),
    "load-store": (
        "acknowledge_header_bytes",
        "request_payload_bytes",
        "window_requests",
        "timeout_ps",
        "timeout_limit",
    ),
    "reliable": (
        "acknowledge_header_bytes",
        "acknowledge_every",
        "acknowledge_delay_ps",
        "mtu_bytes",
        "work_request_bytes",
        "window_bytes",
        "reorder_window",
        "retransmission",
        "timeout_ps",
        "timeout_limit",
        "congestion_control",
        "mark_bytes",
        "mark_all_bytes",
        "mark_share",
    ),
    "compact": (
        "mtu_bytes",
        "work_request_bytes",
        "timeout_ps",
        "timeout_limit",
        "congestion_control",
        "mark_bytes",
        "mark_all_bytes",
        "mark_share",
    ),
}

#: What a graph has that says nothing of its link layer: none of the mechanisms.
PLAIN_LINK_LAYER: dict[str, Any] = {
    "flit_bytes": 0,
    "block_flits": 32,
    "block_header_bytes": 2,
    "block_check_bytes": 4,
    "fec_data_symbols": 1,
    "fec_total_symbols": 1,
    "cell_flits": 1,
    "credit_grain_cells": 1,
    "credit_return": "ideal",
    "credit_timeout_ps": 200_000,
    "buffer_sharing": "exclusive",
    "lane_floor_cells": 0,
    "virtual_lanes": 1,
    "lane_arbitration": "round-robin",
    "lane_weights": 1,
    "service_levels": "modulo",
    "retry_buffer_bytes": 65_536,
    "retry_limit": 15,
    "retrain_limit": 4,
    "retrain_time_ps": 10_000_000,
    "acknowledge_flits": 32,
}
#: What a graph has that says nothing of its switching: crossbars without limit.
PLAIN_SWITCHING: dict[str, Any] = {
    "allocator": "unlimited",
    "input_queues": "voq",
    "iterations": 1,
    "speedup": 1.0,
}
#: What a network has that says nothing of its transport.
PLAIN_TRANSPORT: dict[str, Any] = {"name": "posted", "header_bytes": 64}

_BYTES = {"flit", "block_header", "block_check", "retry_buffer", "header", "acknowledge_header"}
_BYTES |= {"request_payload", "mtu", "work_request", "window", "mark", "mark_all"}
_TIMES = {"credit_timeout", "retrain_time", "acknowledge_delay", "timeout"}


def _graph_key(name: str) -> str:
    return f"{name}_bytes" if name in _BYTES else f"{name}_ps" if name in _TIMES else name


def settings_of(spec: Spec) -> dict[str, Any]:
    """Return a specification of this module as a graph keeps it; keys left out stay out."""
    return {
        _graph_key(name): value
        for name in type(spec).model_fields
        if (value := getattr(spec, name)) is not None
    }


def _checked(model: type[Spec], given: Any, plain: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the given settings, completed and checked by the specification they come from."""
    if not isinstance(given, Mapping):
        raise TopologyError(f"{where} is {given!r}; expected a dict of settings")
    names = {_graph_key(name): name for name in model.model_fields}
    content: dict[str, Any] = {}
    for key, value in {**plain, **given}.items():
        name = names.get(key)
        if name is None:
            raise TopologyError(f"{where}: unknown key {key!r}; allowed: {', '.join(names)}")
        if not isinstance(value, bool) and isinstance(value, numbers.Integral):
            value = int(value)
        if key != name:
            if type(value) is not int:
                raise TopologyError(f"{where}: {key} is {value!r}; expected an integer")
            value = f"{value} {'B' if name in _BYTES else 'ps'}"
        content[name] = value
    try:
        return settings_of(model.model_validate(content))
    except ValidationError as error:
        first = error.errors()[0]
        key = f": {_graph_key(str(first['loc'][0]))}" if first["loc"] else ""
        message = first["msg"].removeprefix("Value error, ")
        if "found" not in message:
            message = f"found {first['input']!r}; {message[0].lower()}{message[1:]}"
        raise TopologyError(f"{where}{key}: {message}") from None


def _label(graph: nx.Graph) -> str:
    return f"{graph.graph.get('name', 'topology')}: graph"


def link_layer(graph: nx.Graph, label: str | None = None) -> dict[str, Any]:
    """Return the link layer of a graph's UB links, complete and checked.

    Parameters
    ----------
    graph : networkx.Graph
    label : str, optional
        How an error begins; the graph's name by default.

    Returns
    -------
    dict
        The keys of :data:`PLAIN_LINK_LAYER`.

    Raises
    ------
    TopologyError
        One line with the key, what was found and what is allowed.
    """
    where = f"{label or _label(graph)}: link_layer"
    return _checked(LinkLayerSpec, graph.graph.get("link_layer", {}), PLAIN_LINK_LAYER, where)


def switching(graph: nx.Graph, label: str | None = None) -> dict[str, Any]:
    """Return how a graph's UB switches work: the keys of :data:`PLAIN_SWITCHING`.

    Parameters and errors as of :func:`link_layer`.
    """
    where = f"{label or _label(graph)}: switching"
    return _checked(SwitchingSpec, graph.graph.get("switching", {}), PLAIN_SWITCHING, where)


def transports(graph: nx.Graph, label: str | None = None) -> dict[str, dict[str, Any]]:
    """Return the transport of each network.

    Parameters and errors as of :func:`link_layer`.

    Returns
    -------
    dict of str to dict
        For each of ``ub``, ``rdma`` and ``vpc``: ``name``, ``header_bytes`` (header stack of a
        data packet), and of the keys in :data:`TRANSPORT_KEYS` those that were given, whether
        the transport reads them or not.
    """
    where = f"{label or _label(graph)}: transports"
    given = graph.graph.get("transports", {})
    if not isinstance(given, Mapping):
        raise TopologyError(f"{where} is {given!r}; expected a dict, one entry a network")
    for network in given:
        if network not in NETWORKS:
            raise TopologyError(
                f"{where}: unknown network {network!r}; allowed: {', '.join(NETWORKS)}"
            )
    return {
        network: _checked(
            TransportSpec, given.get(network, {}), PLAIN_TRANSPORT, f"{where}.{network}"
        )
        for network in NETWORKS
    }


def used_settings(transport: Mapping[str, Any]) -> dict[str, Any]:
    """Return of one transport's settings what the transport of that name reads.

    Parameters
    ----------
    transport : mapping
        An entry of :func:`transports`.
    """
    keys = ("name", "header_bytes", *TRANSPORT_KEYS[transport["name"]])
    return {key: transport[key] for key in keys if key in transport}


def wire_bytes(layer: Mapping[str, Any], header_bytes: int, payload_bytes: int) -> int:
    """Return the bytes of a UB packet on the wire, before forward error correction.

    A packet is a row of blocks of whole flits. Every block ends with its check; every block
    but the first begins with a header of its own, and the first with the link packet header,
    which counts as part of the header stack.

    Parameters
    ----------
    layer : mapping
        As :func:`link_layer` returns it; without flits a packet is headers and payload.
    header_bytes, payload_bytes : int

    Examples
    --------
    >>> layer = PLAIN_LINK_LAYER | {"flit_bytes": 20}
    >>> wire_bytes(layer, 28, 512)
    560
    """
    left, flit = header_bytes + payload_bytes, int(layer["flit_bytes"])
    if not flit:
        return left
    block, overhead, total = flit * int(layer["block_flits"]), int(layer["block_check_bytes"]), 0
    while left + overhead > block:
        total += block
        left -= block - overhead
        overhead = int(layer["block_header_bytes"]) + int(layer["block_check_bytes"])
    return total + -(-(left + overhead) // flit) * flit


def cell_bytes(layer: Mapping[str, Any]) -> int:
    """Return the unit of buffers and credits; 1 byte without flits."""
    return max(1, int(layer["flit_bytes"]) * int(layer["cell_flits"]))


def buffered_bytes(layer: Mapping[str, Any], header_bytes: int, payload_bytes: int) -> int:
    """Return the bytes that a UB packet takes of a buffer: whole cells."""
    cell = cell_bytes(layer)
    return -(-wire_bytes(layer, header_bytes, payload_bytes) // cell) * cell
