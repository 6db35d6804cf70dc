"""Prefill: stages of both kinds of attention, their work, flows, and what is refused."""

import numpy as np
import pytest

import ubfabric as ub
from ubfabric.decode import DecodeStep, generate_trace
from ubfabric.errors import SpecError
from ubfabric.prefill import PrefillStep, deal
from ubfabric.steps import Stage
from ubfabric.trace import check_trace
from ubfabric.workload import load_workload

REFERENCE = load_workload("deepseek-r1-prefill-ep32")
RECIPES = load_workload("cann-recipes-prefill-ep32")
SMALL = load_workload("prefill-ep8-sample")
MEMORY, INT8, BF16 = 1.6e12 * 0.841, 752e12 * 0.8, 376e12
LEFT = REFERENCE.spec.machine.efficiency.prefill


def step(source=REFERENCE, **changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return PrefillStep(load_workload(source, changes), 1, [3])


def moe(prefill):
    plan = next(plan for plan in prefill.plans if plan.label == "moe")
    chunk = prefill.chunk(prefill.plans.index(plan))
    return plan, chunk.flows.to_pandas(), chunk.tasks.to_pandas()


def streams(tasks, rank=5):
    """Return kind and microbatch of the tasks of each stream of a rank."""
    rows = tasks[tasks["rank"] == rank].groupby("stream")
    return {stream: list(zip(part.kind, part.microbatch, strict=True)) for stream, part in rows}


def us(prefill, kind, microbatch=0, label="moe"):
    plan = next(plan for plan in prefill.plans if plan.label == label)
    return prefill.duration_ps(plan, Stage(kind, microbatch)) / 1e6


def test_prompts_are_dealt_out_evenly():
    assert deal([4, 1, 2, 3, 2], 2, int) == [[4, 2], [3, 2, 1]]
    parts = deal([100] * 7, 3, int)
    assert sorted(map(len, parts)) == [2, 2, 3]


MOVES = ["dispatch", "dispatch-copy", "combine", "combine-copy"]


@pytest.mark.parametrize("microbatches", [1, 2])
def test_exchanges_by_cores_are_part_of_attention_and_only_moe_has_a_lane_of_transfers(
    microbatches,
):
    """The lanes of figure 18b of arXiv 2506.12708, with one microbatch as with two."""
    prefill = step(SMALL, serving__microbatches=microbatches)
    _, flows, tasks = moe(prefill)
    of = streams(tasks)
    attention = ["down", "gather", "heads", "scatter", "output", "gate"]
    compute = [(kind, mb) for mb in range(microbatches) for kind in attention]
    assert of.pop(0) == [*compute, *(("expert", mb) for mb in range(microbatches))]
    assert of == {1 + mb: [(kind, mb) for kind in MOVES] for mb in range(microbatches)}
    operations = flows.groupby("phase", observed=True).operation.unique().map(list).to_dict()
    assert operations == {
        "gather": ["write"],
        "scatter": ["write"],
        "dispatch": ["sdma-write"],
        "combine": ["sdma-write"],
    }


def test_exchanges_by_sdma_go_beside_the_products():
    prefill = step(SMALL, serving__exchanges="sdma")
    _, flows, tasks = moe(prefill)
    of = streams(tasks)
    compute = [("heads", 0), ("heads", 1), ("output", 0), ("gate", 0), ("output", 1), ("gate", 1)]
    assert of.pop(0) == [*compute, ("expert", 0), ("expert", 1)]
    kinds = ["down", "gather", "scatter", *MOVES]
    assert of == {1 + mb: [(kind, mb) for kind in kinds] for mb in (0, 1)}
    assert set(flows.operation) == {"sdma-write"}


def test_who_moves_the_exchanges_changes_no_byte_and_no_time_of_a_task():
    _, flows, tasks = moe(step(SMALL))
    _, other_flows, other_tasks = moe(step(SMALL, serving__exchanges="sdma"))
    keys = ["phase", "microbatch", "src", "dst"]
    sizes = [*keys, "messages", "message_bytes"]
    assert (flows.sort_values(keys)[sizes].to_numpy() == (
        other_flows.sort_values(keys)[sizes].to_numpy()
    )).all()  # fmt: skip
    keys = ["rank", "kind", "microbatch"]
    times = [*keys, "duration_ps"]
    assert (tasks.sort_values(keys)[times].to_numpy() == (
        other_tasks.sort_values(keys)[times].to_numpy()
    )).all()  # fmt: skip


def test_data_parallel_attention_has_no_exchanges_whoever_would_move_them():
    one, other = (moe(step(RECIPES, serving__exchanges=name)) for name in ("cores", "sdma"))
    assert one[1].equals(other[1]) and one[2].equals(other[2])
    assert set(one[1].phase) == {"dispatch", "combine"}


def test_with_data_parallel_attention_the_stream_of_products_packs_arranges_and_finalizes():
    trace = generate_trace(SMALL, layers=2, overrides={"serving.attention": "data"})
    chunks = {(c.label, c.layer): c.tasks.to_pandas() for c in trace.chunks()}
    names = [name for name in chunks if name[0] == "moe"]
    before = ["down", "heads", "output", "gate", "pack"]
    each = {names[0]: before, names[1]: ["finalize", *before]}
    for name, kinds in each.items():
        of = streams(chunks[name])
        first = [(kind, microbatch) for microbatch in (0, 1) for kind in kinds]
        second = [(kind, microbatch) for microbatch in (0, 1) for kind in ("arrange", "expert")]
        assert of[0] == first + second
        for microbatch in (0, 1):
            assert of[1 + microbatch] == [("dispatch", microbatch), ("combine", microbatch)]
    last = list(chunks.values())[-1]
    kinds = ["finalize", "finalize", "head", "sampling", "host"]
    assert list(last.loc[last["rank"] == 5, "kind"]) == kinds
    # a rank sums the messages of its own tokens, as many as with staged attention
    _, _, staged = moe(step())
    sums = staged.loc[staged["kind"] == "combine-copy", "duration_ps"] / 1e6
    assert sums.unique() == [us(step(serving__attention="data"), "finalize", label="head")]


def test_a_stage_needs_the_one_before_it_and_a_layer_the_layer_before():
    prefill = step(SMALL)
    frames = [chunk.tasks.to_pandas() for chunk in prefill.chunks()]
    by_id = {row.task: row for tasks in frames for row in tasks.itertuples()}

    def needs(layer, kind, microbatch):
        row = next(
            r for r in by_id.values()
            if (r.layer, r.kind, r.microbatch, r.rank) == (layer, kind, microbatch, 2)
        )  # fmt: skip
        return [(o.layer, o.kind, o.microbatch, o.rank) for o in map(by_id.get, row.depends_on)]

    assert needs(0, "down", 1) == []
    assert needs(3, "down", 1) == [(2, "ffn", 1, 2)]
    assert needs(3, "heads", 1) == [(3, "gather", 1, 2)]
    assert needs(3, "output", 0) == [(3, "scatter", 0, 2)]
    assert needs(3, "expert", 0) == [(3, "dispatch-copy", 0, 2)]
    assert needs(61, "head", -1) == [(3, "combine-copy", 0, 2), (3, "combine-copy", 1, 2)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"serving.microbatches": 1},
        {"serving.exchanges": "sdma"},
        {"serving.attention": "data", "serving.microbatches": 1},
        {"messages.operation": "write"},
        {"gate": {"policy": "hottest", "ratio": 30.0}},
    ],
)
def test_generated_trace_passes_all_checks(changes):
    check_trace(generate_trace(SMALL, overrides=changes))


