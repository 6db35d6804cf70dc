"""Simulate a study (a sweep) and draw step and latencies of its points, the first one as measure.

Shipped ones are in analysis/studies. Stopped, a study goes on with the same command.

python analysis/draw_study.py analysis/studies/skew.yaml --runs sweeps/skew -o skew.png
"""

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from ubfabric.errors import ResultError, UbfabricError
from ubfabric.sweep import plan_sweep, run_sweep

#: Columns of the data set that are printed and drawn, and their names.
FIGURES = {
    "tpot_ms": "TPOT ms",
    "layer_us": "layer us",
    "dispatch_rank_latency_p50_us": "dispatch p50 us",
    "dispatch_rank_latency_p99_us": "dispatch p99 us",
    "combine_rank_latency_p50_us": "combine p50 us",
    "combine_rank_latency_p99_us": "combine p99 us",
}


def text(value: Any) -> str:
    """Say a value of a key in few words."""
    if isinstance(value, Mapping) and "policy" in value:
        rest = [f"{key} {one}" for key, one in value.items() if key != "policy"]
        return " ".join([str(value["policy"]), *rest])
    return Path(value).stem if str(value).endswith(".yaml") else str(value)


def labels(points: list[dict[str, Any]]) -> list[str]:
    """Name each point by its keys, a key by its last parts."""
    names = []
    for values in points:
        parts = []
        for key, value in values.items():
            short = ".".join(key.split(".")[-2:]) if key.startswith("topology.") else key
            parts.append(f"{short.removeprefix('run.').split('deployment.')[-1]} {text(value)}")
        names.append(", ".join(parts).replace("workload.", "").replace("_", " "))
    return names


def measure(kinds: Iterable[str]) -> str:
    """Name the time of a step by the kinds of workload: prefill gives no token after another."""
    return "time of a batch" if set(kinds) == {"prefill"} else "TPOT"


def without_sign(value: float) -> float:
    """Round to the one digit that is shown, without the minus of what rounds to nothing."""
    return round(value, 1) + 0.0


def draw(table: pd.DataFrame, title: str, what: str, path: str) -> None:
    """Draw the change of a step's time, and latencies of dispatch and combine."""
    at = np.arange(len(table))[::-1]
    lines = 1 + table["label"].str.count(", ").max()
    size = (12, 1.8 + max(0.45, 0.16 * lines) * len(table))
    figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    left.barh(at, table["tpot_ms"], color="C0")
    texts = []
    for y, value, change in zip(at, table["tpot_ms"], table["tpot_change_percent"], strict=True):
        said = f" {value:,.1f} ({without_sign(change):+,.1f} %)"
        texts.append(left.text(value, y, said, va="center", fontsize=8))
    left.set(xlabel=f"{what} (ms)", title=title)
    left.set_yticks(at, table["label"].str.replace(", ", ",\n"), fontsize=8)
    for offset, (phase, colour) in zip(
        (0.2, -0.2), (("dispatch", "C1"), ("combine", "C2")), strict=True
    ):
        median, tail = (table[f"{phase}_rank_latency_{p}_us"] for p in ("p50", "p99"))
        right.barh(at + offset, median, height=0.35, color=colour, label=f"{phase}, median")
        right.plot(tail, at + offset, "|", color="black", markersize=9)
    right.plot([], [], "|", color="black", label="99th percentile")
    right.set(xlabel="latency seen by a rank (us)", title="Dispatch and combine")
    figure.legend(fontsize=8, loc="outside lower right", ncols=3)  # within, it would hide marks
    for axes in (left, right):
        # With separators, more labels than these run into one another.
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter("{x:,.10g}")
        axes.grid(axis="x", alpha=0.3)
    # The last label is centred on the right edge of its axes, and half of it hangs over.
    figure.get_layout_engine().set(w_pad=0.12)
    figure.draw_without_rendering()  # a text has a width only now
    width = left.bbox.width
    shares = [text.get_window_extent().width / width for text in texts]
    room = [1 - min(share + 0.04, 0.9) for share in shares]
    left.set_xlim(0, max(value / part for value, part in zip(table["tpot_ms"], room, strict=True)))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Simulate what is missing, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="a sweep, a .yaml file")
    parser.add_argument("--runs", help="folder of the runs; sweeps/NAME if not given")
    parser.add_argument("--workers", type=int, help="processes; one a core if not given")
    parser.add_argument("--csv", help="write the table here")
    parser.add_argument("-o", "--output", default="study.png", help=".png or .pdf (%(default)s)")
    args = parser.parse_args()

    runs = args.runs or f"sweeps/{args.study.stem}"
    planned = plan_sweep(args.study)
    points = [point.values for point in planned]
    what = measure(point.simulation.workload.spec.kind for point in planned)
    results = run_sweep(args.study, runs, workers=args.workers)
    if len(results) < len(points):
        missing = len(points) - len(results)
        raise ResultError(f"{runs}: {missing} points failed; see failures.parquet there")
    table = results[list(FIGURES)].copy()
    table.insert(0, "label", labels(points))
    table["tpot_change_percent"] = 100 * (table["tpot_ms"] / table["tpot_ms"].iloc[0] - 1)
    names = FIGURES | {"tpot_ms": f"{what} ms", "tpot_change_percent": f"{what} %"}
    change = table["tpot_change_percent"].map(without_sign)
    shown = table.assign(tpot_change_percent=change).rename(columns=names)
    print(shown.to_string(index=False, float_format="{:,.1f}".format))
    draw(table, args.study.stem.replace("-", " "), what, args.output)
    if args.csv:
        table.to_csv(args.csv, index=False)
    print(f"wrote {', '.join(name for name in (args.output, args.csv) if name)}")


if __name__ == "__main__":
    try:
        main()
    except UbfabricError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
