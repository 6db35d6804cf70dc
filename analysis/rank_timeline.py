"""Draw what the two streams of some ranks do over time and print who waits for whom.

python analysis/rank_timeline.py RUN_FOLDER -o timeline.png
python analysis/rank_timeline.py RUN_FOLDER --ranks 0 17 319 --layers 4 5
"""

import argparse
import sys

from ubfabric.errors import UbfabricError
from ubfabric.plot import plot_timeline
from ubfabric.results import RunResult


def main() -> None:
    """Print the first and last rank of each layer and its mean time by kind of task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run folder")
    parser.add_argument("-o", "--output", default="timeline.png", help=".png or .pdf (%(default)s)")
    parser.add_argument("--ranks", type=int, nargs="+", help="rows (first, middle, last to finish)")
    parser.add_argument("--layers", type=int, nargs="+", help="layers to draw (two in the middle)")
    args = parser.parse_args()

    result = RunResult(args.run)
    plot_timeline(result, args.output, ranks=args.ranks, layers=args.layers)

    tasks = result.step_tasks()
    tasks["time_us"] = (tasks["finish_ps"] - tasks["start_ps"]) / 1e6
    kinds = [str(kind) for kind in tasks["kind"].cat.categories]
    print(f"{'layer':>5}{'first rank':>11}{'last rank':>11}{'apart us':>10}", end="")
    print("".join(f"{kind:>12}" for kind in kinds), "  (mean us a task)")
    for layer, part in tasks.groupby("layer"):
        finish = part.groupby("rank")["finish_ps"].max()
        apart = (finish.max() - finish.min()) / 1e6
        print(f"{layer:>5}{finish.idxmin():>11}{finish.idxmax():>11}{apart:>10,.1f}", end="")
        mean = part.groupby("kind", observed=True)["time_us"].mean()
        print("".join(f"{mean[kind]:>12,.1f}" if kind in mean else f"{'-':>12}" for kind in kinds))
    print(f"wrote {args.output}")


if __name__ == "__main__":
    try:
        main()
    except UbfabricError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
