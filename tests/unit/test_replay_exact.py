"""Times that pencil and paper give, to the picosecond, and what a lossless fabric must keep.

The closed form of a message alone, handed over at ``t0``, of one packet, over ``k`` switches and
``k + 1`` links::

    finish = t0 + issue cost + payload / engine rate
           + sum of delays + k * forward latency
           + sum over switches of max(0, time on the link in - time on the link out)
           + time on the last link + receive latency

with ``(payload + header) / rate`` on each link and every quotient rounded to the picosecond.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
import pytest
from fabrics import GB, NS, US, FabricBuilder, flow, line, make_trace, run, serialise_ps, star, task

from ubfabric import topology
from ubfabric.attributes import packet_bytes
from ubfabric.routing import compile_fabric


@lru_cache
def build_topology(name):
    """Return a shipped machine whose memory takes writes as fast as links bring them."""
    share = {"memory_write_share": 1.0}
    return topology.build_topology({"base": name, "endpoints": {"die": share, "cpu": share}})


def way_ps(graph, switches):
    """Return delays and forward latencies from die to die over one switch or three."""
    path = ["die-0-0", "l1-0-0", "die-0-1"]
    if switches == 3:
        path[2:] = ["l2-0-0", "l1-1-0", "die-1-0"]
    delays = [graph.edges[u, v, 0]["delay_ps"] for u, v in itertools.pairwise(path)]
    return sum(delays) + sum(graph.nodes[name]["forward_latency_ps"] for name in path[1:-1])


def link_rate(graph, src, dst):
    """Return the rate of the first link between two nodes, its error correction paid."""
    arrays = compile_fabric(graph)
    u, v = arrays.node_names.index(src), arrays.node_names.index(dst)
    links = np.flatnonzero((arrays.link_src == u) & (arrays.link_dst == v))
    return int(arrays.link_rate_bytes_per_s[links[0]])


ISSUE = 500 * NS
FORWARD = 200 * NS
RECEIVE = 100 * NS
#: The limits of a die as in CloudMatrix384: none of them divides a second evenly.
DIE = {"issue_cost_ps": ISSUE, "engine_bytes_per_s": 7_758_333_333}
SER = 100 * NS  # 1,000 B at 10 GB/s
#: Nothing to issue, one switch: first byte at the port of the destination.
TO_PORT = 2 * 5 * NS + FORWARD


def pencil(ready, wire, rates, delays, forward=FORWARD):
    """Return (first byte, last byte) at the end of a path that nobody else uses.

    ``ready[i]`` is when packet ``i`` of ``wire[i]`` bytes may enter the first port.
    """
    ready, first_byte, last_byte = list(ready), [], []
    for hop, (rate, delay) in enumerate(zip(rates, delays, strict=True)):
        free = 0
        for i, n_bytes in enumerate(wire):
            time = serialise_ps(n_bytes, rate)
            begin = max(ready[i], free)
            free = begin + time
            first_byte.append(begin + delay)
            last_byte.append(free + delay)
            if hop + 1 < len(rates):
                slower = time - serialise_ps(n_bytes, rates[hop + 1])
                ready[i] = begin + delay + forward + max(0, slower)
    return first_byte[-len(wire)], last_byte[-1]


def stream_out(sizes, engine, egress=10**18, start=ISSUE, header=0):
    """Return when each packet of one message may enter the port."""
    ready, free, now = [], 0, start
    for size in sizes:
        now = max(now + serialise_ps(size, engine), free)
        free = now + serialise_ps(size + header, egress)
        ready.append(now)
    return ready


# ------------------------------------------------------------------------- a message alone


@pytest.mark.parametrize("switches", [1, 3])
@pytest.mark.parametrize("payload", [1, 64, 512, 4_096])
def test_lone_packet_takes_the_closed_form(switches, payload):
    rate, delays = 28 * GB, [5 * NS, 50 * NS, 50 * NS, 5 * NS][: switches + 1]
    graph = line([rate] * (switches + 1), delays, payload=4_096, header=64, **DIE)
    t0 = 123_456
    result = run(graph, make_trace([flow(0, 1, message_bytes=payload, start_ps=t0)]))
    sent = t0 + ISSUE + serialise_ps(payload, DIE["engine_bytes_per_s"])
    first = sent + sum(delays) + switches * FORWARD
    finish = first + serialise_ps(payload + 64, rate) + RECEIVE
    row = result.flows.iloc[0]
    assert row["start_ps"] == t0
    assert row["first_byte_ps"] == first
    assert row["finish_ps"] == finish
    assert row["fct_ps"] == finish - t0
    assert row["hops"] == switches + 1
    assert row["queueing_ps"] == 0
    assert result.summary["simulated_ps"] == finish


@pytest.mark.parametrize("rates", list(itertools.permutations([7 * GB, 28 * GB, 100 * GB])))
def test_lone_packet_waits_before_a_faster_link_until_its_tail_keeps_up(rates):
    delays = [5 * NS, 50 * NS, 7 * NS]
    graph = line(list(rates), delays, payload=4_096, header=64, **DIE)
    row = run(graph, make_trace([flow(0, 1, message_bytes=4_096)])).flows.iloc[0]
    on = [serialise_ps(4_160, rate) for rate in rates]
    expected = ISSUE + serialise_ps(4_096, DIE["engine_bytes_per_s"]) + sum(delays) + 2 * FORWARD
    expected += max(0, on[0] - on[1]) + max(0, on[1] - on[2]) + on[2] + RECEIVE
    assert row["fct_ps"] == expected
    # The tail is never at a link's end before it was at its start: no link on the way is beaten.
    assert row["fct_ps"] >= ISSUE + sum(delays) + max(on) + RECEIVE
    assert row["queueing_ps"] == 0


@pytest.mark.parametrize("switches", [1, 3])
@pytest.mark.parametrize(
    ("engine", "egress"),
    [
        (7_758_333_333, 196 * GB),  # the engine is the bottleneck
        (100 * GB, 196 * GB),  # the port is
        (100 * GB, 9 * GB),  # the egress limit is
    ],
)
@pytest.mark.parametrize("message", [4_096, 4_097, 14_336, 40_960])
def test_lone_message_on_one_path_takes_the_closed_form(switches, engine, egress, message):
    rate, delays = 28 * GB, [5 * NS, 50 * NS, 50 * NS, 5 * NS][: switches + 1]
    limits = DIE | {"engine_bytes_per_s": engine, "egress_bytes_per_s": egress}
    graph = line([rate] * (switches + 1), delays, payload=4_096, header=64, **limits)
    row = run(graph, make_trace([flow(0, 1, message_bytes=message)])).flows.iloc[0]
    sizes = [4_096] * (message // 4_096) + ([message % 4_096] if message % 4_096 else [])
    ready = stream_out(sizes, engine, egress, header=64)
    wire = [size + 64 for size in sizes]
    first, last = pencil(ready, wire, [rate] * (switches + 1), delays)
    assert row["first_byte_ps"] == first
    assert row["finish_ps"] == last + RECEIVE
    assert row["packets"] == len(sizes)
    # An engine slower than the link: no packet meets another, unless the last is a mere byte.
    if engine == 7_758_333_333 and message != 4_097:
        total = sum(serialise_ps(size, engine) for size in sizes)
        path = sum(delays) + switches * FORWARD
        assert row["fct_ps"] == ISSUE + total + path + serialise_ps(wire[-1], rate) + RECEIVE
        assert row["queueing_ps"] == 0


@pytest.mark.parametrize("rates", [[28 * GB, 7 * GB, 28 * GB], [7 * GB, 28 * GB, 7 * GB]])
def test_lone_message_over_unequal_links_takes_the_closed_form(rates):
    delays = [5 * NS, 50 * NS, 7 * NS]
    limits = DIE | {"engine_bytes_per_s": 100 * GB}
    graph = line(rates, delays, payload=4_096, header=64, **limits)
    row = run(graph, make_trace([flow(0, 1, message_bytes=20_000)])).flows.iloc[0]
    sizes = [4_096] * 4 + [20_000 - 4 * 4_096]
    wire = [size + 64 for size in sizes]
    first, last = pencil(stream_out(sizes, 100 * GB, header=64), wire, rates, delays)
    assert (row["first_byte_ps"], row["finish_ps"]) == (first, last + RECEIVE)


@pytest.mark.parametrize(
    ("topology", "peer", "switches"), [("one-node", 2, 1), ("two-nodes", 16, 3)]
)
@pytest.mark.parametrize("message", [512, 4_096, 7_680, 14_336])
def test_lone_message_sprayed_over_seven_planes_takes_the_closed_form(
    topology, peer, switches, message
):
    graph = build_topology(topology)
    die = graph.nodes["die-0-0"]
    trace = make_trace([flow(0, peer, message_bytes=message)], n_ranks=peer + 1)
    result = run(graph, trace)
    sizes = [4_096] * (message // 4_096) + ([message % 4_096] if message % 4_096 else [])
    wire = [packet_bytes(graph, size)["ub"] for size in sizes]
    ready, free, now = [], 0, die["issue_cost_ps"]
    for size, n_bytes in zip(sizes, wire, strict=True):
        now = max(now + serialise_ps(size, die["engine_bytes_per_s"]), free)
        free = now + serialise_ps(n_bytes, die["egress_bytes_per_s"])
        ready.append(now)
    # At most four packets on seven planes: no two of them share a link.
    assert len(sizes) <= 7
    path = way_ps(graph, switches)
    # 28 GB/s less the forward error correction, the same on every link of the way.
    rate = link_rate(graph, "die-0-0", "l1-0-0")
    assert rate == 28 * GB * 15 // 16
    arrive = [
        at + path + serialise_ps(n_bytes, rate) for at, n_bytes in zip(ready, wire, strict=True)
    ]
    row = result.flows.iloc[0]
    assert row["finish_ps"] == max(arrive) + die["receive_latency_ps"]
    assert row["hops"] == switches + 1
    assert row["queueing_ps"] == 0
    used = result.links[result.links["packets"] > 0]
    assert (used["packets"] == 1).all()
    assert len(used) == len(sizes) * (switches + 1)
    assert used["plane"].nunique() == len(sizes)


def test_long_message_sprayed_over_planes_keeps_each_plane_busy():
    # 700 packets, 100 for each plane; the egress limit is the sum of the ports. Where a plane comes
    # in a round is drawn, so the last packet of a port is up to a round later than in strict turns.
    limits = DIE | {"engine_bytes_per_s": 10**15, "egress_bytes_per_s": 70 * GB}
    graph = star(2, planes=7, **limits)
    result = run(graph, make_trace([flow(0, 1, message_bytes=700_000)]))
    first_ready = ISSUE + 1
    ready = [first_ready]
    for _ in range(699):
        ready.append(max(ready[-1] + 1, ready[-1] + serialise_ps(1_000, 70 * GB)))
    finish = []
    for plane in range(7):
        mine = ready[plane::7]
        finish.append(pencil(mine, [1_000] * 100, [10 * GB] * 2, [5 * NS] * 2)[1])
    late = result.flows["finish_ps"][0] - max(finish) - RECEIVE
    assert 0 <= late <= 7 * serialise_ps(1_000, 70 * GB)
    ports = result.links[result.links["level"] == "die-l1"]
    assert sorted(ports["packets"]) == [0] * 7 + [100] * 7


# ----------------------------------------------------------------- engines and their limits


def test_messages_of_one_engine_follow_one_another():
    graph = star(2, **DIE)
    result = run(graph, make_trace([flow(0, 1, messages=5, message_bytes=900)]))
    each = ISSUE + serialise_ps(900, DIE["engine_bytes_per_s"])
    path = 2 * 5 * NS + FORWARD + serialise_ps(900, 10 * GB)
    assert result.flows["finish_ps"][0] == 5 * each + path + RECEIVE
    assert result.flows["queueing_ps"][0] == 0


@pytest.mark.parametrize("engines", [1, 2, 3, 16])
def test_engines_issue_side_by_side(engines):
    # 12 messages in rounds; the link takes 10 ns a message, so a round does not catch up
    # with the next.
    graph = star(2, rate=100 * GB, **DIE | {"issue_engines": engines})
    result = run(graph, make_trace([flow(0, 1, messages=12)]))
    rounds = -(-12 // engines)
    last_round = 12 - (rounds - 1) * engines
    each = ISSUE + serialise_ps(1_000, DIE["engine_bytes_per_s"])
    path = 2 * 5 * NS + FORWARD + last_round * serialise_ps(1_000, 100 * GB)
    assert result.flows["finish_ps"][0] == rounds * each + path + RECEIVE
    # All messages of a round are ready at once and enter the port one after another.
    waits = (rounds - 1) * engines * (engines - 1) // 2 + last_round * (last_round - 1) // 2
    assert result.flows["queueing_ps"][0] == waits * serialise_ps(1_000, 100 * GB)


def test_egress_limit_holds_for_all_ports_together():
    # Four planes of 16 GB/s, 16 engines; the die may send 16 GB/s in all.
    limits = {"issue_engines": 16, "egress_bytes_per_s": 16 * GB}
    graph = star(2, planes=4, rate=16 * GB, **limits)
    result = run(graph, make_trace([flow(0, 1, messages=64)]))
    apart = serialise_ps(1_000, 16 * GB)
    ready = 63 * apart
    path = 2 * 5 * NS + FORWARD + serialise_ps(1_000, 16 * GB)
    assert result.flows["finish_ps"][0] == ready + path + RECEIVE
    assert result.flows["queueing_ps"][0] == 0  # it waited in the engine, not in a port


def test_flows_of_a_task_are_issued_in_turn_in_table_order():
    # One engine, so that turns show as times: A B C A B A.
    graph = star(4, **DIE)
    flows = [flow(0, 1, messages=3), flow(0, 2, messages=2), flow(0, 3, messages=1)]
    flows = [row | {"start_ps": -1} for row in flows]
    tasks = [task(0, 0, kind="dispatch", sends="dispatch")]
    tasks += [task(rank, rank, waits="dispatch") for rank in (1, 2, 3)]
    result = run(graph, make_trace(flows, tasks))
    each = ISSUE + serialise_ps(1_000, DIE["engine_bytes_per_s"])
    path = 2 * 5 * NS + FORWARD + 100 * NS + RECEIVE
    assert result.flows["finish_ps"].tolist() == [turn * each + path for turn in (6, 5, 3)]
    first = [turn * each + path - RECEIVE - 100 * NS for turn in (1, 2, 3)]
    assert result.flows["first_byte_ps"].tolist() == first
    assert result.tasks["issued_ps"].tolist() == [6 * each, -1, -1, -1]
    assert result.tasks["finish_ps"].tolist() == [
        6 * each,
        6 * each + path,
        *result.flows.finish_ps[1:],
    ]


def test_flows_of_two_streams_share_the_engine_in_turn():
    graph = star(3, **DIE)
    flows = [
        flow(0, 1, phase="a", messages=3, start_ps=-1),
        flow(0, 2, phase="b", messages=1, start_ps=-1),
    ]
    tasks = [
        task(0, 0, sends="a"),
        task(1, 0, stream=1, sends="b"),
        task(2, 1, waits="a"),
        task(3, 2, waits="b"),
    ]
    result = run(graph, make_trace(flows, tasks))
    each = ISSUE + serialise_ps(1_000, DIE["engine_bytes_per_s"])
    assert result.tasks["issued_ps"].tolist()[:2] == [4 * each, 2 * each]


def test_open_loop_flows_start_when_the_trace_says():
    graph = star(3, **DIE)
    starts = [7 * US, 0, 3 * US]
    pairs = [(0, 1), (1, 2), (0, 2)]
    flows = [flow(*pair, start_ps=at) for pair, at in zip(pairs, starts, strict=True)]
    result = run(graph, make_trace(flows))
    each = ISSUE + serialise_ps(1_000, DIE["engine_bytes_per_s"])
    alone = each + 2 * 5 * NS + FORWARD + 100 * NS + RECEIVE
    assert result.flows["start_ps"].tolist() == starts
    assert result.flows["finish_ps"].tolist() == [at + alone for at in starts]


def test_open_loop_flow_queues_for_a_busy_engine():
    graph = star(3, **DIE)
    result = run(graph, make_trace([flow(0, 1, messages=2), flow(0, 2, start_ps=100 * NS)]))
    each = ISSUE + serialise_ps(1_000, DIE["engine_bytes_per_s"])
    path = 2 * 5 * NS + FORWARD + 100 * NS + RECEIVE
    # The second message of the first flow and the second flow's take turns; whose turn it is
    # depends on who came first, so the engine has three messages in a row either way.
    assert sorted(result.flows["finish_ps"] - path) == [2 * each, 3 * each]
    assert result.flows["fct_ps"][1] == result.flows["finish_ps"][1] - 100 * NS


# ------------------------------------------------------- copies, packages, other networks


@pytest.mark.parametrize("message", [1, 1_000, 7_680])
def test_copy_within_a_die_uses_no_link(message):
    graph = star(2, **DIE | {"copy_bytes_per_s": 800 * GB})
    result = run(graph, make_trace([flow(0, 0, message_bytes=message)], n_ranks=2))
    sizes = [1_000] * (message // 1_000) + ([message % 1_000] if message % 1_000 else [])
    ready = stream_out(sizes, DIE["engine_bytes_per_s"])
    row = result.flows.iloc[0]
    assert row["finish_ps"] == ready[-1] + serialise_ps(sizes[-1], 800 * GB) + RECEIVE
    assert row["hops"] == 0
    assert row["queueing_ps"] == 0
    assert result.links["packets"].sum() == 0
    assert result.summary["packet_hops"] == 0


def test_dies_of_one_package_use_their_own_link():
    graph = build_topology("one-node")
    die = graph.nodes["die-0-0"]
    result = run(graph, make_trace([flow(0, 1, message_bytes=4_096)], n_ranks=2))
    sent = die["issue_cost_ps"] + serialise_ps(4_096, die["engine_bytes_per_s"])
    wire = serialise_ps(packet_bytes(graph, 4_096)["ub"], link_rate(graph, "die-0-0", "die-0-1"))
    row = result.flows.iloc[0]
    assert row["finish_ps"] == sent + 1 * NS + wire + die["receive_latency_ps"]
    assert row["hops"] == 1
    used = result.links[result.links["packets"] > 0]
    assert used[["src", "dst", "plane", "level"]].values.tolist() == [
        ["die-0-0", "die-0-1", "package", "die-die"]
    ]


@pytest.mark.parametrize(("to", "is_far"), [(0, False), (1, False), (2, True)])
def test_a_message_costs_its_software_only_if_it_leaves_the_package(to, is_far):
    graph, cost = build_topology("one-node"), 3 * US
    rows = [flow(0, to, message_bytes=4_096, start_ps=-1)]

    def finish_ps(message_cost_ps):
        tasks = [
            task(0, 0, sends="dispatch", message_cost_ps=message_cost_ps),
            task(1, to, stream=1, waits="dispatch"),
        ]
        return run(graph, make_trace(rows, tasks, n_ranks=3)).flows["finish_ps"][0]

    assert finish_ps(cost) - finish_ps(0) == (cost if is_far else 0)


def test_egress_limits_the_ports_and_not_the_link_of_the_package():
    """Ten packets at the pace of the egress over a switch, at that of the link in a package."""
    finish = {}
    for plane in ("ub0", "package"):
        builder = FabricBuilder()
        dies = builder.dies(2, egress_bytes_per_s=1 * GB)
        if plane == "package":
            builder.link(*dies, plane=plane)
        hub = builder.switch("hub")
        for die in dies:
            builder.link(die, hub)
        result = run(builder.build(), make_trace([flow(0, 1, messages=10)]))
        finish[plane] = int(result.flows["finish_ps"][0])
    assert finish["ub0"] == 9 * serialise_ps(1_000, 1 * GB) + TO_PORT + SER + RECEIVE
    assert finish["package"] == 10 * SER + 5 * NS + RECEIVE


@pytest.mark.parametrize(
    ("network", "nodes", "rate", "forward", "header", "acknowledgement"),
    [
        ("rdma", ["die-0-0", "die-1-3"], 25 * GB, 1_500 * NS, 82, 86),
        # not through the package
        ("rdma", ["die-0-0", "die-0-1"], 25 * GB, 1_500 * NS, 82, 86),
        ("vpc", ["cpu-0-0", "cpu-1-0"], 40 * GB, 3 * US, 128, 128),
    ],
)
def test_other_networks_have_links_and_switches_of_their_own(
    network, nodes, rate, forward, header, acknowledgement
):
    """A reliable transport: the engine posts the message and the NIC reads and sends it."""
    graph = build_topology("two-nodes")
    source = graph.nodes[nodes[0]]
    trace = make_trace([flow(0, 1, message_bytes=2_000, network=network)], rank_nodes=nodes)
    result = run(graph, trace)
    path = 2 * 100 * NS + forward + serialise_ps(2_000 + header, rate)
    row = result.flows.iloc[0]
    seen = source["issue_cost_ps"] + path + graph.nodes[nodes[1]]["receive_latency_ps"]
    assert row["finish_ps"] == seen
    used = result.links[result.links["packets"] > 0]
    assert set(used["plane"]) == {network}
    switch = f"{network}-switch"
    assert sorted(used[["src", "dst", "packets", "bytes"]].values.tolist()) == sorted(
        [
            [nodes[0], switch, 1, 2_000 + header],
            [switch, nodes[1], 1, 2_000 + header],
            [nodes[1], switch, 1, acknowledgement],
            [switch, nodes[0], 1, acknowledgement],
        ]
    )


# --------------------------------------------------------------------- sharing and incast


@pytest.mark.parametrize("messages", [(100, 100), (50, 100), (10, 300)])
def test_two_flows_into_one_port_share_it_packet_by_packet(messages):
    graph = star(3, issue_engines=4)
    flows = [flow(source, 2, messages=n) for source, n in enumerate(messages)]
    result = run(graph, make_trace(flows))
    short, long = min(messages), max(messages)
    finish = sorted(result.flows["finish_ps"] - TO_PORT - RECEIVE)
    # The shorter is done when both have sent as many packets, give or take one.
    assert abs(finish[0] - 2 * short * SER) <= SER
    # The longer then has the port alone, and the port is never idle.
    assert finish[1] == (short + long) * SER


@pytest.mark.parametrize("sources", [3, 5])
def test_many_flows_into_one_port_get_equal_rates(sources):
    graph = star(sources + 1, issue_engines=4)
    flows = [flow(source, sources, messages=10 * (source + 1)) for source in range(sources)]
    result = run(graph, make_trace(flows))
    finish = (result.flows["finish_ps"] - TO_PORT - RECEIVE).tolist()
    for source, at in enumerate(finish):
        # Whoever still sends has sent as many packets as this one when it is done.
        expected = sum(min(10 * (source + 1), 10 * (other + 1)) for other in range(sources))
        assert abs(at - expected * SER) <= (sources - 1) * SER
    assert max(finish) == sum(10 * (source + 1) for source in range(sources)) * SER


def test_a_port_is_shared_by_inputs_and_not_by_flows():
    # Two sources reach the far switch over one link, a third over its own: halves, not thirds.
    builder = FabricBuilder()
    dies = builder.dies(4, issue_engines=4)
    near, far = builder.switch("near"), builder.switch("far")
    builder.link(dies[0], near)
    builder.link(dies[1], near)
    builder.link(near, far, rate=10 * GB)
    builder.link(dies[2], far)
    builder.link(dies[3], far)
    flows = [flow(source, 3, messages=n) for source, n in enumerate((100, 100, 400))]
    result = run(builder.build(), make_trace(flows))
    finish = (result.flows["finish_ps"] - RECEIVE).to_numpy()
    # 400 packets have passed when the two of 100 are done: 200 of theirs and 200 of the third.
    latest = max(finish[:2])
    pipeline = TO_PORT + 5 * NS + FORWARD
    assert abs(latest - pipeline - 400 * SER) <= 5 * SER
    assert abs(finish[2] - TO_PORT - 600 * SER) <= 5 * SER


@pytest.mark.parametrize("sources", [2, 4, 15])
@pytest.mark.parametrize("buffer_packets", [1_000, 8])
def test_incast_takes_bytes_over_rate_plus_the_pipeline(sources, buffer_packets):
    """Makespan = first byte's way to the bottleneck + bytes / rate + the way from there.

    issue + streaming of the first packet + delay + forward latency, then all packets
    one after another on the last link, then delay + receive latency. It holds with small
    buffers as well, as long as the other inputs bridge the credit loop of one.
    """
    messages = 40
    graph = star(
        sources + 1,
        issue_engines=2,
        issue_cost_ps=ISSUE,
        engine_bytes_per_s=100 * GB,
        payload=4_096,
        header=64,
        switch={"buffer_bytes": buffer_packets * 4_160},
    )
    flows = [flow(s, sources, messages=messages, message_bytes=4_096) for s in range(sources)]
    result = run(graph, make_trace(flows))
    on_wire = serialise_ps(4_160, 10 * GB)
    first = ISSUE + serialise_ps(4_096, 100 * GB) + 5 * NS + FORWARD
    makespan = first + sources * messages * on_wire + 5 * NS + RECEIVE
    # Sources issue in rounds of 2 messages of 909 ns, faster than 2 x 416 ns x sources drain.
    assert result.flows["finish_ps"].max() == makespan
    last = result.link("hub-0", f"die-{sources}")
    assert last["bytes"] == sources * messages * 4_160
    assert last["busy_ps"] == pytest.approx(sources * messages * on_wire, rel=1e-9)


def test_incast_over_seven_planes_and_three_switches_takes_bytes_over_rate():
    graph = build_topology("two-nodes")
    die = graph.nodes["die-0-0"]
    sources, packets = 8, 70
    ranks = [f"die-0-{s}" for s in range(sources)] + ["die-1-0"]
    flows = [flow(s, sources, messages=packets, message_bytes=4_096) for s in range(sources)]
    result = run(graph, make_trace(flows, rank_nodes=ranks))
    per_plane = sources * packets // 7  # 70 messages of one packet, dealt out in turn
    on_wire = serialise_ps(packet_bytes(graph, 4_096)["ub"], link_rate(graph, "l1-1-0", "die-1-0"))
    first = die["issue_cost_ps"] + serialise_ps(4_096, die["engine_bytes_per_s"])
    pipeline = first + way_ps(graph, 3) + die["receive_latency_ps"]
    ports = result.links[(result.links["level"] == "l1-die") & (result.links["packets"] > 0)]
    assert ports["packets"].tolist() == [per_plane] * 7
    makespan = int(result.flows["finish_ps"].max())
    # The last port of each plane idles until its first packet is there, at most 16 packets
    # (one round of all engines) after the earliest one, and while a source has it late in a round.
    assert pipeline + per_plane * on_wire <= makespan <= pipeline + (per_plane + 16) * on_wire


# --------------------------------------------------------------------------- back-pressure


def congested(buffer_packets=4):
    """Return two sources, a trunk, and two destinations, one of which is slow."""
    builder = FabricBuilder()
    dies = builder.dies(4, issue_engines=4, buffer_bytes=buffer_packets * 1_000)
    small = {"buffer_bytes": buffer_packets * 1_000}
    near, far = builder.switch("near", **small), builder.switch("far", **small)
    builder.link(dies[0], near)
    builder.link(dies[1], near)
    builder.link(near, far)
    builder.link(far, dies[2], rate=GB)
    builder.link(far, dies[3])
    return builder.build()


def test_back_pressure_fills_every_buffer_on_the_way_and_drains_without_loss():
    result = run(congested(), make_trace([flow(0, 2, messages=100)], n_ranks=4))
    assert result.flows["bytes"].sum() == 100_000
    assert result.summary["bytes_sent"] == result.summary["bytes_delivered"] == 100_000
    on_the_way = [("die-0", "near"), ("near", "far"), ("far", "die-2")]
    for link in on_the_way:
        assert result.link(*link)["packets"] == 100
        assert result.link(*link)["bytes"] == 100_000
    # The slow link is the bottleneck; those before it stand still for lack of credit, and
    # nobody else does.
    used = {link: result.link(*link)["no_credit_ps"] for link in on_the_way}
    assert used["far", "die-2"] == 0
    assert used["near", "far"] > 0.8 * (100 * US - 8 * US)
    assert used["die-0", "near"] > 0.8 * (100 * US - 12 * US)
    stalled = result.links[result.links["no_credit_ps"] > 0]
    assert set(zip(stalled["src"], stalled["dst"], strict=True)) == set(on_the_way[:2])
    # Each buffer holds 4 packets; one of them is being sent, the others wait.
    assert result.link("far", "die-2")["max_queue_bytes"] == 3_000
    assert result.link("near", "far")["max_queue_bytes"] == 4_000
    # Rate and pipeline of the slow link alone.
    first = 2 * 5 * NS + 2 * FORWARD
    assert result.flows["finish_ps"][0] == first + 100 * US + 5 * NS + RECEIVE


def test_back_pressure_holds_up_flows_that_only_share_the_trunk():
    alone = run(congested(), make_trace([flow(1, 3, messages=20)], n_ranks=4))
    both = run(congested(), make_trace([flow(0, 2, messages=50), flow(1, 3, messages=20)]))
    victim = both.flows.iloc[1]
    assert alone.flows["fct_ps"][0] < 3 * US
    # Trunk and far buffer fill with packets for the slow port, which drains 1 packet a us; the
    # trunk serves its two inputs in turn, so 20 packets wait for about 20 of the others.
    assert 15 * US < victim["fct_ps"] < 25 * US
    assert victim["queueing_ps"] > 10 * US


def test_a_lane_without_credit_does_not_stop_another_lane():
    flows = [flow(0, 2, messages=50), flow(1, 3, messages=20, service_level=1)]
    result = run(congested(), make_trace(flows), n_virtual_lanes=2)
    # With a buffer of its own it shares the trunk's rate only.
    assert result.flows["fct_ps"][1] < 5 * US
    assert result.link("near", "far")["no_credit_ps"] > 0


def test_lanes_of_one_link_take_turns():
    graph = star(3, issue_engines=4)
    flows = [
        flow(0, 1, messages=60, service_level=0),
        flow(0, 2, messages=20, service_level=1),
    ]
    # One engine pool feeds both flows in turn; both lanes have packets until the short is done.
    result = run(graph, make_trace(flows), n_virtual_lanes=2)
    finish = (result.flows["finish_ps"] - TO_PORT - RECEIVE).tolist()
    assert abs(finish[1] - 40 * SER) <= 2 * SER
    assert finish[0] == 80 * SER


def test_service_level_picks_the_lane_modulo_their_number():
    def fct(level, lanes):
        flows = [flow(0, 2, messages=50), flow(1, 3, messages=20, service_level=level)]
        result = run(congested(), make_trace(flows), n_virtual_lanes=lanes)
        return int(result.flows["fct_ps"][1])

    shared, apart = fct(0, 1), fct(1, 2)
    assert apart < shared
    assert [fct(level, 1) for level in (1, 15)] == [shared] * 2
    assert [fct(level, 2) for level in (3, 15)] == [apart] * 2
    assert [fct(level, 16) for level in (1, 15)] == [apart] * 2
    assert fct(2, 2) == fct(0, 2) == shared


@pytest.mark.parametrize("buffer_packets", [1, 2, 3])
def test_a_buffer_too_small_for_the_credit_loop_limits_the_rate(buffer_packets):
    # A buffer's credit is back after: time on the link + delay + forward latency until the
    # head leaves, + time on the next link until the tail has left, + delay back.
    graph = star(2, issue_engines=4, switch={"buffer_bytes": buffer_packets * 1_000})
    result = run(graph, make_trace([flow(0, 1, messages=60)]))
    loop = 5 * NS + FORWARD + SER + 5 * NS
    per_packet = max(SER, loop / buffer_packets)
    last = TO_PORT + SER + RECEIVE
    rounds, extra = divmod(59, buffer_packets)
    expected = rounds * loop + extra * SER if per_packet > SER else 59 * SER
    assert result.flows["finish_ps"][0] == last + expected
    assert (result.link("die-0", "hub-0")["no_credit_ps"] > 0) == (per_packet > SER)


# ----------------------------------------------------------------------------- closed loop


def one_way(payload=1_000):
    """Return the time of a lone message between two dies of ``star(..., **DIE)``."""
    return (
        ISSUE
        + serialise_ps(payload, DIE["engine_bytes_per_s"])
        + 2 * 5 * NS
        + FORWARD
        + serialise_ps(payload, 10 * GB)
        + RECEIVE
    )


def closed(src, dst, phase="dispatch", **changes):
    return flow(src, dst, phase=phase, start_ps=-1, **changes)


def test_expert_waits_for_tokens_and_combine_for_the_expert():
    """Two ranks; rank 1's attention is 2 us longer."""
    graph = star(2, **DIE)
    flows = [closed(r, 1 - r, phase) for phase in ("dispatch", "combine") for r in (0, 1)]
    attention, gate, expert = [1 * US, 3 * US], 200 * NS, [5 * US, 500 * NS]
    tasks = []
    for kind in ("attention", "gate", "dispatch", "expert", "combine"):
        for rank in (0, 1):
            spent = {"attention": attention[rank], "gate": gate, "expert": expert[rank]}
            talks = {"sends": kind, "waits": kind} if kind in ("dispatch", "combine") else {}
            tasks.append(task(len(tasks), rank, kind=kind, duration_ps=spent.get(kind, 0), **talks))
    result = run(graph, make_trace(flows, tasks))
    rows = result.tasks.set_index(["kind", "rank"])
    way, issue = one_way(), ISSUE + serialise_ps(1_000, DIE["engine_bytes_per_s"])
    routed = [attention[rank] + gate for rank in (0, 1)]
    # Rank 0 has tokens from rank 1 late; rank 1 has rank 0's long before its own are issued.
    dispatched = [routed[1] + way, routed[1] + issue]
    ran = [dispatched[rank] + expert[rank] for rank in (0, 1)]
    combined = [ran[0] + issue, ran[0] + way]
    assert way > issue
    for rank in (0, 1):
        assert rows.loc["attention", rank].start_ps == 0
        assert rows.loc["gate", rank].start_ps == attention[rank]
        dispatch = rows.loc["dispatch", rank]
        assert dispatch.start_ps == routed[rank]
        assert dispatch.issued_ps == routed[rank] + issue
        assert dispatch.arrived_ps == routed[1 - rank] + way
        assert dispatch.finish_ps == dispatched[rank]
        assert rows.loc["expert", rank].start_ps == dispatched[rank]
        assert rows.loc["expert", rank].finish_ps == ran[rank]
        assert rows.loc["combine", rank].finish_ps == combined[rank]
    assert result.summary["simulated_ps"] == max(combined)


