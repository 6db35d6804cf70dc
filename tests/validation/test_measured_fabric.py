"""CloudMatrix384 beside what was measured on it; the tolerances are those the project sets.

Ten parameters are fitted on eleven rows (analysis/fit_fabric.py): those rows must come out within
3 %, but the two that the start of a transfer by SDMA stands for, within 5 %. Nothing was chosen for
the others: 10 %, which is what two careful measurements of one machine differ by at best (arXiv
2506.12708, 2607.26444 and 2607.06202 differ by more). Rates of SDMA have tolerances of their own,
each with its reason.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ubfabric.topology import build_topology
from ubfabric.validation import compare, load_measured

MEASURED = Path(__file__).parents[2] / "analysis" / "measured.yaml"


@pytest.fixture(scope="module")
def table():
    return compare(build_topology("cloudmatrix384"), load_measured(MEASURED))


#: Rows that one parameter is fitted on, as much too fast in the one as too slow in the other.
OF_THE_START = [f"die to cpu, other server: SDMA read, {size} KiB" for size in (16, 128)]


def by_blocks(table):
    """Return which rows are rates of transfers in blocks of one size."""
    return table["source"].str.startswith("CANN HIXL")


@pytest.mark.validation
@pytest.mark.parametrize(
    ("role", "n_rows", "tolerance"), [("fitted", 9, 0.03), ("predicted", 22, 0.10)]
)
def test_rows_come_out_within_their_tolerance(table, role, n_rows, tolerance):
    apart = table["quantity"].isin(OF_THE_START) if role == "fitted" else by_blocks(table)
    rows = table[(table["role"] == role) & ~apart]
    assert len(rows) == n_rows
    off = rows[rows["error"].abs() > tolerance]
    assert off.empty, off[["quantity", "measured", "simulated", "error"]].to_string()


@pytest.mark.validation
@pytest.mark.parametrize(
    ("what", "n_rows", "lowest", "highest"),
    [
        # One start and one rate stand for all transfers between servers. Small blocks come out up
        # to 11 % fast, since what a die spends on them differs from peer to peer, and large ones
        # that dies read up to 11 % slow, as reads are faster than the writes that are fitted.
        ("die to die, other server: SDMA", 7, -0.12, 0.12),
        # Memory of a CPU has rates of its own.
        ("die to cpu, other server: SDMA read", 1, -0.05, 0.05),
        ("die to cpu, other server: SDMA write", 3, -0.10, 0.10),
        # The real machine fills 95 % of the link, which headers alone do not explain.
        ("die to die, other server: RDMA", 2, 0.0, 0.04),
    ],
)
def test_rates_between_servers_come_out_within_what_one_start_can_follow(
    table, what, n_rows, lowest, highest
):
    rows = table[(table["role"] == "predicted") & table["quantity"].str.startswith(what)]
    assert len(rows) == n_rows
    off = rows[(rows["error"] < lowest) | (rows["error"] > highest)]
    assert off.empty, off[["quantity", "measured", "simulated", "error"]].to_string()


@pytest.mark.validation
def test_the_start_of_a_transfer_is_as_far_from_one_of_its_rows_as_from_the_other(table):
    errors = table.set_index("quantity").loc[OF_THE_START, "error"]
    assert errors.abs().max() <= 0.05
    assert abs(errors.sum()) <= 0.003


@pytest.mark.validation
def test_every_predicted_row_has_a_tolerance(table):
    predicted = table["role"] == "predicted"
    assert (predicted & by_blocks(table)).sum() == 7 + 1 + 3 + 2


@pytest.mark.validation
def test_rates_grow_with_the_block_as_measured_ones_do(table):
    for _, rows in table[by_blocks(table)].groupby(table["quantity"].str.rsplit(",", n=1).str[0]):
        assert rows["simulated"].is_monotonic_increasing


@pytest.mark.validation
def test_rows_that_follow_nobody_are_shown_with_their_error(table):
    """Other sources disagree with the paper, and in-package latency is known to be too high.

    Of the rates by blocks, one start cannot be that within a server too, nor that of an RDMA card.
    """
    beside = table[table["role"] == "disputed"]
    assert len(beside) == 8 + 16 + 1
    assert beside["error"].notna().all()
