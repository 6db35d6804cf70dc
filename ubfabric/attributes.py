"""What the settings of a graph are called in the engine, and what they cost.

The graph says ``credit_return: piggyback``, the C++ ``UbFabric`` has an attribute
``CreditReturn`` of value ``Piggyback``. This module is the only place that knows both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import networkx as nx
import numpy as np

from ubfabric.errors import TopologyError
from ubfabric.fabric_settings import (
    buffered_bytes,
    cell_bytes,
    link_layer,
    switching,
    transports,
    used_settings,
    wire_bytes,
)
from ubfabric.routing import FabricArrays
from ubfabric.specs import NETWORKS

_ARBITRATION = {"round-robin": "RoundRobin", "strict": "Strict", "deficit": "Deficit"}
_ALLOCATOR = {"islip": "Islip", "output-queued": "OutputQueued", "unlimited": "Unlimited"}
_TRANSPORT = {
    "posted": "UbPosted",
    "load-store": "UbLoadStore",
    "reliable": "UbReliable",
    "compact": "UbCompact",
}
_CONGESTION = {"none": "", "ldcp": "ns3::UbLdcp", "caqm": "ns3::UbCaqm", "dcqcn": "ns3::UbDcqcn"}
#: Attribute of a transport, by its key in a graph; times are said in picoseconds.
_TRANSPORT_ATTRIBUTES = {
    "header_bytes": "HeaderBytes",
    "acknowledge_every": "AcknowledgeEvery",
    "acknowledge_delay_ps": "AcknowledgeDelay",
    "request_payload_bytes": "RequestBytes",
    "window_requests": "WindowRequests",
    "mtu_bytes": "Mtu",
    "work_request_bytes": "WorkRequestBytes",
    "window_bytes": "WindowBytes",
    "reorder_window": "ReorderWindow",
    "retransmission": "Retransmission",
    "timeout_ps": "Timeout",
    "timeout_limit": "RetryLimit",
}
#: What the bytes of an answer without data are called, by transport.
_ANSWER_ATTRIBUTES = {"load-store": "ResponseHeaderBytes", "reliable": "AcknowledgementBytes"}
#: Queue from which packets are marked where a graph does not say (ns-3-UB: 10 packets).
_MARK_BYTES = 40_960
#: How transports cut messages where a graph does not say, as the engine has it.
_CUTS = {"request_payload_bytes": 512, "mtu_bytes": 4_096, "work_request_bytes": 65_536}
#: Bytes of a control block where a graph does not cut packets into flits.
_CONTROL_BYTES = 20


def engine_attributes(
    graph: nx.Graph, *, payload_bytes: int, n_virtual_lanes: int
) -> dict[str, str | int]:
    """Return the attributes of the engine that follow from a graph.

    Parameters
    ----------
    graph : networkx.Graph
        The fabric.
    payload_bytes : int
        Most bytes of a message in one packet.
    n_virtual_lanes : int
        Virtual lanes of each port.

    Returns
    -------
    dict of str to str or int
        Names and values of attributes of the C++ ``UbFabric``.
    """
    layer, switch, stacks = link_layer(graph), switching(graph), transports(graph)
    weights = layer["lane_weights"]
    if not isinstance(weights, list):
        weights = [weights] * n_virtual_lanes
    attributes: dict[str, str | int] = {
        "PayloadBytes": payload_bytes,
        "NumVirtualLanes": n_virtual_lanes,
        "FlitBytes": layer["flit_bytes"],
        "BlockFlits": layer["block_flits"],
        "BlockHeaderBytes": layer["block_header_bytes"],
        "BlockCheckBytes": layer["block_check_bytes"],
        "CellBytes": cell_bytes(layer),
        "CreditReturn": str(layer["credit_return"]).title(),
        "CreditGrainCells": layer["credit_grain_cells"],
        "CreditTimeout": _time(layer["credit_timeout_ps"]),
        "ControlBytes": layer["flit_bytes"] or _CONTROL_BYTES,
        "ShareBuffer": str(layer["buffer_sharing"] == "shared").lower(),
        "LaneFloorCells": layer["lane_floor_cells"],
        "LaneArbitration": _ARBITRATION[layer["lane_arbitration"]],
        "LaneWeights": " ".join(map(str, weights)),
        "QuantumBytes": max(packet_bytes(graph, payload_bytes).values()),
        "Allocator": _ALLOCATOR[switch["allocator"]],
        "InputFifo": str(switch["input_queues"] == "fifo").lower(),
        "AllocatorIterations": switch["iterations"],
        "Speedup": str(float(switch["speedup"])),
        # acknowledgements come in grains, so the last one may leave that much kept
        "RetryBufferBytes": max(
            layer["retry_buffer_bytes"]
            - (layer["acknowledge_flits"] - 1) * (layer["flit_bytes"] or _CONTROL_BYTES),
            packet_bytes(graph, payload_bytes)["ub"],
        ),
        "RetryLimit": layer["retry_limit"],
        "RetrainLimit": layer["retrain_limit"],
        "RetrainTime": _time(layer["retrain_time_ps"]),
    }
    for network, prefix in zip(NETWORKS, ("Ub", "Rdma", "Vpc"), strict=True):
        attributes[f"{prefix}Transport"] = _transport(stacks[network])
        congestion = used_settings(stacks[network]).get("congestion_control", "none")
        if _CONGESTION[congestion]:
            attributes[f"{prefix}Congestion"] = _CONGESTION[congestion]
        if congestion in ("ldcp", "dcqcn"):  # thresholds; caqm decides packet by packet
            _check_same_marks(graph, stacks)
            attributes["MarkBytes"] = stacks[network].get("mark_bytes", _MARK_BYTES)
            attributes["MarkAllBytes"] = stacks[network].get("mark_all_bytes", 0)
            attributes["MarkShare"] = str(float(stacks[network].get("mark_share", 1.0)))
    return attributes


def _check_same_marks(graph: nx.Graph, stacks: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse marks that differ between networks: the engine has one set of them."""
    keys = ("mark_bytes", "mark_all_bytes", "mark_share")
    users = {
        network: [stack.get(key) for key in keys]
        for network, stack in stacks.items()
        if used_settings(stack).get("congestion_control") in ("ldcp", "dcqcn")
    }
    if len({str(marks) for marks in users.values()}) > 1:
        raise TopologyError(
            f"{graph.graph.get('name')}: graph: transports: mark_bytes, mark_all_bytes and "
            f"mark_share differ between {' and '.join(users)}; allowed: the same for all networks "
            "with ldcp or dcqcn"
        )


