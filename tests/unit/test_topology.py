"""Building, checking and storing topology graphs."""

from __future__ import annotations

import copy
import json
from collections import Counter

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from strategies import topologies

from ubfabric.errors import SpecError, TopologyError
from ubfabric.quantities import STRENGTHS, provenance
from ubfabric.routing import compile_fabric
from ubfabric.specs import shipped
from ubfabric.topology import (
    EDGE_ATTRIBUTES,
    ENDPOINT_ATTRIBUTES,
    NODE_ATTRIBUTES,
    OPTIONAL_EDGE_ATTRIBUTES,
    OPTIONAL_ENDPOINT_ATTRIBUTES,
    SWITCH_ATTRIBUTES,
    TopologySpec,
    build_topology,
    check_topology,
    cloudmatrix384,
    load_topology_spec,
    read_topology,
    write_topology,
)


@pytest.fixture(scope="module")
def machine() -> nx.MultiGraph:
    return cloudmatrix384()


@pytest.fixture
def small() -> nx.MultiGraph:
    return build_topology("one-node")


def count_kinds(graph: nx.MultiGraph) -> Counter:
    return Counter(kind for _, kind in graph.nodes(data="kind"))


def count_links(graph: nx.MultiGraph) -> Counter:
    kind = dict(graph.nodes(data="kind"))
    return Counter((kind[u], kind[v], d["network"]) for u, v, d in graph.edges(data=True))


def rate(graph: nx.MultiGraph, node: str, *kinds: str, network: str = "ub") -> int:
    return sum(
        data["bandwidth_bytes_per_s"]
        for _, other, data in graph.edges(node, data=True)
        if graph.nodes[other]["kind"] in kinds and data["network"] == network
    )


def test_cloudmatrix384_has_the_published_counts(machine):
    assert count_kinds(machine) == {
        "die": 768, "cpu": 192, "l1": 336, "l2": 112, "rdma": 1, "vpc": 1,
    }  # fmt: skip
    assert count_links(machine) == {
        ("die", "l1", "ub"): 5376,
        ("cpu", "l1", "ub"): 1344,
        ("l1", "l2", "ub"): 5376,
        ("die", "die", "ub"): 384,
        ("die", "rdma", "rdma"): 768,
        ("cpu", "vpc", "vpc"): 48,
    }
    assert len({server for _, server in machine.nodes(data="server")} - {-1}) == 48
    racks = Counter(rack for _, rack in machine.nodes(data="rack"))
    assert set(racks) == {-1, *range(16)}
    assert [racks[rack] for rack in range(12, 16)] == [28] * 4


def test_cloudmatrix384_has_the_published_bandwidths(machine):
    for node, data in machine.nodes(data=True):
        if data["kind"] == "die":
            assert rate(machine, node, "l1") == 196 * 10**9
            assert rate(machine, node, "die") == 270 * 10**9
            assert rate(machine, node, "rdma", network="rdma") == 25 * 10**9
        elif data["kind"] == "cpu":
            assert rate(machine, node, "l1") == pytest.approx(160e9, abs=10)
        elif data["kind"] == "l1":
            assert rate(machine, node, "l2") == rate(machine, node, "die") == 448 * 10**9
        elif data["kind"] == "l2":
            assert rate(machine, node, "l1") == 1344 * 10**9
            assert machine.degree(node) == data["n_ports"] == 48


def test_every_l2_chip_reaches_every_server_once_within_its_plane(machine):
    for node, data in machine.nodes(data=True):
        if data["kind"] == "l2":
            below = [machine.nodes[other] for other in machine.neighbors(node)]
            assert sorted(other["server"] for other in below) == list(range(48))
            assert {other["plane"] for other in below} == {data["plane"]}


def test_the_two_dies_of_an_npu_are_joined_and_no_others(machine):
    for u, v, data in machine.edges(data=True):
        if data["plane"] == "package":
            assert machine.nodes[u]["npu"] == machine.nodes[v]["npu"] >= 0
    assert len({npu for _, npu in machine.nodes(data="npu")} - {-1}) == 384


