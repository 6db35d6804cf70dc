"""The pool around a step: ranks, groups, ways over networks, blocks, tables, and refusals."""

import numpy as np
import pandas as pd
import pytest

import ubfabric as ub
from ubfabric.decode import DecodeStep
from ubfabric.errors import SpecError, TraceError
from ubfabric.placement import place_ranks
from ubfabric.pool import PoolTraffic, block_home, pool_table
from ubfabric.prefill import PrefillStep
from ubfabric.sweep import plan_sweep
from ubfabric.trace import check_trace
from ubfabric.workload import Workload, load_workload

SAMPLE = load_workload("pool-sample")
PAPER = load_workload("deepseek-r1-pool")
#: BF16, 512 + 64 numbers a token and layer.
TOKEN_LAYER_BYTES = 1152
ALL_VPC = {
    f"{kind}.network": "vpc" for kind in ("kv_transfer", "cache_read", "cache_write", "model_load")
}
#: A prefill step of 4,096 prompt tokens, half of which are cached, on its own.
PREFILL = {
    "step": {
        "base": "prefill-ep8-sample",
        "serving": {"prompts": [{"tokens": 512, "count": 8, "reused": 256}]},
    },
    "kv_transfer": None,
    "cache_write": None,
    "model_load": None,
}
#: The same, and every die has still to store what the batch before computed.
STORING = PREFILL | {
    "cache.step_writes": "every",
    "cache_write": {"network": "ub", "operation": "sdma-write"},
}


