"""Operator times: rooflines by hand, tensor parallelism, measured tables and what is refused."""

import numpy as np
import pytest

from ubfabric.errors import SpecError
from ubfabric.operators import OPERATORS, CoresSpec, MeasuredTimes, OperatorTimes
from ubfabric.workload import load_workload

SPEC = load_workload("deepseek-r1-decode-ep320").spec
#: Weights come at 1.6 TB/s x 0.841; INT8 and BF16 products at 0.8 of their peaks.
MEMORY, INT8, BF16 = 1.6e12 * 0.841, 752e12 * 0.8, 376e12 * 0.8
#: Vector cores of a die, in kernels of few rows.
VECTOR = 7.3e9 * 48
HALF = CoresSpec(cube_cores=12, vector_cores=24)


def times(
    model=SPEC.model, machine=SPEC.machine, operators=SPEC.operators, tp=1, folder=None, **rows
):
    return OperatorTimes(model, machine, operators, folder, tp, **rows)


def us(name, tokens, cores=None, of=None, **where):
    return float((of or times()).time_ps(name, tokens, cores, **where)) / 1e6


def test_attention_is_bound_by_memory_with_few_queries_and_by_compute_with_many():
    ops_a_token = 2 * 128 * 4096 * (576 + 512)
    cache = 4096 * 576 * 2
    one = us("attention", 1, kv_tokens=4096, requests=8)
    assert one == pytest.approx(5 + 8 * cache / MEMORY * 1e6)
    many = us("attention", 96, kv_tokens=4096, requests=48)
    assert many == pytest.approx(5 + 96 * ops_a_token / (376e12 * 0.654) * 1e6)
    assert us("attention", 96, HALF, kv_tokens=4096, requests=48) == pytest.approx(2 * many - 5)


def test_prologue_reads_its_weights_and_handles_its_tokens():
    int8 = 7168 * (1536 + 576) + 1536 * 128 * 192
    bf16 = 128 * 512 * 128
    read = (int8 + 2 * bf16) / MEMORY
    a_token = 2 * (7168 + 1536 + 576 + 128 * 192 + 128 * 576)
    vector = a_token / VECTOR
    assert us("prologue", 8) == pytest.approx(5 + (read + 8 * vector) * 1e6)
    # at 120 tokens it takes what xDeepServe measured: 8.7 % of 93 ms in 62 layers
    assert us("prologue", 120) == pytest.approx(0.087 * 93e3 / 62, rel=0.02)
    compute = 4096 * 2 * (int8 / INT8 + bf16 / BF16)
    assert us("prologue", 4096) == pytest.approx(5 + (compute + 4096 * vector) * 1e6)


def test_output_projection_adds_the_values_of_the_latent():
    read = (128 * 128 * 7168 + 2 * 128 * 512 * 128) / MEMORY
    quantised = 48 * 128 * 128 * 3 / VECTOR
    assert us("output", 48) == pytest.approx(12 + (read + quantised) * 1e6)


def test_gate_head_projection_and_ffn_are_products_of_their_own_weights():
    for name, parameters, size, launches, vector in (
        # in FP32, so that states are cast
        ("gate", 7168 * 256, 4, 5 + 3 * 2, 7168 * (8 + 6)),
        ("head", 7168 * 129280, 2, 5 + 2 * 2, 7168 * 8),
        ("projection", 2 * 7168 * 7168, 2, 5 + 3 * 2, 2 * 7168 * 4),
        ("ffn", 3 * 7168 * 18432, 1, 2 * 5 + 3 * 2, 7168 * 7 + 18432 * 5),
    ):
        expected = launches + (parameters * size / MEMORY + vector / VECTOR) * 1e6
        assert us(name, 1) == pytest.approx(expected), name


