"""The decode step: order of tasks, times of operators, flows."""

import numpy as np
import pandas as pd
import pytest

from ubfabric import steps as steps_module
from ubfabric.decode import DecodeStep, generate_trace
from ubfabric.errors import SpecError
from ubfabric.placement import place_experts
from ubfabric.steps import PHASES, Stage
from ubfabric.trace import check_trace, write_trace
from ubfabric.workload import load_workload

REFERENCE = load_workload("deepseek-r1-decode-ep320")
SMALL = load_workload("decode-ep8-sample")


#: All ranks take the same time for attention.
EVEN = {"machine.efficiency.attention_spread": 0}


def small(**options):
    return generate_trace(SMALL, **options)


def tables(trace):
    """Return the chunks as ``(label, flows, tasks)`` data frames."""
    return [(c.label, c.flows.to_pandas(), c.tasks.to_pandas()) for c in trace.chunks()]


def of_rank(tasks, rank, stream):
    rows = tasks[(tasks["rank"] == rank) & (tasks.stream == stream)]
    return list(zip(rows.kind, rows.microbatch, strict=True))


def test_layers_are_dense_moe_mtp_head():
    trace = small(layers=[5, 40])
    chunks = [(c.layer, c.label) for c in trace.chunks()]
    assert chunks == [
        *((layer, "dense") for layer in range(3)),
        *((layer, "moe") for layer in (5, 40)),
        (61, "mtp"),
        (62, "head"),
    ]
    assert [(row["layer"], row["label"]) for row in trace.metadata["layers"]] == chunks
    assert trace.n_chunks == len(chunks)


def test_all_layers_come_by_default():
    trace = generate_trace(REFERENCE)
    assert trace.metadata["n_moe_layers_simulated"] == trace.metadata["n_moe_layers_total"] == 58
    assert trace.n_chunks == 3 + 58 + 1 + 1


def test_streams_alternate_microbatches_within_a_layer():
    frames = tables(small(layers=1))
    dense, moe, mtp, head = (frames[i][2] for i in (0, 3, 4, 5))
    attention = [(kind, m) for m in (0, 1) for kind in ("prologue", "attention", "output")]
    fused = ("{}", "{}-flag", "{}-receive", "{}-copy")
    dispatch, combine = ([stage.format(name) for stage in fused] for name in PHASES)
    parts = ["gate", *dispatch, "expert", *combine]
    assert of_rank(dense, 3, 0) == attention
    assert of_rank(dense, 3, 1) == [("ffn", 0), ("ffn", 1)]
    assert of_rank(moe, 3, 0) == attention
    assert of_rank(moe, 3, 1) == [(kind, m) for m in (0, 1) for kind in parts]
    before = [("head", -1), ("sampling", -1), ("projection", -1)]
    assert of_rank(mtp, 3, 0) == before + attention
    assert of_rank(head, 3, 0) == [("head", -1), ("sampling", -1), ("host", -1)]
    assert of_rank(head, 3, 1) == []


def test_tasks_depend_on_what_they_need_of_their_own_rank():
    frames = [tasks for _, _, tasks in tables(small(layers=[3, 4]))]
    by_id = {}
    for tasks in frames:
        by_id |= {row.task: row for row in tasks.itertuples()}
    rank = 5
    needs = {}
    for row in by_id.values():
        if row.rank == rank:
            found = [by_id[number] for number in row.depends_on]
            assert all(other.rank == rank for other in found)
            names = [(o.kind, o.layer, o.microbatch) for o in found]
            needs[row.kind, row.layer, row.microbatch] = names
    assert needs["prologue", 0, 1] == []
    assert needs["attention", 0, 1] == [("prologue", 0, 1)]
    assert needs["output", 0, 1] == [("attention", 0, 1)]
    assert needs["ffn", 0, 1] == [("output", 0, 1)]
    assert needs["prologue", 3, 1] == [("ffn", 2, 1)]
    assert needs["gate", 3, 1] == [("output", 3, 1)]
    assert needs["dispatch", 3, 1] == [("gate", 3, 1)]
    assert needs["dispatch-flag", 3, 1] == [("dispatch", 3, 1)]
    assert needs["dispatch-receive", 3, 1] == [("dispatch-flag", 3, 1)]
    assert needs["dispatch-copy", 3, 1] == [("dispatch-receive", 3, 1)]
    assert needs["expert", 3, 1] == [("dispatch-copy", 3, 1)]
    assert needs["combine", 3, 1] == [("expert", 3, 1)]
    assert needs["prologue", 4, 1] == [("combine-copy", 3, 1)]
    assert needs["head", 61, -1] == [("combine-copy", 4, 0), ("combine-copy", 4, 1)]
    assert needs["sampling", 61, -1] == [("head", 61, -1)]
    assert needs["projection", 61, -1] == [("sampling", 61, -1)]
    assert needs["prologue", 61, 1] == [("projection", 61, -1)]
    assert needs["head", 62, -1] == [("combine-copy", 61, 0), ("combine-copy", 61, 1)]
    assert needs["host", 62, -1] == [("sampling", 62, -1)]