def pool(source=SAMPLE, layers=1, **changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    workload = load_workload(source, changes)
    step = DecodeStep if workload.spec.is_decode else PrefillStep
    within = Workload(workload.spec.step, workload.raw["step"], workload.label, workload.folder)
    return PoolTraffic(workload, step(within, workload.spec.seed, layers))


def pool_with(changes):
    return pool(**{key.replace(".", "__"): value for key, value in changes.items()})


def flows_of(traffic):
    return pd.concat([chunk.flows.to_pandas() for chunk in traffic.chunks()], ignore_index=True)


def test_ranks_are_the_steps_then_other_dies_then_all_cpus():
    machine = pool().machine
    assert machine.nodes[:16] == [f"die-0-{die}" for die in range(16)]
    assert machine.nodes[16:24] == [f"die-1-{die}" for die in range(8)]
    assert machine.nodes[24:] == [f"cpu-{server}-{cpu}" for server in (0, 1) for cpu in range(4)]
    assert machine.decode == list(range(8))
    assert machine.prefill == [list(range(8, 16))]
    assert machine.loading == list(range(16, 24))
    graph = ub.build_topology("two-nodes")
    listed = {"policy": "listed", "nodes": machine.nodes}
    assert place_ranks(graph, listed, 32) == machine.nodes


def test_other_dies_are_those_that_the_step_leaves():
    nodes = pool(step__deployment__rank_placement={"policy": "striped"}).machine.nodes
    assert nodes[:4] == ["die-0-0", "die-1-0", "die-0-1", "die-1-1"]
    assert nodes[8:10] == ["die-0-4", "die-0-5"]
    assert len(set(nodes)) == 32


def test_each_prefill_rank_serves_a_group_of_ten_decode_ranks():
    traffic = pool(PAPER, requests__rate=20_000, requests__arrivals="even")
    machine = traffic.machine
    transfers = [one for one in traffic.transfers if one.kind == "kv-transfer"]
    assert len(transfers) == round(6 * 1.26e-3 * 20_000)
    pairs = [one.ends[0][:2] for one in transfers]
    for number, (src, dst) in enumerate(pairs):
        assert machine.prefill[number % 6].index(src) == dst // 10
    assert {dst for _, dst in pairs} <= set(range(320))
    assert len({dst for _, dst in pairs}) > 100  # drawn, not always the same


@pytest.mark.parametrize(("message", "messages"), [("layer", 61), ("whole", 1)])
def test_a_request_hands_over_all_its_latents(message, messages):
    flows = flows_of(pool(PAPER, kv_transfer__message=message, requests__rate=1000))
    mine = flows[flows["phase"] == "kv-transfer"]
    assert len(mine) > 2
    assert (mine["messages"] == messages).all()
    assert (mine["messages"] * mine["message_bytes"] == 4096 * 70_272).all()
    assert set(mine["network"]) == {"rdma"}
    assert set(mine["operation"]) == {"sdma-write"}


def test_blocks_are_spread_evenly_and_always_to_the_same_home():
    keys = np.array([(prefix, serial, i) for prefix in range(20) for serial in range(5)
                     for i in range(100)])  # fmt: skip
    homes = block_home(7, keys, 192)
    assert (homes == block_home(7, keys, 192)).all()
    counts = np.bincount(homes, minlength=192)
    # 10,000 blocks on 192 CPUs: 52 each; a fair draw stays within five standard deviations
    assert len(counts) == 192
    assert abs(counts - 10_000 / 192).max() < 5 * np.sqrt(10_000 / 192)
    assert (block_home(8, keys, 192) != homes).mean() > 0.9


def test_prefixes_are_read_once_they_are_there():
    cold = pool(requests__rate=3000, cache__prefixes=3).blocks()
    warm = pool(requests__rate=3000, cache__prefixes=3, cache__warm=True).blocks()
    first = cold[cold["serial"] == 0].groupby(["prefix", "index"]).first()
    assert (first["kind"] == "cache-write").all()
    assert len(first) == 3 * 2  # half of 512 tokens in blocks of 128
    assert len(cold[cold["kind"] == "cache-read"]) < len(warm[warm["kind"] == "cache-read"])
    assert not (warm.loc[warm["kind"] == "cache-write", "serial"] == 0).any()
    # in a prompt of four blocks the later two are always new ones
    new = cold[(cold["kind"] == "cache-write") & (cold["serial"] > 0)]
    assert set(new["index"]) == {2, 3}
    assert not new.duplicated(["prefix", "serial", "index"]).any()


def test_over_vpc_bytes_go_by_the_cpu_of_the_server_that_has_a_port():
    traffic = pool(cache__warm=True, **ALL_VPC)
    machine = traffic.machine
    flows = flows_of(traffic)
    gateways = {machine.nodes.index("cpu-0-0"), machine.nodes.index("cpu-1-0")}
    over = flows[flows["phase"].str.endswith("-vpc")]
    assert set(over["network"]) == {"vpc"}
    assert set(over["src"]) | set(over["dst"]) <= gateways
    for phase in ("kv-transfer-up", "cache-write-up"):
        part = flows[flows["phase"] == phase]
        assert len(part)
        assert set(part["network"]) == {"ub"}
        assert set(part["dst"]) <= gateways
    # as many bytes go on as came, and only blocks that change the server use vpc
    for kind, first, last in (("kv-transfer", "up", "down"), ("model-load", "vpc", "down")):
        size = {
            end: flows.loc[flows["phase"] == f"{kind}-{end}", ["messages", "message_bytes"]]
            .prod(axis=1)
            .sum()
            for end in ("up", "vpc", "down")
        }
        assert size[last] >= size[first] > 0
        assert size[last] >= size["vpc"]


def test_a_part_begins_when_the_one_before_has_arrived():
    traffic = pool(**ALL_VPC)
    frames = [chunk.tasks.to_pandas() for chunk in traffic.chunks()]
    tasks = pd.concat(frames).set_index("task")
    forwards = tasks[
        ((tasks["stream"] - 11) % 3 == 2) & (tasks["stream"] > 10) & (tasks["sends"] != "")
    ]
    assert len(forwards)
    for row in forwards.itertuples():
        (needed,) = row.depends_on
        before = tasks.loc[needed]
        assert (before["rank"], before["microbatch"]) == (row.rank, row.microbatch)
        assert before["waits"].rsplit("-", 1)[0] == row.sends.rsplit("-", 1)[0]
        assert before["waits"] != row.sends


@pytest.mark.parametrize(
    "changes",
    [
        {},
        ALL_VPC,
        {"kv_transfer.network": "ub", "requests.arrivals": "even"},
        {"cache_read.operation": "read", "model_load.operation": "read"},
        {"kv_transfer": None, "cache_read": None, "cache_write": None},
        {"model_load": None, "cache.warm": True},
        PREFILL,
        PREFILL | {"cache_read.network": "vpc"},
        PREFILL | {"cache_read.network": "vpc", "cache.step_reads": "whole"},
        PREFILL | {"cache.step_reads": "layer", "cache.ahead_layers": 0},
        PREFILL | {"cache_read.operation": "write"},
        STORING,
        STORING | {"cache.step_writes": "one", "cache.step_reads": "layer"},
        STORING | {"cache_read.network": "vpc", "cache_write.network": "vpc"},
        ALL_VPC | {"cache.vpc_memory": "card"},
        STORING | {"cache_read.operation": "write", "cache_write.operation": "write"},
        {"cache_read.network": "vpc", "cache_read.operation": "write"},
    ],
)
def test_traces_are_valid_and_the_steps_part_is_the_steps_alone(changes):
    trace = ub.generate_trace(SAMPLE, layers=1, overrides=changes)
    check_trace(trace)
    workload = load_workload(SAMPLE, changes)
    alone = ub.generate_trace(workload.raw["step"], layers=1, seed=workload.spec.seed)
    for mixed, own in zip(trace.chunks(), alone.chunks(), strict=True):
        tasks, wanted = mixed.tasks.to_pandas(), own.tasks.to_pandas()
        mine = tasks[(tasks["rank"] < 8) & (tasks["stream"] < 8)].reset_index(drop=True)
        same = [name for name in tasks if name not in ("task", "depends_on")]
        pd.testing.assert_frame_equal(mine[same], wanted[same])
        stride = mine["task"].to_numpy()[1:] // np.maximum(wanted["task"].to_numpy()[1:], 1)
        assert len(set(stride)) == 1
        for spread, ids in zip(mine["depends_on"], wanted["depends_on"], strict=True):
            assert list(spread) == [stride[0] * i for i in ids]
        flows = mixed.flows.to_pandas()
        of_step = flows[~flows["phase"].isin(trace.metadata["pool"]["phases"])]
        assert len(of_step) == own.flows.num_rows


def test_every_stream_of_the_pool_waits_for_the_clock_in_every_layer():
    frames = [chunk.tasks.to_pandas() for chunk in pool().chunks()]
    streams = [set(map(tuple, part[part["stream"] > 10][["rank", "stream"]].to_numpy()))
               for part in frames]  # fmt: skip
    assert streams[0]
    assert all(found == streams[0] for found in streams)
    for part in frames:
        ticks = part[part["kind"] == "tick"]
        assert ticks["duration_ps"].sum() == SAMPLE.spec.layer_time
        holds = part[part["kind"] == "hold"]
        assert all(list(needs) == [ticks["task"].max()] for needs in holds["depends_on"])


def test_weights_come_at_the_rate_of_a_warm_load():
    flows = flows_of(pool(PAPER))
    loads = flows[flows["phase"] == "model-load"]
    per_layer = (loads["messages"] * loads["message_bytes"]).groupby(loads["layer"]).sum()
    assert len(per_layer) == 6  # of 3 dense layers, one of 58, MTP and head
    assert per_layer.to_numpy() == pytest.approx(671e9 / 5 * 1.26e-3, rel=1e-6)


@pytest.mark.parametrize(("cached_at", "copies"), [("every", 8), ("share", 1)])
def test_a_prefill_step_waits_for_the_latents_of_each_layer(cached_at, copies):
    changes = PREFILL | {"cache.step_reads": "layer"}
    changes |= {"step.serving.cached_at": cached_at, "prefill.cached_at": cached_at}
    traffic = pool_with(changes)
    assert traffic.machine.prefill[0] == list(range(8))
    for chunk in traffic.chunks():
        flows, tasks = chunk.flows.to_pandas(), chunk.tasks.to_pandas()
        cached = flows[flows["phase"] == "cached"]
        moved = (cached["messages"] * cached["message_bytes"]).sum()
        expected = 0 if chunk.label == "head" else 8 * 256 * TOKEN_LAYER_BYTES * copies
        assert moved == expected
        # latents and rotated keys of two blocks a prompt
        assert cached["messages"].sum() == (0 if chunk.label == "head" else 8 * 2 * 2 * copies)
        gathered = flows[flows["phase"] == "gather"]
        held = 4 * 256 // 8 if cached_at == "share" else 0  # four prompts a microbatch
        if len(gathered):
            computed = 8 * 256 // 2 // 8
            size = computed * 1_536 + (computed + held) * TOKEN_LAYER_BYTES
            assert set(gathered["message_bytes"]) == {size}
        waits = tasks[tasks["waits"] == "cached"]
        assert len(waits) == (0 if chunk.label == "head" else 8 * 2)
        first = set(waits["task"])
        for row in tasks[tasks["kind"] == "gather"].itertuples():
            assert set(row.depends_on) <= first


@pytest.mark.parametrize(("attention", "readers"), [("staged", 8), ("data", 1)])
def test_other_instances_read_blocks_as_the_steps_attention_needs_them(attention, readers):
    changes = PREFILL | {"requests.rate": 2500, "cache.warm": True, "prefill.instances": 2}
    changes |= {"step.serving.attention": attention}
    changes["step.serving.prompts"] = [{"tokens": 512, "count": 16, "reused": 256}]
    traffic = pool_with(changes)
    reads = [one for one in traffic.transfers if one.kind == "cache-read"]
    assert reads
    for one in reads:
        dies = {block[3] for block in one.blocks}
        assert len(dies) == readers
        assert len(one.blocks) == readers * len({block[:3] for block in one.blocks})


def test_a_prefill_step_reads_all_layers_at_first():
    traffic = pool_with(PREFILL)
    moved = []
    for chunk in traffic.chunks():
        cached = chunk.flows.to_pandas().query("phase == 'cached'")
        moved.append(int((cached["messages"] * cached["message_bytes"]).sum()))
    assert moved == [8 * 8 * 256 * 61 * TOKEN_LAYER_BYTES, *[0] * (len(moved) - 1)]


@pytest.mark.parametrize(("writes", "copies"), [("one", 1), ("every", 8)])
def test_reads_of_a_prefill_step_wait_for_what_the_batch_before_stores(writes, copies):
    traffic = pool_with(STORING | {"cache.step_writes": writes})
    first = next(traffic.chunks())
    flows, tasks = first.flows.to_pandas(), first.tasks.to_pandas()
    stored = flows[flows["phase"] == "stored"]
    # 256 of 512 tokens of each of eight prompts are new, in two blocks
    moved = (stored["messages"] * stored["message_bytes"]).sum()
    assert moved == copies * 8 * 256 * 61 * TOKEN_LAYER_BYTES
    by_die = stored.groupby("src")["messages"].sum()
    assert set(by_die.index) == set(range(8)) and by_die.nunique() == 1
    waits = set(tasks[tasks["waits"] == "stored"]["task"])
    assert len(waits) == stored["dst"].nunique()
    reads = tasks[tasks["sends"] == "cached"]
    assert len(reads) == 8 * 2  # of both microbatches
    assert all(set(needs) == waits for needs in reads["depends_on"])
    # each block goes where it will be read from
    expected = {home for home, _ in traffic.stored_blocks()}
    assert set(stored["dst"]) == expected
    assert not set(expected) - set(traffic.machine.cpus)


def test_stores_take_their_time_before_the_reads(tmp_path):
    ends = []
    for writes in ("none", "every"):
        trace = ub.generate_trace(
            SAMPLE, layers=1, overrides=STORING | {"cache.step_writes": writes}
        )
        run = ub.replay(ub.build_topology("two-nodes"), trace, tmp_path / writes, progress=False)
        flows = run.flows()
        cached = flows[flows["phase"] == "cached"]
        if writes == "every":
            stored = flows[flows["phase"] == "stored"]
            assert stored["finish_ps"].max() <= cached["start_ps"].min()
            assert set(ub.rebuild_tokens(run).pool["kind"]) >= {"stored", "cached"}
        ends.append(ub.rebuild_tokens(run).summary["step_ms"])
    assert ends[1] > ends[0]


def test_over_vpc_a_new_block_leaves_a_server_once():
    vpc = {"cache_read.network": "vpc", "cache_write.network": "vpc"}
    traffic = pool_with(STORING | vpc)
    flows = flows_of(traffic)
    up, over = (flows[flows["phase"] == f"stored-{part}"] for part in ("up", "vpc"))
    size = 8 * 256 * 61 * TOKEN_LAYER_BYTES
    assert (up["messages"] * up["message_bytes"]).sum() == 8 * size
    machine = traffic.machine
    assert all(row.dst in machine.memories(row.src) for row in up.itertuples())
    assert set(over["src"]) == {machine.gateway(0)}
    assert machine.gateway(0) not in set(over["dst"])
    assert (over["messages"] * over["message_bytes"]).sum() <= size


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (PREFILL, {"cached"}),
        ({"kv_transfer": None, "cache_read.network": "vpc"}, {"cache-read-down"}),
        (STORING | {"cache_write.network": "vpc"}, {"cached", "stored-up"}),
    ],
)
@pytest.mark.parametrize(("vpc_memory", "cpus"), [("spread", 4), ("card", 1)])
def test_over_vpc_blocks_lie_with_all_cpus_of_a_server_or_with_one(
    changes, parts, vpc_memory, cpus
):
    changes = changes | {"cache_read.network": "vpc", "cache.vpc_memory": vpc_memory}
    traffic = pool_with(changes | {"requests.rate": 2500, "cache.warm": True})
    flows, machine = flows_of(traffic), traffic.machine
    for part in parts:
        mine = flows[flows["phase"] == part]
        moved = (mine["messages"] * mine["message_bytes"]).groupby(mine["dst"]).sum()
        gateways = {machine.gateway(die) for die in set(mine["src"])}
        assert set(moved.index) == {gateway + i for gateway in gateways for i in range(cpus)}
        assert moved.max() < 1.5 * moved.min()