def test_gate_in_bf16_casts_nothing_and_reads_half():
    gate = SPEC.operators.gate.model_copy(update={"precision": "bf16"})
    of = times(operators=SPEC.operators.model_copy(update={"gate": gate}))
    expected = 11 + (7168 * 256 * 2 / MEMORY + 7168 * 8 / VECTOR) * 1e6
    assert us("gate", 1, of=of) == pytest.approx(expected)


def test_quantisation_and_sampling_move_activations():
    assert us("quantise", 96) == pytest.approx(4 + 96 * 7168 * 3 / VECTOR * 1e6)
    assert us("quantise", 96, HALF) == pytest.approx(4 + 96 * 7168 * 3 / (VECTOR / 2) * 1e6)
    with_rows = times(streams_rows=True)  # as many as in prefill
    assert us("quantise", 96, of=with_rows) == pytest.approx(4 + 96 * 7168 * 3 / MEMORY * 1e6)
    assert us("sampling", 96) == pytest.approx(8 + 96 * 129280 * 4 * 4 / MEMORY * 1e6)


def test_expert_replicas_are_timed_one_by_one_without_launches():
    parameters = 3 * 7168 * 2048
    got = times().time_ps("expert", np.array([0, 1, 200, 480]), HALF)
    read, token = parameters / MEMORY, 2 * parameters / (INT8 / 2)
    gated = 2048 * 5 / (VECTOR / 2)  # two products in BF16, one result in INT8
    expected = [0, read + gated, 200 * (token + gated), 480 * (token + gated)]
    assert got / 1e12 == pytest.approx(expected)
    assert times().launches_ps("expert") == 12_000_000


def test_grouped_query_attention_divides_its_cache_among_dies():
    model = load_workload("deepseek-r1-decode-ep320").spec.model
    gqa = {"kind": "gqa", "heads": 64, "kv_heads": 8, "head_dim": 128}
    model = type(model).model_validate(model.model_dump() | {"attention": gqa})
    one, two = times(model), times(model, tp=2)
    cache = 16 * 4096 * 2 * 8 * 128 * 2
    for of, share in ((one, 1), (two, 2)):
        got = us("attention", 1, of=of, kv_tokens=4096, requests=16)
        assert got == pytest.approx(5 + cache / share / MEMORY * 1e6)
        got = us("output", 1, of=of)
        quantised = 64 * 128 * 3 / VECTOR
        assert got == pytest.approx(12 + (64 * 128 * 7168 / MEMORY + quantised) / share * 1e6)
    assert us("prologue", 1, of=one) > 2 + 7168 * (64 + 16) * 128 / MEMORY * 1e6
    assert model.attention.parameters(7168) == 7168 * 128 * (64 + 16 + 64)


def test_llama_class_has_the_announced_parameters():
    model = load_workload(
        "deepseek-r1-decode-ep320",
        {
            "model": "llama4-class-2t",
            "deployment": {
                "ranks": 96, "dies_per_npu": 2, "experts_per_rank": 1, "shared_replicas": 16,
                "redundant_experts": 64, "attention_tp": 8,
            },
            "serving.batch_per_npu": 4,
            "machine.die.hbm_capacity": "1 TB",
        },
    ).spec.model  # fmt: skip
    a_layer = model.attention.parameters(model.hidden_size)
    both_ends = 2 * model.hidden_size * model.vocabulary
    total = model.layers * (17 * model.expert_parameters + a_layer) + both_ends
    active = model.layers * (2 * model.expert_parameters + a_layer) + both_ends
    assert total == pytest.approx(2e12, rel=0.02) and active == pytest.approx(288e9, rel=0.04)


def test_deepseek_and_pangu_have_their_parameters():
    for name, total_b, active_b in (("deepseek-r1", 671, 37), ("pangu-ultra-moe", 718, 39)):
        model = load_workload("deepseek-r1-decode-ep320", {"model": name}).spec.model
        rest = model.layers * model.attention.parameters(model.hidden_size)
        rest += model.dense_layers * model.dense_parameters
        rest += 2 * model.hidden_size * model.vocabulary
        experts = model.moe_layers * model.expert_parameters
        assert (rest + 257 * experts) / 1e9 == pytest.approx(total_b, rel=0.01)
        assert (rest + 9 * experts) / 1e9 == pytest.approx(active_b, rel=0.05)