def _time(picoseconds: int) -> str:
    return f"{picoseconds}ps"


def _transport(settings: Mapping[str, Any]) -> str:
    """Return a transport in ns-3's text form, ``ns3::Name[Attribute=value|...]``."""
    values = []
    for key, value in used_settings(settings).items():
        attribute = _TRANSPORT_ATTRIBUTES.get(key, "")
        if key == "acknowledge_header_bytes":
            attribute = _ANSWER_ATTRIBUTES[settings["name"]]
        if not attribute:
            continue
        if key == "retransmission":
            value = "Selective" if value == "selective" else "GoBackN"
        values.append(f"{attribute}={_time(value) if key.endswith('_ps') else value}")
    return f"ns3::{_TRANSPORT[settings['name']]}[{'|'.join(values)}]"


def packet_bytes(graph: nx.Graph, payload_bytes: int) -> dict[str, int]:
    """Return the bytes on the wire of a full packet, by network.

    Parameters
    ----------
    graph : networkx.Graph
    payload_bytes : int
    """
    layer, stacks = link_layer(graph), transports(graph)
    return {
        network: wire_bytes(layer, stack["header_bytes"], payload_bytes)
        if network == "ub"
        else stack["header_bytes"] + payload_bytes
        for network, stack in stacks.items()
    }


