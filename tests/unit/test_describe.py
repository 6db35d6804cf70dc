"""Descriptions and drawings of topologies."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from math import prod

import networkx as nx
import pytest
from fabrics import star
from hypothesis import given, settings
from pace import pace_s
from strategies import topologies

from ubfabric.describe import describe_topology, render_description, spec_sources
from ubfabric.errors import TopologyError
from ubfabric.plot_topology import draw_topology
from ubfabric.topology import build_topology, cloudmatrix384

GB = 10**9


@pytest.fixture(scope="module")
def machine() -> dict:
    return describe_topology(cloudmatrix384())


def row(rows: list[dict], **wanted) -> dict:
    (found,) = (item for item in rows if all(item[key] == wanted[key] for key in wanted))
    return found


def test_counts_and_ports_of_cloudmatrix384(machine):
    assert (machine["nodes"], machine["links"]) == (1410, 13_296)
    assert (machine["servers"], machine["racks"]) == (48, 16)
    assert machine["kinds"]["l1"] == {
        "count": 336,
        "ports_per_chip": [48],
        "ports": 16_128,
        "ports_used": 12_096,
        "ports_free": 4_032,
    }
    assert machine["kinds"]["l2"]["ports_free"] == 0
    assert machine["kinds"]["die"]["count"] == 768


def test_bandwidth_and_oversubscription_of_cloudmatrix384(machine):
    levels = machine["levels"]
    assert row(levels, level="die-l1")["links"] == row(levels, level="l1-l2")["links"] == 5376
    assert row(levels, level="l1-l2")["total_bytes_per_s"] == 5376 * 28 * GB
    assert row(levels, level="cpu-l1")["link_bytes_per_s"] == [22_857_142_857]
    chip = row(machine["switch_levels"], kind="l1")
    assert chip["uplink_bytes_per_s"] == [448 * GB, 448 * GB]
    assert chip["oversubscription"] == pytest.approx(1.204, abs=1e-3)
    assert chip["oversubscription_without_cpus"] == 1.0
    top = row(machine["switch_levels"], kind="l2")
    assert top["downlink_bytes_per_s"] == [1344 * GB, 1344 * GB]
    assert top["oversubscription"] is None
    die = row(machine["endpoints"], kind="die", network="ub")
    assert die["switched_bytes_per_s"] == [196 * GB, 196 * GB]
    assert die["direct_bytes_per_s"] == [270 * GB, 270 * GB]


def test_bisection_diameter_and_paths_of_cloudmatrix384(machine):
    # 24 servers, 16 uplinks of 28 GB/s each in each plane.
    assert machine["bisection"]["planes_bytes_per_s"]["ub3"] == 24 * 16 * 28 * GB
    assert machine["bisection"]["networks_bytes_per_s"] == {
        "ub": 7 * 24 * 16 * 28 * GB,
        "rdma": 384 * 25 * GB,
        "vpc": 24 * 40 * GB,
    }
    plane = machine["planes"]["ub6"]
    assert (plane["diameter_links"], plane["diameter_switches"]) == (4, 3)
    assert machine["planes"]["package"]["diameter_links"] is None
    paths = [item for item in machine["paths"] if item["network"] == "ub"]
    near = row(paths, kind="die", relation="same server")
    far = row(paths, kind="die", relation="other server")
    assert (near["switches"], near["shortest_paths"], near["endpoints"]) == (1, [7, 7], 15)
    assert (far["switches"], far["shortest_paths"], far["endpoints"]) == (3, [112, 112], 752)


def test_link_layer_switching_and_transports_of_cloudmatrix384(machine):
    assert machine["link_layer"]["flit_bytes"] == 20
    assert machine["switching"]["allocator"] == "islip"
    assert machine["transports"]["ub"]["name"] == "posted"
    assert "window_requests" not in machine["transports"]["ub"]
    assert machine["packet"]["ub"] == {
        "payload_bytes": 4_096,
        "wire_bytes": 209 * 20,
        "efficiency": pytest.approx(4_096 / 4_180 * 120 / 128),
        "buffer_bytes": 27 * 160,
    }
    # RoCE has neither flits nor cells, and its rate is what Ethernet leaves of the lanes.
    assert machine["packet"]["rdma"] == {
        "payload_bytes": 4_096,
        "wire_bytes": 4_178,
        "efficiency": pytest.approx(4_096 / 4_178),
        "buffer_bytes": 4_178,
    }
    text = render_description(machine).splitlines()
    for line in (
        "  flit                20 B",
        "  credit timeout      200 ns",
        "  retrain time        10,000 ns",
        "  speedup             2",
        "  ub       posted        28 B  4,096 B      4,180 B      4,320 B      91.9 %",
        "  ub: work request 65,536 B, timeout 25,600 ns, timeout limit 7.",
    ):
        assert line in text


def test_a_graph_that_says_nothing_is_described_by_its_defaults():
    graph = star(2)
    del graph.graph["transports"]
    found = describe_topology(graph)
    assert (found["link_layer"]["credit_return"], found["switching"]["speedup"]) == ("ideal", 1.0)
    assert found["packet"]["ub"]["wire_bytes"] == 1_064
    assert "  ub: no other settings." in render_description(found).splitlines()


def test_cloudmatrix384_is_described_fast():
    graph = cloudmatrix384()
    start = time.process_time()
    describe_topology(graph)
    assert time.process_time() - start < 15 * pace_s()  # 2.5 times, as a rule


def test_a_third_level_multiplies_the_paths():
    graph = build_topology(
        {
            "base": "supernode-8192",
            "name": "three-pods",
            "servers": 6,
            "ub": {"planes": 2, "l2": {"servers_per_pod": 2}, "l3": {"uplinks_per_l2_chip": 4}},
            "rdma": None,
        }
    )
    found = describe_topology(graph)
    paths = [item for item in found["paths"] if (item["network"], item["kind"]) == ("ub", "die")]
    assert [(item["switches"], item["shortest_paths"][0], item["endpoints"]) for item in paths] == [
        (1, 2, 15),
        (3, 2 * 16, 16),
        (5, 2 * 16 * 4, 64),
    ]
    assert found["planes"]["ub1"]["diameter_links"] == 6
    chip = row(found["switch_levels"], kind="l2")
    assert chip["oversubscription"] == 2 / 4
    # Three of six servers: one whole pod and half of the next; their uplinks to level 2 limit.
    assert found["bisection"]["planes_bytes_per_s"]["ub0"] == 3 * 16 * 28 * GB


def test_one_server_is_parted_between_its_endpoints():
    found = describe_topology(build_topology("one-node"))
    assert "no two servers" in found["bisection"]["definition"]
    assert found["bisection"]["planes_bytes_per_s"]["ub0"] == 8 * 28 * GB + 2 * 22_857_142_857
    assert found["planes"]["vpc"]["diameter_links"] is None


def _bisection_by_networkx(graph: nx.MultiGraph, plane: str) -> int:
    """Return the maximum flow on the whole graph, no nodes merged."""
    servers = sorted({data["server"] for _, data in graph.nodes(data=True)} - {-1})
    half = set(servers[: len(servers) // 2])
    flow = nx.DiGraph()
    flow.add_nodes_from(["from", "to"])
    for u, v, data in graph.edges(data=True):
        if data["plane"] == plane:
            for a, b in ((u, v), (v, u)):
                before = flow.get_edge_data(a, b, {"capacity": 0})["capacity"]
                flow.add_edge(a, b, capacity=before + data["bandwidth_bytes_per_s"])
    for node, data in graph.nodes(data=True):
        if data["role"] == "endpoint" and node in flow:
            flow.add_edge(*(("from", node) if data["server"] in half else (node, "to")))
    return nx.maximum_flow_value(flow, "from", "to")


@settings(max_examples=40, deadline=None)
@given(topologies(direct_links=False))
def test_any_graph_is_described_and_its_bisection_is_the_maximum_flow(graph):
    found = describe_topology(graph)
    assert json.loads(json.dumps(found)) == found
    assert render_description(found).startswith("random: ")
    if found["servers"] >= 2:
        for plane, value in found["bisection"]["planes_bytes_per_s"].items():
            assert value == _bisection_by_networkx(graph, plane)


@settings(max_examples=40, deadline=None)
@given(topologies(direct_links=False, max_planes=1))
def test_paths_and_diameter_of_any_graph_agree_with_networkx(graph):
    found = describe_topology(graph)
    endpoints = [node for node, role in graph.nodes(data="role") if role == "endpoint"]
    switches = nx.subgraph_view(graph, filter_node=lambda node: node not in endpoints)
    lengths, counts = {}, {}
    for u in endpoints:
        for v in endpoints:
            if u != v:
                pair = nx.MultiGraph(switches.edges())
                pair.add_nodes_from(switches)
                pair.add_edges_from((a, b) for a, b in graph.edges([u, v]))
                paths = list(nx.all_shortest_paths(nx.Graph(pair), u, v))
                lengths[u, v] = len(paths[0]) - 1
                counts[u, v] = sum(
                    prod(pair.number_of_edges(a, b) for a, b in pairwise(p)) for p in paths
                )
    assert found["planes"]["ub0"]["diameter_links"] == max(lengths.values())
    for item in found["paths"]:
        same = item["relation"] == "same server"
        ends = [
            v
            for v in endpoints[1:]
            if (graph.nodes[v]["server"] == graph.nodes[endpoints[0]]["server"]) == same
            and lengths[endpoints[0], v] == item["switches"] + 1
        ]
        assert item["endpoints"] == len(ends)
        values = [counts[endpoints[0], v] for v in ends]
        assert item["shortest_paths"] == [min(values), max(values)]
    assert sum(item["endpoints"] for item in found["paths"]) == len(endpoints) - 1


def test_the_text_names_what_a_person_looks_for(machine):
    text = render_description(machine)
    for part in (
        "cloudmatrix384: 1,410 nodes, 13,296 links, 48 servers, 16 racks",
        "1.2 : 1",
        "1,344 GB/s",
        "75,264 GB/s",
        "maximum flow",
        "112",
    ):
        assert part in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_sources_of_a_graph_are_listed():
    graph = build_topology("two-nodes")
    sources = {item["key"]: item for item in spec_sources(graph)}
    latency = graph.graph["spec"]["ub"]["l1"]["forward_latency"]
    for key in ("value", "source", "strength"):
        assert sources["ub.l1.forward_latency"][key] == latency[key]
    assert sources["ub.die_link.bandwidth"]["value"] == "28 GB/s"
    del graph.graph["spec"]
    assert spec_sources(graph) == []


def test_a_wrong_graph_is_not_described_or_drawn(tmp_path):
    graph = build_topology("one-node")
    graph.nodes["l1-0-0"]["n_ports"] = 1
    with pytest.raises(TopologyError, match="found 20 links"):
        describe_topology(graph)
    with pytest.raises(TopologyError, match="found 20 links"):
        draw_topology(graph, tmp_path / "x.png")
    with pytest.raises(TopologyError, match="found ending '.bmp'; allowed: .png, .pdf, .svg"):
        draw_topology(build_topology("one-node"), tmp_path / "x.bmp")
    with pytest.raises(TopologyError, match="cannot be written"):
        draw_topology(build_topology("one-node"), tmp_path / "none" / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_a_drawing_shows_each_plane_and_level_and_is_the_same_each_time(tmp_path):
    graph = cloudmatrix384()
    draw_topology(graph, tmp_path / "a.svg")
    draw_topology(graph, tmp_path / "b.svg")
    # Text is drawn as outlines; matplotlib keeps it beside them as comments.
    text = (tmp_path / "a.svg").read_text()
    for part in ("ub0", "ub6", "rdma", "vpc", "Switch", "16 L2 chips", "48 L1 chips", "768 dies"):
        assert f"<!-- {part}" in text
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "a.svg").read_bytes()


@settings(max_examples=8, deadline=None)
@given(topologies())
def test_any_graph_is_drawn(tmp_path_factory, graph):
    path = tmp_path_factory.mktemp("drawings") / "x.pdf"
    draw_topology(graph, path)
    assert path.read_bytes().startswith(b"%PDF")
