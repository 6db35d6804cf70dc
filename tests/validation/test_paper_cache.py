"""Prefill with a context cache, held against arXiv 2506.12708, section 5.4.3.

Nothing is fitted to these rows, but two things were chosen knowing them: the size of a block, 256
tokens, the middle of the paper's 128 to 512; and that every rank sends its new blocks, as a public
connector of the cache has them do. ``analysis/reproduce_paper.py`` prints all rows.
"""

from pathlib import Path

import pytest

import ubfabric as ub
from ubfabric.paper import compare_rows, load_paper, sweep_of

PAPER = load_paper(Path(__file__).parents[2] / "analysis" / "paper.yaml")
#: Allowed simulated change in percent, by row: that of the paper within 5 points where it is met.
BOUNDS = {
    # 42 and 128 % in the paper
    "cache-50": (37, 47),
    "cache-90": (123, 133),
    # where one rank sends each new block the first is too little and the second too much
    "cache-50-one": (32, 40),
    "cache-90-one": (138, 163),
    # -34 and -59 % in the paper
    "ttft-50": (-36, -29),
    "ttft-90": (-64, -57),
    # the paper's 128 % are between those of the smallest and of middle blocks
    "cache-90-128": (80, 93),
    "cache-90-512": (200, 226),
    # up to 52 % in the paper: reads before the step are as long as the planes make them
    "plane-90": (35, 47),
    "plane-90-one": (35, 47),
    # reads ahead of it are hidden on either
    "plane-90-layer": (0, 10),
}


@pytest.mark.validation
@pytest.mark.slow
def test_gains_of_the_context_cache_are_within_stated_bounds_of_the_papers(tmp_path):
    rows = [row for row in PAPER.rows if row.name in BOUNDS]
    names, sweep = sweep_of(PAPER, rows, layers=2, seed=1)
    results = ub.run_sweep(sweep, tmp_path / "runs", workers=2, progress=False)
    table = compare_rows(rows, dict(zip(names, results.to_dict("records"), strict=True)))
    simulated = table.set_index("name")["simulated"]
    assert set(simulated.index) == set(BOUNDS)
    for name, (low, high) in BOUNDS.items():
        assert low <= simulated[name] <= high, name