def test_one_cpu_of_each_server_is_on_the_vpc_plane(machine):
    attached = [machine.nodes[node]["server"] for node in machine.neighbors("vpc-switch")]
    assert attached == list(range(48))


def test_the_vpc_link_goes_at_the_lower_of_its_rate_and_the_hosts(machine):
    fast = build_topology("two-nodes", {"vpc.host_bandwidth": "80 GB/s"})
    for graph, rate in ((machine, 40), (fast, 50)):
        rates = {at for *_, at in graph.edges("vpc-switch", "bandwidth_bytes_per_s")}
        assert rates == {rate * 10**9}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("one-node", {"die": 16, "cpu": 4, "l1": 7, "rdma": 1, "vpc": 1}),
        ("two-nodes", {"die": 32, "cpu": 8, "l1": 14, "l2": 112, "rdma": 1, "vpc": 1}),
        ("slice-32-dies", {"die": 32, "l1": 14, "l2": 112}),
    ],
)
def test_slices_keep_the_construction(name, kinds):
    graph = build_topology(name)
    assert graph.graph["name"] == name
    assert count_kinds(graph) == kinds
    for node, data in graph.nodes(data=True):
        if data["kind"] == "l1":
            assert rate(graph, node, "l2") == (448 * 10**9 if "l2" in kinds else 0)


def test_the_leaf_spine_plane_has_as_many_links_up_as_down():
    graph = build_topology("leaf-spine-384")
    assert count_kinds(graph) == {"die": 384, "l1": 48, "l2": 8}
    for node, data in graph.nodes(data=True):
        if data["kind"] == "l1":
            assert rate(graph, node, "die") == rate(graph, node, "l2") == 8 * 50 * 10**9
        elif data["kind"] == "l2":
            assert rate(graph, node, "l1") == 48 * 50 * 10**9
    assert {data["delay_ps"] for _, _, data in graph.edges(data=True)} == {20_000}
    # 400 Gbit/s are what packets get
    assert set(compile_fabric(graph).link_rate_bytes_per_s.tolist()) == {50 * 10**9}


def test_attributes_that_one_edge_has_right_another_may_have_wrong():
    graph = build_topology("slice-32-dies")
    for key, wrong, found in (
        ("lanes", True, "lanes is True"),
        ("lanes", 2.0, "lanes is 2.0"),
        ("delay_ps", "50000", "delay_ps is '50000'"),
        ("bit_error_rate", None, "bit_error_rate is None"),
        ("plane", ["ub1"], "plane is"),
    ):
        broken = graph.copy()
        broken.edges["l1-1-6", "l2-6-15", 0][key] = wrong
        with pytest.raises(TopologyError, match=f"edge l1-1-6 - l2-6-15: {found}"):
            check_topology(broken)
    del graph.edges["l1-1-6", "l2-6-15", 0]["lanes"]
    with pytest.raises(TopologyError, match="edge l1-1-6 - l2-6-15: attribute 'lanes' is missing"):
        check_topology(graph)


