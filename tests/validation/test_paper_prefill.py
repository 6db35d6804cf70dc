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
    trace = ub.generate_trace(workload, layers=4, seed=1, overrides=overrides)
    fabric = ub.build_topology("two-nodes")
    result = ub.replay(fabric, trace, tmp_path / "run", payload_bytes=8192)
    rows = ub.rebuild_tokens(result).paper.set_index("quantity")
    return rows.loc["tokens/s per NPU", "difference_percent"]
