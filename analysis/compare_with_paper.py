"""Put one or more runs beside the paper's rows at the same points.

python analysis/compare_with_paper.py RUN_FOLDER [RUN_FOLDER ...] -o paper.png
"""

import argparse
import sys
from pathlib import Path

from ubfabric.errors import UbfabricError
from ubfabric.plot import plot_comparison
from ubfabric.results import RunResult
from ubfabric.tokens import rebuild_tokens


def main() -> None:
    """Print every compared quantity with its difference, strength and source."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="run folders, such as one for each batch")
    parser.add_argument("-o", "--output", default="paper.png", help=".png or .pdf (%(default)s)")
    args = parser.parse_args()

    tokens = {run: rebuild_tokens(RunResult(run)) for run in args.runs}
    names = {run: Path(run).name for run in args.runs}
    if len(set(names.values())) < len(names):  # a/run and b/run
        names = {run: run for run in args.runs}
    for run, one in tokens.items():
        print(f"{names[run]}: {one.summary['extrapolation']}")
        for row in one.paper.itertuples():
            print(f"  {row.quantity:<20} simulated {row.simulated:>10,.2f}", end="")
            print(f"  paper {row.paper:>10,.2f} {row.unit:<4}", end="")
            print(f" {row.difference:>+10,.2f} ({row.difference_percent:+.1f} %)", end="")
            print(f"  {row.strength}: {row.source}; at {row.point}")
        for point in one.summary["paper_rows_at_other_points"]:
            print(f"  not compared, another point: {point}")
    plot_comparison({names[run]: one for run, one in tokens.items()}, args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    try:
        main()
    except UbfabricError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