def test_straggler_travels_from_rank_to_rank_layer_by_layer():
    """Four ranks in a ring; each waits for its left neighbour, rank 0 is slow in layer 0."""
    graph = star(4, **DIE)
    n_layers, spent = 5, 2 * US
    flows, tasks = [], []
    for layer in range(n_layers):
        for rank in range(4):
            flows.append(closed(rank, (rank + 1) % 4, layer=layer))
        for rank in range(4):
            late = 10 * US if (layer, rank) == (0, 0) else 0
            tasks.append(task(len(tasks), rank, layer=layer, duration_ps=spent + late))
            tasks.append(
                task(
                    len(tasks), rank, layer=layer, kind="dispatch", sends="dispatch",
                    waits="dispatch", depends_on=[len(tasks) - 1],
                )
            )  # fmt: skip
    result = run(graph, make_trace(flows, tasks))
    way, issue = one_way(), ISSUE + serialise_ps(1_000, DIE["engine_bytes_per_s"])
    done = [0, 0, 0, 0]
    for layer in range(n_layers):
        sent = [done[r] + spent + (10 * US if (layer, r) == (0, 0) else 0) for r in range(4)]
        done = [max(sent[r] + issue, sent[r - 1] + way) for r in range(4)]
        rows = result.tasks[(result.tasks["layer"] == layer) & (result.tasks["kind"] == "dispatch")]
        assert rows["finish_ps"].tolist() == done
        # Whom the delay has reached: one rank more a layer.
        on_time = (layer + 1) * (spent + way)
        late = [rank for rank in range(4) if done[rank] > on_time]
        assert late == list(range(min(layer + 2, 4)))


