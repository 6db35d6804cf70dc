"""Hold a simulated machine against what was measured on the real one.

python analysis/validate_fabric.py [TOPOLOGY] [--measured FILE] [--csv FILE]
"""

import argparse
import sys
from pathlib import Path

from ubfabric.errors import UbfabricError
from ubfabric.topology import build_topology
from ubfabric.validation import compare, load_measured

MEASURED = Path(__file__).with_name("measured.yaml")


def main() -> None:
    """Print one line a measured figure, and the largest error of each role."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("topology", nargs="?", default="cloudmatrix384", help="(%(default)s)")
    parser.add_argument("--measured", default=str(MEASURED), help="measured figures, YAML")
    parser.add_argument("--csv", help="write the table as well")
    args = parser.parse_args()

    table = compare(build_topology(args.topology), load_measured(args.measured))
    print(f"{'quantity':<46}{'measured':>10}{'simulated':>11}  unit   error  role       strength")
    for row in table.itertuples():
        print(
            f"{row.quantity:<46}{row.measured:>10.4g}{row.simulated:>11.4g}  {row.unit:<5}"
            f"{100 * row.error:>+6.1f} %  {row.role:<11}{row.strength:<10} {row.source}"
        )
    for role, rows in table.groupby("role"):
        worst = rows.loc[rows["error"].abs().idxmax()]
        print(
            f"{role}: {len(rows)} rows, largest error {100 * worst.error:+.1f} %, {worst.quantity}"
        )
    if args.csv:
        table.to_csv(args.csv, index=False)
        print(f"wrote {args.csv}")


if __name__ == "__main__":
    try:
        main()
    except UbfabricError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
