"""Prefill of DeepSeek-R1 at EP32, held against arXiv 2506.12708 and the CANN recipes.

One parameter, ``machine.efficiency.prefill``, is fitted on the paper's row with perfect EPLB
(``analysis/fit_step.py``); the other rows are predictions. They are missed, each in a way that says
what the model lacks, and stand here so that a change of them is noticed.
"""

import pytest

import ubfabric as ub


def difference(tmp_path, workload="deepseek-r1-prefill-ep32", **serving):
    """Return the difference of tokens/s an NPU from the row of the same point, in percent."""
    overrides = {f"serving.{key}": value for key, value in serving.items()}
    trace = ub.generate_trace(workload, layers=8, seed=1, overrides=overrides)
    fabric = ub.build_topology("two-nodes")
    result = ub.replay(fabric, trace, tmp_path / "run", payload_bytes=8192)
    rows = ub.rebuild_tokens(result).paper.set_index("quantity")
    return rows.loc["tokens/s per NPU", "difference_percent"]


@pytest.mark.validation
@pytest.mark.slow
def test_row_with_perfect_balance_is_fitted(tmp_path):
    # Order of transfers moves the step by a percent from value to value of the parameter.
    assert abs(difference(tmp_path)) <= 3


@pytest.mark.validation
@pytest.mark.slow
def test_imbalance_costs_less_than_in_the_paper(tmp_path):
    """A miss, on record: 6,680 tokens/s an NPU for 5,655 (+18 %).

    Longer experts of the most loaded rank hide behind transfers, which bound the simulated step.
    """
    assert 10 <= difference(tmp_path, "deepseek-r1-prefill-ep32-default") <= 25


@pytest.mark.validation
@pytest.mark.slow
def test_data_parallel_attention_is_near_with_one_microbatch_and_too_fast_with_two(tmp_path):
    """With two a miss, on record: 9,178 tokens/s an NPU for 6,522 (+41 %); with one +9 %.

    Without exchanges in attention two microbatches hide all transfers, so the measured step is
    what computing takes: 41 ms a layer, which is simulated at 29.
    """
    one = difference(tmp_path / "1", attention="data", microbatches=1)
    two = difference(tmp_path / "2", attention="data")
    assert abs(one) <= 12
    assert 33 <= two <= 48
