"""Link layer, switching and transports: in specifications, in graphs, on the wire."""

from __future__ import annotations

import copy
import re

import networkx as nx
import numpy as np
import pytest
from fabrics import GB, star
from hypothesis import given
from hypothesis import strategies as st

from ubfabric.errors import TopologyError
from ubfabric.fabric_settings import (
    PLAIN_LINK_LAYER,
    PLAIN_SWITCHING,
    PLAIN_TRANSPORT,
    TRANSPORT_KEYS,
    LinkLayerSpec,
    SwitchingSpec,
    TransportSpec,
    buffered_bytes,
    cell_bytes,
    link_layer,
    settings_of,
    switching,
    transports,
    used_settings,
    wire_bytes,
)
from ubfabric.faults import FaultSpec
from ubfabric.routing import compile_fabric
from ubfabric.topology import (
    EndpointSpec,
    LinkSpec,
    build_topology,
    check_topology,
    load_topology_spec,
    read_topology,
    write_topology,
)

FLITS = PLAIN_LINK_LAYER | {"flit_bytes": 20}


@pytest.mark.parametrize(
    ("payload", "headers", "flits", "percent"),
    [
        (64, 28, 5, 64.0),
        (256, 28, 15, 85.3),
        (512, 28, 28, 91.4),
        (512, 32, 28, 91.4),
        (1_024, 28, 54, 94.8),
        (4_096, 28, 209, 98.0),
        (64, 56, 7, 45.7),
        (64, 64, 7, 45.7),
        (256, 56, 16, 80.0),
        (256, 64, 17, 75.3),
        (512, 56, 29, 88.3),
        (512, 64, 29, 88.3),
        (1_024, 64, 55, 93.1),
        (4_096, 64, 210, 97.5),
    ],
)
def test_packets_take_the_flits_of_the_efficiency_table(payload, headers, flits, percent):
    on_wire = wire_bytes(FLITS, headers, payload)
    assert on_wire == flits * 20
    assert round(100 * payload / on_wire, 1) == percent


def laid_out(layer: dict, headers: int, payload: int) -> int:
    """Return the bytes of a packet laid out byte by byte."""
    left, blocks = headers + payload, []
    while left or not blocks:
        block = 0 if not blocks else layer["block_header_bytes"]
        while left and block + 1 + layer["block_check_bytes"] <= (
            layer["block_flits"] * layer["flit_bytes"]
        ):
            block, left = block + 1, left - 1
        block += layer["block_check_bytes"]
        while block % layer["flit_bytes"]:
            block += 1
        blocks.append(block)
    return sum(blocks)


