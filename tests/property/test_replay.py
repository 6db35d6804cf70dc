"""Laws that every replay obeys, over random small fabrics and random traces."""

from __future__ import annotations

import math
import sys
from functools import lru_cache

import networkx as nx
import pytest
from fabrics import Outcome, make_trace, run, serialise_ps
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import open_loop_traces, topologies, traces

from ubfabric import _bridge
from ubfabric.fabric_settings import transports
from ubfabric.replay import PATH_POLICIES, PLANE_POLICIES
from ubfabric.trace import Trace


def examples(count: int) -> settings:
    """Return settings for so many examples, or for those of the profile that explores."""
    return settings() if settings().max_examples > 100 else settings(max_examples=count)


some, few = examples(25), examples(12)

options = st.fixed_dictionaries(
    {
        "plane_policy": st.sampled_from(sorted(PLANE_POLICIES)),
        "path_policy": st.sampled_from(sorted(PATH_POLICIES)),
        "n_virtual_lanes": st.sampled_from([1, 2, 4]),
        "seed": st.integers(0, 2**64 - 1),
    }
)


@st.composite
def cases(draw, make_trace=traces):
    """Draw a fabric, a trace that fits it, and the options of a replay."""
    graph = draw(topologies(max_endpoints=8))
    return graph, draw(make_trace(graph)), draw(options)


def rows(result: Outcome, *columns: str) -> list[tuple]:
    """Return the flow table as sorted rows, so that their order does not count."""
    names = list(columns) or list(result.flows.columns)
    return sorted(result.flows[names].astype(object).itertuples(index=False, name=None))


def all_flows(trace: Trace) -> list[dict]:
    return [row for chunk in trace.chunks() for row in chunk.flows.to_pylist()]


def all_tasks(trace: Trace) -> list[dict]:
    return [row for chunk in trace.chunks() for row in chunk.tasks.to_pylist()]


def packet_sizes(message_bytes: int, payload: int) -> list[int]:
    whole, rest = divmod(message_bytes, payload)
    return [payload] * whole + ([rest] if rest else [])


# ------------------------------------------------------------------------- conservation


@some
@given(cases())
def test_every_byte_sent_is_delivered_and_every_credit_returns(case):
    graph, trace, how = case
    leftovers = []

    def attach(engine, arrays):
        ask = engine.leftover
        engine.leftover = lambda: leftovers.append(ask()) or leftovers[-1]

    result = run(graph, trace, attach=attach, **how)
    assert leftovers == [""]
    asked, payload = all_flows(trace), graph.graph["packet_payload_bytes"]
    assert rows(result, "phase", "layer", "microbatch", "src", "dst") == sorted(
        (f["phase"], f["layer"], f["microbatch"], f["src"], f["dst"]) for f in asked
    )
    bytes_of = [f["messages"] * f["message_bytes"] for f in asked]
    packets_of = [f["messages"] * math.ceil(f["message_bytes"] / payload) for f in asked]
    total = sum(bytes_of)
    assert result.summary["bytes_sent"] == result.summary["bytes_delivered"] == total
    assert result.flows["bytes"].sum() == total
    assert result.flows["packets"].sum() == result.summary["packets"] == sum(packets_of)

    # Into and out of every endpoint goes what its flows say, headers included; through every
    # switch goes what comes in.
    header = transports(graph)["ub"]["header_bytes"]
    links = result.links
    for end, of_flow in (("src", "src"), ("dst", "dst")):
        want = dict.fromkeys(graph, (0, 0))
        for f, n_bytes, packets in zip(asked, bytes_of, packets_of, strict=True):
            if f["src"] != f["dst"]:
                node = f"die-{f[of_flow]}"
                have = want[node]
                want[node] = (have[0] + n_bytes + packets * header, have[1] + packets)
        for node, data in graph.nodes(data=True):
            if data["role"] == "endpoint":
                seen = links[links[end] == node]
                assert (seen["bytes"].sum(), seen["packets"].sum()) == want[node]
    for node, data in graph.nodes(data=True):
        if data["role"] == "switch":
            coming, going = links[links["dst"] == node], links[links["src"] == node]
            assert coming["bytes"].sum() == going["bytes"].sum()
            assert coming["packets"].sum() == going["packets"].sum()
    hops = (links["packets"]).sum()
    assert result.summary["packet_hops"] == hops