def cuts(graph: nx.Graph, payload_bytes: int) -> dict[str, tuple[int, int, int]]:
    """Return how a message is cut, by network: into pieces, and these into packets.

    Parameters
    ----------
    graph : networkx.Graph
    payload_bytes : int
        Most bytes of a message in one packet.

    Returns
    -------
    dict of str to (int, int, int)
        Most bytes of a piece that is written, of one that is read (0: flows cannot read), and of a
        packet; a packet spans neither messages nor pieces.
    """
    result = {}
    for network, stack in transports(graph).items():
        used = _CUTS | used_settings(stack)
        if stack["name"] == "posted":
            result[network] = (payload_bytes, stack.get("work_request_bytes", 0), payload_bytes)
        elif stack["name"] == "load-store":
            packet = min(used["request_payload_bytes"], payload_bytes)
            result[network] = (packet, packet, packet)
        else:
            packet = min(used["mtu_bytes"], payload_bytes)
            result[network] = (used["work_request_bytes"], 0, packet)
    return result


def buffer_bytes(graph: nx.Graph, payload_bytes: int) -> dict[str, int]:
    """Return the bytes that a full packet takes of a buffer, by network.

    Parameters
    ----------
    graph : networkx.Graph
    payload_bytes : int
    """
    wire = packet_bytes(graph, payload_bytes)
    header = transports(graph)["ub"]["header_bytes"]
    return wire | {"ub": buffered_bytes(link_layer(graph), header, payload_bytes)}


def lanes_of_service_levels(graph: nx.Graph, n_virtual_lanes: int) -> np.ndarray:
    """Return the virtual lane of each of the 16 service levels, uint8.

    Parameters
    ----------
    graph : networkx.Graph
    n_virtual_lanes : int
    """
    lanes = link_layer(graph)["service_levels"]
    if lanes == "modulo":
        return (np.arange(16) % n_virtual_lanes).astype(np.uint8)
    return (np.asarray(lanes) % n_virtual_lanes).astype(np.uint8)


def credit_warnings(graph: nx.Graph, arrays: FabricArrays, payload_bytes: int) -> list[str]:
    """Return one line for each kind of link whose credits do not cover the round trip.

    A packet's space in the buffer of a switch is known to be free again when its tail has left
    the switch and the news of it is back; with less buffer than the link sends in that time the
    link stands idle.

    Parameters
    ----------
    graph : networkx.Graph
    arrays : FabricArrays
        The compiled graph.
    payload_bytes : int
        Most bytes of a message in one packet.

    Returns
    -------
    list of str
    """
    layer = link_layer(graph)
    wire, taken = packet_bytes(graph, payload_bytes), buffer_bytes(graph, payload_bytes)
    network = np.asarray(arrays.plane_network)[arrays.link_plane]
    is_ub = network == NETWORKS.index("ub")
    size = np.array([wire[name] for name in NETWORKS])[network]
    room = (
        arrays.node_buffer_bytes[arrays.link_dst]
        // np.array([taken[name] for name in NETWORKS])[network]
    )
    rate = arrays.link_rate_bytes_per_s.astype(float)
    serialise_ps = size / rate * 1e12
    loop_ps = serialise_ps + 2 * arrays.link_delay_ps
    loop_ps = loop_ps + arrays.node_forward_latency_ps[arrays.link_dst]
    if layer["credit_return"] != "ideal":
        loop_ps = loop_ps + is_ub * (layer["flit_bytes"] or _CONTROL_BYTES) / rate * 1e12
    possible = room * size / loop_ps * 1e12
    enters_switch = arrays.node_is_endpoint[arrays.link_dst] == 0
    kinds = [str(graph.nodes[name]["kind"]) for name in arrays.node_names]
    lines: dict[tuple[str, str], str] = {}
    for link in np.flatnonzero(enters_switch & (possible < rate)):
        u, v = int(arrays.link_src[link]), int(arrays.link_dst[link])
        lines.setdefault(
            (kinds[u], kinds[v]),
            f"link {arrays.node_names[u]} to {arrays.node_names[v]} and others of its kind: a "
            f"buffer of {arrays.node_buffer_bytes[v]} B does not cover the round trip of credits, "
            f"so a lone lane sends at most {possible[link] / 1e9:.1f} of {rate[link] / 1e9:.1f} "
            "GB/s",
        )
    return list(lines.values())