@pytest.mark.parametrize(("exchanges", "operation"), [("cores", "write"), ("sdma", "sdma-write")])
def test_all_gather_and_all_to_all_move_the_latents_and_the_heads(exchanges, operation):
    _, flows, _ = moe(step(serving__exchanges=exchanges))
    for phase, size in (("gather", 4096 * (1536 + 576 * 2)), ("scatter", 4096 * 4 * 128 * 2)):
        part = flows[(flows.phase == phase) & (flows.microbatch == 1)]
        assert len(part) == 32 * 31 and (part.src != part.dst).all()
        assert (part.message_bytes == size).all() and (part.messages == 1).all()
        assert (part.operation == operation).all()


def test_bulk_transfers_carry_every_token_that_leaves_and_come_back():
    bulk, single = (moe(step(SMALL, messages__operation=o))[1] for o in ("sdma-write", "write"))
    sizes = {"dispatch": 7680, "combine": 14336}
    for phase, size in sizes.items():
        one = bulk[bulk.phase == phase]
        many = single[(single.phase == phase) & (single.src != single.dst)]
        assert (one.messages == 1).all() and (one.src != one.dst).all()
        keys = ["microbatch", "src", "dst"]
        counts = one.assign(n=one.message_bytes // size).set_index(keys)["n"].sort_index()
        assert counts.equals(many.set_index(keys)["messages"].sort_index().astype(counts.dtype))
    tokens = 210 * 8  # 3,360 tokens in two microbatches on 8 ranks
    all_of = single[(single.phase == "dispatch") & (single.microbatch == 0)]
    assert all_of.messages.sum() == tokens * 9


def test_heads_work_on_all_tokens_and_a_share_of_the_heads():
    tokens, prompts = 32 * 4096, 32
    time = 2 * tokens * 1536 * 4 * 192 / INT8
    time += 2 * tokens * 512 * 4 * 256 / (BF16 * 0.8)  # keys and values, in BF16
    time += tokens * 4 * 64 * 4 / MEMORY  # rotated queries
    time += tokens * 3 * 576 * 2 / MEMORY  # latents read, stored and given on
    time += tokens * (1 + 4) * 64 * 2 / MEMORY  # the rotated key, once a head
    pairs = prompts * 4096 * 4097 / 2
    time += 2 * 4 * pairs * (192 + 128) / (BF16 * 0.654)
    assert us(step(), "heads") == pytest.approx(time * 1e6 / LEFT + 3 * 5 + 3 * 2, rel=1e-3)


def test_attention_by_data_has_all_heads_of_its_own_prompts():
    staged, data = step(), step(serving__attention="data")
    assert staged.tokens == data.tokens == 4096
    # the same products in all, each bound by computing; latents are stored, and rotated keys read,
    # on one rank, not on each
    once = 31 * 4096 * (3 * 576 + 64) * 2 / MEMORY
    less = us(staged, "heads") - us(data, "heads")
    assert less == pytest.approx(once * 1e6 / LEFT, rel=0.01)
    latents = {
        name: us(step(operators__prologue__absorbed="int8", serving__attention=name), "heads")
        for name in ("staged", "data")
    }
    # in INT8 latents are converted on one rank, not on each, and with few heads the keys and
    # values are bound by their results
    less = once + 31 * 4096 * 512 * 3 / MEMORY
    less += 32 * 4096 * (2560 / MEMORY - 2 * 512 * 1024 / INT8)
    assert latents["staged"] - latents["data"] == pytest.approx(less * 1e6 / LEFT, rel=0.01)
    _, flows, tasks = moe(data)
    assert set(flows.phase) == {"dispatch", "combine"}
    assert set(tasks.stream[tasks.kind == "down"]) == {0}
    rows = tasks[(tasks["rank"] == 0) & (tasks.stream == 0)]
    attention = ["down", "heads", "output", "gate", "pack"]
    assert rows.kind.tolist() == [*attention, *attention, *["arrange", "expert"] * 2]


def test_longer_prompts_cost_attention_more_and_products_the_same():
    even = [{"tokens": 4096, "count": 64}]
    split = [{"tokens": 8192, "count": 16}, {"tokens": 2048, "count": 64}]
    one, two = step(serving__prompts=even), step(serving__prompts=split)
    assert one.tokens == two.tokens
    assert us(two, "heads") > 1.1 * us(one, "heads")
    assert us(two, "output") == us(one, "output")


def test_output_and_expert_times_follow_from_tokens():
    prefill = step()
    time = 4096 * 128 * 128 * (4 + 3) / MEMORY + 2 * 4096 * 128 * 128 * 7168 / INT8
    assert us(prefill, "output") == pytest.approx(time * 1e6 / LEFT + 5 + 2 * 2, rel=1e-3)
    # data-parallel attention has the results of its own heads, in order
    alone = us(prefill, "output") - us(step(serving__attention="data"), "output")
    assert alone == pytest.approx(4096 * 128 * 128 * 4 / MEMORY * 1e6 / LEFT + 2, rel=1e-3)
    _, _, tasks = moe(step(SMALL))
    experts = tasks[tasks.kind == "expert"].groupby("microbatch").duration_ps.sum() / 1e6
    read = 33 * 8 * 3 * 7168 * 2048 / MEMORY  # 52 tokens a replica: bound by reading weights
    gated = 210 * 8 * 9 * 2048 * 5 / MEMORY
    assert experts[0] == pytest.approx((read + gated) * 1e6 / LEFT + 8 * 6, rel=0.15)


def test_packing_and_copies_go_with_the_transfers():
    prefill = step()
    packed = 4096 * (7168 * 2 + 9 * 7680) / MEMORY
    assert us(prefill, "dispatch") == pytest.approx(packed * 1e6 + 10, rel=1e-6)
    _, _, tasks = moe(prefill)
    copies = tasks[tasks.kind == "combine-copy"].duration_ps.mean() / 1e6
    assert copies == pytest.approx(4096 * 9 * (14336 + 14336 / 9) / MEMORY * 1e6, rel=1e-3)


def test_metadata_say_tokens_and_the_row_of_this_very_point():
    metadata = generate_trace(REFERENCE, layers=1).metadata
    assert metadata["kind"] == "prefill"
    assert metadata["batch_per_npu"] == metadata["tokens_per_npu"] == 16_384
    assert metadata["paper_row"]["tokens_per_s_per_npu"] == 6_688
    other = generate_trace(REFERENCE, overrides={"serving.attention": "data"}).metadata
    assert other["paper_row"] is None  # measured on another system, so with a workload of its own
    for microbatches, measured in ((1, 5_237), (2, 6_522)):
        changes = {"serving.microbatches": microbatches}
        row = generate_trace(RECIPES, layers=1, overrides=changes).metadata["paper_row"]
        assert row["tokens_per_s_per_npu"] == measured


def test_an_eager_system_has_an_efficiency_of_its_own():
    assert RECIPES.spec.serving.attention == "data"
    assert RECIPES.spec.machine.efficiency.prefill < LEFT
    same = RECIPES.spec.machine.model_dump() | {"efficiency": None}
    assert same == REFERENCE.spec.machine.model_dump() | {"efficiency": None}
    # the other parts of a task are as they were: only computing is slower
    slow, fast = (us(step(w, serving__attention="data"), "heads") for w in (RECIPES, REFERENCE))
    left = RECIPES.spec.machine.efficiency.prefill
    assert (slow - 8) / (fast - 8) == pytest.approx(LEFT / left, rel=1e-3)


def test_replay_gives_prompt_tokens_a_second(tmp_path):
    result = ub.replay(ub.build_topology("one-node"), generate_trace(SMALL), tmp_path / "run")
    tokens = ub.rebuild_tokens(result)
    step_ms = tokens.summary["step_ms"]
    assert tokens.summary["tokens_per_s_per_npu"] == pytest.approx(840 / step_ms * 1e3)
    sent = result.summary["bytes_sent"]
    assert sent == result.summary["bytes_delivered"] > 0
    assert set(tokens.summary["rank_latency_us"]) == {"dispatch", "combine", "gather", "scatter"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kind", "training", "kind: found 'training', allowed: decode, prefill"),
        ("messages.flag", "512 B", "messages.flag: found flags or one buffer, allowed flag 0 B"),
        ("deployment.attention_tp", 2, "attention_tp: found 2, allowed 1"),
        ("serving.prompts", [], "serving.prompts: .*at least 1 item"),
        ("serving.prompts", [{"tokens": 9, "count": 1}], "found 1 prompts, allowed 2 or more"),
        ("serving.batch_per_npu", 4, "serving.batch_per_npu: unknown key"),
        ("serving.attention", "ring", "serving.attention: found 'ring'"),
        ("serving.exchanges", "cpu", "serving.exchanges: found 'cpu'"),
        (
            "serving.prompts",
            [{"tokens": 400_000, "count": 8}],
            "found 3200000 tokens, of which one rank may send another 2201600000 B",
        ),
    ],
)  # fmt: skip
def test_bad_value_is_refused_in_one_line(key, value, message):
    with pytest.raises(SpecError, match=message) as caught:
        load_workload(REFERENCE, {key: value})
    assert "\n" not in str(caught.value)