@some
@given(cases())
def test_buffers_and_queues_stay_within_bounds(case):
    graph, trace, how = case
    result = run(graph, trace, **how)
    lanes = how["n_virtual_lanes"]
    in_degree = result.links.groupby("dst", observed=True).size()
    for link in result.links.itertuples():
        source = graph.nodes[link.src]
        assert link.no_credit_ps >= 0
        assert link.no_credit_ps + link.busy_ps <= result.summary["simulated_ps"] + link.packets
        if source["role"] == "switch":
            # What waits for an output sits in the input buffers of its switch.
            assert link.max_queue_bytes <= in_degree[link.src] * lanes * source["buffer_bytes"]
    assert (result.flows["queueing_ps"] >= 0).all()


# ------------------------------------------------------------------------- physical bounds


def least_path_ps(graph: nx.MultiGraph, network: str, src: str, dst: str) -> tuple[int, int]:
    """Return (least latency of the heads, highest rate of the last link) between endpoints."""
    best_latency, best_rate = [], []
    direct = [
        data
        for data in (graph.get_edge_data(src, dst) or {}).values()
        if data["network"] == network
    ]
    if direct:
        return min(d["delay_ps"] for d in direct), max(d["bandwidth_bytes_per_s"] for d in direct)
    planes = {data["plane"] for _, _, data in graph.edges(data=True) if data["network"] == network}
    for plane in planes:
        ways = nx.DiGraph()
        for u, v, data in graph.edges(data=True):
            if data["plane"] != plane:
                continue
            for a, b in ((u, v), (v, u)):
                inner = [n for n in (a, b) if graph.nodes[n]["role"] == "switch"]
                if not inner or (a not in inner and a != src) or (b not in inner and b != dst):
                    continue
                weight = data["delay_ps"] + graph.nodes[b].get("forward_latency_ps", 0)
                if not ways.has_edge(a, b) or ways[a][b]["weight"] > weight:
                    ways.add_edge(a, b, weight=weight)
                if b == dst:
                    best_rate.append(data["bandwidth_bytes_per_s"])
        if src in ways and dst in ways and nx.has_path(ways, src, dst):
            best_latency.append(nx.shortest_path_length(ways, src, dst, weight="weight"))
    return min(best_latency), max(best_rate)


@some
@given(cases())
def test_no_flow_is_faster_than_physics(case):
    graph, trace, how = case
    result = run(graph, trace, **how)
    payload = graph.graph["packet_payload_bytes"]
    header = transports(graph)["ub"]["header_bytes"]
    for f in result.flows.itertuples():
        src, dst = f"die-{f.src}", f"die-{f.dst}"
        die = graph.nodes[src]
        sizes = packet_sizes(f.message_bytes, payload)
        each = die["issue_cost_ps"] + sum(
            serialise_ps(size, die["engine_bytes_per_s"]) for size in sizes
        )
        # One of the engines has at least this many messages to issue.
        issued = math.ceil(f.messages / die["issue_engines"]) * each
        receive = graph.nodes[dst]["receive_latency_ps"]
        assert f.start_ps <= f.first_byte_ps <= f.finish_ps
        assert f.fct_ps == f.finish_ps - f.start_ps
        if src == dst:
            copy = serialise_ps(sizes[-1], die["copy_bytes_per_s"])
            assert f.fct_ps >= issued + copy + receive
            assert f.hops == 0
            continue
        path, rate = least_path_ps(graph, f.network, src, dst)
        assert f.fct_ps >= issued + path + serialise_ps(sizes[-1] + header, rate) + receive
        # All bytes leave through the egress limit and the ports, and enter through ports; a
        # package's own link is beside the limit.
        wire = f.messages * sum(size + header for size in sizes)
        slack = f.packets + 1  # half a picosecond of rounding for each packet
        limit = die["egress_bytes_per_s"]
        after_first = wire - max(sizes) - header
        between = (graph.get_edge_data(src, dst) or {}).values()
        if not any(data["network"] == f.network for data in between):
            assert f.fct_ps >= after_first * 10**12 // limit + path + receive - slack
        for node in (src, dst):
            ports = sum(
                data["bandwidth_bytes_per_s"]
                for _, _, data in graph.edges(node, data=True)
                if data["network"] == f.network
            )
            assert f.fct_ps >= wire * 10**12 // ports + receive - slack


