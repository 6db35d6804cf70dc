"""Show how well k of a model's MoE layers tell what all of them give, for k from 1 to all.

python analysis/layer_sampling.py -o layer_sampling.png --csv layer_sampling.csv

Each case is simulated once with all layers. From then on two things are told apart:

*resampled*  many draws of k layers from the increments (or latencies) of that one run. This
             tests the statistics: a drawn layer has the increment that it has in the full run.
             The first layer of a run has none, so increments are one fewer than layers.
*simulated*  a few draws of k layers, each simulated on its own. A layer then follows the one
             drawn before it, as in any run with `layers: k`; this tests the rest.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from ubfabric import build_topology, generate_trace, rebuild_tokens, replay
from ubfabric.distribution import QUANTILES, Distribution
from ubfabric.errors import UbfabricError
from ubfabric.sampling import CONFIDENCE, draw_layers, quantile_interval, sum_interval
from ubfabric.trace import Trace
from ubfabric.workload import load_workload

matplotlib.use("Agg")
import matplotlib.pyplot as plt

#: Name of a case to the changes of the workload that make it.
CASES = {
    "Zipf 0.8": {"gate": {"policy": "zipf", "exponent": 0.8}},
    "Dirichlet 1": {"gate": {"policy": "dirichlet", "concentration": 1.0}},
    "uniform": {"gate": {"policy": "uniform"}},
    "Zipf 0.8, long attention": {
        "gate": {"policy": "zipf", "exponent": 0.8},
        "serving.kv_tokens": 16_384,
        "serving.batch_per_npu": 24,  # of more requests the cache would not fit
    },
}
#: Colours of Okabe and Ito with a marker each: told apart in print and by the colour-blind.
STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#000000", "D")]
#: Percentiles are resampled for these k only: each draw merges k distributions.
PERCENTILE_K = (2, 4, 8, 16, 32, 48)


@dataclass(frozen=True)
class Case:
    """One case with all layers simulated; times in ps."""

    name: str
    changes: dict
    step_ps: float
    reach_ms: float
    increments: np.ndarray
    combine: list[Distribution]


def simulate(args, changes, layers, folder) -> tuple:
    """Simulate some layers, by count or number; return tokens and the run."""
    trace = generate_trace(args.workload, layers=layers, seed=args.seed, overrides=changes)
    drawn = Trace(trace.metadata | {"moe_layers_drawn": True}, trace.n_chunks, trace.open_chunks)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        result = replay(build_topology(args.topology), drawn, Path(out) / "run", progress=False)
        return rebuild_tokens(result), result.tasks()


def whole(args, name, changes, n_layers, folder) -> Case:
    """Simulate all layers of a case."""
    tokens, tasks = simulate(args, changes, n_layers, folder)
    layers = tokens.layers[tokens.layers["moe"]]
    is_combine = tasks["kind"].astype(str).str.partition("-")[0] == "combine"  # all its stages
    combines = tasks[is_combine & tasks["layer"].isin(layers["layer"])]
    combine = []
    for _, part in combines.groupby("layer"):
        spans = part.groupby(["rank", "microbatch"])
        combine.append(Distribution())
        combine[-1].add((spans["finish_ps"].max() - spans["start_ps"].min()).to_numpy())
    step_ps = float(tokens.ranks["step_ps"].max())
    reach_ms = tokens.summary["step_interval_ms"][1] - tokens.summary["step_ms"]
    return Case(name, changes, step_ps, reach_ms, layers["increment_ps"].to_numpy()[1:], combine)


def resample(case: Case, draws: int, rng: np.random.Generator) -> list[dict]:
    """Draw k increments many times, as the token stage uses them: the first drawn has none."""
    rows = []
    n = len(case.increments)
    for k in range(1, n + 1):
        hits, widths, errors = 0, [], []
        for _ in range(1 if k == n else draws):
            chosen = draw_layers(n, k, rng)
            used = case.increments[chosen[1:]].astype(float)
            missing = case.increments.sum() - case.increments[chosen].sum()
            interval = sum_interval(used, n - k, known=case.step_ps - missing)
            if interval is None:
                continue
            hits += interval[0] <= case.step_ps <= interval[1]
            widths.append((interval[1] - interval[0]) / 2)
            errors.append(abs(sum(interval) / 2 - case.step_ps))
        row = {"case": case.name, "how": "resampled", "quantity": "step", "k": k}
        if widths:
            row |= {
                "draws": len(widths),
                "coverage_percent": 100 * hits / len(widths),
                "half_width_percent": 100 * np.median(widths) / case.step_ps,
                "error_95_percent": 100 * np.quantile(errors, CONFIDENCE) / case.step_ps,
            }
        rows.append(row)
    return rows


def resample_percentiles(case: Case, draws: int, rng: np.random.Generator) -> list[dict]:
    """Draw k layers many times and look whether intervals hold the percentiles of all."""
    rows = []
    n = len(case.combine)
    everything = pooled(case.combine)
    for name in ("p50", "p99"):
        q = QUANTILES[name]
        truth = everything.quantile(q)
        for k in (k for k in PERCENTILE_K if k < n):
            hits = bounded = 0
            for _ in range(draws):
                layers = [case.combine[at] for at in draw_layers(n, k, rng)]
                low, high = quantile_interval(layers, q, n, pooled(layers).quantile(q))
                hits += (low is None or low <= truth) and (high is None or truth <= high)
                bounded += low is not None and high is not None
            row = {"case": case.name, "how": "resampled", "quantity": f"combine {name}", "k": k}
            coverage, bounded = 100 * hits / draws, 100 * bounded / draws
            row |= {"draws": draws, "coverage_percent": coverage, "bounded_percent": bounded}
            rows.append(row)
    return rows


def pooled(layers: list[Distribution]) -> Distribution:
    """Return all values of some layers together."""
    together = Distribution()
    for layer in layers:
        together.update(layer)
    return together


def verify(args, case: Case, first: int, n_layers: int, rng, folder) -> list[dict]:
    """Simulate a few draws of k layers, each on its own."""
    rows = []
    for k in args.verify:
        hits, widths, errors = 0, [], []
        for _ in range(args.verify_draws):
            layers = [first + layer for layer in draw_layers(n_layers, k, rng)]
            summary = simulate(args, case.changes, layers, folder)[0].summary
            step_ms = case.step_ps / 1e9
            errors.append((summary["step_ms"] - step_ms) / step_ms)
            low, high = summary["step_interval_ms"] or (-np.inf, np.inf)
            hits += low <= step_ms <= high
            widths.append((high - low) / 2 / step_ms)
        row = {"case": case.name, "how": "simulated", "quantity": "step", "k": k}
        row |= {
            "draws": args.verify_draws,
            "coverage_percent": 100 * hits / args.verify_draws,
            "half_width_percent": 100 * np.median(widths),
            "error_95_percent": 100 * np.quantile(np.abs(errors), CONFIDENCE),
            "mean_error_percent": 100 * np.mean(errors),
        }
        rows.append(row)
    return rows


def draw(table: pd.DataFrame, path: str) -> None:
    """Draw coverage and width against k."""
    figure, (cover, width, tail) = plt.subplots(1, 3, figsize=(13.5, 4.4), layout="constrained")
    step = table[(table["quantity"] == "step") & (table["how"] == "resampled")]
    real = table[(table["quantity"] == "step") & (table["how"] == "simulated")]
    for (name, rows), (colour, marker) in zip(
        step.groupby("case", sort=False), STYLES, strict=False
    ):
        style = {"color": colour, "marker": marker, "markevery": 6, "markersize": 5}
        cover.plot(rows["k"], rows["coverage_percent"], label=name, **style)
        part = rows[rows["half_width_percent"] > 0]
        width.plot(part["k"], part["half_width_percent"], **style)
        width.plot(part["k"], part["error_95_percent"], color=colour, linestyle=":")
        for quantity, line in (("combine p50", "-"), ("combine p99", "--")):
            rows_q = table[(table["case"] == name) & (table["quantity"] == quantity)]
            tail.plot(
                rows_q["k"],
                rows_q["coverage_percent"],
                color=colour,
                marker=marker,
                linestyle=line,
                label=f"{name}, {quantity.split()[1]}",
            )
        part = real[(real["case"] == name) & (real["error_95_percent"] > 0)]
        if len(part):
            hollow = {"color": colour, "marker": marker, "markerfacecolor": "white"}
            width.plot(
                part["k"],
                part["error_95_percent"],
                linestyle="none",
                markersize=8,
                label=f"{name}: simulated error",
                **hollow,
            )
    for axes in (cover, tail):
        axes.axhline(100 * CONFIDENCE, color="grey", linewidth=1)
        axes.set(xlabel="MoE layers drawn, k", ylabel="draws whose interval holds the truth (%)")
        axes.set_ylim(60, 101)
        axes.legend(fontsize=8, loc="lower right")
    cover.set_title("Step: how often the interval is right")
    tail.set_title("Latency of combine: the same")
    width.set(xlabel="MoE layers drawn, k", ylabel="of the step (%)", xscale="log", yscale="log")
    width.set_xticks([3, 5, 10, 20, 40], ["3", "5", "10", "20", "40"])
    width.minorticks_off()
    width.set_title("Step: half width (lines), error of 95 % (dotted)")
    width.legend(fontsize=8)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def numbers(text: str) -> list[int]:
    """Read a list of numbers such as 2,4,8."""
    return [int(part) for part in text.split(",") if part]


def main() -> None:
    """Simulate, resample, verify, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="two-nodes", help="(%(default)s)")
    parser.add_argument("--workload", default="decode-ep32-sample", help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the workload (%(default)s)")
    parser.add_argument("--draws", type=int, default=1000, help="resampled, a k (%(default)s)")
    parser.add_argument("--verify", type=numbers, default=[3, 4, 8, 16, 29], help="k to simulate")
    parser.add_argument("--verify-draws", type=int, default=4, help="draws a k (%(default)s)")
    parser.add_argument("--verify-case", default="Zipf 0.8", choices=CASES, help="(%(default)s)")
    parser.add_argument("--csv", help="write the table here")
    parser.add_argument("-o", "--output", default="layer_sampling.png", help="(%(default)s)")
    args = parser.parse_args()

    model = load_workload(args.workload).spec.model
    rng = np.random.default_rng(args.seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in CASES.items():
            case = whole(args, name, changes, model.moe_layers, folder)
            values = case.increments / 1e6
            after = np.corrcoef(values[:-1], values[1:])[0, 1]
            print(
                f"{name}: step {case.step_ps / 1e9:.3f} ms, increments {values.mean():,.1f} us, "
                f"standard deviation {values.std(ddof=1):.1f} us, correlation of one with the next "
                f"{after:+.2f}"
            )
            rows += resample(case, args.draws, rng)
            rows += resample_percentiles(case, max(args.draws // 5, 1), rng)
            rows.append(
                {
                    "case": name,
                    "how": "simulated",
                    "quantity": "step",
                    "k": model.moe_layers,
                    "draws": 1,
                    "coverage_percent": 100.0,
                    "half_width_percent": 100 * case.reach_ms * 1e9 / case.step_ps,
                    "error_95_percent": 0.0,
                }
            )
            if name == args.verify_case:
                rows += verify(args, case, model.dense_layers, model.moe_layers, rng, folder)
    table = pd.DataFrame(rows)
    shown = table[
        (table["quantity"] != "step") | table["k"].isin([2, 3, 4, 6, 8, 16, 29, 48, 57, 58])
    ]
    print(shown.to_string(index=False, na_rep="", float_format="{:.3f}".format))
    draw(table, args.output)
    if args.csv:
        table.to_csv(args.csv, index=False)
    print(f"wrote {', '.join(name for name in (args.output, args.csv) if name)}")


if __name__ == "__main__":
    try:
        main()
    except UbfabricError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
