"""Measure what the serving pool does to a step, and the step to the pool, plane by plane.

Simulates a step alone, then with the pool on the planes that it was given, with KV on ub, with the
cache on vpc and with all of it on vpc, each at some multiples of the pool's request rate. Runs are
a sweep: stopped, it goes on with the same command.

python analysis/pool_interference.py -o pool.png --runs sweeps/pool
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

import ubfabric as ub
from ubfabric.errors import ResultError, SpecError, UbfabricError
from ubfabric.pool import POOL_KINDS

SECTIONS = [kind.replace("-", "_") for kind in POOL_KINDS]
#: Sections to leave out, or networks to change, by case.
CASES = {
    "step alone": {f"workload.{section}": None for section in SECTIONS},
    "as specified": {},
    "KV over ub": {"workload.kv_transfer.network": "ub"},
    "cache over vpc": {"workload.cache_read.network": "vpc", "workload.cache_write.network": "vpc"},
    "all over vpc": {f"workload.{section}.network": "vpc" for section in SECTIONS},
}
#: Figures of the step that are compared: column, unit.
FIGURES = {
    "dispatch_rank_latency_p50_us": "us",
    "dispatch_rank_latency_p99_us": "us",
    "combine_rank_latency_p50_us": "us",
    "combine_rank_latency_p99_us": "us",
    "layer_us": "us",
    "tpot_ms": "ms",
}


def multiples(text: str) -> list[float]:
    """Read a list of positive numbers such as 1,4,16."""
    values = [float(part) for part in text.split(",") if part]
    if not values or min(values) <= 0:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed numbers above 0")
    return values


def simulate(args: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run all cases; return one row a case and load of the step, and one a kind of transfer."""
    spec = ub.load_workload(args.workload).spec
    if spec.kind != "pool":
        raise SpecError(f"{args.workload}: kind: found {spec.kind!r}, allowed: pool")
    names, points = [], []
    for name, changes in CASES.items():
        for load in [0.0] if name == "step alone" else args.loads:
            rate = {"workload.requests.rate": spec.requests.rate * (load or 1.0)}
            names.append((name, load))
            points.append(changes | rate)
    run = {"layers": args.layers}
    if args.payload:
        run["payload_bytes"] = args.payload
    sweep = {
        "topology": args.topology,
        "workload": args.workload,
        "run": run,
        "list": points,
        "keep_runs": True,
    }
    table = ub.run_sweep(sweep, args.runs, workers=args.workers)
    if len(table) < len(points):
        raise ResultError(
            f"{args.runs}: {len(points) - len(table)} runs failed; see failures.parquet"
        )
    steps, transfers = [], []
    for (name, load), row in zip(names, table.to_dict("records"), strict=True):
        steps.append({"case": name, "load": load} | {figure: row[figure] for figure in FIGURES})
        summary = json.loads((Path(args.runs) / "runs" / row["point"] / "tokens.json").read_text())
        transfers += [{"case": name, "load": load} | one for one in summary["pool"]]
    frame = pd.DataFrame(steps)
    for figure in FIGURES:
        frame[f"{figure}_change_percent"] = 100 * (frame[figure] / frame[figure].iloc[0] - 1)
    return frame, pd.DataFrame(transfers)