@given(
    st.integers(0, 3_000),
    st.integers(0, 100),
    st.integers(8, 40),
    st.integers(1, 33),
    st.integers(0, 3),
    st.integers(0, 4),
)
def test_the_size_on_the_wire_is_that_of_a_packet_laid_out(p, h, flit, flits, header, check):
    layer = PLAIN_LINK_LAYER | {"flit_bytes": flit, "block_flits": flits}
    layer |= {"block_header_bytes": header, "block_check_bytes": check}
    assert wire_bytes(layer, h, p) == max(laid_out(layer, h, p), -(-check // flit) * flit)


def test_buffers_are_counted_in_cells_and_without_flits_in_bytes():
    layer = FLITS | {"cell_flits": 8}
    assert cell_bytes(layer) == 160
    assert buffered_bytes(layer, 28, 4_096) == 27 * 160
    assert (cell_bytes(PLAIN_LINK_LAYER), buffered_bytes(PLAIN_LINK_LAYER, 28, 4_096)) == (1, 4_124)


def test_a_plain_graph_has_no_mechanism_that_it_did_not_ask_for():
    graph = star(2)
    del graph.graph["transports"]
    check_topology(graph)
    assert link_layer(graph) == PLAIN_LINK_LAYER
    assert switching(graph) == PLAIN_SWITCHING
    assert transports(graph) == dict.fromkeys(("ub", "rdma", "vpc"), PLAIN_TRANSPORT)
    arrays = compile_fabric(graph)
    assert set(arrays.link_rate_bytes_per_s.tolist()) == {10 * GB}
    assert set(arrays.link_bit_error_rate.tolist()) == {0.0}
    for name in ("node_memory_read_latency_ps", "node_acknowledge_latency_ps"):
        assert np.array_equal(getattr(arrays, name), arrays.node_receive_latency_ps)
    assert arrays.node_memory_write_ppm.tolist() == [10**6, 10**6, 0]


def test_a_graph_may_say_a_part_and_gets_the_rest():
    graph = star(2)
    graph.graph["link_layer"] = {"flit_bytes": np.int64(20), "lane_weights": 3}
    graph.graph["switching"] = {"speedup": 2}
    graph.graph["transports"] = {"rdma": {"name": "reliable", "window_bytes": 7}}
    assert link_layer(graph) == PLAIN_LINK_LAYER | {"flit_bytes": 20, "lane_weights": 3}
    assert type(link_layer(graph)["flit_bytes"]) is int
    assert switching(graph)["speedup"] == 2.0
    assert transports(graph)["rdma"] == {"name": "reliable", "header_bytes": 64, "window_bytes": 7}


def test_a_transport_is_given_what_it_reads_and_no_more():
    graph = build_topology("one-node")
    ub = transports(graph)["ub"]
    assert used_settings(ub) == {
        "name": "posted", "header_bytes": 28, "work_request_bytes": 65_536,
        "timeout_ps": 25_600_000, "timeout_limit": 7,
    }  # fmt: skip
    known = {*settings_of(TransportSpec(name="posted", header="1 B")), *ub}
    for name, keys in TRANSPORT_KEYS.items():
        used = used_settings(ub | {"name": name})
        # The shipped machine gives every key, so a change of name leaves nothing to chance.
        assert set(used) == {"name", "header_bytes", *keys} <= known
    assert known == {"name", "header_bytes"}.union(*TRANSPORT_KEYS.values())


def test_error_correction_takes_its_share_of_links_to_switches_only():
    graph = build_topology("one-node")
    arrays = compile_fabric(graph)
    for edge, (_, _, data) in enumerate(graph.edges(data=True)):
        raw = data["bandwidth_bytes_per_s"]
        corrected = data["plane"].startswith("ub")
        expected = raw * 120 // 128 if corrected else raw
        assert arrays.link_rate_bytes_per_s[2 * edge : 2 * edge + 2].tolist() == [expected] * 2
    graph.graph["link_layer"]["fec_total_symbols"] = 120
    assert compile_fabric(graph).link_rate_bytes_per_s[0] == 28 * GB


def test_each_link_knows_its_other_direction_its_lanes_and_its_noise():
    graph = star(3)
    graph.edges["die-1", "hub-0", 0].update(bit_error_rate=1e-9, lanes=4)
    arrays = compile_fabric(graph)
    assert np.array_equal(arrays.link_src[arrays.link_reverse], arrays.link_dst)
    assert np.array_equal(arrays.link_dst[arrays.link_reverse], arrays.link_src)
    assert arrays.link_reverse[arrays.link_reverse].tolist() == list(range(arrays.n_links))
    noisy = [list(graph.edges()).index(("die-1", "hub-0")) * 2 + n for n in (0, 1)]
    assert np.flatnonzero(arrays.link_bit_error_rate == 1e-9).tolist() == noisy
    assert np.flatnonzero(arrays.link_lanes == 4).tolist() == noisy


def test_settings_say_what_the_specification_says():
    graph = build_topology(
        {
            "base": "one-node",
            "link_layer": {"lane_weights": [1, 4], "virtual_lanes": 2},
            "transports": {"ub": {"name": "reliable", "timeout": "1 us"}},
            "endpoints": {"die": {"memory_write_share": 0.7}},
            "ub": {"die_link": {"bit_error_rate": 1e-12}},
        }
    )
    spec, _ = load_topology_spec("one-node")
    assert link_layer(graph) == settings_of(spec.link_layer) | {
        "lane_weights": [1, 4],
        "virtual_lanes": 2,
    }
    assert transports(graph)["ub"]["timeout_ps"] == 1_000_000
    assert graph.nodes["die-0-3"]["memory_write_share_ppm"] == 700_000
    assert graph.edges["die-0-3", "l1-0-0", 0]["bit_error_rate"] == 1e-12
    assert graph.edges["cpu-0-3", "l1-0-0", 0]["bit_error_rate"] == 0.0


def test_a_specification_without_link_layer_and_switching_has_them_off():
    graph = build_topology({"base": "one-node", "link_layer": None, "switching": None})
    assert not {"link_layer", "switching"} & set(graph.graph)
    assert link_layer(graph) == PLAIN_LINK_LAYER
    assert compile_fabric(graph).link_rate_bytes_per_s[0] == 28 * GB


@pytest.mark.parametrize("ending", ["json", "graphml"])
def test_stored_settings_come_back_equal(tmp_path, ending):
    graph = star(3)
    graph.graph["link_layer"] = {"flit_bytes": np.int32(20), "service_levels": [0] * 16}
    graph.graph["switching"] = {"speedup": np.float64(1.5)}
    graph.edges["die-1", "hub-0", 0]["bit_error_rate"] = np.float64(1e-15)
    write_topology(graph, tmp_path / f"graph.{ending}")
    again = read_topology(tmp_path / f"graph.{ending}")
    for read in (link_layer, switching, transports):
        assert read(again) == read(graph)
    assert compile_fabric(again).same_as(compile_fabric(graph))


def test_settings_that_are_no_json_in_graphml_give_one_line(tmp_path):
    path = tmp_path / "graph.graphml"
    write_topology(star(2), path)
    path.write_text(path.read_text().replace("{&quot;ub", "{ub").replace('{"ub', "{ub"))
    with pytest.raises(TopologyError, match=r"graph: transports is not JSON") as caught:
        read_topology(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("link_layer", 5, r"graph: link_layer is 5; expected a dict of settings"),
        ("link_layer", {"flit": 20}, r"link_layer: unknown key 'flit'; allowed: flit_bytes, "),
        ("link_layer", {"flit_bytes": 2.5}, r"link_layer: flit_bytes is 2\.5; expected an integer"),
        ("link_layer", {"flit_bytes": "20 B"}, r"flit_bytes is '20 B'; expected an integer"),
        ("link_layer", {"flit_bytes": -1}, r"link_layer: flit_bytes: found '-1 B', which is neg"),
        ("link_layer", {"cell_flits": 0}, r"link_layer: cell_flits: found 0; .* equal to 1"),
        ("link_layer", {"cell_flits": True}, r"link_layer: cell_flits: found True"),
        ("link_layer", {"fec_data_symbols": 2}, r"found fec_data_symbols 2; allowed up to .*, 1"),
        ("switching", {"iterations": 65}, r"switching: iterations: found 65; .* equal to 64"),
        ("transports", [], r"graph: transports is \[\]; expected a dict, one entry a network"),
        ("transports", {"ip": {}}, r"unknown network 'ip'; allowed: ub, rdma, vpc"),
        ("transports", {"ub": 28}, r"transports\.ub is 28; expected a dict of settings"),
        ("transports", {"ub": {"name": "x"}}, r"transports\.ub: name: found 'x'; .*'load-store'"),
        ("transports", {"ub": {"window_bytes": 0}}, r"ub: window_bytes: found '0 B'; .* than 0"),
        ("transports", {"ub": {"header_bytes": None}}, r"header_bytes is None; expected an int"),
    ],
)
def test_wrong_settings_of_a_graph_give_one_line(name, value, message):
    graph = copy.deepcopy(star(2))
    graph.graph[name] = value
    with pytest.raises(TopologyError, match=message) as caught:
        check_topology(graph, "mine.json")
    assert str(caught.value).startswith("mine.json: graph: ")
    assert "\n" not in str(caught.value)


def test_a_buffer_must_hold_a_packet_in_whole_cells():
    graph = star(2, payload=512, header=28, switch={"buffer_bytes": 640})
    graph.graph["link_layer"] = {"flit_bytes": 20, "cell_flits": 8}
    check_topology(graph)
    nx.set_node_attributes(graph, {"hub-0": 639}, "buffer_bytes")
    with pytest.raises(TopologyError, match=r"node hub-0: buffer_bytes is 639; .* 640"):
        check_topology(graph)


def test_every_key_is_in_the_readme_of_the_topologies(source_root):
    text = (source_root / "topologies" / "README.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(?:….)?([a-z_0-9]+)`", text))
    for model in (LinkLayerSpec, SwitchingSpec, TransportSpec, EndpointSpec, LinkSpec, FaultSpec):
        assert set(model.model_fields) <= documented, model.__name__
    marked = dict(re.findall(r"^\| `([a-z_]+)` \| [a-z]* ?\| ([a-z, -]+) \| ", text, re.MULTILINE))
    for name, keys in TRANSPORT_KEYS.items():
        for key in ("name", "header_bytes", *keys):
            row = marked.get(re.sub("_(bytes|ps)$", "", key), "all")
            assert row == "all" or name in row.split(", "), (name, key)
    assert len(marked) == len(TransportSpec.model_fields) - 1