def test_the_8192_npu_supernode_is_non_blocking_with_48_port_chips():
    spec, _ = load_topology_spec("supernode-8192")
    assert spec.servers * spec.server.npus == 8192
    l2, l3 = spec.ub.l2, spec.ub.l3
    pods = -(-spec.servers // l2.servers_per_pod)
    assert l2.servers_per_pod + l3.uplinks_per_l2_chip <= l2.ports == 48
    assert pods <= l3.ports == 48
    up = l3.uplinks_per_l2_chip * l3.downlink.bandwidth
    assert up >= l2.servers_per_pod * l2.downlink.bandwidth
    # Without the third level the specification must be refused.
    with pytest.raises(SpecError, match=r"servers 1024 without ub\.l3"):
        load_topology_spec({"base": "supernode-8192", "ub": {"l3": None}})


def test_three_levels_are_wired_as_a_clos_network():
    pods, up = 3, 4
    graph = build_topology(
        {
            "base": "supernode-8192",
            "name": "three-pods",
            "servers": 5,
            "ub": {"planes": 2, "l2": {"servers_per_pod": 2}, "l3": {"uplinks_per_l2_chip": up}},
        }
    )
    assert count_kinds(graph)["l2"] == 2 * 16 * pods
    assert count_kinds(graph)["l3"] == 2 * 16 * up
    for node, data in graph.nodes(data=True):
        if data["kind"] == "l3":
            below = [int(other.split("-")[2]) for other in graph.neighbors(node)]
            assert sorted(index // 16 for index in below) == list(range(pods))
            assert len({index % 16 for index in below}) == 1
        elif data["kind"] == "l2":
            assert sum(graph.nodes[n]["kind"] == "l3" for n in graph.neighbors(node)) == up
            pod = int(node.split("-")[2]) // 16
            servers = [graph.nodes[n]["server"] for n in graph.neighbors(node)]
            assert [server for server in servers if server >= 0] == [[0, 1], [2, 3], [4]][pod]


def test_dies_come_first_and_in_order(machine):
    dies = [f"die-{server}-{die}" for server in range(48) for die in range(16)]
    assert list(machine)[:768] == dies


def test_every_attribute_is_documented_text_or_number(machine):
    endpoint = ENDPOINT_ATTRIBUTES | OPTIONAL_ENDPOINT_ATTRIBUTES
    for _, data in machine.nodes(data=True):
        role = SWITCH_ATTRIBUTES if data["role"] == "switch" else endpoint
        assert set(data) == set(NODE_ATTRIBUTES | role)
        assert {type(value) for value in data.values()} <= {int, str}
    for _, _, data in machine.edges(data=True):
        assert set(data) == set(EDGE_ATTRIBUTES | OPTIONAL_EDGE_ATTRIBUTES)
        assert {type(value) for value in data.values()} <= {int, str, float}


@pytest.mark.parametrize("name", list(shipped("topologies")))
def test_every_number_of_a_shipped_specification_has_a_source(name):
    _, raw = load_topology_spec(name)

    def bare(value, path=""):
        if isinstance(value, dict):
            if "value" not in value:
                for key, item in value.items():
                    yield from bare(item, f"{path}.{key}")
        else:
            yield path

    # Slices say how many servers they cut out; the rest carries its source.
    assert set(bare(raw)) <= {".name", ".servers", ".server.cpus"}
    for row in provenance(raw):
        assert row["strength"] in STRENGTHS
        assert row["note"] or row["strength"] not in ("derived", "fitted")
        assert row["note"] or row["source"] != "no public figure", row["key"]


def test_one_number_can_be_changed_on_top_of_a_shipped_specification(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "base: two-nodes\nname: mine\nub:\n  l2:\n    downlink:\n      bandwidth: 14 GB/s\n"
    )
    (tmp_path / "yours.yaml").write_text("base: mine.yaml\nname: yours\nvpc: null\n")
    graph = build_topology(tmp_path / "yours.yaml")
    assert rate(graph, "l1-0-0", "l2") == 224 * 10**9
    assert "vpc-switch" not in graph
    assert graph.graph["spec"]["ub"]["l2"]["downlink"]["bandwidth"] == "14 GB/s"
    assert "base" not in graph.graph["spec"]


def test_a_base_that_leads_back_to_itself_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(SpecError, match=r"base: found a circle"):
        build_topology(tmp_path / "a.yaml")


def test_a_checked_specification_builds_the_same_graph_as_its_name():
    spec, raw = load_topology_spec("two-nodes")
    by_name, by_spec = build_topology("two-nodes"), build_topology(spec)
    assert list(by_spec.nodes(data=True)) == list(by_name.nodes(data=True))
    assert list(by_spec.edges(data=True)) == list(by_name.edges(data=True))
    assert TopologySpec.model_validate(by_spec.graph["spec"]) == spec
    assert by_name.graph["spec"] == raw


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"serverz": 1}, r"serverz: unknown key; allowed here: endpoints, link_layer, name"),
        ({"ub": {"l2": {"prots": 1}}}, r"ub\.l2\.prots: unknown key; allowed here: buffer, chips"),
        ({"servers": 0}, r"servers: found 0; input should be greater than or equal to 1"),
        ({"servers": "48"}, r"servers: found '48'; input should be a valid integer"),
        ({"servers": 49}, r"found servers 49 without ub\.l3; allowed without it: up to .* 48"),
        ({"ub": {"l2": None}}, r"found servers 48 without ub\.l2; allowed without it: 1"),
        ({"ub": {"die_link": {"bandwidth": 28}}}, r"found 28, which has no unit"),
        (
            {"ub": {"die_link": {"bandwidth": "0 GB/s"}}},
            r"found '0 GB/s'; input should be greater than 0",
        ),
        ({"packets": {"payload": "20 KiB"}}, r"payload of 20480 B; allowed up to max_payload"),
        ({"endpoints": {"cpu": None}}, r"server\.cpus 4 without endpoints\.cpu"),
        ({"server": {"cpus": 0}}, r"found vpc with server\.cpus 0"),
        ({"server": {"dies_per_npu": 1}}, r"found package with server\.dies_per_npu 1"),
        (
            {"endpoints": {"die": {"receive_latency": "0 ns"}}},
            r"found '0 ns'; input should be greater than 0",
        ),
        (
            {"endpoints": {"die": {"memory_write_share": 0.0}}},
            r"memory_write_share: found 0\.0; input should be greater than or equal to 0",
        ),
        ({"endpoints": {"die": {"memory_write_share": 1.1}}}, r"found 1\.1; .* equal to 1"),
        ({"ub": {"die_link": {"bit_error_rate": 1.0}}}, r"found 1\.0; input should be less than 1"),
        ({"ub": {"die_link": {"bit_error_rate": -0.1}}}, r"bit_error_rate: found -0\.1"),
        ({"transports": {"rdma": None}}, r"found rdma without transports\.rdma"),
        ({"transports": {"ub": {"name": "tcp"}}}, r"transports\.ub\.name: found 'tcp'; .*'posted'"),
        ({"transports": {"ub": {"window": "0 B"}}}, r"transports\.ub\.window: found '0 B'"),
        ({"transports": {"ub": {"window_requests": 0}}}, r"ub\.window_requests: found 0"),
        ({"link_layer": {"virtual_lanes": 17}}, r"virtual_lanes: found 17; .* equal to 16"),
        (
            {"link_layer": {"lane_weights": [1, 0]}},
            r"lane_weights: found \[1, 0\]; allowed: an int",
        ),
        ({"link_layer": {"lane_weights": [1, 2]}}, r"found 2 lane_weights; .* virtual_lanes, 1,"),
        (
            {"link_layer": {"service_levels": [0] * 15}},
            r"service_levels: found \[0, .*a list of 16",
        ),
        (
            {"link_layer": {"service_levels": [0] * 15 + [2], "virtual_lanes": 2}},
            r"found lane 2 in service_levels; allowed: 0 to 1, as virtual_lanes is 2",
        ),
        ({"link_layer": {"fec_data_symbols": 129}}, r"fec_data_symbols 129; allowed up to .* 128"),
        ({"link_layer": {"credit_return": "free"}}, r"credit_return: found 'free'; .*'piggyback'"),
        (
            {"link_layer": {"block_flits": 1, "block_check": "18 B"}},
            r"block_check of 20 B; allowed less than a block of 20 B",
        ),
        ({"switching": {"speedup": 0.5}}, r"switching\.speedup: found 0\.5"),
        ({"switching": {"allocator": "pim"}}, r"allocator: found 'pim'; .* 'islip'"),
        ({"name": ""}, r"name: found ''"),
        ({"base": "cm384"}, r"neither a \.yaml file nor a shipped name; shipped in topologies"),
        ({"base": 3}, r"base: found 3; expected a shipped name"),
    ],
)
def test_a_wrong_specification_gives_one_line(change, message):
    with pytest.raises(SpecError, match=message) as caught:
        build_topology({"base": "cloudmatrix384", "name": "x"} | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ub": {"l2": {"ports": 47}}}, r"node l2-0-0: found 48 links; allowed up to n_ports, 47"),
        ({"endpoints": {"die": {"ports": 8}}}, r"node die-0-0: found 9 links; allowed .* 8"),
        ({"ub": {"l1": {"buffer": "4 KiB"}}}, r"node l1-0-0: buffer_bytes is 4096; .* 4320"),
        (
            {"rdma": {"switch": {"buffer": "4177 B"}}},
            r"node rdma-switch: buffer_bytes is 4177; .* network rdma with its headers, 4178",
        ),
    ],
)
def test_a_specification_that_cannot_be_built_names_the_node(change, message):
    with pytest.raises(TopologyError, match=message):
        build_topology({"base": "cloudmatrix384", "name": "x"} | change)