def communicating(tasks):
    rows = tasks[(tasks["rank"] == 0) & (tasks.microbatch == 0)]
    rows = rows[(rows.sends != "") | (rows.waits != "")]
    return list(zip(rows.kind, rows.sends, rows.waits, strict=True))


def test_data_go_before_flags_and_both_are_awaited_before_the_copy():
    moe = tables(small())[3][2]
    assert communicating(moe) == [
        stage
        for p in PHASES
        for stage in (
            (p, p, ""),
            (f"{p}-flag", f"{p}-flag", f"{p}-flag"),
            (f"{p}-receive", "", p),
        )
    ]


def test_flags_go_from_every_rank_to_every_rank():
    flows = tables(small())[3][1]
    flags = flows[(flows.phase == "dispatch-flag") & (flows.microbatch == 1)]
    assert (flags.messages == 1).all() and (flags.message_bytes == 512).all()
    assert sorted(zip(flags.src, flags.dst, strict=True)) == [
        (a, b) for a in range(8) for b in range(8)
    ]
    first = flags[flags.src == 5]
    assert first.dst.tolist() == [6, 7, 0, 1, 2, 3, 4, 5]  # its successor before all


def test_each_result_of_combine_has_a_flag():
    flows = tables(small())[3][1]
    ends = ["microbatch", "src", "dst", "messages"]
    results, flags = (flows[flows.phase == phase] for phase in ("combine", "combine-flag"))
    assert sorted(flags[ends].values.tolist()) == sorted(results[ends].values.tolist())
    assert (flags.message_bytes == 512).all()


def test_dispatch_waits_for_its_writes_before_it_sends_flags():
    tasks = tables(small())[3][2]
    waits = tasks[tasks.kind.str.endswith("-flag")].groupby("kind").duration_ps.unique()
    assert {kind: times.tolist() for kind, times in waits.items()} == {
        "dispatch-flag": [2_100_000],
        "combine-flag": [0],
    }


def test_without_flags_a_phase_is_sent_and_awaited_by_one_task():
    moe = tables(small(overrides={"messages.flag": "0 B"}))[3]
    assert communicating(moe[2]) == [(p, p, p) for p in PHASES]
    assert set(moe[1].phase) == set(PHASES)


def test_one_buffer_takes_a_round_of_flags_before_each_phase():
    moe = tables(small(overrides={"messages.buffers": 1}))[3]
    kinds = [kind for kind, m in of_rank(moe[2], 2, 1) if m == 0]
    assert kinds[1:3] == ["dispatch-ready", "dispatch"]
    assert kinds[kinds.index("expert") + 1] == "combine-ready"
    ready = moe[1][(moe[1].phase == "combine-ready") & (moe[1].microbatch == 0)]
    assert len(ready) == 64 and (ready.message_bytes == 512).all()


