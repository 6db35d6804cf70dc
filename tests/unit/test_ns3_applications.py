"""ns-3's own applications run over the fabric beside a replay, started from Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fabrics import FabricBuilder, flow, make_trace, star

from ubfabric import _bridge
from ubfabric.errors import SpecError, TopologyError
from ubfabric.ns3_devices import install_devices
from ubfabric.replay import replay

# The ns3 package's own loader drops every library whose path contains this word.
needs_stock_loader = pytest.mark.skipif(
    "test" in str(_bridge.ns3_path()),
    reason="`from ns import ns` fails in any environment whose path contains 'test'",
)

N_ECHOES = 10
TCP_BYTES = 300_000

SCRIPT = """
import json, sys
{imports}
sys.path.insert(0, {tests!r})
from fabrics import flow, make_trace, star

ns.cppyy.cppdef('''
namespace echo
{{
uint32_t count = 0;
void Received(ns3::Ptr<const ns3::Packet>) {{ ++count; }}
void Listen(ns3::Ptr<ns3::Application> client)
{{
    client->TraceConnectWithoutContext("Rx", ns3::MakeCallback(&Received));
}}
}}
''')
kept = {{}}

def attach(engine, arrays):
    ns.Config.SetDefault(
        "ns3::ArpL3Protocol::RequestJitter",
        ns.StringValue("ns3::ConstantRandomVariable[Constant=0]"),
    )
    ns.Config.SetDefault("ns3::ArpCache::PendingQueueSize", ns.UintegerValue(100))
    nodes, devices = install_devices(engine, arrays, ["die-0", "die-1", "die-2", "die-3"])
    assert nodes.GetN() == devices.GetN() == 4
    assert devices.Get(2).GetInstanceTypeId().GetName() == "ns3::UbNetDevice"
    ns.InternetStackHelper().Install(nodes)
    addresses = ns.Ipv4AddressHelper()
    addresses.SetBase(ns.Ipv4Address("10.0.0.0"), ns.Ipv4Mask("255.255.255.0"))
    interfaces = addresses.Assign(devices)

    ns.UdpEchoServerHelper(9).Install(nodes.Get(2)).Start(ns.Seconds(0))
    client = ns.UdpEchoClientHelper(interfaces.GetAddress(2).ConvertTo(), 9)
    client.SetAttribute("MaxPackets", ns.UintegerValue({n_echoes}))
    client.SetAttribute("Interval", ns.TimeValue(ns.MicroSeconds(10)))
    clients = client.Install(nodes.Get(0))
    clients.Start(ns.MicroSeconds(1))
    ns.cppyy.gbl.echo.Listen(clients.Get(0))

    target = ns.InetSocketAddress(interfaces.GetAddress(3), 5000).ConvertTo()
    sinks = ns.PacketSinkHelper("ns3::TcpSocketFactory", target).Install(nodes.Get(3))
    sinks.Start(ns.Seconds(0))
    bulk = ns.BulkSendHelper("ns3::TcpSocketFactory", target)
    bulk.SetAttribute("MaxBytes", ns.UintegerValue({tcp_bytes}))
    bulk.Install(nodes.Get(1)).Start(ns.MicroSeconds(1))
    kept["sink"] = sinks.Get(0)
    kept["devices"] = devices

# a payload that holds an IP packet, and ranks that issue no faster than a port sends
graph = star(4, payload=2_000, header=64, engine_bytes_per_s=10**10)
trace = make_trace([
    flow(src, 3 - src, messages=300, message_bytes=2_000, start_ps=2_000_000) for src in range(4)
])

def received():
    return int(ns.cppyy.gbl.ns3.DynamicCast[ns.PacketSink](kept["sink"]).GetTotalRx())