@pytest.mark.parametrize("step", [PREFILL, {"kv_transfer": None, "model_load": None}])
def test_over_vpc_a_server_gets_a_block_once_and_its_dies_read_it_there(step):
    """Of an instance whose every die wants it: from a step of its own, and beside one of decode."""
    changes = step | {"cache_read.network": "vpc", "requests.rate": 2500, "cache.warm": True}
    traffic = pool_with(changes)
    flows = flows_of(traffic)
    over = flows[flows["network"] == "vpc"]
    over = over[over["phase"].str.startswith("cache")]
    into = flows[flows["phase"].isin(["cached", "cache-read-down"])]
    assert len(over)
    machine = traffic.machine
    for row in into.itertuples():  # src asks dst
        assert row.dst in machine.memories(row.src)
    gateways = {machine.gateway(die) for die in machine.prefill[0]}
    landed = over[over["phase"] != "cache-write-vpc"]
    assert set(landed["dst"]) <= gateways
    # all eight dies of the instance read what came once, and what lay there
    reads = into["messages"] * into["message_bytes"]
    by_die = reads.groupby(into["src"]).sum()
    assert by_die.nunique() == 1
    assert (landed["messages"] * landed["message_bytes"]).sum() <= by_die.iloc[0] * len(gateways)


def test_reads_of_a_prefill_step_run_ahead_as_far_as_allowed():
    changes = PREFILL | {"cache.step_reads": "layer", "cache.ahead_layers": 1}
    traffic = pool_with(changes)
    frames = [chunk.tasks.to_pandas() for chunk in traffic.chunks()]
    for position, part in enumerate(frames):
        moves = part[part["kind"] == "cached-move"]
        needs = {int(one) for ids in moves["depends_on"] for one in ids}
        if position < 2 or moves.empty:
            assert not needs
        else:  # the first task of rank 0, two layers before
            assert needs == {int(frames[position - 2]["task"].iloc[0])}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "pond"}, "kind: found 'pond', allowed: decode, prefill, pool"),
        ({"step": 3}, "step: found 3, allowed a specification of a step"),
        ({"step": {"base": "pool-sample"}}, "step.kind: found 'pool', allowed: decode, prefill"),
        ({"step.serving.batch_per_npu": 7}, "serving.batch_per_npu|found 7, allowed a multiple"),
        ({"step.serving.nothing": 7}, "step: serving.nothing: unknown key"),
        ({"decode_ranks": 16}, "decode_ranks: found 16, allowed 8, the ranks of the step"),
        ({"servers.count": 1}, "servers: found 16 dies, of which .* need 24"),
        ({"requests.prompt_tokens": 500}, "found 500, allowed a multiple of cache.block_tokens"),
        ({"requests.reused": 1.0}, "requests.reused: found 1.0"),
        ({"cache.block_tokens": 64}, "cache.block_tokens: found 64"),
        ({"cache_read.network": "rdma"}, "cache_read.network: found 'rdma'"),
        ({"cache_read.operation": "sdma-write"}, "cache_read.operation: found 'sdma-write'"),
        (PREFILL | {"prefill.cached_at": "share"}, "cached_at: found 'share', allowed 'every'"),
        ({"model_load.message": "0 B"}, "model_load.message: found 0 B"),
        ({"step.deployment.attention_tp": 2}, "step.deployment.attention_tp: found 2, allowed 1"),
        (
            {"kv_transfer.message": "whole", "requests.prompt_tokens": 32768},
            "found 32768, with kv_transfer.message whole messages of 2302672896 B, allowed below",
        ),
        (PREFILL | {"cache_read": None}, "cache_read: found none, and prompts of the step reuse"),
        (PREFILL | {"cache.step_writes": "one"}, "step_writes: found 'one' and no cache_write"),
        (
            STORING | {"step.serving.prompts": [{"tokens": 512, "count": 8}]},
            "step_writes: found 'every' and no reused tokens in the step",
        ),
        (
            STORING
            | {
                "step.serving.attention": "data",
                "step.serving.prompts": [{"tokens": 512, "count": 16, "reused": 256}],
            },
            "step_writes: found 'every', and each block is on one die only; allowed 'none', 'one'",
        ),
        ({"cache.step_writes": "all"}, "cache.step_writes: found 'all'"),
        ({"cache.step_writes": "one"}, "step_writes: found 'one' and a step of decode"),
        (
            {"step": {"base": "prefill-ep8-sample",
                      "serving": {"prompts": [{"tokens": 512, "count": 8, "reused": 100}]}}},
            "found 100 reused tokens, allowed a multiple of cache.block_tokens = 128",
        ),
    ],
)  # fmt: skip
def test_bad_specifications_are_refused_in_one_line(changes, message):
    with pytest.raises(SpecError, match=message) as error:
        load_workload(SAMPLE, changes)
    assert "\n" not in str(error.value)