@some
@given(cases())
def test_no_phase_is_faster_than_its_most_loaded_link(case):
    graph, trace, how = case
    result = run(graph, trace, **how)
    if result.flows.empty:
        return
    flows = result.flows[result.flows["hops"] > 0]
    if flows.empty:
        return
    makespan = flows["finish_ps"].max() - flows["start_ps"].min()
    receive = min(data.get("receive_latency_ps", 10**9) for _, data in graph.nodes(data=True))
    busiest = result.links["busy_ps"].max()
    assert makespan >= busiest + receive - result.links["packets"].max()
    # And no link carries more than its rate allows in that time.
    most = makespan * result.links["bandwidth_bytes_per_s"].astype(object) // 10**12
    assert (result.links["bytes"] <= most + result.links["packets"]).all()


@some
@given(cases())
def test_tasks_follow_their_stream_their_dependencies_and_their_flows(case):
    graph, trace, how = case
    result = run(graph, trace, **how)
    asked = all_tasks(trace)
    done = result.tasks.set_index("task")
    assert sorted(done.index) == [row["task"] for row in asked]
    flows = result.flows
    stream_free: dict[tuple[int, int], int] = {}
    for row in asked:
        seen = done.loc[row["task"]]
        ready = max([int(done.loc[t].finish_ps) for t in row["depends_on"]], default=0)
        assert seen.ready_ps == ready
        free = stream_free.get((row["rank"], row["stream"]), 0)
        assert seen.start_ps == max(ready, free)
        end = seen.start_ps + row["duration_ps"]
        among = (flows["layer"] == row["layer"]) & (flows["microbatch"] == row["microbatch"])
        sent = flows[among & (flows["phase"] == row["sends"]) & (flows["src"] == row["rank"])]
        awaited = flows[among & (flows["phase"] == row["waits"]) & (flows["dst"] == row["rank"])]
        assert (sent["start_ps"] == end).all()
        assert (seen.issued_ps >= end) if len(sent) else (seen.issued_ps == -1)
        assert seen.arrived_ps == (awaited["finish_ps"].max() if len(awaited) else -1)
        assert seen.finish_ps == max(end, seen.issued_ps, seen.arrived_ps)
        stream_free[row["rank"], row["stream"]] = int(seen.finish_ps)


# ------------------------------------------------------- what must not change the result


@few
@given(cases())
def test_same_seed_gives_the_same_bytes(case):
    graph, trace, how = case
    assert run(graph, trace, **how).files == run(graph, trace, **how).files


@few
@given(cases(), st.randoms(use_true_random=False))
def test_rows_of_different_sources_may_be_interleaved_in_any_way(case, random):
    graph, trace, how = case
    flows = all_flows(trace)
    order = [(f["layer"], f["src"]) for f in flows]
    random.shuffle(order)
    order.sort(key=lambda key: key[0])
    by_source: dict[tuple[int, int], list[dict]] = {}
    for f in flows:
        by_source.setdefault((f["layer"], f["src"]), []).append(f)
    dealt = [by_source[key].pop(0) for key in order]
    other = make_trace(dealt, all_tasks(trace), trace.n_ranks)
    one, two = run(graph, trace, **how), run(graph, other, **how)
    assert rows(one) == rows(two)
    assert one.files["tasks.parquet"] == two.files["tasks.parquet"]
    assert one.files["links.parquet"] == two.files["links.parquet"]