def drop(attribute):
    def change(graph):
        del graph.nodes["l1-0-0"][attribute]

    return change


def put(node, **attributes):
    return lambda graph: graph.nodes[node].update(attributes)


def put_edge(u, v, **attributes):
    return lambda graph: graph.edges[u, v, 0].update(attributes)


def put_graph(**attributes):
    return lambda graph: graph.graph.update(attributes)


def add_island(graph):
    for node in ("die-0-0", "l1-0-0"):
        graph.add_node(f"{node}-new", **graph.nodes[node])
    graph.add_edge("die-0-0-new", "l1-0-0-new", **graph.edges["die-0-0", "l1-0-0", 0])


LINK = ("die-0-0", "l1-0-0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("kind"), r"node l1-0-0: attribute 'kind' is missing \(die, cpu"),
        (drop("forward_latency_ps"), r"node l1-0-0: attribute 'forward_latency_ps' is missing"),
        (put("die-0-0", kind="gpu"), r"kind is 'gpu'; allowed: die, cpu, l1"),
        (put("die-0-0", role="host"), r"role is 'host'; allowed: endpoint, switch"),
        (put("die-0-0", role="switch"), r"forward_latency_ps' is missing"),
        (put("die-0-0", level=1), r"level is 1 for role endpoint"),
        (put("die-0-0", issue_engines=0), r"issue_engines is 0; allowed: 1 to"),
        (put("die-0-0", receive_latency_ps=0), r"receive_latency_ps is 0; allowed: 1 to"),
        (put("die-0-0", server=-2), r"server is -2; allowed: -1 to"),
        (put("l1-0-0", buffer_bytes=4319), r"buffer_bytes is 4319; expected at least .* 4320"),
        (put("die-0-0", memory_write_share_ppm=0), r"memory_write_share_ppm is 0; allowed: 1 to"),
        (put("die-0-0", memory_write_share_ppm=10**6 + 1), r"ppm is 1000001; .* to 1000000 "),
        (put("die-0-0", memory_read_latency_ps=0), r"memory_read_latency_ps is 0; allowed: 1"),
        (put("die-0-0", acknowledge_latency_ps=0), r"acknowledge_latency_ps is 0; allowed: 1"),
        (put_edge(*LINK, bit_error_rate=1), r"bit_error_rate is 1; allowed: 0 up to, but not, 1"),
        (put_edge(*LINK, bit_error_rate=-1e-9), r"bit_error_rate is -1e-09; allowed: 0 up to"),
        (put_edge(*LINK, bit_error_rate=float("nan")), r"bit_error_rate is nan; allowed: 0 up"),
        (put_edge(*LINK, bit_error_rate="low"), r"bit_error_rate is 'low' \(str\); .* a number"),
        (put("l1-0-0", n_ports=19), r"node l1-0-0: found 20 links; allowed up to n_ports, 19"),
        (put("l1-0-0", plane="ub1"), r"plane is 'ub0', but switch l1-0-0 belongs to 'ub1'"),
        (put_edge(*LINK, plane="ub1"), r"switch l1-0-0 belongs to 'ub0'.*one plane only"),
        (put_edge(*LINK, network="ib"), r"network is 'ib'; allowed: ub, rdma, vpc"),
        (put_edge(*LINK, network="rdma"), r"plane ub0 is of network .* one network a plane"),
        (put_edge(*LINK, bandwidth_bytes_per_s=0), r"bandwidth_bytes_per_s is 0; allowed: 1 to"),
        (put_edge(*LINK, bandwidth_bytes_per_s=-5), r"bandwidth_bytes_per_s is -5"),
        (put_edge(*LINK, bandwidth_bytes_per_s=28e9), r"28000000000\.0 \(float\); .* an integer"),
        (put_edge(*LINK, bandwidth_bytes_per_s="28 GB/s"), r"'28 GB/s' \(str\); .* bytes/s"),
        (put_edge(*LINK, bandwidth_bytes_per_s=2**63), r"allowed: 1 to 4611686018427387904"),
        (put_edge(*LINK, delay_ps=-1), r"delay_ps is -1; allowed: 0 to"),
        (put_edge(*LINK, lanes=True), r"lanes is True \(bool\); expected an integer"),
        (put_edge(*LINK, plane=""), r"plane is empty"),
        (put_graph(schema=2), r"schema is 2; this version reads 1"),
        (put_graph(packet_payload_bytes=99_999), r"allowed up to max_payload_bytes"),
        (lambda g: g.graph.pop("max_payload_bytes"), r"'max_payload_bytes' is missing"),
        (lambda g: g.add_node("x", **g.nodes["die-0-0"]), r"node x: found no link"),
        (lambda g: g.add_node(7, **g.nodes["die-0-0"]), r"node 7: found a name of type int"),
        (lambda g: g.add_edge("die-0-0", "l1-0-0"), r"attribute 'plane' is missing"),
        (add_island, r"no path joins die-0-0 and die-0-0-new; expected a connected graph"),
    ],
)
def test_a_wrong_graph_gives_one_line(small, change, message):
    for node in small:
        small.nodes[node]["n_ports"] += 2
    graph = copy.deepcopy(small)
    change(graph)
    with pytest.raises(TopologyError, match=message) as caught:
        check_topology(graph, "mine.json")
    assert str(caught.value).startswith("mine.json: ")
    assert "\n" not in str(caught.value)


