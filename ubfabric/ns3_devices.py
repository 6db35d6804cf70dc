"""Ordinary ns-3 devices on the endpoints of a replay, for ns-3's own protocols and applications.

Use it in the ``attach`` callback of :func:`ubfabric.replay`: what the devices send shares
ports, links, buffers and credits with the packets of the trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ubfabric import _bridge
from ubfabric.errors import SpecError, TopologyError
from ubfabric.routing import FabricArrays
from ubfabric.specs import NETWORKS


class Devices(NamedTuple):
    """What :func:`install_devices` returns: containers of ns-3, in the order of the names."""

    #: C++ ``NodeContainer``, to install a protocol stack and applications on.
    nodes: Any
    #: C++ ``NetDeviceContainer``, to assign addresses to.
    devices: Any


def install_devices(
    engine: _bridge.Engine,
    arrays: FabricArrays,
    node_names: Sequence[str],
    *,
    network: str = "ub",
    service_level: int = 0,
    mtu_bytes: int = 1_500,
) -> Devices:
    """Put an ns-3 node with a ``UbNetDevice`` on each of some endpoints.

    Parameters
    ----------
    engine : Engine
        The simulation, as ``attach`` receives it.
    arrays : FabricArrays
        The fabric, likewise.
    node_names : sequence of str
        Endpoints of the topology graph, such as ``die-0-3``; one node is made for each.
    network : {'ub', 'rdma', 'vpc'}
        Network that the packets of the devices take.
    service_level : int
        Virtual lane of the packets, below the ``n_virtual_lanes`` of the replay.
    mtu_bytes : int
        Largest packet, at most the payload of a packet of the fabric.

    Returns
    -------
    Devices
        ``nodes`` and ``devices``.

    Raises
    ------
    TopologyError
        If a name is unknown, is no endpoint, is given twice, or has no port of the network.
    SpecError
        If the network is unknown, or the lane or the size is out of range.

    Notes
    -----
    All devices of one call are on one channel and reach each other. ns-3 delays each ARP
    request by up to 10 ms, far longer than a decode step, and drops all but three packets
    meanwhile; set ``ns3::ArpL3Protocol::RequestJitter`` and ``ns3::ArpCache::PendingQueueSize``
    if that does not suit. The replay goes on until ns-3 has no event left, so give endless
    applications a stop time.

    Examples
    --------
    >>> from ns import ns                                                   # doctest: +SKIP
    >>> def attach(engine, arrays):                                         # doctest: +SKIP
    ...     nodes, devices = install_devices(engine, arrays, ["die-0-0", "die-0-2"])
    ...     ns.InternetStackHelper().Install(nodes)
    ...     # addresses, applications, ...
    >>> ub.replay(fabric, trace, "runs/demo", attach=attach)                # doctest: +SKIP
    """
    ns3 = _bridge.load()
    if network not in NETWORKS:
        raise SpecError(f"network: found {network!r}, allowed {', '.join(NETWORKS)}")
    fabric = engine.fabric
    n_lanes = ns3.UintegerValue()
    fabric.GetAttribute("NumVirtualLanes", n_lanes)
    if not 0 <= service_level < int(n_lanes.Get()):
        raise SpecError(
            f"service_level: found {service_level}, this replay has n_virtual_lanes="
            f"{int(n_lanes.Get())}, allowed 0 to {int(n_lanes.Get()) - 1}"
        )
    payload_bytes = int(fabric.GetPayloadBytes())
    if not 1 <= mtu_bytes <= payload_bytes:
        raise SpecError(f"mtu_bytes: found {mtu_bytes}, allowed 1 to {payload_bytes}, the payload")

    number = {name: node for node, name in enumerate(arrays.node_names)}
    planes = [p for p, code in enumerate(arrays.plane_network) if NETWORKS[code] == network]
    endpoints = []
    for name in node_names:
        node = number.get(name)
        if node is None or not arrays.node_is_endpoint[node]:
            raise TopologyError(f"node {name!r}: a device needs an endpoint of the topology")
        if node in endpoints:
            raise TopologyError(f"node {name!r}: given twice, allowed one device an endpoint")
        if not (arrays.endpoint_class[planes, node] >= 0).any():
            raise TopologyError(f"node {name!r}: has no port in network {network!r}")
        endpoints.append(node)

    helper = ns3.UbFabricHelper()
    helper.SetDeviceAttribute("Network", ns3.UintegerValue(NETWORKS.index(network)))
    helper.SetDeviceAttribute("VirtualLane", ns3.UintegerValue(service_level))
    helper.SetDeviceAttribute("Mtu", ns3.UintegerValue(mtu_bytes))
    nodes = ns3.NodeContainer()
    nodes.Create(len(endpoints))
    return Devices(nodes, helper.Install(fabric, nodes, endpoints))