def draw(steps: pd.DataFrame, transfers: pd.DataFrame, path: str) -> None:
    """Draw the step's latencies and the pool's completion times over the load."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    cases = [name for name in CASES if name != "step alone"]
    # Where lines coincide, as they do at no change, a smaller marker stands within a larger one:
    # offsets would tell them apart as well, but show changes that there are not.
    sizes = iter(range(18, 2, -2))
    for name, colour in zip(cases, ("C0", "C1", "C2", "C3"), strict=True):
        part = steps[steps["case"] == name]
        for phase, style in (("dispatch", "-"), ("combine", "--")):
            change = part[f"{phase}_rank_latency_p99_us_change_percent"]
            marked = {"marker": "o" if phase == "dispatch" else "s", "markersize": next(sizes)}
            marked |= {"color": colour, "markerfacecolor": "none", "label": f"{phase}, {name}"}
            left.plot(part["load"], change, style, **marked)
        for kind, marker in zip(POOL_KINDS, "osv^", strict=True):
            mine = transfers[(transfers["case"] == name) & (transfers["kind"] == kind)]
            if len(mine):
                label = f"{kind}, {name}"
                size = {"markersize": 11 - 2 * cases.index(name), "markerfacecolor": "none"}
                right.plot(
                    mine["load"],
                    mine["p50_ps"] / 1e9,
                    marker=marker,
                    color=colour,
                    label=label,
                    **size,
                )
    left.set(xlabel="request rate, multiple of the specification's", xscale="log")
    left.set(ylabel="99th percentile, change (%)", title="The step's dispatch and combine")
    right.set(xlabel="request rate, multiple of the specification's", xscale="log", yscale="log")
    right.set(ylabel="median time of a transfer (ms)", title="The pool's transfers")
    low, high = right.get_ylim()
    if high / low < 100:  # less than two decades: label 2 and 5 as well
        right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter("{x:,.10g}")  # 1,000 rather than 10^3
    right.yaxis.set_minor_formatter(NullFormatter())
    for axes in (left, right):
        loads = sorted(transfers["load"].unique())
        axes.set_xticks(loads, [f"{load:,.10g}" for load in loads], minor=False)
        axes.xaxis.set_minor_locator(NullLocator())  # the loads alone; times keep their own
        axes.grid(alpha=0.3)
        axes.legend(
            fontsize=6, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.15), markerscale=0.5
        )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Simulate, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="cloudmatrix384", help="(%(default)s)")
    parser.add_argument("--workload", default="deepseek-r1-pool", help="(%(default)s)")
    parser.add_argument("--layers", type=int, default=2, help="MoE layers (%(default)s)")
    parser.add_argument(
        "--loads", type=multiples, default=[1, 4, 16], help="multiples of the rate, such as 1,4,16"
    )
    parser.add_argument(
        "--payload", type=int, help="bytes of a packet; the topology's if not given"
    )
    parser.add_argument("--runs", default="sweeps/pool", help="folder of the runs (%(default)s)")
    parser.add_argument("--workers", type=int, help="processes; one a core if not given")
    parser.add_argument("--csv", help="write both tables here, NAME-step.csv and NAME-pool.csv")
    parser.add_argument("-o", "--output", default="pool.png", help=".png or .pdf (%(default)s)")
    args = parser.parse_args()

    steps, transfers = simulate(args)
    shown = [*FIGURES, *(f"{name}_change_percent" for name in FIGURES)]
    short = {
        name: name.replace("_rank_latency", "").replace("_change_percent", " %") for name in shown
    }
    print(steps.rename(columns=short).to_string(index=False, float_format="{:,.2f}".format))
    table = transfers.assign(GB=transfers["bytes"] / 1e9, GB_s=transfers["bytes_per_s"] / 1e9)
    for name in ("mean", "p50", "p99", "max"):
        table[f"{name}_us"] = table[f"{name}_ps"] / 1e6
    columns = ["case", "load", "kind", "network", "transfers", "GB", "mean_us", "p50_us", "p99_us"]
    columns += ["max_us", "GB_s"]
    print(table[columns].to_string(index=False, float_format="{:,.2f}".format))
    draw(steps, transfers, args.output)
    wrote = [args.output]
    if args.csv:
        stem = Path(args.csv)
        for end, frame in (("step", steps), ("pool", table[columns])):
            wrote.append(str(stem.with_name(f"{stem.stem}-{end}.csv")))
            frame.to_csv(wrote[-1], index=False)
    print(f"wrote {', '.join(wrote)}")


if __name__ == "__main__":
    try:
        main()
    except UbfabricError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
