"""A decode step whose dies either attend or hold experts: tasks, flows, memory, refusals."""

import numpy as np
import pytest

import ubfabric as ub
from ubfabric.decode import DecodeStep, generate_trace
from ubfabric.disaggregated import DisaggregatedStep
from ubfabric.errors import SpecError
from ubfabric.serving_spec import load_serving
from ubfabric.steps import Stage
from ubfabric.trace import check_trace
from ubfabric.workload import load_workload

#: Ranks 0 to 2 and 3 to 5 are domains of dies that attend; ranks 6 and 7 hold the experts.
SMALL = load_workload("decode-disaggregated-sample")
PAPER = load_workload("xdeepserve-decode-disaggregated")
ATTENDING, HOLDING = range(6), range(6, 8)
DOMAINS = (range(3), range(3, 6))


def chunks(source=SMALL, **changes):
    """Return ``(label, flows, tasks)`` of each layer as data frames."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    trace = generate_trace(source, overrides=changes)
    return [(c.label, c.flows.to_pandas(), c.tasks.to_pandas()) for c in trace.chunks()]


def changed(source=SMALL, **changes):
    return load_workload(source, {key.replace("__", "."): v for key, v in changes.items()}).spec


def of_rank(tasks, rank, stream):
    rows = tasks[(tasks["rank"] == rank) & (tasks.stream == stream)]
    return list(zip(rows.kind, rows.microbatch, strict=True))


def test_streams_of_a_die_take_no_memory_from_each_other():
    assert all((tasks.memory_ps == 0).all() for _, _, tasks in chunks())


def test_messages_leave_dies_that_attend_reach_experts_and_come_back():
    tokens = 12  # 12 requests a die, two tokens each, two microbatches
    for label, flows, _ in chunks():
        if label not in ("moe", "mtp"):
            assert not len(flows)
            continue
        for microbatch in range(4):
            sources = DOMAINS[microbatch % 2]
            rows = flows[flows.microbatch == microbatch]
            there, back = (rows[rows.phase == phase] for phase in ("dispatch", "combine"))
            sent = there.groupby("src").messages.sum()
            assert sent.index.tolist() == list(sources) and (sent == tokens * 9).all()
            assert set(there.dst) <= set(HOLDING)
            returned = set(zip(back.dst, back.src, back.messages, strict=True))
            assert returned == set(zip(there.src, there.dst, there.messages, strict=True))


def test_no_die_does_what_the_other_group_is_for():
    attend = {"prologue", "attention", "output", "gate", "ffn", "head", "sampling", "projection"}
    for label, _, tasks in chunks():
        kinds = {
            group: set(tasks.kind[tasks["rank"].isin(group)]) for group in (ATTENDING, HOLDING)
        }
        waits = {
            group: set(tasks.waits[tasks["rank"].isin(group)]) for group in (ATTENDING, HOLDING)
        }
        assert not kinds[HOLDING] & {*attend, "host"} and "expert" not in kinds[ATTENDING]
        assert "dispatch" not in waits[ATTENDING] and "combine" not in waits[HOLDING]
        if label in ("dense", "head"):
            assert kinds[HOLDING] <= {"start"}
        else:
            assert "expert" in kinds[HOLDING]
            # one expert task for each microbatch of each domain
            assert (tasks[tasks.kind == "expert"].groupby("rank").size() == 4).all()
            assert (tasks[tasks.kind == "attention"].groupby("rank").size() == 2).all()


def test_flags_of_dispatch_go_between_the_groups_only_one_a_pair_and_batch():
    flows = chunks()[3][1]
    for microbatch in range(4):
        rows = flows[(flows.phase == "dispatch-flag") & (flows.microbatch == microbatch)]
        pairs = sorted(zip(rows.src, rows.dst, strict=True))
        assert pairs == [(a, b) for a in DOMAINS[microbatch % 2] for b in HOLDING]
        assert (rows.messages == 1).all() and (rows.message_bytes == 512).all()


def test_streams_run_microbatches_in_turn():
    moe = chunks()[3][2]
    attention = ["prologue", "attention", "output", "gate", "dispatch", "dispatch-flag"]
    results = ["combine-flag", "combine-receive", "combine-copy"]
    assert of_rank(moe, 4, 0) == [(kind, m) for m in (1, 3) for kind in attention]
    assert of_rank(moe, 4, 1) == [(kind, m) for m in (1, 3) for kind in results]
    receive = ["dispatch-flag", "dispatch-receive", "dispatch-copy"]
    assert of_rank(moe, 7, 2) == [(kind, m) for m in range(4) for kind in receive]
    assert of_rank(moe, 7, 3) == [("expert", m) for m in range(4)]
    assert of_rank(moe, 7, 4) == [(k, m) for m in range(4) for k in ("combine", "combine-flag")]


def test_tasks_depend_on_what_they_need_of_their_own_rank():
    by_id = {}
    for _, _, tasks in chunks(simulate_moe_layers=2):
        by_id |= {row.task: row for row in tasks.itertuples()}
    layers = sorted({row.layer for row in by_id.values() if row.kind == "expert"})
    needs = {}
    for row in by_id.values():
        found = [by_id[number] for number in row.depends_on]
        assert all(other.rank == row.rank for other in found)
        if row.rank in (4, 7):
            names = [(other.kind, other.layer, other.microbatch) for other in found]
            needs[row.rank, row.kind, row.layer, row.microbatch] = names
    one, two, mtp = layers
    assert needs[4, "dispatch", one, 3] == [("gate", one, 3)]
    assert needs[4, "combine-flag", one, 3] == [("dispatch-flag", one, 3)]
    assert needs[4, "prologue", two, 3] == [("combine-copy", one, 3)]
    assert needs[4, "head", mtp, -1] == [("combine-copy", two, 1), ("combine-copy", two, 3)]
    assert needs[4, "prologue", mtp, 1] == [("projection", mtp, -1)]
    assert needs[7, "dispatch-flag", one, 3] == []
    assert needs[7, "expert", one, 3] == [("dispatch-copy", one, 3)]
    assert needs[7, "combine", one, 3] == [("expert", one, 3)]
    assert needs[7, "dispatch-flag", two, 3] == [("combine-flag", one, 3)]


def test_kernels_of_dies_with_experts_start_once():
    step = DisaggregatedStep(SMALL, 1, 1)
    plan = next(plan for plan in step.plans if plan.label == "moe")
    launch = SMALL.spec.machine.launch.communication
    assert step.duration_ps(plan, Stage("dispatch", 0, sends="dispatch", group=0)) == launch
    assert step.duration_ps(plan, Stage("combine", 0, sends="combine", group=2)) == 0
    placement = step.place(plan.layer)
    idle = step.expert_ps(placement, np.zeros(258, np.int64), None)
    assert (idle == 0).all()
    starts = [tasks[tasks.kind == "start"] for _, _, tasks in chunks()]
    assert starts[0]["rank"].tolist() == list(HOLDING)
    assert (starts[0].duration_ps == launch).all()
    assert not any(len(rows) for rows in starts[1:])


def test_every_operator_has_the_whole_die():
    even = {"machine__efficiency__attention_spread": 0}
    tasks = chunks(PAPER, simulate_moe_layers=1, **even)[3][2]
    # 96 tokens x 128 heads x 3,072 x (576 + 512), two operations each, on all cores; one kernel
    expected = 5 + 2 * 96 * 128 * 3072 * (576 + 512) / (376e6 * 0.654)
    attention = tasks[tasks.kind == "attention"].duration_ps / 1e6
    assert attention.to_numpy() == pytest.approx(expected, rel=1e-6)
    # 16 engines for 48 vector cores
    assert set(tasks.message_cost_ps) == {0, 4_780_000 * 16 // 48, 2_900_000 * 16 // 48}


def test_expert_time_and_copies_follow_the_tokens_that_came():
    _, flows, tasks = chunks()[3]
    for phase, a_message in (("dispatch", 7680 + 7168), ("combine", 14336 + 14336 / 9)):
        received = flows[flows.phase == phase].groupby(["microbatch", "dst"]).messages.sum()
        copies = tasks[tasks.kind == f"{phase}-copy"].set_index(["microbatch", "rank"])
        expected = received * a_message / (1.6e12 * 0.841) * 1e12
        assert copies.duration_ps.sort_index().to_numpy() == pytest.approx(
            expected.sort_index().to_numpy(), abs=1
        )
    experts = tasks[tasks.kind == "expert"]
    assert (experts.duration_ps > 0).all()


def test_domains_share_replicas_of_the_shared_expert_evenly():
    step = DisaggregatedStep(PAPER, 1, 1)
    flows = step.chunk(3).flows.to_pandas()
    shared = np.arange(32) * 288 // 32 + 480
    for microbatch in range(6):
        rows = flows[(flows.phase == "dispatch") & (flows.microbatch == microbatch)]
        # 5 of 160 ranks to each of 32 replicas, 96 tokens each, and no routed expert there
        loads = rows[rows.dst.isin(shared)].groupby("dst").messages.sum()
        assert loads.index.tolist() == shared.tolist() and (loads == 5 * 96).all()


def test_ranks_begin_with_different_destinations_of_the_other_group():
    flows = chunks(PAPER, simulate_moe_layers=1)[3][1]
    rows = flows[(flows.phase == "dispatch-flag") & (flows.microbatch == 4)]
    assert rows.groupby("src").dst.first().nunique() == 160


def test_one_buffer_takes_a_round_of_flags_between_the_groups():
    _, flows, tasks = chunks(messages__buffers=1)[3]
    assert of_rank(tasks, 0, 0)[4:7] == [
        (kind, 0) for kind in ("dispatch-ready", "dispatch", "dispatch-flag")
    ]
    assert of_rank(tasks, 7, 2)[:2] == [("dispatch-ready", 0), ("dispatch-flag", 0)]
    assert of_rank(tasks, 0, 1)[:2] == [("combine-ready", 0), ("combine-flag", 0)]
    assert of_rank(tasks, 7, 4)[:2] == [("combine-ready", 0), ("combine", 0)]
    ready = flows[(flows.phase == "dispatch-ready") & (flows.microbatch == 1)]
    assert sorted(zip(ready.src, ready.dst, strict=True)) == [
        (a, b) for a in HOLDING for b in DOMAINS[1]
    ]


def test_ranks_that_share_heads_are_neighbours_of_one_domain():
    four = {
        "deployment.disaggregated": {"attention_ranks": 4, "domains": 2},
        "deployment.experts_per_rank": 65,
        "deployment.shared_replicas": 4,
        "deployment.attention_tp": 2,
        "serving.batch_per_npu": 16,
    }
    trace = generate_trace(SMALL, overrides=four)
    check_trace(trace)
    moe = list(trace.chunks())[3]
    flows = moe.flows.to_pandas()
    for phase in ("gather", "reduce"):
        rows = flows[(flows.phase == phase) & (flows.microbatch == 1)]
        assert sorted(zip(rows.src, rows.dst, strict=True)) == [(2, 3), (3, 2)]
        # 8 requests of 2 tokens a microbatch, 7,168 numbers in BF16
        assert (rows.message_bytes == 16 * 7168 * 2).all()
    kinds = [kind for kind, m in of_rank(moe.tasks.to_pandas(), 3, 0) if m == 1]
    assert kinds[0] == "gather" and kinds[4:6] == ["reduce", "reduce-copy"]


def test_batch_is_of_all_npus():
    spec = PAPER.spec
    assert spec.npus == 384 and spec.requests_per_rank == 96 and spec.tokens_per_rank == 192
    metadata = generate_trace(PAPER, layers=1).metadata
    assert metadata["paper_row"]["tokens_per_s_per_npu"] == 2400
    assert (metadata["attention_ranks"], metadata["domains"]) == (480, 3)
    # 46,080 requests in all, as the source says
    assert metadata["requests_per_rank"] * metadata["attention_ranks"] == 46_080


def test_a_row_of_another_deployment_is_not_this_point():
    alike = {"deployment.disaggregated.domains": 1}
    assert generate_trace(PAPER, layers=1, overrides=alike).metadata["paper_row"] is None


def test_memory_is_that_of_what_a_die_does():
    attends, holds = (PAPER.spec.memory_bytes(die) for die in ("attention", "experts"))
    projections = 7168 * (1536 + 576) + 1536 * 128 * 192 + 128 * 128 * 7168  # INT8
    a_layer = projections + 2 * 128 * 512 * 256  # the absorbed part in BF16
    rest = 3 * 3 * 7168 * 18432 + 2 * 2 * 7168 * 7168 + 2 * 2 * 7168 * 129280
    assert attends["weights"] == 62 * a_layer + 59 * 4 * 7168 * 256 + rest
    assert attends["KV cache"] == 96 * 3072 * 576 * 2 * 62
    assert attends["message buffers"] == 288 * 192 * 14_336
    # one expert of each MoE layer and the MTP layer, in INT8
    assert holds["weights"] == 59 * 3 * 7168 * 2048
    assert holds["KV cache"] == 0
    assert holds["message buffers"] == 480 * 192 * 7_680
    single = [
        changed(PAPER, messages__buffers=1).memory_bytes(die) for die in ("attention", "experts")
    ]
    # emptied after each microbatch of each domain
    assert single[0]["message buffers"] == 288 * 96 * 14_336
    assert single[1]["message buffers"] == 160 * 96 * 7_680


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"deployment.disaggregated.attention_ranks": 8},
            r"disaggregated.attention_ranks: found 8, allowed 1 to 7: of 8 ranks some must hold",
        ),
        ({"deployment.disaggregated.attention_ranks": 0}, "attention_ranks: found 0"),
        (
            {"deployment.disaggregated.domains": 4},
            "domains: found 4, allowed a divisor of attention_ranks = 6",
        ),
        ({"deployment.disaggregated.dies": 4}, "disaggregated.dies: unknown key"),
        (
            {"deployment.disaggregated.attention_ranks": 4},
            r"found 4 expert ranks x 129 experts_per_rank = 516 slots .* slots without an expert",
        ),
        (
            {"deployment.attention_tp": 2},
            "attention_tp: found 2, allowed a divisor of attention_ranks / domains = 3",
        ),
        (
            {"serving.batch_per_npu": 16},
            r"batch_per_npu: found 16 requests an NPU of 4, allowed a multiple of 3, which "
            r"attention_ranks x microbatches = 12 divide among them",
        ),
        (
            {"machine.die.hbm_capacity": "300 GB"},
            r"found 300.0 GB a die with experts, which DeepSeek-R1 exceeds by .* KV cache 0.0 GB",
        ),
        (
            {"serving.kv_tokens": 1_000_000},
            r"found 512.0 GB a die that attends, which DeepSeek-R1 exceeds by .* KV cache 857",
        ),
    ],
)
def test_bad_deployment_is_refused_in_one_line(changes, message):
    with pytest.raises(SpecError, match=message) as caught:
        load_workload(SMALL, changes)
    assert "\n" not in str(caught.value)


def test_prefill_pool_and_serving_refuse_it():
    apart = {"deployment.disaggregated": {"attention_ranks": 4}}
    with pytest.raises(SpecError, match="deployment.disaggregated: found in prefill, allowed in"):
        load_workload("prefill-ep8-sample", apart | {"deployment.experts_per_rank": 66})
    step = {"step": {"base": "decode-disaggregated-sample"}}
    with pytest.raises(SpecError, match="step.deployment.disaggregated: found in the step of a p"):
        load_workload("pool-sample", step)
    workload = {"decode.workload": "decode-disaggregated-sample", "decode.changes": {}}
    with pytest.raises(SpecError, match="decode.workload: found deployment.disaggregated, allowed"):
        load_serving("serving-sample", workload)


def test_recorded_tokens_are_dealt_to_microbatches_and_domains_in_order(tmp_path):
    rng = np.random.default_rng(3)
    tokens = np.argsort(rng.random((500, 58, 256)), axis=2)[:, :, :8].astype(np.int16)
    np.savez(tmp_path / "r.npz", experts=tokens)
    text = "base: decode-disaggregated-sample\nname: a\n"
    text += "gate: {policy: recorded, file: r.npz}\n"
    (tmp_path / "a.yaml").write_text(text)
    step = DisaggregatedStep(load_workload(tmp_path / "a.yaml"), 1, [3])
    plan = next(plan for plan in step.plans if plan.label == "moe")
    routed = [step.route(plan, number) for number in range(4)]
    place = int(np.flatnonzero((tokens[:, 0] == routed[0][0]).all(axis=1))[0])
    order = (place + np.arange(4 * 36)) % 500
    assert (np.concatenate(routed) == tokens[order, 0]).all()


def test_without_the_key_every_rank_does_both():
    plain = {"deployment.disaggregated": None, "deployment.experts_per_rank": 33}
    workload = load_workload(
        SMALL, plain | {"deployment.shared_replicas": 8, "serving.batch_per_npu": 16}
    )
    trace = generate_trace(workload)
    assert "attention_ranks" not in trace.metadata
    step = DecodeStep(workload, workload.spec.seed, trace.metadata["n_moe_layers_simulated"])
    for chunk, same in zip(trace.chunks(), step.chunks(), strict=True):
        assert chunk.flows.equals(same.flows) and chunk.tasks.equals(same.tasks)


@pytest.mark.parametrize("changes", [{}, {"messages.buffers": 1}, {"messages.flag": "0 B"}])
def test_a_step_is_replayed_and_its_tokens_rebuilt(changes, tmp_path):
    trace = generate_trace(SMALL, overrides=changes)
    check_trace(trace)
    run = ub.replay(ub.cloudmatrix384(), trace, tmp_path / "run")
    tokens = ub.rebuild_tokens(run)
    summary = tokens.summary
    # the batch is that of all NPUs, so tokens/s counts the dies with experts too
    assert summary["tokens_per_s_per_npu"] == pytest.approx(18 / summary["tpot_ms"] * 1e3)
    groups = summary["shares_by_group"]
    assert groups["attention"]["attention"] > 0 and groups["attention"]["expert"] == 0
    # two dies with all experts are what this step waits for
    assert groups["experts"]["expert"] > 0.8 and groups["experts"]["attention"] == 0
    assert sum(groups["experts"].values()) == pytest.approx(1)
    assert "dies with experts" in tokens.to_text()
    # half of the pairs go to each of two ranks; over all eight ranks the ratio would be 4
    loads = tokens.layers.load_max_over_mean.dropna()
    assert len(loads) == 3 and (loads < 1.5).all()
    tasks = run.step_tasks()
    for _, rows in tasks.groupby(["layer", "microbatch"]):
        kind = rows["kind"].astype(str)
        if not (kind == "expert").any():
            continue
        # experts begin when their tokens have come, attention goes on when its results have
        last_sent = rows.start_ps[kind == "dispatch"].max()
        assert rows.start_ps[kind == "expert"].min() > last_sent
        assert rows.finish_ps[kind == "combine-copy"].min() > rows.finish_ps[kind == "expert"].max()
    # while experts of one domain are under way the dies of the other attend
    moe = tasks[tasks.layer == sorted(set(tasks.layer[tasks.kind == "expert"]))[0]]
    expert = moe[(moe.kind == "expert") & (moe.microbatch == 0)]
    other = moe[(moe.kind == "attention") & (moe.microbatch == 3)]
    assert (other.start_ps.min() < expert.finish_ps.max()) and len(other) == 3


def test_waiting_of_dies_with_experts_is_no_time_of_a_layer_or_operator(tmp_path):
    run = ub.replay(ub.cloudmatrix384(), generate_trace(SMALL, layers=1), tmp_path / "run")
    tokens = ub.rebuild_tokens(run)
    tasks = run.step_tasks()
    layer = int(tokens.layers.loc[tokens.layers["moe"], "layer"].iloc[0])
    moe = tasks[tasks.layer == layer]
    attend = moe[moe["rank"].isin(ATTENDING)]
    ends = moe.finish_ps[moe.kind == "combine-copy"].max()
    # dies with experts have waited for their first batch since the step began
    assert moe.start_ps.min() <= SMALL.spec.machine.launch.communication < attend.start_ps.min()
    assert tokens.summary["layer_us"] * 1e6 == pytest.approx(ends - attend.start_ps.min())
    sent = attend[attend.kind == "dispatch-flag"].set_index(["rank", "microbatch"]).finish_ps
    begun = attend[attend.kind == "dispatch"].set_index(["rank", "microbatch"]).start_ps
    longest = tokens.summary["rank_latency_us"]["dispatch"]["max"] * 1e6
    assert longest == pytest.approx((sent - begun).max())
    took = attend.groupby("rank").finish_ps.max() - attend.groupby("rank").start_ps.min()
    row = tokens.layers.set_index("layer").loc[layer]
    assert row["duration_max_ps"] == took.max() and row["duration_median_ps"] == took.median()
