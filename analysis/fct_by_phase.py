"""Draw the distribution of flow completion times by phase and print its key numbers.

python analysis/fct_by_phase.py RUN_FOLDER -o fct.png
python analysis/fct_by_phase.py RUN_FOLDER -o fct.pdf --layers 4 5
"""

import argparse
import sys

from ubfabric.distribution import Distribution
from ubfabric.errors import UbfabricError
from ubfabric.plot import plot_fct
from ubfabric.results import RunResult


def main() -> None:
    """Read the flows layer by layer, so that any number of layers fits in memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run folder")
    parser.add_argument("-o", "--output", default="fct.png", help=".png or .pdf (%(default)s)")
    parser.add_argument("--layers", type=int, nargs="+", help="layers to count (all)")
    args = parser.parse_args()

    result = RunResult(args.run)
    fct: dict[tuple, Distribution] = {}
    queueing_ps: dict[tuple, int] = {}
    for flows in result.flow_batches(["layer", "phase", "src", "dst", "fct_ps", "queueing_ps"]):
        layer = flows["layer"].iloc[0]
        if args.layers and layer not in args.layers:
            continue
        flows = flows[flows["src"] != flows["dst"]]  # local copies cross no link
        for phase, part in flows.groupby("phase", observed=True):
            for key in ((str(phase), "all"), (str(phase), layer)):
                fct.setdefault(key, Distribution()).add(part["fct_ps"].to_numpy())
                queueing_ps[key] = queueing_ps.get(key, 0) + int(part["queueing_ps"].sum())

    plot_fct(result, args.output, layers=args.layers)
    print(f"{'phase':<12}{'layer':>6}{'flows':>12}", end="")
    print("".join(f"{name:>10}" for name in ("mean", "p50", "p90", "p99", "max")), end="")
    print("  queueing   (us a flow)")
    for key in sorted(fct, key=lambda key: (key[0], key[1] != "all", str(key[1]).zfill(5))):
        times = fct[key]
        numbers = [*times.describe(scale=1e6).values()]
        numbers.append(queueing_ps[key] / times.total / 1e6)
        print(f"{key[0]:<12}{key[1]!s:>6}{times.total:>12,}", end="")
        print("".join(f"{number:>10,.2f}" for number in numbers))
    print(f"wrote {args.output}")


if __name__ == "__main__":
    try:
        main()
    except UbfabricError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
