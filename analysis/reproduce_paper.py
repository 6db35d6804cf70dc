"""Simulate the results of arXiv 2506.12708 and put them beside the paper's, row by row.

Runs are a sweep: stopped, it goes on with the same command, and a second run only prints. One row:
--only tpot-24. All rows with 4 layers take five to fifteen minutes on two cores.

python analysis/reproduce_paper.py --layers 4 --runs sweeps/paper -o paper.png
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import ubfabric as ub
from ubfabric.errors import ResultError, SpecError, UbfabricError
from ubfabric.paper import PaperRow, compare_fused, compare_rows, fused_name, load_paper, sweep_of
from ubfabric.validation import FusedRow, load_measured

HERE = Path(__file__).parent
SOURCES = {
    "[1]": "arXiv 2506.12708 (CloudMatrix-Infer)",
    "[2]": "arXiv 2508.02520 (xDeepServe)",
    "[3]": "CANN recipes, prefill of DeepSeek-R1 on 16 NPUs",
}
COLOURS = {"fitted": "0.6", "predicted": "C0"}


def chosen(args: argparse.Namespace) -> tuple[list[PaperRow], list[FusedRow]]:
    """Return the rows that were asked for."""
    rows, fused = load_paper(args.paper).rows, load_measured(args.measured).fused.rows
    known = [*(row.name for row in rows), *map(fused_name, fused)]
    for name in args.only:
        if name not in known:
            raise SpecError(f"--only: found {name!r}, allowed {', '.join(known)}")
    if args.only:
        rows = [row for row in rows if row.name in args.only]
        fused = [row for row in fused if fused_name(row) in args.only]
    return rows, fused


def simulate(args: argparse.Namespace) -> pd.DataFrame:
    """Return one row a figure of the paper."""
    rows, fused = chosen(args)
    tables = []
    if rows:
        names, sweep = sweep_of(load_paper(args.paper), rows, args.layers, args.seed)
        results = ub.run_sweep(sweep, args.runs, workers=args.workers)
        if len(results) < len(names):
            missing = len(names) - len(results)
            raise ResultError(f"{args.runs}: {missing} points failed; see failures.parquet there")
        records = results.astype(object).where(results.notna(), None).to_dict("records")
        tables.append(compare_rows(rows, dict(zip(names, records, strict=True))))
    if fused:
        fabric = ub.build_topology("cloudmatrix384")
        tables.append(compare_fused(fabric, load_measured(args.measured).fused, fused))
    return pd.concat(tables, ignore_index=True)


def shown(value: float) -> str:
    """Say a number with four digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def cells(row: pd.Series) -> list[str]:
    """Return a row as text: quantity, paper, simulated, error, role, strength, source."""
    is_change = row["error_unit"] == "points"
    sign = "+" if is_change else ""

    def number(value: float) -> str:
        return f"{value:{sign}.1f}" if is_change else shown(value)

    paper = number(row["paper_low"])
    if row["paper_high"] != row["paper_low"]:
        paper += f" to {number(row['paper_high'])}"
    simulated = number(row["simulated"])
    if not np.isnan(row["simulated_low"]):
        simulated += f" ({shown(row['simulated_low'])} to {shown(row['simulated_high'])})"
    error = f"{row['error']:+.1f} {row['error_unit']}"
    texts = [row["quantity"], f"{paper} {row['unit']}", simulated, error]
    return [*texts, row["role"], row["strength"], row["source"]]


COLUMNS = ("Quantity", "Paper", "Simulated", "Error", "Role", "Strength", "Source")


def markdown(table: pd.DataFrame) -> str:
    """Return the rows as a table of Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(cells(row))} |" for _, row in table.iterrows()]
    notes = [f"{key} is {text}." for key, text in SOURCES.items()]
    return "\n".join([*lines, "", " ".join(notes), ""])


def draw(table: pd.DataFrame, path: str) -> None:
    """Draw the error of each row, in percent or in points."""
    height = 1.2 + 0.28 * len(table)
    figure, axes = plt.subplots(figsize=(9, height), layout="constrained")
    at = np.arange(len(table))[::-1]
    for role, colour in COLOURS.items():
        mine = (table["role"] == role).to_numpy()
        if mine.any():  # the legend would give a role without bars a colour of its own
            axes.barh(at[mine], table.loc[mine, "error"], color=colour, label=role)
    axes.axvspan(-5, 5, color="C2", alpha=0.15, zorder=0, label="5 % or 5 points")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(at, table["quantity"], fontsize=7)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xticks([-50, -20, -10, -5, 0, 5, 10, 20, 50, 100, 200, 400])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(
        "simulated less the paper's: % of a value, points of a gain (logarithmic beyond 10)"
    )
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.3)
    axes.margins(y=0.01)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Simulate what is missing, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4, help="MoE layers (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="draws the layers (%(default)s)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="ROW", help="a row; may be repeated"
    )
    parser.add_argument("--runs", default="sweeps/paper", help="folder of the runs (%(default)s)")
    parser.add_argument("--workers", type=int, help="processes; one a core if not given")
    parser.add_argument("--paper", default=HERE / "paper.yaml", help="published figures")
    parser.add_argument("--measured", default=HERE / "measured.yaml", help="those of the machine")
    parser.add_argument("--csv", help="write the table here")
    parser.add_argument("--markdown", help="write it here as Markdown")
    parser.add_argument("-o", "--output", default="paper.png", help=".png or .pdf (%(default)s)")
    args = parser.parse_args()

    table = simulate(args)
    printed = Table(*COLUMNS)
    for _, row in table.iterrows():
        printed.add_row(*cells(row))
    Console(width=max(Console().width, 150)).print(printed)
    notes = [f"{row['quantity']}: {row['note']}" for _, row in table.iterrows() if row["note"]]
    print("\n".join([*notes, *(f"{key} is {text}" for key, text in SOURCES.items())]))
    good = table[table["role"] == "predicted"]
    within = int((good["error"].abs() <= 5).sum())
    print(f"{within} of {len(good)} predicted rows within 5 % or 5 points")
    draw(table, args.output)
    if args.csv:
        table.to_csv(args.csv, index=False)
    if args.markdown:
        Path(args.markdown).write_text(markdown(table), encoding="utf-8")
    wrote = [str(name) for name in (args.output, args.csv, args.markdown) if name]
    print(f"wrote {', '.join(wrote)}")


if __name__ == "__main__":
    try:
        main()
    except UbfabricError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
