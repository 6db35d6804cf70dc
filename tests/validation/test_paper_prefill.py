"""Prefill of DeepSeek-R1 at EP32, held against arXiv 2506.12708 and the CANN recipes.

One parameter, ``machine.efficiency.prefill``, is fitted on the paper's row with perfect EPLB
(``analysis/fit_step.py``); the other rows are predictions.
"""

import pytest

import ubfabric as ub


def tokens(tmp_path, workload="deepseek-r1-prefill-ep32", **serving):
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
def test_row_with_perfect_balance_is_fitted(tmp_path):
    # Order of transfers moves the step by a percent from value to value of the parameter.
    assert abs(difference(tmp_path)) <= 3


@pytest.mark.validation
@pytest.mark.slow
@pytest.mark.parametrize(
    ("workload", "serving"),
    [
        ("deepseek-r1-prefill-ep32-default", {}),
        ("deepseek-r1-prefill-ep32", {"attention": "data", "microbatches": 1}),
        ("deepseek-r1-prefill-ep32", {"attention": "data"}),
    ],
)
def test_other_rows_are_within_a_twentieth(workload, serving, tmp_path):
    """Predicted: default balance +1 %, data-parallel attention -2 % and 0 % (two microbatches)."""
    assert abs(difference(tmp_path, workload, **serving)) <= 5


@pytest.mark.validation
@pytest.mark.slow
def test_second_microbatch_gains_more_than_in_the_paper(tmp_path):
    """A miss, on record: +50 % with staged attention, where notes on the paper have 23 to 31 %.

    With one microbatch nothing hides the exchanges around attention; with two, all is hidden.
    """
    two, one = (tokens(tmp_path / str(n), microbatches=n).summary for n in (2, 1))
    assert 1.42 <= two["tokens_per_s_per_npu"] / one["tokens_per_s_per_npu"] <= 1.6