HEADER = "operator,tokens,kv_tokens,time\n"


def table(tmp_path, rows, header=HEADER):
    file = tmp_path / "t.csv"
    file.write_text(header + rows)
    return MeasuredTimes(file)


def test_times_between_measured_points_are_linear_in_both_directions(tmp_path):
    rows = "attention,8,1024,10 us\nattention,16,1024,20 us\n"
    rows += "attention,8,3072,30us\nattention,16,3072,80 us\ngate,1,,5 us\n"
    measured = table(tmp_path, rows)
    assert "attention" in measured and "gate" in measured and "head" not in measured
    assert measured.time_ps("attention", 8, 1024) == 10e6
    assert measured.time_ps("attention", 12, 1024) == 15e6
    assert measured.time_ps("attention", 8, 2048) == 20e6
    assert measured.time_ps("attention", 12, 2048) == 35e6
    assert measured.time_ps("gate", 1) == 5e6
    assert measured.time_ps("attention", np.array([8, 16]), 3072).tolist() == [30e6, 80e6]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("attn,8,1024,10 us\n", rf"row 1: found operator 'attn', allowed: {', '.join(OPERATORS)}"),
        ("gate,0,,10 us\n", r"row 1: tokens: found '0', allowed integers from 1"),
        ("gate,1.5,,10 us\n", r"row 1: tokens: found '1.5', allowed integers from 1"),
        ("gate,1,9,10 us\n", r"row 1: kv_tokens: found '9', allowed for attention only"),
        ("attention,1,,10 us\n", r"row 1: kv_tokens: found '', allowed integers from 1"),
        ("gate,1,,10\n", r"row 1: time: found '10'; expected a number with one of the units"),
        ("gate,1,\n", r"row 1: time: found"),
        ("gate,1,,1 us\ngate,1,,2 us\n", r"row 2: found a second time of gate at this point"),
        (
            "attention,1,5,1 us\nattention,2,6,1 us\n",
            r"attention: found no time for 1 tokens and 6 kv_tokens",
        ),
        ("", r"found no rows"),
    ],
)
def test_malformed_table_is_refused_in_one_line(tmp_path, rows, message):
    with pytest.raises(SpecError, match=message) as caught:
        table(tmp_path, rows)
    assert "t.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_columns_and_missing_files_are_refused(tmp_path):
    with pytest.raises(SpecError, match=r"found columns operator, us, allowed: operator, tokens"):
        table(tmp_path, "gate,5\n", "operator,us\n")
    with pytest.raises(SpecError, match=r"none\.csv: cannot be read"):
        MeasuredTimes(tmp_path / "none.csv")


def test_points_outside_of_the_table_are_refused(tmp_path):
    measured = table(tmp_path, "attention,8,1024,10 us\nattention,16,1024,20 us\n")
    with pytest.raises(SpecError, match=r"attention: found 17 tokens to be timed, allowed 8 to 16"):
        measured.time_ps("attention", 17, 1024)
    with pytest.raises(SpecError, match=r"found 4096 kv_tokens to be timed, allowed 1024 to 1024"):
        measured.time_ps("attention", 8, 4096)


def test_measured_times_have_their_launches_in_them(tmp_path):
    table(tmp_path, "expert,1,,50 us\nexpert,9,,90 us\n")
    operators = SPEC.operators.model_copy(update={"table": "t.csv"})
    of = times(operators=operators, folder=tmp_path)
    assert of.time_ps("expert", np.array([0, 1, 5])).tolist() == [0, 50e6, 70e6]
    assert of.launches_ps("expert") == 0 and of.launches_ps("gate") == 11_000_000
