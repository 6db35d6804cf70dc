"""Decode of DeepSeek-R1 at EP320, held against the results of arXiv 2506.12708.

The paper's rows are secondary sources in ``traffic/deepseek-r1-decode-ep320.yaml``. Operator
times follow from the model's shape and the machine's peaks; one parameter, what a message costs
a vector core, is fitted on the row at batch 96 (``analysis/fit_step.py``). Batch 24 and 8, the
time without MTP and the times of a stream are predictions.

Whether the paper's rows at batch 24 and 8 used two microbatches is not said. Two are taken at
batch 24 and one at batch 8, where two would miss the objective of 15 ms that the row is for
(simulated: 20.0 ms); with one, batch 24 comes out at 19.9 ms.
"""

import pytest

import ubfabric as ub


def tokens_at(tmp_path, changes=None, **serving):
    overrides = (changes or {}) | {f"serving.{key}": value for key, value in serving.items()}
    trace = ub.generate_trace("deepseek-r1-decode-ep320", layers=4, seed=1, overrides=overrides)
    return ub.rebuild_tokens(ub.replay(ub.cloudmatrix384(), trace, tmp_path / "run"))


#: Batch an NPU, microbatches, and the allowed error of TPOT: 1 % where the parameter was fitted,
#: 5 % where it is a prediction (measured: +1.0 % at batch 24, +3.0 % at batch 8).
ROWS = [
    (96, 2, 0.01),
    pytest.param(24, 2, 0.05, marks=pytest.mark.slow),
    pytest.param(8, 1, 0.05, marks=pytest.mark.slow),
]


@pytest.mark.validation
@pytest.mark.parametrize(("batch", "microbatches", "tolerance"), ROWS)
def test_tpot_is_near_the_papers_row(batch, microbatches, tolerance, tmp_path):
    tokens = tokens_at(tmp_path, batch_per_npu=batch, microbatches=microbatches)
    row = tokens.paper.set_index("quantity").loc["TPOT"]
    assert abs(row["difference_percent"]) <= 100 * tolerance
    # throughput is batch over TPOT, in the paper as here
    rate = tokens.summary["tokens_per_s_per_npu"]
    assert rate == pytest.approx(batch / tokens.summary["tpot_ms"] * 1e3, rel=1e-6)


def layer_us(tokens):
    return tokens.layers.loc[tokens.layers["steady"], "increment_ps"].mean() / 1e6


@pytest.mark.validation
@pytest.mark.slow
def test_layers_with_and_without_mtp_and_streams_are_near_the_notes(tmp_path):
    with_mtp = tokens_at(tmp_path / "1")
    without = tokens_at(tmp_path / "0", mtp_tokens=0)
    # notes on the paper: 1,260 us and 874 us a layer; measured 1,274 and 821 us
    assert layer_us(with_mtp) == pytest.approx(1260, rel=0.05)
    assert layer_us(without) == pytest.approx(874, rel=0.08)
    # MTP gains 6 to 49 % in the paper, more at small batch
    assert 1.06 <= without.summary["tpot_ms"] / with_mtp.summary["tpot_ms"] <= 1.49
    # and about 600 us a stream and microbatch, in both; measured 544 and 634 us
    streams = with_mtp.streams.groupby(["rank", "kind"])["busy_ps"].sum().unstack().median() / 1e6
    moe = with_mtp.summary["moe_layers_simulated"] + 1  # and the MTP layer
    attention = streams[["prologue", "attention", "output"]].sum() / (moe + 3)
    expert = streams[["gate", "dispatch", "expert", "combine"]].sum() / moe
    assert attention / 2 == pytest.approx(600, rel=0.12)
    assert expert / 2 == pytest.approx(600, rel=0.12)


@pytest.mark.validation
@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "kv_tokens", "paper_ms", "kept", "equal"),
    [(112, 2176, 47.4, 1.15, 0.87), (128, 1536, 46.8, 1.27, 0.91)],
)
def test_rows_of_short_kv_lie_between_two_shares_of_cores(
    batch, kv_tokens, paper_ms, kept, equal, tmp_path
):
    """A miss, on record: too slow with the cores of the other row, too fast with equal ones.

    Tolerance: 3 %, twice the interval of four layers.
    """
    short = {"batch_per_npu": batch, "kv_tokens": kv_tokens}
    shares = {
        f"operators.streams.{stream}.{cores}": number
        for stream in ("attention", "expert")
        for cores, number in (("cube_cores", 12), ("vector_cores", 24))
    }
    for folder, changes, ratio in (("kept", {}, kept), ("equal", shares, equal)):
        tokens = tokens_at(tmp_path / folder, changes, **short)
        assert tokens.summary["tpot_ms"] / paper_ms == pytest.approx(ratio, abs=0.03), folder


