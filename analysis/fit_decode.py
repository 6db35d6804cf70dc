"""Fit what a message costs a vector core on one decode row of the paper.

The row is batch 96 an NPU at 4,096 KV tokens (TPOT 49.4 ms, arXiv 2506.12708); it is a point of
``traffic/deepseek-r1-decode-ep320.yaml``, and the parameter is ``communication.message_cost`` of
``traffic/machines/cloudmatrix384.yaml``. Nothing else is fitted to a decode result, so the rows at
batch 24 and 8 are predictions.

python analysis/fit_decode.py
"""

import argparse
import sys
import tempfile
from pathlib import Path

import ubfabric as ub

WORKLOAD = "deepseek-r1-decode-ep320"


def tpot_ps(cost_ps: int, layers: int) -> int:
    """Return the simulated TPOT of the row when a message costs so much."""
    overrides = {"machine.communication.message_cost": f"{cost_ps} ps"}
    trace = ub.generate_trace(WORKLOAD, layers=layers, seed=1, overrides=overrides)
    with tempfile.TemporaryDirectory() as folder:
        result = ub.replay(ub.cloudmatrix384(), trace, Path(folder) / "run", progress=False)
        return round(ub.rebuild_tokens(result).summary["tpot_ms"] * 1e9)


def main() -> None:
    """Print the cost at which the simulated TPOT is the paper's, by the secant method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=3, help="MoE layers (%(default)s)")
    parser.add_argument("--tolerance", type=float, default=0.001, help="of TPOT (%(default)s)")
    args = parser.parse_args()

    row = ub.load_workload(WORKLOAD).spec.reference.rows[0]
    points = [(cost, tpot_ps(cost, args.layers)) for cost in (3_000_000, 4_000_000)]
    while abs(points[-1][1] / row.tpot - 1) > args.tolerance and len(points) < 8:
        (low, at_low), (high, at_high) = points[-2:]
        cost = low + (high - low) * (row.tpot - at_low) // (at_high - at_low)
        points.append((cost, tpot_ps(cost, args.layers)))
    for cost, tpot in points:
        print(f"message cost {cost / 1e6:.3f} us: TPOT {tpot / 1e9:.2f} ms")
    print(f"paper: {row.tpot / 1e9:.2f} ms")


if __name__ == "__main__":
    try:
        main()
    except ub.UbfabricError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