def test_ranks_that_share_heads_exchange_states_and_sums():
    moe = tables(small(overrides={"deployment.attention_tp": 4}))[3]
    rows = of_rank(moe[2], 3, 0)
    assert [kind for kind, m in rows if m == 1] == [
        "gather", "prologue", "attention", "output", "reduce", "reduce-copy",
    ]  # fmt: skip
    for phase in ("gather", "reduce"):
        flows = moe[1][(moe[1].phase == phase) & (moe[1].microbatch == 0)]
        pairs = sorted(zip(flows.src, flows.dst, strict=True))
        assert pairs == [(a, b) for a in range(8) for b in range(8) if a // 4 == b // 4 and a != b]
        # 4 requests of 2 tokens a microbatch, 7,168 numbers in BF16
        assert (flows.messages == 1).all() and (flows.message_bytes == 8 * 7168 * 2).all()


def listed(cube, vector):
    """Return overrides that give attention so many cores, and the expert stream the others."""
    cores = {
        "attention": {"cube_cores": cube, "vector_cores": vector},
        "expert": {"cube_cores": 24 - cube, "vector_cores": 48 - vector},
    }
    return {"operators.streams": {"policy": "listed"} | cores}


@pytest.mark.parametrize(
    ("cores", "useful", "cost"),
    [
        # 48 cores on 16 engines, of which 25.26 are as good as all
        (48, None, 4_780_000 * 16 // 48),
        (32, None, 4_780_000 * 16 // 48),
        (16, None, int(4_780_000 * 16 / 48 * (24 / 0.95) / 16)),
        (8, None, int(4_780_000 * 16 / 48 * (24 / 0.95) / 8)),
        # where every core is of use, 16 cores on 16 engines
        (16, 48, 4_780_000),
        (16, 100, 4_780_000),
        (32, 8, 4_780_000 * 16 // 48),
        (4, 8, 2 * 4_780_000 * 16 // 48),
    ],
)
def test_a_message_costs_an_engine_what_it_costs_the_useful_cores_of_the_stream(
    cores, useful, cost
):
    changes = {"serving.microbatches": 1} if cores == 48 else listed((48 - cores) // 2, 48 - cores)
    if useful:
        changes["machine.communication.useful_cores"] = useful
    tasks = tables(generate_trace(REFERENCE, layers=1, overrides=changes))[3][2]
    data, flags = tasks.sends.isin(PHASES), tasks.sends == "dispatch-flag"
    assert tasks.message_cost_ps[data].to_numpy() == pytest.approx(cost, abs=1)
    assert tasks.message_cost_ps[flags].to_numpy() == pytest.approx(cost * 2.90 / 4.78, abs=2)
    # a flag of combine is part of what its result costs
    assert (tasks.message_cost_ps[~data & ~flags] == 0).all()


def busiest_ps(changes):
    """Return what one microbatch of a MoE layer has of each stream on the busiest rank, no wires.

    From the tables alone: durations of tasks, messages and what each costs one of 16 engines.
    The plan of cores does not foresee how attention varies.
    """
    _, flows, tasks = tables(generate_trace(REFERENCE, layers=[3], overrides=EVEN | changes))[3]
    tasks, flows = tasks[tasks.microbatch == 0], flows[flows.microbatch == 0]
    leaves = flows.src // 2 != flows.dst // 2  # the package of two dies
    sent = flows[leaves].groupby(["src", "phase"], observed=True).messages.sum()
    keys = list(zip(tasks["rank"], tasks.sends, strict=True))
    messages = np.array([sent.get(key, 0) for key in keys])
    busy = tasks.duration_ps + tasks.message_cost_ps * messages / 16
    return busy.groupby([tasks["rank"], tasks.stream]).sum().unstack().max()


@pytest.mark.parametrize(("batch", "kv_tokens"), [(96, 4096), (24, 1024)])
def test_balanced_cores_are_those_with_the_shortest_longer_stream(batch, kv_tokens):
    changes = {"serving.batch_per_npu": batch, "serving.kv_tokens": kv_tokens}
    trace = generate_trace(REFERENCE, layers=[3], overrides=changes)
    cores = trace.metadata["stream_cores"]
    chosen = cores["attention"]["cube_cores"]
    assert cores == {
        "attention": {"cube_cores": chosen, "vector_cores": 2 * chosen},
        "expert": {"cube_cores": 24 - chosen, "vector_cores": 48 - 2 * chosen},
    }
    longest = {
        cube: busiest_ps(changes | listed(cube, 2 * cube)).max()
        for cube in (chosen - 1, chosen, chosen + 1)
    }
    assert min(longest, key=longest.get) == chosen


def test_cores_are_the_same_whichever_layers_are_simulated():
    skewed = {"gate": {"policy": "dirichlet", "concentration": 1.0}}
    shares = {
        generate_trace(REFERENCE, layers=layers, overrides=skewed).metadata["stream_cores"][
            "attention"
        ]["cube_cores"]
        for layers in ([3], [20], [40], [57, 60])
    }
    assert len(shares) == 1


def test_cores_do_not_depend_on_the_spread_of_attention():
    shares = [
        generate_trace(
            REFERENCE, layers=[3], overrides={"machine.efficiency.attention_spread": spread}
        ).metadata["stream_cores"]
        for spread in (0, 0.3)
    ]
    assert shares[0] == shares[1]


def test_a_stream_has_the_least_cores_even_where_others_would_be_balanced():
    cores = generate_trace("decode-ep8-sample", layers=1).metadata["stream_cores"]
    assert cores["attention"] == {"cube_cores": 8, "vector_cores": 16}
    one = generate_trace(
        "decode-ep8-sample", layers=1, overrides={"operators.streams.least_cube_cores": 1}
    )
    assert one.metadata["stream_cores"]["attention"]["cube_cores"] < 8


def test_one_microbatch_leaves_all_cores_to_every_operator():
    trace = generate_trace(REFERENCE, layers=1, overrides={"serving.microbatches": 1})
    assert trace.metadata["stream_cores"] == {"attention": None, "expert": None}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"serving.microbatches": 1},
        {"serving.mtp_tokens": 0},
        {"serving.mtp_tokens": 3},
        {"messages.send_order": "rotated"},
        {"messages.network": "rdma", "messages.service_level": 3},
        {"gate": {"policy": "zipf", "exponent": 1.5}},
        {"deployment.expert_layout": {"policy": "balanced"}},
        {"deployment.attention_tp": 2},
        {"messages.buffers": 1},
        {"messages.flag": "0 B"},
    ],
)
def test_generated_trace_passes_all_checks(changes):
    trace = small(overrides=changes)
    check_trace(trace)
    messages = changes.get("messages.network", "ub"), changes.get("messages.service_level", 0)
    flows = tables(trace)[3][1]
    assert set(zip(flows.network, flows.service_level, strict=True)) == {messages}


def test_without_mtp_the_step_ends_with_one_head():
    trace = small(layers=1, overrides={"serving.mtp_tokens": 0})
    assert [c.label for c in trace.chunks()] == ["dense"] * 3 + ["moe", "head"]
    assert trace.metadata["tokens_per_rank"] == 8
    flows = tables(trace)[3][1]
    assert flows[flows.phase == "dispatch"].messages.sum() == 8 * 8 * 9


def test_later_mtp_passes_run_one_token_a_request():
    trace = small(layers=[3], overrides={"serving.mtp_tokens": 2})
    rows = {row["layer"]: row["tokens_per_microbatch"] for row in trace.metadata["layers"]}
    assert rows == {0: 12, 1: 12, 2: 12, 3: 12, 61: 12, 62: 4, 63: 0}


def test_flows_carry_the_reference_message_sizes():
    flows = tables(generate_trace(REFERENCE, layers=1))[3][1]
    flows = flows[flows.phase.isin(PHASES)]
    sizes = flows.groupby(["phase", "microbatch"], observed=True).message_bytes.agg(["min", "max"])
    assert sizes.loc["dispatch"].to_numpy().tolist() == [[7_680, 7_680]] * 2
    assert sizes.loc["combine"].to_numpy().tolist() == [[14_336, 14_336]] * 2
    # 320 ranks x 48 tokens x (8 routed experts + 1 shared)
    assert (flows.groupby(["phase", "microbatch"], observed=True).messages.sum() == 138_240).all()


def test_every_rank_sends_48_tokens_to_its_shared_replica():
    flows = tables(generate_trace(REFERENCE, layers=1))[3][1]
    first = flows[(flows.phase == "dispatch") & (flows.microbatch == 0)]
    shared = first[first.dst == first.src // 10 * 10]
    assert len(shared) == 320 and (shared.messages == 48).all()


def test_send_order_differs_from_rank_to_rank():
    flows = tables(small(layers=1))[3][1]
    first = flows[(flows.phase == "dispatch") & (flows.microbatch == 0)]
    assert len({tuple(group.dst) for _, group in first.groupby("src")}) > 4


def test_rotated_order_begins_with_the_next_rank():
    flows = tables(small(layers=1, overrides={"messages.send_order": "rotated"}))[3][1]
    for phase in ("dispatch", "combine"):
        first = flows[(flows.phase == phase) & (flows.microbatch == 0)]
        for src, group in first.groupby("src"):
            turns = (group.dst - src - 1) % 8
            assert turns.is_monotonic_increasing


def step(name=REFERENCE, **changes):
    workload = load_workload(name, {key.replace("__", "."): v for key, v in changes.items()})
    return DecodeStep(workload, 1, 1)


def moe_plan(decode):
    return next(plan for plan in decode.plans if plan.label == "moe")


def stage_us(decode, plan, kind):
    return decode.duration_ps(plan, Stage(kind, 0)) / 1e6


def test_attention_of_a_microbatch_works_on_its_tokens_and_requests():
    decode = step()
    cores = decode.cores["attention"].cube_cores
    # 48 tokens x 128 heads x 4,224 x (576 + 512), two operations each, on its share of the cores
    ops = 2 * 48 * 128 * 4224 * (576 + 512)
    expected = 5 + ops / (376e6 * cores / 24 * 0.654)
    assert stage_us(decode, moe_plan(decode), "attention") == pytest.approx(expected, rel=1e-6)
    # without microbatches all tokens on all cores
    alone = step(serving__microbatches=1)
    expected = 5 + 2 * ops / (376e6 * 0.654)
    assert stage_us(alone, moe_plan(alone), "attention") == pytest.approx(expected, rel=1e-6)


def test_ranks_that_share_heads_share_tokens_and_work():
    cores = {"operators__streams": listed(16, 32)["operators.streams"]}
    plain, shared = step(SMALL, **cores), step(SMALL, deployment__attention_tp=4, **cores)
    times = [stage_us(d, moe_plan(d), "attention") for d in (plain, shared)]
    # four times the tokens with a quarter of the heads: as much to compute, and no faster
    assert times[0] == pytest.approx(times[1], rel=0.01)
    times = [stage_us(d, moe_plan(d), "output") for d in (plain, shared)]
    # four times the tokens, each with a quarter of the values to quantise, and a quarter of the
    # weights to read; 12 us are launches
    rest = 12 + 8 * 128 * 128 * 3 / (7.3e3 * 32)
    assert times[1] - rest == pytest.approx((times[0] - rest) / 4, rel=0.01)
    added = 4 * 8 * 7168 * 2 / (1.6e6 * 0.841)
    assert stage_us(shared, moe_plan(shared), "reduce-copy") == pytest.approx(added, rel=1e-3)


def attention_ps(**changes):
    """Return the times of attention in each layer, a row a microbatch, in the order of ranks."""
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    frames = tables(generate_trace(REFERENCE, layers=[3, 4, 5, 6], overrides=overrides))
    tasks = pd.concat([tasks for _, _, tasks in frames])
    rows = tasks[tasks.kind == "attention"]
    return rows.pivot_table(index=["layer", "microbatch"], columns="rank", values="duration_ps")


def test_attention_has_the_mean_and_the_spread_of_the_machine():
    even = attention_ps(machine__efficiency__attention_spread=0)
    assert even.shape == (16, 320) and (even == even.iloc[0, 0]).all(axis=None)
    factors = (attention_ps(machine__efficiency__attention_spread=0.1) / even).to_numpy()
    # of 5,120 draws: four standard errors, sigma / sqrt(n) and sigma / sqrt(2 n)
    n = factors.size
    assert factors.mean() == pytest.approx(1, abs=4 * 0.1 / n**0.5)
    assert factors.std() == pytest.approx(0.1, abs=4 * 0.1 / (2 * n) ** 0.5)
    # ranks, layers and microbatches are drawn independently: 120 pairs of 320 draws each
    pairs = np.corrcoef(factors)[np.triu_indices(16, 1)]
    assert abs(pairs).max() < 4.5 / 320**0.5
    shipped = (attention_ps() / even).to_numpy()
    assert shipped.std() == pytest.approx(0.0455, rel=4 / (2 * n) ** 0.5)


def test_attention_takes_no_negative_time():
    times = attention_ps(machine__efficiency__attention_spread=0.9)
    assert times.min(axis=None) == 0
    trace = small(layers=1, overrides={"machine.efficiency.attention_spread": 0.9})
    check_trace(trace)  # it then needs no memory either


def test_ranks_that_share_heads_have_each_a_time_of_attention():
    moe = tables(small(layers=1, overrides={"deployment.attention_tp": 4}))[3][2]
    times = moe[(moe.kind == "attention") & (moe.microbatch == 0)].duration_ps
    assert times.nunique() == 8


#: Rate of the memory in bytes per picosecond.
MEMORY = 1.6 * 0.841


def memory_ps(tasks, kind):
    return tasks[tasks.kind == kind].memory_ps.to_numpy()


def test_tasks_ask_the_memory_for_what_they_read():
    frames = tables(generate_trace(REFERENCE, layers=[3], overrides=listed(16, 32)))
    dense, moe = (frames[i][2] for i in (2, 3))
    latent, heads, hidden = 512, 128, 7168
    read = {
        # INT8 down- and up-projections, keys absorbed in BF16
        "prologue": hidden * (1536 + 576) + 1536 * heads * 192 + 2 * latent * heads * 128,
        "attention": 24 * 4224 * 576 * 2,  # the cache of 24 requests in BF16
        "output": 2 * latent * heads * 128 + heads * 128 * hidden,
    }
    for kind, n_bytes in (read | {"gate": hidden * 256 * 4}).items():
        assert memory_ps(moe, kind) == pytest.approx(n_bytes / MEMORY, abs=1), kind
    for kind, n_bytes in (read | {"ffn": 3 * hidden * 18432}).items():
        assert memory_ps(dense, kind) == pytest.approx(n_bytes / MEMORY, abs=1), kind
    # one expert a rank, all with tokens; copies do nothing else
    assert memory_ps(moe, "expert") == pytest.approx(3 * hidden * 2048 / MEMORY, abs=1)
    for kind in ("dispatch-copy", "combine-copy"):
        copies = moe[moe.kind == kind]
        assert (copies.memory_ps == copies.duration_ps).all() and (copies.memory_ps > 0).all()
    silent = moe[moe.kind.str.contains("-flag|-receive") | moe.kind.isin(PHASES)]
    assert len(silent) == 2 * 6 * 320 and (silent.memory_ps == 0).all()
    assert (frames[-1][2].memory_ps == 0).all()  # nothing beside head and sampling


def test_experts_without_tokens_are_not_read():
    one = {"serving.mtp_tokens": 0, "serving.batch_per_npu": 4, "deployment.redundant_experts": 0}
    flows, tasks = tables(small(layers=1, overrides=one))[3][1:]
    asked = tasks[(tasks.kind == "expert") & (tasks.microbatch == 0)].memory_ps.to_numpy()
    replicas = asked * MEMORY / (3 * 7168 * 2048)
    assert replicas == pytest.approx(replicas.round(), abs=1e-3)
    # 8 tokens have 64 routed pairs on 8 ranks of 32 routed experts
    received = flows[(flows.phase == "dispatch") & (flows.microbatch == 0)]
    received = received.groupby("dst").messages.sum().reindex(range(8), fill_value=0).to_numpy()
    assert (replicas.round() <= received).all() and (replicas.round() < 33).all()
    assert replicas.sum() > 8


def test_copies_of_sums_do_nothing_but_read_and_write():
    moe = tables(small(layers=1, overrides={"deployment.attention_tp": 4}))[3][2]
    copies = moe[moe.kind == "reduce-copy"]
    assert (copies.memory_ps == copies.duration_ps).all() and (copies.memory_ps > 0).all()
    # four times the requests, and the latent cache is not divided among the heads
    plain = tables(small(layers=1))[3][2]
    asked = [memory_ps(tasks, "attention").max() for tasks in (plain, moe)]
    assert asked[1] == pytest.approx(4 * asked[0], abs=4)


def test_a_measured_time_bounds_what_is_asked_of_the_memory(tmp_path):
    (tmp_path / "t.csv").write_text("operator,tokens,kv_tokens,time\noutput,8,,1 us\n")
    text = "base: decode-ep8-sample\nname: a\noperators: {table: t.csv}\n"
    (tmp_path / "a.yaml").write_text(text)
    changes = {"serving.batch_per_npu": 16}
    moe = tables(generate_trace(tmp_path / "a.yaml", layers=1, overrides=changes))[3][2]
    assert (memory_ps(moe, "output") == 1_000_000).all()


def test_expert_task_takes_the_time_of_its_tokens():
    trace = generate_trace(REFERENCE, layers=1, overrides=listed(16, 32))
    flows, tasks = next((f, t) for label, f, t in tables(trace) if label == "moe")
    received = flows[flows.phase == "dispatch"].groupby(["microbatch", "dst"]).messages.sum()
    experts = tasks[tasks.kind == "expert"].set_index(["microbatch", "rank"]).duration_ps
    token_ps = 2 * 3 * 7168 * 2048 * 1e12 / (752e12 * 8 / 24 * 0.8)
    token_ps += 2048 * 5 * 1e12 / (7.3e9 * 16)  # activation
    expected = 12_000_000 + received * token_ps
    assert experts.sort_index().to_numpy() == pytest.approx(expected.sort_index().to_numpy(), abs=1)
    assert experts.max() > experts.min()


@pytest.mark.parametrize(
    ("phase", "a_message"), [("dispatch", 7680 + 7168), ("combine", 14336 + 14336 / 9)]
)
def test_copies_take_the_time_of_what_came(phase, a_message):
    flows, tasks = tables(generate_trace(REFERENCE, layers=1))[3][1:]
    received = flows[flows.phase == phase].groupby(["microbatch", "dst"]).messages.sum()
    copies = tasks[tasks.kind == f"{phase}-copy"].set_index(["microbatch", "rank"]).duration_ps
    expected = received * a_message / (1.6e12 * 0.841) * 1e12
    assert copies.sort_index().to_numpy() == pytest.approx(expected.sort_index().to_numpy(), abs=1)


def test_replicas_of_a_rank_run_one_after_another_and_idle_ones_cost_nothing():
    decode = step(SMALL)
    popularity = np.full(256, 1 / 256)
    placement = place_experts(decode.spec.deployment, popularity, 8)
    tokens = np.zeros(len(placement.slot_expert), np.int64)
    tokens[:3] = 1
    read_ps = 3 * 7168 * 2048 / (1.6e12 * 0.841) * 1e12
    read_ps += 2048 * 5 / (7.3e9 * 48) * 1e12  # activation of its token
    times = decode.expert_ps(placement, tokens, None)
    assert times[0] == pytest.approx(12_000_000 + 3 * read_ps, abs=1)
    assert (times[1:] == 12_000_000).all()


def test_dense_and_head_are_bound_by_memory_at_the_reference_point():
    decode = step()
    dense = next(plan for plan in decode.plans if plan.label == "dense")
    head = next(plan for plan in decode.plans if plan.label == "head")
    read_us = 3 * 7168 * 18432 / (1.6e6 * 0.841)
    read_us += 48 * (7168 * 7 + 18432 * 5) / (7.3e3 * 48)  # norm and activation
    assert stage_us(decode, dense, "ffn") == pytest.approx(16 + read_us, rel=1e-6)
    read_us = 2 * 7168 * 129280 / (1.6e6 * 0.841)
    read_us += 48 * 7168 * 8 / (7.3e3 * 48)  # norm
    assert stage_us(decode, head, "head") == pytest.approx(9 + read_us, rel=1e-6)
    # the last pass of one MTP token works on one token a request
    read_us = 48 * 129280 * 4 * 4 / (1.6e6 * 0.841)
    assert stage_us(decode, head, "sampling") == pytest.approx(8 + read_us, rel=1e-6)
    assert stage_us(decode, head, "host") == 0  # graphs run back to back


def test_measured_times_replace_the_roofline_operator_by_operator(tmp_path):
    (tmp_path / "t.csv").write_text(
        "operator,tokens,kv_tokens,time\nattention,1,1024,100 us\nattention,48,1024,100 us\n"
        "expert,1,,50 us\nexpert,999,,50 us\n"
    )
    text = "base: decode-ep8-sample\nname: a\noperators: {table: t.csv}\n"
    (tmp_path / "a.yaml").write_text(text)
    (_, _, measured), (_, _, plain) = (
        tables(generate_trace(s, overrides=EVEN))[3] for s in (tmp_path / "a.yaml", SMALL)
    )
    times = measured.groupby("kind").duration_ps.max()
    assert times["attention"] == 100_000_000
    # 50 us for each of the 33 replicas of a rank that got tokens
    assert times["expert"] % 50_000_000 == 0 and 25 <= times["expert"] // 50_000_000 <= 33
    assert times["prologue"] == plain.groupby("kind").duration_ps.max()["prologue"]


def test_redundant_replicas_of_hot_experts_lower_the_longest_expert_time():
    skew = {"gate": {"policy": "zipf", "exponent": 0.5}}
    longest = {}
    for policy in ("popular", "greedy", "first"):
        changes = skew | {"deployment.redundancy": {"policy": policy}}
        tasks = tables(generate_trace(REFERENCE, layers=1, overrides=changes))[3][2]
        longest[policy] = tasks[tasks.kind == "expert"].duration_ps.max()
    assert longest["greedy"] < longest["popular"] < longest["first"]


def test_metadata_have_what_later_stages_need():
    metadata = generate_trace(REFERENCE, layers=4, seed=9).metadata
    expected = {
        "n_ranks": 320, "npus": 160, "dies_per_npu": 2, "requests_per_rank": 48,
        "tokens_per_rank": 96, "microbatches": 2, "seed": 9, "n_moe_layers_total": 58,
        "n_moe_layers_simulated": 4, "mtp": {"tokens": 1, "acceptance": 0.7}, "rank_nodes": None,
        "rank_placement": {"policy": "packed", "nodes": None},
    }  # fmt: skip
    assert {key: metadata[key] for key in expected} == expected
    row = metadata["paper_row"]
    assert (row["tpot_ps"], row["tokens_per_s_per_npu"]) == (49_400_000_000, 1_943)
    assert metadata["spec"]["seed"] == 9 and len(metadata["paper_rows"]) == 3


@pytest.mark.parametrize(("batch", "tokens_per_s"), [(24, 974), (8, 538)])
def test_paper_row_is_that_of_the_same_point(batch, tokens_per_s):
    changes = {"serving.batch_per_npu": batch}
    row = generate_trace(REFERENCE, overrides=changes).metadata["paper_row"]
    assert row["tokens_per_s_per_npu"] == tokens_per_s


def test_another_point_has_no_paper_row():
    for changes in ({"serving.batch_per_npu": 64}, {"serving.kv_tokens": 1024}):
        assert generate_trace(REFERENCE, overrides=changes).metadata["paper_row"] is None
    assert small().metadata["paper_row"] is None


def test_layers_are_drawn_by_the_seed_and_keep_their_numbers():
    def moe(**options):
        metadata = small(**options).metadata
        assert metadata["moe_layers_drawn"]
        return [row["layer"] for row in metadata["layers"] if row["label"] == "moe"]

    assert moe(layers=4, seed=1) == moe(layers=4, seed=1) == sorted(moe(layers=4, seed=1))
    assert set(moe(layers=4, seed=1)) < set(moe(layers=5, seed=1))
    assert moe(layers=58) == list(range(3, 61))
    drawn = [tuple(moe(layers=1, seed=seed)) for seed in range(580)]
    counts = np.unique(np.array(drawn), return_counts=True)[1]
    # each of 58 layers is drawn 10 times on average: chi-squared of 57, below its 99.9 % point
    assert len(counts) == 58 and ((counts - 10) ** 2 / 10).sum() < 96


@pytest.mark.parametrize("layers", [[], [2], [61], [4, 3], [3, 3]])
def test_layers_can_be_named(layers):
    assert not small(layers=[3, 7]).metadata["moe_layers_drawn"]
    with pytest.raises(SpecError, match="allowed MoE layers 3 to 60, ascending, each once"):
        small(layers=layers)


@pytest.mark.parametrize("layers", [0, 59, -1])
def test_impossible_number_of_layers_is_refused(layers):
    with pytest.raises(SpecError, match=f"layers: found {layers}, allowed 1 to 58"):
        small(layers=layers)


def test_sample_says_how_many_layers_it_emits():
    assert small().metadata["n_moe_layers_simulated"] == 2
    assert small(layers=5).metadata["n_moe_layers_simulated"] == 5


def test_same_seed_gives_same_bytes_and_another_seed_others(tmp_path):
    def written(name, seed):
        folder = write_trace(small(layers=2, seed=seed), tmp_path / name)
        return [(folder / f"{table}.parquet").read_bytes() for table in ("flows", "tasks")]

    assert written("a", 1) == written("b", 1)
    assert written("c", 2)[0] != written("a", 1)[0]


def test_a_layer_does_not_depend_on_which_others_are_built():
    workload = load_workload(SMALL)
    all_layers, few = DecodeStep(workload, 1, 58), DecodeStep(workload, 1, [3, 4, 5, 9, 20])
    third = all_layers.chunk(5)
    in_order = list(few.chunks())[5]
    assert third.flows.equals(in_order.flows) and third.tasks.equals(in_order.tasks)
    twentieth = all_layers.chunk(20)  # here after another, there after seven
    assert twentieth.flows.equals(few.chunk(7).flows)
    times = [chunk.tasks["duration_ps"] for chunk in (twentieth, few.chunk(7))]
    assert times[0].equals(times[1]) and not times[0].equals(third.tasks["duration_ps"])
    last = all_layers.chunk(len(all_layers.plans) - 2)
    assert last.flows.equals(few.chunk(len(few.plans) - 2).flows)


def test_layers_and_microbatches_are_routed_independently():
    skew = {"gate": {"policy": "zipf", "exponent": 1.0}}
    frames = [
        flows for label, flows, _ in tables(small(layers=2, overrides=skew)) if label == "moe"
    ]
    loads = []
    for flows in frames:
        for _, part in flows[flows.phase == "dispatch"].groupby("microbatch"):
            loads.append(part.groupby("dst").messages.sum().to_numpy())
    first, second, other_layer, _ = loads
    assert (first != second).any()
    # Microbatches of a layer share its popularity, layers do not.
    assert np.corrcoef(first, second)[0, 1] > 0.9 > np.corrcoef(first, other_layer)[0, 1]


def test_sparse_and_dense_counting_of_messages_agree(monkeypatch):
    placement_step = step(SMALL)
    plan = moe_plan(placement_step)
    popularity = np.full(256, 1 / 256)
    placement = place_experts(placement_step.spec.deployment, popularity, 8)
    slots = placement.assign_replicas(placement_step.route(plan, 0))
    dense = steps_module.count_messages(slots, placement, plan.tokens)
    monkeypatch.setattr(steps_module, "_PAIRS_COUNTED_PER_MESSAGE", 0)
    sparse = steps_module.count_messages(slots, placement, plan.tokens)
    assert (dense == sparse).all() and dense[2].sum() == 8 * plan.tokens * 9


def recorded_sample(tmp_path, experts, **extra):
    np.savez(tmp_path / "r.npz", experts=experts)
    keys = "".join(f"{key}: {value}\n" for key, value in extra.items())
    text = "base: decode-ep8-sample\nname: a\ngate: {policy: recorded, file: r.npz}\n" + keys
    (tmp_path / "a.yaml").write_text(text)
    return load_workload(tmp_path / "a.yaml")


def test_recorded_tokens_are_routed_in_order_and_alike_in_all_layers(tmp_path):
    rng = np.random.default_rng(3)
    tokens = np.argsort(rng.random((500, 58, 256)), axis=2)[:, :, :8].astype(np.int16)
    decode = DecodeStep(recorded_sample(tmp_path, tokens), 1, [3, 4])
    plan, later = (plan for plan in decode.plans if plan.label == "moe")
    first, second = decode.route(plan, 0), decode.route(plan, 1)
    assert first.shape == (8 * 8, 8)
    place = int(np.flatnonzero((tokens[:, 0] == first[0]).all(axis=1))[0])
    order = (place + np.arange(128)) % 500
    assert (first == tokens[order[:64], 0]).all() and (second == tokens[order[64:], 0]).all()
    assert (decode.route(later, 0) == tokens[order[:64], 1]).all()
    mtp = next(plan for plan in decode.plans if plan.label == "mtp")
    assert (decode.route(mtp, 0) == tokens[order[:64], 57]).all()
    flows = decode.chunk(3).flows.to_pandas()
    sent = flows[(flows.phase == "dispatch") & (flows.microbatch == 0)].messages.sum()
    assert sent == 64 * 9
    assert decode.planned_load(3) == pytest.approx(np.bincount(tokens[:, 0].ravel()) / 4000)


def test_a_plan_is_kept_until_the_next_and_gets_worse_as_popularity_drifts():
    gate = {"policy": "drifting", "of": {"policy": "hottest", "ratio": 30.0}, "half_life_steps": 8}
    base = {
        "gate": gate,
        "deployment.plan.interval_steps": 16,
        "deployment.redundancy.policy": "greedy",
        "deployment.expert_layout.policy": "balanced",
    }

    def at(number):
        workload = load_workload("decode-ep32-sample", base | {"serving.step": number})
        return DecodeStep(workload, 1, 1)

    loads = {number: at(number).planned_load(3) for number in (0, 15, 16, 17)}
    assert (loads[0] == loads[15]).all() and (loads[16] == loads[17]).all()
    assert (loads[15] != loads[16]).any()
    assert sorted(loads[15]) == pytest.approx(sorted(loads[16]))

    def worst(number):
        flows = at(number).chunk(3).flows.to_pandas()
        return flows[flows.phase == "dispatch"].groupby("dst").messages.sum().max()

    assert worst(15) > 1.3 * worst(0) and worst(15) > 1.3 * worst(16)


def test_counted_load_is_a_count_of_tokens():
    skew = {"gate": {"policy": "hottest", "ratio": 10.0}}
    exact = DecodeStep(load_workload(SMALL, skew), 1, 1).planned_load(3)
    counted = {
        n: DecodeStep(
            load_workload(SMALL, skew | {"deployment.plan.counted_tokens": n}), 1, 1
        ).planned_load(3)
        for n in (100, 20_000)
    }
    assert counted[100] * 800 == pytest.approx(np.rint(counted[100] * 800))
    off = {n: abs(load - exact).sum() for n, load in counted.items()}
    # what is left is the group rule, which shifts some load, and chance
    assert off[20_000] < 0.2 and off[100] > 2 * off[20_000]