@pytest.mark.validation
@pytest.mark.slow
def test_two_microbatches_do_not_gain_what_the_paper_says(tmp_path):
    """A miss, on record: the paper gains 9.4 % at batch 96, the simulation loses 13 %.

    Two microbatches read all weights twice and run every operator on a part of the cores. What
    one microbatch is simulated at, 1.11 ms a layer, the paper's gain puts at 1.38 ms; operators
    on the whole die are too fast here (see also the step of arXiv 2508.02520).
    """
    two = tokens_at(tmp_path / "2")
    one = tokens_at(tmp_path / "1", microbatches=1)
    gain = one.summary["tpot_ms"] / two.summary["tpot_ms"] - 1
    assert -0.17 <= gain <= -0.07


@pytest.mark.validation
@pytest.mark.slow
def test_step_of_another_serving_system_on_the_same_machine(tmp_path):
    """EP288 without microbatches, arXiv 2508.02520; nothing is fitted to it."""
    trace = ub.generate_trace("xdeepserve-decode-ep288", layers=4, seed=1)
    tokens = ub.rebuild_tokens(ub.replay(ub.cloudmatrix384(), trace, tmp_path / "run"))
    row = tokens.paper.set_index("quantity").loc["TPOT"]
    assert -16 <= row["difference_percent"] <= -6  # measured -11.3 %: 44.4 ms for 50 ms


@pytest.mark.validation
@pytest.mark.slow
def test_step_with_attention_and_experts_on_dies_of_their_own(tmp_path):
    """480 dies of attention, 288 of experts, arXiv 2508.02520; nothing is fitted to it.

    The text gives the parts of the step as well. All are simulated too fast, most of all the
    experts; its two-stage routing over trampolines, and that one domain at a time sends, are
    not modelled.
    """
    trace = ub.generate_trace("xdeepserve-decode-disaggregated", layers=4, seed=1)
    run = ub.replay(ub.cloudmatrix384(), trace, tmp_path / "run")
    tokens = ub.rebuild_tokens(run)
    row = tokens.paper.set_index("quantity").loc["TPOT"]
    assert -8 <= row["difference_percent"] <= 0  # measured -4.0 %: 47.1 ms for 49 ms
    tasks = run.step_tasks()
    last = tasks[tasks["layer"] == trace.metadata["layers"][-3]["layer"]]  # of the MoE layers
    by_batch = {
        name: getattr(last[last["kind"] == kind].groupby("microbatch")[column], how)() / 1e6
        for name, kind, column, how in (
            ("begins", "prologue", "start_ps", "min"),
            ("A2E begins", "dispatch", "start_ps", "min"),
            ("sent", "dispatch-flag", "finish_ps", "min"),
            ("A2E ends", "dispatch-copy", "finish_ps", "max"),
            ("E2A begins", "combine", "start_ps", "min"),
            ("E2A ends", "combine-copy", "finish_ps", "max"),
        )
    }
    # attention, gate and the attending die's part of A2E: 700 us a microbatch; measured 663 us
    assert (by_batch["sent"] - by_batch["begins"]).median() == pytest.approx(663, rel=0.03)
    # A2E 172 us and E2A 193 us; measured 155 and 156 us
    assert (by_batch["A2E ends"] - by_batch["A2E begins"]).median() == pytest.approx(155, rel=0.1)
    assert (by_batch["E2A ends"] - by_batch["E2A begins"]).median() == pytest.approx(156, rel=0.15)
    # experts 120 us; measured 80 us
    experts = last[last["kind"] == "expert"]
    longest = (experts["finish_ps"] - experts["start_ps"]).groupby(experts["microbatch"]).max()
    assert longest.median() / 1e6 == pytest.approx(80, rel=0.1)
