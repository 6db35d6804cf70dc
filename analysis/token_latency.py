"""Rebuild the tokens of a run, print the summary, and draw it by rank.

python analysis/token_latency.py RUN_FOLDER -o tokens.png
python analysis/token_latency.py RUN_FOLDER --json tokens.json --csv ranks.csv
"""

import argparse
import sys

from ubfabric.errors import UbfabricError
from ubfabric.plot import plot_tokens
from ubfabric.results import RunResult
from ubfabric.tokens import rebuild_tokens


def main() -> None:
    """Print the summary and the ranks that spend most of their step waiting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run folder")
    parser.add_argument("-o", "--output", default="tokens.png", help=".png or .pdf (%(default)s)")
    parser.add_argument("--json", help="write the summary here")
    parser.add_argument("--csv", help="write one row a rank here: latency and shares")
    args = parser.parse_args()

    tokens = rebuild_tokens(RunResult(args.run))
    plot_tokens(tokens, args.output)
    print(tokens.to_text())

    shares = tokens.shares.set_index("rank")
    waiting = 100 * shares[["dispatch_wait", "combine_wait", "other_wait"]].sum(axis=1)
    print("most exposed communication:", end=" ")
    print(", ".join(f"rank {rank} {share:.1f} %" for rank, share in waiting.nlargest(5).items()))
    if args.json:
        tokens.to_json(args.json)
    if args.csv:
        tokens.ranks.merge(tokens.shares, on="rank").to_csv(args.csv, index=False)
    print(f"wrote {', '.join(name for name in (args.output, args.json, args.csv) if name)}")


if __name__ == "__main__":
    try:
        main()
    except UbfabricError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
