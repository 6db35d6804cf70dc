"""Prefill of DeepSeek-R1 at EP32, held against arXiv 2506.12708 and the CANN recipes.

One parameter, ``machine.efficiency.prefill``, is fitted on one row of each of these two systems
(``analysis/fit_step.py``); the other rows are predictions.
"""

import pytest

import ubfabric as ub

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
def test_default_balance_is_too_fast(tmp_path):
    """A miss, on record: +11 %.

    How unequally experts are loaded is another simulator's constant (the most loaded rank has 1.26
    times the mean). Products of experts are a smaller part of the step than they were with
    ``serving.exchanges: sdma``, where the same imbalance gave the paper's row within a percent.
    """
    assert 7 <= difference(tmp_path, "deepseek-r1-prefill-ep32-default") <= 16


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
