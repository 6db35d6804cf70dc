"""What a replay refuses, what it leaves behind, and what must not show in its results."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import textwrap
import weakref
from dataclasses import replace

import networkx as nx
import numpy as np
import pyarrow as pa
import pytest
from fabrics import NS, US, FabricBuilder, flow, line, make_trace, run, star, task

from ubfabric import _bridge
from ubfabric.decode import generate_trace
from ubfabric.errors import (
    BridgeError,
    ResultError,
    SimulationError,
    SpecError,
    TopologyError,
    TraceError,
)
from ubfabric.fabric_settings import link_layer, switching, transports, used_settings
from ubfabric.replay import replay
from ubfabric.topology import build_topology
from ubfabric.trace import Trace, read_trace, write_trace

replay_module = sys.modules["ubfabric.replay"]  # the attribute is the function


def changed(graph: nx.MultiGraph, node: str | None = None, **changes) -> nx.MultiGraph:
    result = graph.copy()
    (result.graph if node is None else result.nodes[node]).update(changes)
    return result


def with_ub(graph: nx.MultiGraph, *, flits: bool = False, **settings) -> nx.MultiGraph:
    """Return the graph with other settings of the UB network's transport."""
    graph.graph["transports"]["ub"] |= settings
    if flits:
        graph.graph["link_layer"] = {"flit_bytes": 20}
    return graph


def exchange(n_layers: int = 1, spent: int = 1 * US) -> Trace:
    """Return two ranks that dispatch to each other layer by layer, with sparse task ids."""
    flows = [flow(r, 1 - r, layer=layer, start_ps=-1) for layer in range(n_layers) for r in (0, 1)]
    tasks = []
    for layer in range(n_layers):
        for rank in (0, 1):
            number = 10 * len(tasks) + 7
            tasks.append(
                task(number, rank, layer=layer, kind="dispatch", duration_ps=spent * (rank + 1))
                | {"sends": "dispatch", "waits": "dispatch"}
                | {"depends_on": [number - 20] if layer else []}
            )
    return make_trace(flows, tasks)


def unreachable() -> nx.MultiGraph:
    """Return three dies, two of them on the rdma network as well."""
    builder = FabricBuilder()
    dies = builder.dies(3)
    hub, other = builder.switch("hub"), builder.switch("rdma", "rdma", kind="rdma")
    for die in dies:
        builder.link(die, hub)
    for die in dies[:2]:
        builder.link(die, other, plane="rdma", network="rdma")
    return builder.build()


def apart() -> nx.MultiGraph:
    """Return a ub network in two pieces that only the rdma network joins."""
    builder = FabricBuilder()
    dies = builder.dies(4)
    for number in (0, 1):
        hub = builder.switch(f"hub-{number}", f"ub{number}")
        for die in dies[2 * number : 2 * number + 2]:
            builder.link(die, hub, plane=f"ub{number}")
    other = builder.switch("rdma", "rdma", kind="rdma")
    for die in dies:
        builder.link(die, other, plane="rdma", network="rdma")
    return builder.build()


def cyclic() -> Trace:
    """Return two ranks that each wait for the other before they send."""
    tasks = [
        task(0, 0, waits="a"),
        task(1, 0, sends="b"),
        task(2, 1, waits="b"),
        task(3, 1, sends="a"),
    ]
    return make_trace(
        [flow(1, 0, phase="a", start_ps=-1), flow(0, 1, phase="b", start_ps=-1)], tasks
    )


# ---------------------------------------------------------------------------- bad input