def test_ranks_divide_the_heads_and_decode_is_no_prefill():
    changes = {
        "deployment.ranks": 48,
        "deployment.experts_per_rank": 7,
        "deployment.shared_replicas": 48,
    }
    with pytest.raises(SpecError, match=r"ranks: found 48, allowed a divisor of .*heads = 128"):
        load_workload(REFERENCE, changes)
    with pytest.raises(SpecError, match="kind: found 'decode', allowed: prefill"):
        PrefillStep(load_workload("decode-ep8-sample"), 1, 1)
    with pytest.raises(SpecError, match="kind: found 'prefill', allowed: decode"):
        DecodeStep(SMALL, 1, 1)


def test_a_layer_does_not_depend_on_which_others_are_built():
    all_layers = PrefillStep(load_workload(SMALL), 1, 58)
    fourth = all_layers.chunk(4)
    in_order = list(PrefillStep(load_workload(SMALL), 1, [3, 4]).chunks())[4]
    assert fourth.flows.equals(in_order.flows) and fourth.tasks.equals(in_order.tasks)
    assert np.unique(fourth.flows["layer"].to_numpy()).tolist() == [4]


def test_layers_are_drawn_as_for_decode_or_named():
    def moe(layers, source=SMALL):
        metadata = generate_trace(source, layers=layers, seed=5).metadata
        numbers = [row["layer"] for row in metadata["layers"] if row["label"] == "moe"]
        return metadata["moe_layers_drawn"], numbers

    is_drawn, numbers = moe(4)
    assert is_drawn and numbers != [3, 4, 5, 6]
    assert moe(4, "decode-ep8-sample") == (True, numbers)
    assert moe([7, 30]) == (False, [7, 30])
    with pytest.raises(SpecError, match="allowed MoE layers 3 to 60, ascending, each once"):
        moe([2])


