"""Prefill of DeepSeek-R1 at EP32, held against arXiv 2506.12708 and the CANN recipes.

One parameter, ``machine.efficiency.prefill``, is fitted on one row of each of these two systems
(``analysis/fit_step.py``); the other rows are predictions.
"""

import numpy as np
import pytest

import ubfabric as ub
from ubfabric.prefill import PrefillStep
from ubfabric.workload import load_workload

STAGED, RECIPES = "deepseek-r1-prefill-ep32", "cann-recipes-prefill-ep32"


def tokens(tmp_path, workload, **serving):
    overrides = {f"serving.{key}": value for key, value in serving.items()}
    trace = ub.generate_trace(workload, layers=8, seed=1, overrides=overrides)
    fabric = ub.build_topology("two-nodes")
    return ub.rebuild_tokens(ub.replay(fabric, trace, tmp_path / "run", payload_bytes=8192))


def difference(*args, **serving):
    """Return the difference of tokens/s an NPU from the row of the same point, in percent."""
    rows = tokens(*args, **serving).paper.set_index("quantity")
    return rows.loc["tokens/s per NPU", "difference_percent"]


@pytest.mark.validation
@pytest.mark.slow
@pytest.mark.parametrize(("workload", "microbatches"), [(STAGED, 2), (RECIPES, 1)])
def test_rows_that_an_efficiency_is_fitted_on(workload, microbatches, tmp_path):
    # Order of transfers moves the step by a percent from value to value of the parameter.
    assert abs(difference(tmp_path, workload, microbatches=microbatches)) <= 3


@pytest.mark.validation
@pytest.mark.slow
def test_second_microbatch_with_data_parallel_attention_is_within_a_twentieth(tmp_path):
    """Predicted from the row with one microbatch: +3 %."""
    assert abs(difference(tmp_path, RECIPES)) <= 5


@pytest.mark.validation
@pytest.mark.slow
def test_default_balance_is_within_a_twentieth(tmp_path):
    """Predicted from how unequally experts of DeepSeek-R1 were loaded elsewhere: +2.1 %.

    With eight layers drawn by seeds 2 to 4: -2.4, +1.2 and +0.5 %; with all 58: +1.0 %.
    """
    assert abs(difference(tmp_path, "deepseek-r1-prefill-ep32-default")) <= 5


@pytest.mark.validation
def test_default_balance_is_that_of_its_source():
    """DeepSeek-R1 at EP32: 2.56 times the mean on the most loaded rank, averaged over layers.

    NVIDIA/TensorRT-LLM, examples/ep_load_balancer/README.md: 256 experts in order on 32 ranks, none
    replicated, some 4,096 tokens an iteration.
    """
    workload = load_workload(
        "deepseek-r1-prefill-ep32-default",
        {
            "deployment.experts_per_rank": 9,
            "deployment.redundant_experts": 0,
            "serving.prompts": [{"tokens": 256, "count": 32}],  # two microbatches
        },
    )
    step = PrefillStep(workload, 1, 58)
    ratios = []
    for plan in step.plans:
        if plan.label == "moe":
            counts = np.bincount(step.route(plan, 0).ravel(), minlength=256)
            ratios.append(counts.reshape(32, 8).sum(axis=1).max() / counts.sum() * 32)
    assert len(ratios) == 58
    # three standard errors over the layers, each of which has a popularity of its own
    assert np.mean(ratios) == pytest.approx(2.564, abs=3 * np.std(ratios) / 58**0.5)
    assert np.std(ratios) / 58**0.5 < 0.1


@pytest.mark.validation
@pytest.mark.slow
@pytest.mark.parametrize(("workload", "low", "high"), [(STAGED, 1.2, 1.31), (RECIPES, 1.21, 1.31)])
def test_second_microbatch_gains_what_was_measured(workload, low, high, tmp_path):
    """Predicted: +24 % with staged attention, +28 % with data-parallel attention.

    The paper has +23 to +31 % over prompt lengths; the lower bound leaves three points for the
    order in which transfers meet. The CANN recipes have 6,522 over 5,237, +25 %.
    """
    two, one = (tokens(tmp_path / str(n), workload, microbatches=n).summary for n in (2, 1))
    assert low <= two["tokens_per_s_per_npu"] / one["tokens_per_s_per_npu"] <= high


@pytest.mark.validation
@pytest.mark.slow
def test_exchanges_beside_the_products_gain_more_than_in_the_paper(tmp_path):
    """Why exchanges keep the cores: hidden by a second microbatch they would gain more.

    38 %, and 50 % with the efficiency of 0.614 with which the row of two microbatches would come
    out then; the paper has up to 31 %.
    """
    two, one = (
        tokens(tmp_path / str(n), STAGED, microbatches=n, exchanges="sdma").summary for n in (2, 1)
    )
    assert two["tokens_per_s_per_npu"] / one["tokens_per_s_per_npu"] > 1.35