def test_too_many_transfers_in_a_layer_are_refused():
    with pytest.raises(SpecError, match="more than 128 transfers of kind .* in one layer"):
        pool(requests__rate=200_000)


def test_servers_that_the_topology_does_not_have_are_named(tmp_path):
    trace = ub.generate_trace(SAMPLE, layers=1)
    with pytest.raises(TraceError, match="found 'die-1-0', which is no node of one-node"):
        ub.replay(ub.build_topology("one-node"), trace, tmp_path / "run")


def test_a_sweep_varies_the_keys_of_pool_and_step():
    points = plan_sweep(
        {
            "topology": "two-nodes",
            "workload": "pool-sample",
            "run": {"layers": 1},
            "grid": {
                "workload.kv_transfer.network": ["rdma", "ub"],
                "workload.step.serving.batch_per_npu": [8, 16],
            },
        }
    )
    assert len({point.point for point in points}) == 4
    assert points[0].simulation.trace().metadata["batch_per_npu"] == 8


def test_a_sweep_notices_another_popularity_file_of_the_step(tmp_path):
    file = tmp_path / "experts.csv"
    gate = {"policy": "file", "file": str(file)}
    sweep = {
        "topology": "two-nodes",
        "workload": "pool-sample",
        "run": {"layers": 1},
        "list": [{"workload.step.gate": gate}],
    }
    hashes = set()
    for hot in (1, 2):
        rows = "".join(f"{expert},{hot if expert == 0 else 1}\n" for expert in range(256))
        file.write_text("expert,tokens\n" + rows)
        hashes.add(plan_sweep(sweep)[0].point)
    assert len(hashes) == 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of one MoE layer: the step alone, and with the pool over rdma and over ub."""
    folder, graph = tmp_path_factory.mktemp("pool"), ub.build_topology("two-nodes")
    load = {"requests.rate": 2500, "requests.prompt_tokens": 1024, "cache.prefixes": 2}
    sources = {
        "alone": ub.generate_trace(SAMPLE.raw["step"], layers=1, seed=1),
        "rdma": ub.generate_trace(SAMPLE, layers=1, overrides=load),
        "ub": ub.generate_trace(SAMPLE, layers=1, overrides=load | {"kv_transfer.network": "ub"}),
    }
    return {
        name: ub.replay(graph, trace, folder / name, payload_bytes=8192)
        for name, trace in sources.items()
    }


def test_the_figures_of_a_step_are_its_own(runs):
    """A lightly loaded pool leaves the step as it is; its transfers are listed apart."""
    tokens = {name: ub.rebuild_tokens(run) for name, run in runs.items()}
    alone = tokens["alone"]
    assert alone.pool.empty
    for name in ("rdma", "ub"):
        assert tokens[name].summary["n_ranks"] == 8
        assert tokens[name].summary["tpot_ms"] == pytest.approx(alone.summary["tpot_ms"], rel=0.02)
        assert set(tokens[name].latency["phase"]) == set(alone.latency["phase"])
        loads = tokens[name].layers["load_max_over_mean"]
        pd.testing.assert_series_equal(loads, alone.layers["load_max_over_mean"])
        assert set(tokens[name].pool["kind"]) == {
            *("kv-transfer", "cache-read", "cache-write", "model-load")
        }
        assert "kv-transfer" in tokens[name].to_text()
    own = runs["rdma"].step_tasks()
    assert len(own) == len(runs["alone"].tasks()) < len(runs["rdma"].tasks())
    assert set(own["kind"].cat.categories) == set(runs["alone"].tasks()["kind"].cat.categories)
    assert runs["alone"].step_tasks().equals(runs["alone"].tasks())
    assert len(runs["rdma"].layer_times()) == 6
    inputs = [row["key"] for row in tokens["rdma"].summary["inputs"]]
    assert inputs == [row["key"] for row in alone.summary["inputs"]]


def test_kv_over_ub_meets_the_step_and_kv_over_rdma_does_not(runs):
    """With nothing else over UB, the plane of the KV decides whether the step is touched."""
    ends = {
        name: flows.loc[flows["phase"].isin(["dispatch", "combine"]), "finish_ps"].to_numpy()
        for name, flows in ((name, run.flows()) for name, run in runs.items())
    }
    over_rdma = (ends["rdma"] - ends["alone"]).astype(float)
    over_ub = (ends["ub"] - ends["alone"]).astype(float)
    assert np.abs(over_ub).max() > np.abs(over_rdma).max()


def test_a_block_is_read_after_it_was_written_and_from_there(runs):
    load = {"requests.rate": 2500, "requests.prompt_tokens": 1024, "cache.prefixes": 2}
    blocks = pool_with(load).blocks()
    flows = runs["rdma"].flows()
    written = blocks[(blocks["kind"] == "cache-write") & (blocks["serial"] == 0)]
    read = blocks[blocks["kind"] == "cache-read"]
    assert len(read)
    arrived = flows[flows["phase"] == "cache-write"].groupby("dst")["finish_ps"].min()
    begun = flows[flows["phase"] == "cache-read"].groupby("dst")["start_ps"].min()
    assert set(begun.index) == set(read["cpu"]) <= set(written["cpu"])
    for cpu, start in begun.items():
        assert start >= arrived[cpu]


def test_a_transfer_over_several_networks_counts_its_bytes_once():
    rows = [
        ("kv-transfer-up", 0, 0, 1, 10, "ub", 100, 0, 50),
        ("kv-transfer-vpc", 0, 0, 10, 11, "vpc", 100, 50, 250),
        ("kv-transfer-down", 0, 0, 11, 2, "ub", 100, 250, 300),
        ("kv-transfer-up", 0, 1, 1, 10, "ub", 40, 0, 100),
        ("cached", 0, 0, 11, 2, "ub", 7, 0, 10),
    ]
    names = [
        "phase",
        "layer",
        "microbatch",
        "src",
        "dst",
        "network",
        "bytes",
        "start_ps",
        "finish_ps",
    ]
    phases = sorted({row[0] for row in rows})
    table = pool_table(pd.DataFrame(rows, columns=names), {"pool": {"phases": phases}})
    kv = table.set_index("kind").loc["kv-transfer"]
    assert kv["network"] == "ub + vpc"
    assert (kv["transfers"], kv["bytes"]) == (2, 140)
    assert (kv["mean_ps"], kv["p50_ps"], kv["max_ps"]) == (200, 100, 300)
    assert kv["bytes_per_s"] == pytest.approx((100 / 300 + 40 / 100) / 2 * 1e12)
    assert pool_table(pd.DataFrame(rows, columns=names), {}).empty