result = replay(graph, trace, {out!r}, attach=attach)
flows = result.flows()
print(json.dumps({{
    "echoes": int(ns.cppyy.gbl.echo.count),
    "tcp_bytes": received(),
    "flows": len(flows),
    "unfinished": int((flows["fct_ps"] <= 0).sum()),
    "slowest_ps": int(flows["fct_ps"].max()),
    "classes": [hasattr(ns, name) for name in ("UbFabric", "UbNetDevice", "UbSimulatorImpl")],
    "link_bytes": int(result.links()["bytes"].sum()),
    "simulated_ps": int(result.summary["simulated_ps"]),
}}))
"""

OURS = "from ubfabric.replay import replay\nfrom ubfabric.ns3_devices import install_devices"
ORDERS = {
    "ns first": f"from ns import ns\n{OURS}",
    "ours first": f"{OURS}\nfrom ubfabric import _bridge\n_bridge.load()\nfrom ns import ns",
    "library first": f"{OURS}\nfrom ubfabric import _bridge\n_bridge.load_library()\n"
    "from ns import ns",
}
SLOW = ("ours first", "library first")


@needs_stock_loader
@pytest.mark.parametrize(
    "order", ["ns first", *(pytest.param(order, marks=pytest.mark.slow) for order in SLOW)]
)
def test_udp_echo_and_tcp_bulk_send_run_beside_a_replay(order, tmp_path):
    script = SCRIPT.format(
        imports=ORDERS[order],
        tests=str(Path(__file__).resolve().parent.parent),
        out=str(tmp_path / "run"),
        n_echoes=N_ECHOES,
        tcp_bytes=TCP_BYTES,
    )
    # in a folder of its own: the ns3 package's loader searches all below the current one
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["echoes"] == N_ECHOES
    assert seen["tcp_bytes"] == TCP_BYTES
    assert seen["flows"] == 4
    assert seen["unfinished"] == 0
    assert all(seen["classes"])
    # Ports carry the trace, the echoes there and back, and TCP's data, all of it over two links.
    replayed = 4 * 300 * (2_000 + 64)
    assert seen["link_bytes"] > 2 * (replayed + TCP_BYTES + 2 * N_ECHOES * 100)
    # 300 packets of 2,064 B at 10 GB/s take 61.9 us alone; TCP's come in between.
    assert seen["slowest_ps"] > 300 * 206_400 + 5_000_000
    assert seen["simulated_ps"] >= seen["slowest_ps"]


def attempt(tmp_path, *arguments, graph=None, n_virtual_lanes=1, **keywords):
    """Install devices in a replay and return what it did, or let its error through."""
    installed = []

    def attach(engine, arrays):
        installed.append(install_devices(engine, arrays, *arguments, **keywords))
        installed.append([installed[0].devices.Get(i).GetMtu() for i in range(2)])

    replay(
        graph if graph is not None else star(3, payload=2_000),
        make_trace([flow(0, 1)]),
        tmp_path / "run",
        n_virtual_lanes=n_virtual_lanes,
        attach=attach,
    )
    return installed


def test_devices_take_the_attributes_given(tmp_path):
    devices, mtu = attempt(
        tmp_path, ["die-2", "die-0"], n_virtual_lanes=4, service_level=3, mtu_bytes=2_000
    )
    assert mtu == [2_000, 2_000]
    assert devices.nodes.GetN() == 2
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.parametrize(
    ("names", "keywords", "error", "message"),
    [
        (["die-9"], {}, TopologyError, "node 'die-9': a device needs an endpoint"),
        (["die-0", "die-0"], {}, TopologyError, "node 'die-0': given twice"),
        (["die-0"], {"network": "tcp"}, SpecError, "found 'tcp', allowed ub, rdma, vpc"),
        (["die-0"], {"network": "rdma"}, TopologyError, "has no port in network 'rdma'"),
        (["die-0"], {"service_level": 1}, SpecError, "n_virtual_lanes=1, allowed 0 to 0"),
        (["die-0"], {"mtu_bytes": 2_001}, SpecError, "found 2001, allowed 1 to 2000"),
        (["die-0"], {"mtu_bytes": 0}, SpecError, "found 0, allowed 1 to 2000"),
    ],
)
def test_bad_devices_are_refused_and_nothing_is_written(names, keywords, error, message, tmp_path):
    with pytest.raises(error, match=message) as caught:
        attempt(tmp_path, names, **keywords)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_switch_is_no_place_for_a_device(tmp_path):
    build = FabricBuilder(payload=2_000)
    hub = build.switch("hub")
    for name in build.dies(2):
        build.link(name, hub)
    with pytest.raises(TopologyError, match="node 'hub': a device needs an endpoint"):
        attempt(tmp_path, ["hub"], graph=build.build())