BAD = {
    "a rank without a die": (
        star(2),
        make_trace([flow(0, 2)]),
        {},
        TraceError,
        r"rank 2 is a rank without a die: found 3 ranks, by-hand has 2 dies",
    ),
    "a message to an unknown rank": (
        star(3),
        make_trace([flow(0, 1), flow(0, 2)], n_ranks=2),
        {},
        TraceError,
        r"row 2: column 'dst': found 2, allowed a rank from 0 to 1",
    ),
    "a listed node that does not exist": (
        star(2),
        make_trace([flow(0, 1)], rank_nodes=["die-0", "die-9"]),
        {},
        TraceError,
        r"'die-9', which is no node of by-hand",
    ),
    "a network that one of the ranks lacks": (
        unreachable(),
        make_trace([flow(0, 1, network="rdma"), flow(1, 2, network="rdma")]),
        {},
        TraceError,
        r"row 2: network 'rdma' does not lead from rank 1 on die-1 to rank 2 on die-2",
    ),
    "a network that does not exist here": (
        star(2),
        make_trace([flow(0, 1, network="vpc")]),
        {},
        TraceError,
        r"row 1: network 'vpc' does not lead from rank 0 on die-0 to rank 1 on die-1",
    ),
    "two planes without a common one": (
        apart(),
        make_trace([flow(0, 1), flow(1, 2)], n_ranks=4),
        {},
        TraceError,
        r"row 2: network 'ub' does not lead from rank 1 on die-1 to rank 2 on die-2",
    ),
    "a negative size": (
        star(2),
        make_trace([flow(0, 1, message_bytes=-5)]),
        {},
        TraceError,
        r"row 1: column 'message_bytes': found -5, allowed 1 or more",
    ),
    "no messages": (
        star(2),
        make_trace([flow(0, 1, messages=0)]),
        {},
        TraceError,
        r"row 1: column 'messages': found 0, allowed 1 or more",
    ),
    "a negative duration": (
        star(2),
        make_trace([flow(0, 1)], [task(0, 0, duration_ps=-1)]),
        {},
        TraceError,
        r"row 1: column 'duration_ps': found -1, allowed 0 or more",
    ),
    "a cyclic task table": (
        star(2),
        cyclic(),
        {},
        TraceError,
        r"found a cycle of tasks .*0.*; a task may only wait for what can finish before it",
    ),
    "task ids that do not ascend": (
        star(2),
        make_trace([flow(0, 1)], [task(5, 0), task(5, 1)]),
        {},
        TraceError,
        r"row 2: column 'task': found 5",
    ),
    "a dependency that does not exist": (
        star(2),
        make_trace([flow(0, 1)], [task(5, 0, depends_on=[4])]),
        {},
        TraceError,
        r"row 1: column 'depends_on': found task 4",
    ),
    "a flow that nobody sends": (
        star(2),
        make_trace([flow(0, 1, start_ps=-1)]),
        {},
        TraceError,
        r"row 1: column 'src': found 0, allowed a rank with a task that sends it",
    ),
    "start times that begin after the first layer": (
        star(2),
        make_trace(
            [flow(0, 1, start_ps=-1), flow(0, 1, layer=1)],
            [task(0, 0, sends="dispatch"), task(1, 1, waits="dispatch")],
        ),
        {},
        TraceError,
        r"row 2: layer 1 has flows with start_ps, and the first layer has none",
    ),
    "a payload larger than the fabric's limit": (
        star(2),
        make_trace([flow(0, 1)]),
        {"payload_bytes": 10_001},
        SpecError,
        r"payload_bytes: found 10001, by-hand allows 1 to 10000",
    ),
    "no payload": (
        star(2),
        make_trace([flow(0, 1)]),
        {"payload_bytes": 0},
        SpecError,
        r"payload_bytes: found 0, by-hand allows 1 to 10000",
    ),
    "a payload larger than a buffer": (
        star(2, header=64, switch={"buffer_bytes": 2_000}),
        make_trace([flow(0, 1)]),
        {"payload_bytes": 1_990},
        TopologyError,
        r"node 'hub-0': buffer_bytes is 2000, a packet of 1990 B payload needs 2054 B",
    ),
    "an unknown path policy": (
        star(2),
        make_trace([flow(0, 1)]),
        {"path_policy": "ecmp"},
        SpecError,
        r"path_policy: found 'ecmp', allowed flow-hash, round-robin, random, load-balance, "
        r"adaptive",
    ),
    "an unknown plane policy": (
        star(2),
        make_trace([flow(0, 1)]),
        {"plane_policy": "ecmp"},
        SpecError,
        r"plane_policy: found 'ecmp', allowed flow-hash, round-robin, random, adaptive",
    ),
    "too many virtual lanes": (
        star(2),
        make_trace([flow(0, 1)]),
        {"n_virtual_lanes": 17},
        SpecError,
        r"n_virtual_lanes: found 17, allowed 1 to 16",
    ),
    "a negative seed": (
        star(2),
        make_trace([flow(0, 1)]),
        {"seed": -1},
        SpecError,
        r"seed: found -1, allowed 0 to 2\*\*64 - 1",
    ),
    "a service level that does not exist": (
        star(2),
        make_trace([flow(0, 1, service_level=16)]),
        {},
        TraceError,
        r"row 1: column 'service_level': found 16, allowed 0 to 15",
    ),
    "a graph without its packet size": (
        nx.MultiGraph(star(2), packet_payload_bytes=None),
        make_trace([flow(0, 1)]),
        {},
        TopologyError,
        r"packet_payload_bytes",
    ),
    "a graph with a node that lacks an attribute": (
        changed(star(2), "die-0", receive_latency_ps=None),
        make_trace([flow(0, 1)]),
        {},
        TopologyError,
        r"node die-0: receive_latency_ps",
    ),
    "an endpoint that sees what is not there yet": (
        changed(star(2), "die-0", receive_latency_ps=0),
        make_trace([flow(0, 1)]),
        {},
        TopologyError,
        r"node die-0: receive_latency_ps is 0; allowed: 1",
    ),
    # What the engine would end the process for.
    "more engines than the simulator has": (
        changed(star(2), "die-1", issue_engines=65),
        make_trace([flow(0, 1)]),
        {},
        TopologyError,
        r"node 'die-1': issue_engines is 65; allowed up to 64",
    ),
    "a flow of more packets than the simulator counts": (
        star(2),
        make_trace([flow(0, 1), flow(1, 0, messages=2**30, message_bytes=4_001)]),
        {},
        TraceError,
        r"row 2: found 5368709120 packets of 1000 B, allowed 4294967295",
    ),
    "a stream that begins in a later layer and could have begun before": (
        star(2),
        make_trace([], [task(0, 0, duration_ps=5), task(1, 1, layer=1)], n_ranks=2),
        {},
        TraceError,
        r"row 2: stream 0 of rank 1 has its first task in layer 1 and could begin it before",
    ),
    "a header larger than the simulator takes": (
        star(2, header=5_001),
        make_trace([flow(0, 1)]),
        {},
        TopologyError,
        r"transports\.ub: header_bytes: found '5001 B'; input should be less than or equal to 5000",
    ),
    "a packet larger than the simulator takes": (
        with_ub(changed(star(2), max_payload_bytes=60_000), header_bytes=5_000, flits=True),
        make_trace([flow(0, 1)]),
        {"payload_bytes": 60_000},
        SpecError,
        r"payload_bytes: found 60000, with headers 65\d\d\d B a packet in network ub of by-hand; "
        r"allowed up to 65535 B",
    ),
    "more engines and SDMA engines than the simulator has": (
        star(2, issue_engines=60, sdma_engines=5, sdma_bytes_per_s=1),
        make_trace([flow(0, 1)]),
        {},
        TopologyError,
        r"node 'die-0': issue_engines and sdma_engines are 65; allowed up to 64",
    ),
    "SDMA engines that never move a byte": (
        star(2, sdma_engines=5),
        make_trace([flow(0, 1)]),
        {},
        TopologyError,
        r"node 'die-0': sdma_bytes_per_s is 0; allowed 1 or more with sdma_engines of 5",
    ),
    "an endpoint that answers later than it sees": (
        with_ub(star(2, acknowledge_latency_ps=100_001), name="reliable"),
        make_trace([flow(0, 1)]),
        {},
        TopologyError,
        r"node 'die-0': acknowledge_latency_ps is 100001; allowed up to receive_latency_ps, "
        r"100000, as network ub has transport reliable",
    ),
    "a timeout shorter than an endpoint needs to see anything": (
        with_ub(star(2), timeout_ps=99_999),
        make_trace([flow(0, 1)]),
        {},
        TopologyError,
        r"transports\.ub: timeout_ps is 99999; allowed from the least receive_latency_ps .* 100000",
    ),
    "more tries than the simulator counts": (
        with_ub(star(2), timeout_limit=32),
        make_trace([flow(0, 1)]),
        {},
        TopologyError,
        r"transports\.ub: timeout_limit: found 32; input should be less than or equal to 31",
    ),
    "a congestion control without acknowledgements": (
        with_ub(star(2), name="compact", congestion_control="caqm"),
        make_trace([flow(0, 1)]),
        {},
        TopologyError,
        r"transports\.ub: found congestion_control caqm with compact, .*; allowed: none, dcqcn",
    ),
    "cells larger than the simulator takes": (
        changed(star(2), link_layer={"flit_bytes": 640, "cell_flits": 8}),
        make_trace([flow(0, 1)]),
        {},
        TopologyError,
        r"link_layer: found cells of 8 flits of 640 B; allowed: cells of up to 2560 B",
    ),
    "a payload larger than the simulator takes": (
        changed(star(2), max_payload_bytes=100_000),
        make_trace([flow(0, 1)]),
        {"payload_bytes": 60_001},
        SpecError,
        r"payload_bytes: found 60001, by-hand allows 1 to 60000",
    ),
    "more planes than the simulator has": (
        star(2, planes=65),
        make_trace([flow(0, 1)]),
        {},
        TopologyError,
        r"found 65 planes; allowed up to 64",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_and_writes_nothing(case, tmp_path):
    graph, trace, options, error, pattern = BAD[case]
    with pytest.raises(error, match=pattern) as caught:
        replay(graph, trace, tmp_path / "out", progress=False, **options)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    # And the process can still run another.
    assert run(star(2), make_trace([flow(0, 1)])).summary["packets"] == 1


def test_fault_in_a_later_layer_names_its_row_in_the_file_and_leaves_nothing(tmp_path):
    trace = make_trace(
        [flow(0, 1, layer=0, start_ps=-1), flow(0, 1, layer=1, messages=-3, start_ps=-1)],
        [
            task(0, 0, sends="dispatch"),
            task(1, 1, waits="dispatch"),
            task(2, 0, layer=1, sends="dispatch"),
            task(3, 1, layer=1, waits="dispatch"),
        ],
    )
    with pytest.raises(TraceError, match=r"row 2: column 'messages': found -3"):
        replay(star(2), trace, tmp_path / "out", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_complete_run_is_replaced_on_demand_only(tmp_path):
    graph, out = star(3), tmp_path / "out"
    replay(graph, make_trace([flow(0, 1)]), out, progress=False)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ResultError, match="a run folder exists here"):
        replay(graph, make_trace([flow(0, 2)]), out, progress=False)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    again = replay(graph, make_trace([flow(0, 2)]), out, progress=False, overwrite=True)
    assert again.flows()["dst"].tolist() == [2]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folder_of_something_else_is_never_touched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ResultError, match=r"holds 'notes.txt'"):
        replay(star(2), make_trace([flow(0, 1)]), tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


# ------------------------------------------------------------------------ interruption


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
@pytest.mark.parametrize("after", [0, 2])
def test_interrupted_run_leaves_nothing_and_the_next_one_works(error, after, tmp_path, monkeypatch):
    graph, trace = star(2), exchange(4)
    whole = run(graph, trace)
    slices = []
    original = _bridge.Engine.run

    def interrupted(engine, packet_hops=0):
        slices.append(packet_hops)
        if len(slices) > after:
            raise error("in the middle")
        original(engine, packet_hops)

    monkeypatch.setattr(_bridge.Engine, "run", interrupted)
    monkeypatch.setattr(replay_module, "_SLICE_PACKET_HOPS", 1)
    with pytest.raises(error):
        replay(graph, trace, tmp_path / "out", progress=False)
    assert len(slices) == after + 1
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert run(graph, trace).files == whole.files


def test_interrupted_replacement_keeps_the_old_run(tmp_path, monkeypatch):
    graph, out = star(2), tmp_path / "out"
    replay(graph, make_trace([flow(0, 1)]), out, progress=False)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(_bridge.Engine, "link_stats", lambda engine: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replay(graph, exchange(), out, progress=False, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_run_that_ends_unfinished_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(_bridge.Engine, "leftover", lambda engine: "3 packets are still inside")
    with pytest.raises(SimulationError, match="the run ended unfinished: 3 packets are still ins"):
        replay(star(2), make_trace([flow(0, 1)]), tmp_path / "out", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_engine_reports_what_is_left_when_stopped_in_the_middle(tmp_path):
    """The check behind the error above sees packets, bytes, tasks and missing credit."""
    said = []

    class StopHere(Exception):  # noqa: N818
        pass

    def attach(engine, arrays):
        start = engine.run

        def once(packet_hops=0):
            start(1)
            said.append((engine.leftover(), engine.counters))
            raise StopHere

        engine.run = once

    trace = make_trace([flow(0, 1, messages=50)])
    with pytest.raises(StopHere):
        replay(line([10**10] * 3), trace, tmp_path / "out", progress=False, attach=attach)
    left, counters = said[0]
    assert f"{counters['bytes_sent']} bytes were sent and " in left
    assert "packets are still inside" in left
    assert "flows and tasks are not finished" in left
    assert counters["bytes_delivered"] < counters["bytes_sent"] <= 50_000


def test_failed_attachment_frees_the_engine(tmp_path):
    def attach(engine, arrays):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        replay(star(2), exchange(), tmp_path / "out", progress=False, attach=attach)
    assert list(tmp_path.iterdir()) == []
    assert run(star(2), exchange()).summary["packets"] == 2


def test_one_simulation_at_a_time(tmp_path):
    def attach(engine, arrays):
        replay(star(2), exchange(), tmp_path / "inner", progress=False)

    with pytest.raises(BridgeError, match="a simulation is at work in this process"):
        replay(star(2), exchange(), tmp_path / "outer", progress=False, attach=attach)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------ what must not show


def test_replays_of_one_process_do_not_see_each_other():
    small, large = star(2), build_topology("one-node")
    first = run(small, exchange(3))
    other = run(large, make_trace([flow(0, 9, messages=5), flow(3, 0)], n_ranks=16))
    assert run(small, exchange(3)).files == first.files
    again = run(large, make_trace([flow(0, 9, messages=5), flow(3, 0)], n_ranks=16))
    assert again.files == other.files


def test_same_seed_gives_the_same_bytes_in_another_process(tmp_path):
    how = {"path_policy": "random", "plane_policy": "random", "progress": False}
    script = f"""
        from ubfabric import build_topology, generate_trace, replay
        trace = generate_trace("decode-ep8-sample", layers=1, seed=5)
        replay(build_topology("one-node"), trace, "there", **{how})
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        check=True,
        cwd=tmp_path,  # not the source folder, which would come before the installed package
        env=os.environ | {"PYTHONHASHSEED": "1"},
    )
    trace = generate_trace("decode-ep8-sample", layers=1, seed=5)
    replay(build_topology("one-node"), trace, tmp_path / "here", **how)
    for table in ("flows", "tasks", "links"):
        here, there = (tmp_path / at / f"{table}.parquet" for at in ("here", "there"))
        assert here.read_bytes() == there.read_bytes()
    here, there = (
        json.loads((tmp_path / at / "summary.json").read_text()) for at in ("here", "there")
    )
    for key in ("wall_s", "packet_hops_per_s"):  # these alone depend on the machine
        assert here.pop(key) > 0
        assert there.pop(key) > 0
    assert here == there


def test_another_seed_gives_other_paths():
    graph, trace = build_topology("two-nodes"), make_trace([flow(0, 16)], n_ranks=32)
    used = {
        tuple(run(graph, trace, seed=seed).links.query("packets > 0")["link"]) for seed in range(6)
    }
    assert len(used) > 1


def test_progress_bar_does_not_show_in_the_result(capsys):
    quiet = run(star(2), exchange(3), progress=False)
    assert capsys.readouterr().err == ""
    shown = run(star(2), exchange(3), progress=True)
    assert quiet.files == shown.files


def test_progress_is_quiet_where_there_is_no_terminal(capfd):
    run(star(2), exchange(3), progress=None)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("hops", [1, 3, 1_000])
def test_slices_do_not_show_in_the_result(hops, monkeypatch):
    graph, trace = build_topology("one-node"), generate_trace("decode-ep8-sample", layers=1)
    whole = run(graph, trace)
    monkeypatch.setattr(replay_module, "_SLICE_PACKET_HOPS", hops * 1_000)
    assert run(graph, trace).files == whole.files


def test_layers_are_loaded_when_needed_and_that_does_not_show(monkeypatch):
    graph, trace = build_topology("one-node"), generate_trace("decode-ep8-sample")
    loads, most = [], []
    original = replay_module._Session._load

    def spy(session, batch, *, is_last):
        original(session, batch, is_last=is_last)
        loads.append((len(batch.layers), session.engine.now_ps))
        most.append(len(session.loaded))

    monkeypatch.setattr(replay_module._Session, "_load", spy)
    layered = run(graph, trace)
    n_layers = len(loads)
    assert n_layers == trace.n_chunks > 4
    assert max(most) <= 3
    assert loads[-1][1] > 0  # the last one was not loaded before the run began

    def at_once(session):
        yield list(session.trace.chunks())

    monkeypatch.setattr(replay_module._Session, "_layers", at_once)
    whole = run(graph, trace)
    assert loads[n_layers:] == [(n_layers, 0)]
    assert layered.files == whole.files


def test_layers_leave_memory_while_the_run_goes_on():
    """Of a layer that is loaded its flow records are left, and no table that the trace gave."""
    whole = list(exchange(n_layers=6).chunks())
    given, alive = [], []

    def chunks():
        for chunk in whole:
            gc.collect()
            alive.append(sum(table() is not None for table in given))
            flows = pa.Table.from_batches(chunk.flows.to_batches())
            given.append(weakref.ref(flows))
            chunk = replace(chunk, flows=flows)
            del flows
            yield chunk
            del chunk

    metadata = exchange().metadata
    run(star(2), Trace(metadata, len(whole), chunks))
    # the next is asked for before the one at hand is loaded
    assert alive == [0, 1, 1, 1, 1, 1]


def test_names_of_a_column_are_written_in_the_order_of_the_trace(tmp_path):
    """Networks and operations come back as they were, whatever the order of their names."""
    flows = [flow(0, 1), flow(1, 0, network="rdma", phase="second"), flow(0, 0, phase="copy")]
    trace = make_trace(flows)
    (chunk,) = trace.chunks()
    texts = pa.array(["rdma", "ub", "vpc"])
    network = pa.DictionaryArray.from_arrays(pa.array([1, 0, 1], pa.int32()), texts)
    column = chunk.flows.schema.get_field_index("network")
    other = replace(chunk, flows=chunk.flows.set_column(column, "network", network))
    both = [
        replay(unreachable(), one, tmp_path / name, progress=False)
        for one, name in ((trace, "a"), (Trace(trace.metadata, 1, lambda: iter([other])), "b"))
    ]
    for result in both:
        found = result.flows()
        assert found["network"].astype(str).tolist() == ["ub", "rdma", "ub"]
        assert found["operation"].astype(str).tolist() == ["write"] * 3
        for name in ("messages", "message_bytes", "src", "dst", "layer"):
            assert found[name].tolist() == chunk.flows[name].to_pylist()


def test_ready_time_of_a_task_is_when_its_dependency_finished_however_long_ago():
    # Layer 0 is finished and gone when layer 2, which depends on it, is loaded.
    tasks = [
        task(0, 0, layer=0, duration_ps=1 * US),
        task(1, 0, layer=0, duration_ps=2 * US),
        task(2, 0, layer=1, duration_ps=4 * US),
        task(3, 0, layer=2, duration_ps=8 * US, depends_on=[0]),
    ]
    result = run(star(2), make_trace([], tasks, n_ranks=2))
    assert result.tasks["ready_ps"].tolist() == [0, 0, 0, 1 * US]
    assert result.tasks["start_ps"].tolist() == [0, 1 * US, 3 * US, 7 * US]


def test_stream_may_begin_in_a_later_layer_if_it_must_wait_for_it():
    # Rank 1 has nothing to do until rank 0's second layer tells it to.
    flows = [flow(0, 1, layer=1, start_ps=-1)]
    tasks = [
        task(0, 0, duration_ps=5 * US),
        task(1, 0, layer=1, duration_ps=1 * US, sends="dispatch"),
        task(2, 1, layer=1, depends_on=[1], waits="dispatch"),
    ]
    layered = run(star(2), make_trace(flows, tasks))
    assert layered.tasks["start_ps"].tolist() == [0, 5 * US, 6 * US]
    # With a task in the first layer it may begin whenever it likes.
    tasks = [
        task(0, 0, duration_ps=5 * US),
        task(1, 1),
        task(2, 0, layer=1, duration_ps=1 * US),
        task(3, 1, layer=1, duration_ps=1 * US),
    ]
    layered = run(star(2), make_trace([], tasks, n_ranks=2))
    assert layered.tasks["start_ps"].tolist() == [0, 0, 5 * US, 0]


def test_sparse_task_ids_give_the_same_times_as_dense_ones():
    sparse = run(star(2), exchange(4))
    assert sparse.tasks["task"].tolist() == [10 * n + 7 for n in range(8)]
    dense_tasks, flows = [], []
    for chunk in exchange(4).chunks():
        flows += chunk.flows.to_pylist()
        for row in chunk.tasks.to_pylist():
            wanted = [n // 10 for n in row["depends_on"]]
            dense_tasks.append(row | {"task": row["task"] // 10, "depends_on": wanted})
    dense = run(star(2), make_trace(flows, dense_tasks))
    assert dense.files["flows.parquet"] == sparse.files["flows.parquet"]
    for column in ("ready_ps", "start_ps", "finish_ps", "issued_ps", "arrived_ps"):
        assert dense.tasks[column].tolist() == sparse.tasks[column].tolist()


def test_trace_from_disk_replays_as_the_one_in_memory(tmp_path):
    graph, trace = build_topology("one-node"), generate_trace("decode-ep8-sample", layers=1)
    stored = read_trace(write_trace(trace, tmp_path / "trace"))
    assert run(graph, trace).files == run(graph, stored).files
    text = read_trace(write_trace(exchange(2), tmp_path / "csv", file_format="csv"))
    assert run(star(2), text).files == run(star(2), exchange(2)).files


def test_rank_that_runs_many_layers_ahead_is_refused_with_the_reason(tmp_path):
    # Rank 0 runs through 40 layers in no time while rank 1 is still in its first.
    tasks = []
    for layer in range(40):
        tasks.append(task(len(tasks), 0, layer=layer, duration_ps=1))
        tasks.append(task(len(tasks), 1, layer=layer, duration_ps=1 * US))
    with pytest.raises(TraceError, match="more than 32 layers are unfinished at one time"):
        replay(star(2), make_trace([], tasks, n_ranks=2), tmp_path / "out", progress=False)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------ summary


def test_summary_says_what_was_run():
    graph, trace = build_topology("one-node"), generate_trace("decode-ep8-sample", layers=1, seed=9)
    result = run(
        graph, trace, payload_bytes=512, path_policy="flow-hash", plane_policy="random",
        n_virtual_lanes=3, seed=4,
    )  # fmt: skip
    summary, flows = result.summary, result.flows
    assert summary["seed"] == 4
    assert summary["trace"]["seed"] == 9
    assert summary["topology"] == "one-node"
    assert summary["topology_spec"] == graph.graph["spec"]
    assert summary["trace"] == json.loads(json.dumps(trace.metadata))
    assert summary["rank_nodes"] == [f"die-0-{n}" for n in range(8)]
    assert summary["payload_bytes"] == 512
    assert summary["link_layer"] == link_layer(graph)
    assert summary["switching"] == switching(graph)
    assert summary["transports"] == {
        name: used_settings(transport) for name, transport in transports(graph).items()
    }
    assert summary["transports"]["ub"]["header_bytes"] == 28
    assert summary["faults"] == []
    assert summary["packets_lost"] == 0
    assert summary["n_virtual_lanes"] == 3
    assert summary["path_policy"] == "flow-hash"
    assert summary["plane_policy"] == "random"
    assert summary["packets"] == flows["packets"].sum()
    assert summary["packet_hops"] == (flows["packets"] * flows["hops"]).sum()
    assert summary["bytes_sent"] == summary["bytes_delivered"] == flows["bytes"].sum()
    assert summary["simulated_ps"] == result.tasks["finish_ps"].max()
    assert summary["wall_s"] > 0
    assert {"python", "ns3", "numpy", "networkx", "pyarrow"} <= set(summary["versions"])
    assert summary["rows"] == {
        "flows": len(flows),
        "tasks": len(result.tasks),
        "links": 2 * graph.number_of_edges(),
    }
    assert (flows["packets"] == flows["messages"] * -(-flows["message_bytes"] // 512)).all()


def test_seed_is_the_traces_unless_given():
    assert run(star(2), make_trace([flow(0, 1)], seed=17)).summary["seed"] == 17
    assert run(star(2), make_trace([flow(0, 1)], seed=17), seed=3).summary["seed"] == 3
    assert run(star(2), make_trace([flow(0, 1)])).summary["seed"] == 0


def test_empty_trace_runs():
    result = run(star(2), make_trace([], n_ranks=2))
    assert result.summary["simulated_ps"] == 0
    assert (len(result.flows), len(result.tasks), len(result.links)) == (0, 0, 4)
    assert (result.links["packets"] == 0).all()


def test_graph_of_ones_own_and_a_simple_graph_run():
    builder = star(3, delay_ps=5 * NS)
    simple = nx.Graph(builder)  # no parallel cables: a plain graph will do
    trace = make_trace([flow(0, 1, messages=3), flow(2, 1)])
    assert run(simple, trace).files == run(builder, trace).files


def test_attach_gets_the_engine_before_the_run():
    seen = []

    def attach(engine, arrays):
        seen.append((engine.now_ps, engine.counters["packets"], arrays.n_nodes))
        assert engine.fabric.GetNNodes() == arrays.n_nodes

    run(star(2), make_trace([flow(0, 1)]), attach=attach)
    assert seen == [(0, 0, 3)]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 1_000])
def test_each_flow_record_is_one_cache_line(n):
    records = [_bridge.flow_records(n) for _ in range(8)]  # each where memory was free
    for flows in records:
        assert flows.shape == (n,) and flows.dtype == _bridge.FLOW_RECORD
        assert flows.itemsize == 64 and (n == 0 or flows.ctypes.data % 64 == 0)
        assert flows.flags.c_contiguous and not flows.view(np.uint8).any()