@few
@given(cases(), st.randoms(use_true_random=False))
def test_any_order_of_rows_loads_the_links_alike_under_flow_hash(case, random):
    graph, trace, how = case
    how = how | {"plane_policy": "flow-hash", "path_policy": "flow-hash"}
    flows = all_flows(trace)
    random.shuffle(flows)
    flows.sort(key=lambda f: f["layer"])
    other = make_trace(flows, all_tasks(trace), trace.n_ranks)
    one, two = run(graph, trace, **how), run(graph, other, **how)
    same = ["phase", "layer", "microbatch", "src", "dst", "bytes", "packets", "hops"]
    assert rows(one, *same) == rows(two, *same)
    # A pair keeps to its path whatever the times, so each link carries the same.
    for column in ("packets", "bytes", "busy_ps"):
        assert one.links[column].tolist() == two.links[column].tolist()


@few
@given(cases(), st.integers(1, 50))
def test_slices_of_a_run_do_not_show(case, hops):
    graph, trace, how = case
    whole = run(graph, trace, **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["ubfabric.replay"], "_SLICE_PACKET_HOPS", hops)
        sliced = run(graph, trace, **how)
    assert whole.files == sliced.files
    assert whole.summary["simulated_ps"] == sliced.summary["simulated_ps"]


@few
@given(cases())
def test_loading_layer_by_layer_or_all_at_once_is_the_same(case):
    graph, trace, how = case
    layered = run(graph, trace, **how)

    def at_once(session):
        chunks = list(session.trace.chunks())
        if chunks:
            yield chunks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["ubfabric.replay"]._Session, "_layers", at_once)
        whole = run(graph, trace, **how)
    assert layered.files == whole.files


@lru_cache
def sinks():
    """Return C++ functions that watch a fabric, and that take the windows away from it."""
    import cppyy

    _bridge.load()
    cppyy.cppdef(
        """
        #include "ns3/global-value.h"
        #include "ns3/simulator.h"
        #include "ns3/string.h"
        namespace ub_test
        {
        int64_t nSent = 0, nDelivered = 0, nStalls = 0, nFlows = 0, lastPs = 0;
        bool inOrder = true;
        void Tick() { int64_t now = ns3::Simulator::Now().GetTimeStep();
                      inOrder = inOrder && now >= lastPs; lastPs = now; }
        void Sent(uint32_t, uint32_t, uint32_t) { ++nSent; Tick(); }
        void Delivered(uint32_t, uint32_t, uint32_t) { ++nDelivered; Tick(); }
        void Stall(uint32_t) { ++nStalls; Tick(); }
        void Flow(uint32_t, uint32_t, uint64_t, ns3::Time) { ++nFlows; Tick(); }
        void Watch(ns3::Ptr<ns3::UbFabric> fabric)
        {
            nSent = nDelivered = nStalls = nFlows = lastPs = 0;
            inOrder = true;
            fabric->TraceConnectWithoutContext("PacketSent", ns3::MakeCallback(&Sent));
            fabric->TraceConnectWithoutContext("PacketDelivered", ns3::MakeCallback(&Delivered));
            fabric->TraceConnectWithoutContext("CreditStall", ns3::MakeCallback(&Stall));
            fabric->TraceConnectWithoutContext("FlowFinished", ns3::MakeCallback(&Flow));
        }
        void UseStockSimulator()
        {
            ns3::GlobalValue::Bind("SimulatorImplementationType",
                                   ns3::StringValue("ns3::DefaultSimulatorImpl"));
            ns3::Simulator::Now();
        }
        bool IsStock()
        {
            return ns3::Simulator::GetImplementation()->GetInstanceTypeId().GetName() ==
                   "ns3::DefaultSimulatorImpl";
        }
        } // namespace ub_test
        """
    )
    return cppyy.gbl.ub_test


@few
@given(cases())
def test_watching_a_run_does_not_change_it(case):
    graph, trace, how = case
    watch = sinks()
    alone = run(graph, trace, **how)
    watched = run(graph, trace, attach=lambda engine, _: watch.Watch(engine.fabric), **how)
    assert alone.files == watched.files
    assert watch.nSent == watched.summary["packet_hops"]
    local = watched.flows[watched.flows["hops"] == 0]["packets"].sum()
    assert watch.nDelivered == watched.summary["packets"] - local
    assert watch.nFlows == len(watched.flows)
    assert (watch.nStalls > 0) >= (watched.links["no_credit_ps"].sum() > 0)
    assert watch.inOrder