def test_a_cached_prefix_is_attended_to_and_not_computed():
    """Half of each of 64 prompts of 4,096 tokens cached; figures by hand from the shapes."""
    half = {"serving__prompts": [{"tokens": 4096, "count": 64, "reused": 2048}]}
    whole, reused = step(), step(**half)
    assert (whole.tokens, reused.tokens) == (4096, 2048)
    assert reused.reused == [32 * 2048] * 2
    _, flows, tasks = moe(reused)
    gather = flows[(flows["phase"] == "gather") & (flows["microbatch"] == 0)]
    # queries of computed tokens in INT8, their latents in BF16; the cached ones are everywhere
    assert set(gather["message_bytes"]) == {2048 * 1536 + 2048 * 576 * 2}
    shared = step(**half, serving__cached_at="share")
    _, flows, _ = moe(shared)
    gather = flows[(flows["phase"] == "gather") & (flows["microbatch"] == 0)]
    assert set(gather["message_bytes"]) == {2048 * 1536 + (2048 + 2048) * 576 * 2}
    assert set(tasks.loc[tasks["waits"] == "cached", "microbatch"]) == {0, 1}
    kernels = reused._kernels("heads", reused.tokens, 0)
    pairs = 32 * (2048 * 2048 + 2048 * 2049 // 2)
    assert kernels[-1].ops == {"bf16": 2 * 4 * pairs * (192 + 128)}
    # keys and values of all tokens, queries of the computed ones
    assert kernels[0].ops == {"int8": 2 * 32 * 2048 * 1536 * 4 * 192}
    assert kernels[2].ops == {"bf16": 2 * 32 * 4096 * 512 * 4 * 256}
    # new latents are read, stored and given on, cached ones copied from their blocks
    assert kernels[1].read_bytes == 32 * (2048 * 3 + 2048 * 2) * 576 * 2
    assert kernels[4].read_bytes == 32 * 4096 * (1 + 4) * 64 * 2
    assert us(reused, "down") == pytest.approx(us(whole, "down") / 2, rel=0.1)


def test_a_batch_with_a_cached_prefix_is_not_at_the_papers_point():
    rows = {"serving.prompts": [{"tokens": 4096, "count": 64, "reused": 128}]}
    assert generate_trace(REFERENCE, layers=1).metadata["paper_row"] is not None
    metadata = generate_trace(REFERENCE, layers=1, overrides=rows).metadata
    assert metadata["paper_row"] is None
    assert metadata["tokens_per_npu"] == 16384
    assert metadata["reused_tokens"] == 64 * 128


def test_a_prompt_is_not_all_cached():
    rows = {"serving.prompts": [{"tokens": 512, "count": 64, "reused": 512}]}
    with pytest.raises(SpecError, match="reused: found 512 tokens of prompts of 512, allowed up"):
        load_workload(REFERENCE, rows)
