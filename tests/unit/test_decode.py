"""The decode step: order of tasks, times of operators, flows."""

import numpy as np
import pytest

from ubfabric import decode as decode_module
from ubfabric.decode import DecodeStep, generate_trace
from ubfabric.errors import SpecError
from ubfabric.placement import place_experts
from ubfabric.trace import check_trace, write_trace
from ubfabric.workload import load_workload

REFERENCE = load_workload("deepseek-r1-decode-ep320")
SMALL = load_workload("decode-ep8-sample")


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
    parts = ["gate", "dispatch", "expert", "combine"]
    assert of_rank(dense, 3, 0) == [("attention", 0), ("attention", 1)]
    assert of_rank(dense, 3, 1) == [("ffn", 0), ("ffn", 1)]
    assert of_rank(moe, 3, 0) == [("attention", 0), ("attention", 1)]
    assert of_rank(moe, 3, 1) == [(kind, m) for m in (0, 1) for kind in parts]
    assert of_rank(mtp, 3, 0) == [("head", -1), ("attention", 0), ("attention", 1)]
    assert of_rank(head, 3, 0) == [("head", -1)] and of_rank(head, 3, 1) == []


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
    assert needs["attention", 0, 1] == []
    assert needs["ffn", 0, 1] == [("attention", 0, 1)]
    assert needs["attention", 3, 1] == [("ffn", 2, 1)]
    assert needs["gate", 3, 1] == [("attention", 3, 1)]
    assert needs["dispatch", 3, 1] == [("gate", 3, 1)]
    assert needs["expert", 3, 1] == [("dispatch", 3, 1)]
    assert needs["combine", 3, 1] == [("expert", 3, 1)]
    assert needs["attention", 4, 1] == [("combine", 3, 1)]
    assert needs["head", 61, -1] == [("combine", 4, 0), ("combine", 4, 1)]
    assert needs["attention", 61, 1] == [("head", 61, -1)]
    assert needs["head", 62, -1] == [("combine", 61, 0), ("combine", 61, 1)]


def test_only_dispatch_and_combine_communicate():
    for _, _, tasks in tables(small()):
        communicates = tasks.kind.isin(["dispatch", "combine"])
        assert (tasks.sends[communicates] == tasks.kind[communicates]).all()
        assert (tasks.waits == tasks.sends).all()
        assert (tasks.sends[~communicates] == "").all()


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


def test_attention_passes_through_its_anchor_and_its_fixed_part():
    decode = step()
    assert decode.duration_ps(moe_plan(decode), "attention") == 600_000_000
    quarter = step(serving__batch_per_npu=48, serving__kv_tokens=2048)
    assert quarter.duration_ps(moe_plan(quarter), "attention") == 240_000_000


def test_expert_time_is_the_longer_of_reading_and_computing():
    decode = step()
    operator = decode.spec.operators.expert
    parameters = 3 * 7168 * 2048
    read_us, token_us = parameters / 1.6e6, 2 * parameters / (752e6 * 8 / 24 * 0.8)
    assert (round(read_us, 1), round(token_us, 2)) == (27.5, 0.44)
    us = decode.roofline_ps(operator, parameters, [0, 1, 62, 480]) / 1e6
    assert us == pytest.approx([read_us, read_us, read_us, 480 * token_us])


def test_expert_task_takes_the_time_of_its_tokens():
    flows, tasks = next(
        (f, t) for label, f, t in tables(generate_trace(REFERENCE, layers=1)) if label == "moe"
    )
    received = flows[flows.phase == "dispatch"].groupby(["microbatch", "dst"]).messages.sum()
    experts = tasks[tasks.kind == "expert"].set_index(["microbatch", "rank"]).duration_ps
    token_ps = 2 * 3 * 7168 * 2048 * 1e12 / (752e12 * 8 / 24 * 0.8)
    expected = 10_000_000 + received * token_ps
    assert experts.sort_index().to_numpy() == pytest.approx(expected.sort_index().to_numpy(), abs=1)
    assert experts.max() > experts.min()


def test_replicas_of_a_rank_run_one_after_another_and_idle_ones_cost_nothing():
    decode = step(SMALL)
    popularity = np.full(256, 1 / 256)
    placement = place_experts(decode.spec.deployment, popularity, 8)
    tokens = np.zeros(len(placement.slot_expert), np.int64)
    tokens[:3] = 1
    read_ps = 3 * 7168 * 2048 / 1.6e12 * 1e12
    times = decode.expert_ps(placement, tokens)
    assert times[0] == pytest.approx(10_000_000 + 3 * read_ps, abs=1)
    assert (times[1:] == 10_000_000).all()


def test_dense_and_head_are_bound_by_memory_at_the_reference_point():
    decode = step()
    dense = next(plan for plan in decode.plans if plan.label == "dense")
    head = next(plan for plan in decode.plans if plan.label == "head")
    read_ps = 3 * 7168 * 18432 / 1.6e12 * 1e12
    assert decode.duration_ps(dense, "ffn") == pytest.approx(10_000_000 + read_ps, abs=1)
    read_ps = 2 * 7168 * 129280 / 1.6e12 * 1e12
    assert decode.duration_ps(head, "head") == pytest.approx(110_000_000 + read_ps, abs=1)


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
    assert all_layers.chunk(20).flows.equals(few.chunk(7).flows)
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
    slots = placement_step.route(plan, 0, popularity, placement)
    dense = decode_module._count_messages(slots, placement, plan.tokens)
    monkeypatch.setattr(decode_module, "_PAIRS_COUNTED_PER_MESSAGE", 0)
    sparse = decode_module._count_messages(slots, placement, plan.tokens)
    assert (dense == sparse).all() and dense[2].sum() == 8 * plan.tokens * 9