@few
@given(cases())
def test_windows_do_not_show(case):
    graph, trace, how = case
    windowed = run(graph, trace, **how)
    watch = sinks()
    watch.UseStockSimulator()
    assert watch.IsStock()
    stepped = run(graph, trace, **how)
    assert windowed.files == stepped.files


# --------------------------------------------------------------------------- scaling

#: Rates that divide a second into whole picoseconds a byte, and so do their doubles.
_EXACT = {10**9: 10**9, 7 * 10**9: 4 * 10**9, 22_857_142_857: 10**10, 28 * 10**9: 2 * 10**10}


def scaled(graph: nx.MultiGraph, factor: int) -> nx.MultiGraph:
    """Return a graph with all rates times a factor and all times divided by it, exactly."""
    result = graph.copy()
    attributes = [data for _, data in result.nodes(data=True)]
    attributes += [data for _, _, data in result.edges(data=True)]
    for data in attributes:
        for name, value in data.items():
            if name.endswith("bytes_per_s"):
                data[name] = _EXACT.get(value, 10**11) * factor
            elif name.endswith("_ps"):
                data[name] = 2 * value // factor
    return result


@few
@given(cases())
def test_twice_the_rate_and_half_the_latency_is_half_the_time(case):
    graph, trace, how = case

    def halved(rows, factor):
        return [
            row | {name: 2 * row[name] // factor for name in ("start_ps", "duration_ps")
                   if row.get(name, -1) >= 0}
            for row in rows
        ]  # fmt: skip

    def at(factor):
        asked = make_trace(
            halved(all_flows(trace), factor), halved(all_tasks(trace), factor), trace.n_ranks
        )
        return run(scaled(graph, factor), asked, **how)

    slow, fast = at(1), at(2)
    for name in ("start_ps", "first_byte_ps", "finish_ps", "fct_ps", "queueing_ps"):
        assert slow.flows[name].tolist() == (2 * fast.flows[name]).tolist()
    for name in ("ready_ps", "start_ps", "finish_ps"):
        assert slow.tasks[name].tolist() == (2 * fast.tasks[name]).tolist()
    for name in ("busy_ps", "no_credit_ps"):
        assert slow.links[name].tolist() == (2 * fast.links[name]).tolist()
    assert slow.links["max_queue_bytes"].tolist() == fast.links["max_queue_bytes"].tolist()


@few
@given(cases(open_loop_traces), st.integers(0, 10**9))
def test_a_later_start_of_everything_shifts_everything(case, later):
    graph, trace, how = case
    moved = [row | {"start_ps": row["start_ps"] + later} for row in all_flows(trace)]
    one = run(graph, trace, **how)
    two = run(graph, make_trace(moved, n_ranks=trace.n_ranks), **how)
    for name in ("start_ps", "first_byte_ps", "finish_ps"):
        assert (one.flows[name] + later).tolist() == two.flows[name].tolist()
    assert one.files["links.parquet"] == two.files["links.parquet"]


def test_the_strategies_reach_what_they_are_meant_to():
    """Contention, stalls, copies, direct links, several packets a message, closed loop."""
    seen = set()

    @settings(max_examples=200, database=None)
    @given(cases())
    def look(case):
        if len(seen) == 10:
            return
        graph, trace, how = case
        result = run(graph, trace, **how)
        seen.update(
            name
            for name, is_so in {
                "queueing": result.flows["queueing_ps"].sum() > 0,
                "stall": result.links["no_credit_ps"].sum() > 0,
                "copy": (result.flows["hops"] == 0).any(),
                "direct": (result.flows["hops"] == 1).any(),
                "far": (result.flows["hops"] >= 4).any(),
                "long": (result.flows["packets"] > result.flows["messages"]).any(),
                "rdma": (result.flows["network"] == "rdma").any(),
                "closed": len(result.tasks) > 0,
                "layers": result.tasks["layer"].nunique() > 1,
                "open": len(result.tasks) == 0 and len(result.flows) > 0,
            }.items()
            if is_so
        )

    look()
    assert len(seen) == 10, seen