def test_a_link_to_itself_is_refused(small):
    small.nodes["l1-0-0"]["n_ports"] += 2
    small.add_edge("l1-0-0", "l1-0-0", **small.edges["die-0-0", "l1-0-0", 0])
    with pytest.raises(TopologyError, match="from a node to itself"):
        check_topology(small)


def test_only_undirected_graphs_of_endpoints_are_taken(small):
    with pytest.raises(TopologyError, match="found MultiDiGraph; expected an undirected"):
        check_topology(small.to_directed())
    with pytest.raises(TopologyError, match="found dict; expected"):
        check_topology({})
    bare = nx.MultiGraph(**small.graph)
    with pytest.raises(TopologyError, match="found no node with role 'endpoint'"):
        check_topology(bare)


@pytest.mark.parametrize("ending", ["json", "graphml"])
@pytest.mark.parametrize("name", ["one-node", "two-nodes"])
def test_a_stored_graph_runs_the_same_to_the_byte(tmp_path, name, ending):
    graph = build_topology(name)
    path = tmp_path / f"graph.{ending}"
    write_topology(graph, path)
    again = read_topology(path)
    assert again.graph == graph.graph
    assert list(again.nodes(data=True)) == list(graph.nodes(data=True))
    assert list(again.edges(data=True)) == list(graph.edges(data=True))
    assert compile_fabric(again).same_as(compile_fabric(graph))
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    first = path.read_bytes()
    write_topology(again, path)
    assert path.read_bytes() == first