def test_two_microbatches_share_two_streams():
    """Attention on stream 0, dispatch and expert on stream 1, as the machine runs them."""
    graph = star(2, **DIE)
    attention, expert = 4 * US, 6 * US
    flows, tasks = [], []
    for layer in range(2):
        for microbatch in (0, 1):
            flows += [closed(r, 1 - r, layer=layer, microbatch=microbatch) for r in (0, 1)]
    of = {}
    for layer in range(2):
        for microbatch in (0, 1):
            for rank in (0, 1):
                common = {"layer": layer, "microbatch": microbatch}
                before = of.get((layer - 1, microbatch, rank))
                first = len(tasks)
                talks = {"sends": "dispatch", "waits": "dispatch", "depends_on": [first]}
                after = [] if before is None else [before]
                tasks += [
                    task(first, rank, duration_ps=attention, depends_on=after, **common),
                    task(first + 1, rank, stream=1, kind="dispatch", **talks, **common),
                    task(first + 2, rank, stream=1, kind="expert", duration_ps=expert, **common),
                ]
                of[layer, microbatch, rank] = first + 2
    result = run(graph, make_trace(flows, tasks))
    way = one_way()
    # Stream 0:  A00 [0, 4]  A01 [4, 8]          A10 when X00 is done   A11 when X01 is done
    # Stream 1:  D00 at 4, X00 6 us   D01 when X00 is done, X01   D10, X10   D11, X11
    x00 = attention + way + expert
    assert x00 > 2 * attention
    x01 = x00 + way + expert
    a10 = x00 + attention
    d10 = max(a10, x01)
    assert d10 == x01
    x10 = d10 + way + expert
    a11 = max(x01, a10) + attention
    d11 = max(a11, x10)
    x11 = d11 + way + expert
    rows = result.tasks.set_index(["kind", "layer", "microbatch", "rank"])
    order = list(itertools.product((0, 1), (0, 1)))
    for rank in (0, 1):
        starts = [rows.loc[("attention", *at, rank)].start_ps for at in order]
        assert starts == [0, attention, x00, max(x01, a10)]
        starts = [rows.loc[("dispatch", *at, rank)].start_ps for at in order]
        assert starts == [attention, x00, d10, d11]
        ends = [rows.loc[("expert", *at, rank)].finish_ps for at in order]
        assert ends == [x00, x01, x10, x11]
    # D01 was ready when its attention ended, but its stream was not free.
    assert rows.loc["dispatch", 0, 1, 0].ready_ps == 2 * attention


def test_a_task_that_awaits_a_phase_without_flows_does_not_wait():
    tasks = [task(0, 0, duration_ps=1 * US, waits="nothing"), task(1, 0, duration_ps=1 * US)]
    result = run(star(2), make_trace([flow(0, 1)], tasks))
    assert result.tasks["finish_ps"].tolist() == [1 * US, 2 * US]
    assert result.tasks["arrived_ps"].tolist() == [-1, -1]


def test_every_task_time_is_in_order():
    graph = star(4, **DIE)
    flows = [closed(a, b) for a in range(4) for b in range(4)]
    tasks = [
        task(r, r, kind="dispatch", duration_ps=r * US, sends="dispatch", waits="dispatch")
        for r in range(4)
    ]
    result = run(graph, make_trace(flows, tasks))
    rows = result.tasks
    assert (rows["ready_ps"] <= rows["start_ps"]).all()
    assert (rows["start_ps"] + rows["duration_ps"] <= rows["issued_ps"]).all()
    assert (np.maximum(rows["issued_ps"], rows["arrived_ps"]) == rows["finish_ps"]).all()
    last_arrival = result.flows.groupby("dst")["finish_ps"].max()
    assert rows["arrived_ps"].tolist() == last_arrival.tolist()
