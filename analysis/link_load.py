"""Draw the load of the links by level and print the most loaded ones.

python analysis/link_load.py RUN_FOLDER -o links.png
python analysis/link_load.py RUN_FOLDER --top 20
"""

import argparse
import sys

from ubfabric.errors import UbfabricError
from ubfabric.plot import plot_links
from ubfabric.results import RunResult


def main() -> None:
    """Print each level's totals and the links that carried most."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run folder")
    parser.add_argument("-o", "--output", default="links.png", help=".png or .pdf (%(default)s)")
    parser.add_argument("--top", type=int, default=5, help="links to list (%(default)s)")
    args = parser.parse_args()

    result = RunResult(args.run)
    plot_links(result, args.output)

    links = result.links()
    run_ps = result.summary["simulated_ps"]
    links["busy"] = 100 * links["busy_ps"] / run_ps
    links["stalled"] = 100 * links["no_credit_ps"] / run_ps
    print(f"{'level':<12}{'links':>8}{'used':>8}{'sent GB':>10}{'max/mean':>10}", end="")
    print(f"{'busy % mean':>13}{'busy % max':>12}{'queue KiB max':>15}{'no credit % max':>17}")
    for level, part in links.groupby("level", observed=True):
        used = part[part["packets"] > 0]
        print(f"{level:<12}{len(part):>8,}{len(used):>8,}", end="")
        if used.empty:
            print()
            continue
        uneven = used["bytes"].max() / used["bytes"].mean()  # of the links that are used
        print(f"{used['bytes'].sum() / 1e9:>10,.3f}{uneven:>10.2f}", end="")
        print(f"{used['busy'].mean():>13.2f}{used['busy'].max():>12.2f}", end="")
        print(f"{used['max_queue_bytes'].max() / 1024:>15,.1f}{part['stalled'].max():>17.2f}")
    print(f"\nmost bytes of {len(links):,} links:")
    for link in links.nlargest(args.top, "bytes").itertuples():
        print(f"  {link.src} -> {link.dst} ({link.plane}): {link.bytes / 1e6:,.2f} MB", end="")
        print(f", busy {link.busy:.2f} %, queue up to {link.max_queue_bytes / 1024:,.1f} KiB")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    try:
        main()
    except UbfabricError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