@settings(max_examples=30, deadline=None)
@given(topologies())
def test_any_graph_stored_runs_the_same(tmp_path_factory, graph):
    folder = tmp_path_factory.mktemp("graphs")
    fabric = compile_fabric(graph)
    for ending in ("json", "graphml"):
        write_topology(graph, folder / f"graph.{ending}")
        again = read_topology(folder / f"graph.{ending}")
        assert nx.utils.graphs_equal(nx.Graph(again), nx.Graph(graph))
        assert compile_fabric(again).same_as(fabric)


def test_numpy_integers_and_odd_edge_keys_are_stored_too(small, tmp_path):
    expected = compile_fabric(small)
    graph = nx.MultiGraph(**small.graph)
    graph.add_nodes_from(small.nodes(data=True))
    graph.nodes["die-0-0"]["n_ports"] = np.int32(9)
    for number, (u, v, data) in enumerate(small.edges(data=True)):
        delay = np.int64(data["delay_ps"])
        graph.add_edge(u, v, key=f"cable {number}", **(data | {"delay_ps": delay}))
    for ending in ("json", "graphml"):
        write_topology(graph, tmp_path / f"graph.{ending}")
        assert compile_fabric(read_topology(tmp_path / f"graph.{ending}")).same_as(expected)


def test_json_written_by_older_networkx_is_read(small, tmp_path):
    write_topology(small, tmp_path / "new.json")
    data = json.loads((tmp_path / "new.json").read_text())
    data["links"] = data.pop("edges")
    (tmp_path / "old.json").write_text(json.dumps(data))
    again = read_topology(tmp_path / "old.json")
    assert compile_fabric(again).same_as(compile_fabric(small))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "{", "not valid JSON"),
        ("x.json", "[]", "found no list 'nodes'"),
        ("x.json", '{"nodes": []}', "found no list 'edges' or 'links'"),
        (
            "x.json",
            '{"nodes": [{"id": "a"}], "edges": [{"source": "a", "target": "b"}]}',
            r"edges\[0\]: target is 'b'; expected the id of a node",
        ),
        ("x.json", '{"nodes": [{"name": "a"}], "edges": []}', "x.json: "),
        ("x.json", '{"nodes": [{"id": "a"}], "edges": [], "directed": true}', "directed graph"),
        ("x.graphml", "<graphml", "not valid GraphML"),
        ("x.graphml", "", "not valid GraphML"),
        ("x.graphml", "<graphml></graphml>", "not valid GraphML"),
        ("x.gml", "", "found ending '.gml'; allowed: .json, .graphml"),
    ],
)
def test_a_damaged_file_gives_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(TopologyError, match=message) as caught:
        read_topology(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_truncated_graphml_file_gives_one_line(small, tmp_path):
    path = tmp_path / "x.graphml"
    write_topology(small, path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(TopologyError, match="not valid GraphML"):
        read_topology(path)


def test_nothing_is_written_for_a_wrong_graph_or_ending(small, tmp_path):
    with pytest.raises(TopologyError, match="no such file"):
        read_topology(tmp_path / "none.json")
    with pytest.raises(TopologyError, match="allowed: .json, .graphml"):
        write_topology(small, tmp_path / "x.gml")
    with pytest.raises(TopologyError, match="cannot be written: No such file or directory"):
        write_topology(small, tmp_path / "none" / "x.json")
    small.nodes["l1-0-0"]["n_ports"] = 1
    with pytest.raises(TopologyError, match="one-node: node l1-0-0: found 20 links"):
        write_topology(small, tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []
