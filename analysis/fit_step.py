"""Fit the one parameter of a machine that a result of serving is used for.

``efficiency.prefill`` of ``traffic/machines/cloudmatrix384.yaml``, on the tokens/s an NPU of
prefill with perfect EPLB (6,688). Nothing is fitted to a result of decode, and nothing else to
one of prefill, so all other rows are predictions. Prints the values tried; changes no file.

python analysis/fit_step.py
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import ubfabric as ub

WORKLOAD, TOPOLOGY, PAYLOAD_BYTES = "deepseek-r1-prefill-ep32", "two-nodes", 8192
KEY = "efficiency.prefill"
#: Two values to begin with.
START = (0.7, 0.9)


def step_ms(value: float, layers: int) -> float:
    """Return the simulated step with a value of the key."""
    first = ub.load_workload(WORKLOAD).spec.model.dense_layers
    trace = ub.generate_trace(
        WORKLOAD,
        layers=range(first, first + layers),
        seed=1,
        overrides={f"machine.{KEY}": value},
    )
    with tempfile.TemporaryDirectory() as folder:
        result = ub.replay(
            ub.build_topology(TOPOLOGY),
            trace,
            Path(folder) / "run",
            payload_bytes=PAYLOAD_BYTES,
            progress=False,
        )
        return float(ub.rebuild_tokens(result).summary["step_ms"])


def secant(
    change: Callable[[float], float], start: tuple[float, float], target: float, tolerance: float
) -> list[tuple[float, float]]:
    """Return the points tried; the last one meets the target within the tolerance, if any does."""
    points = [(value, change(value)) for value in start]
    while abs(points[-1][1] / target - 1) > tolerance and len(points) < 8:
        (low, at_low), (high, at_high) = points[-2:]
        value = low + (high - low) * (target - at_low) / (at_high - at_low)
        points.append((value, change(value)))
    return points


def main() -> None:
    """Print the values at which the simulated step is the paper's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--layers", type=int, default=8, help="MoE layers, the first ones (%(default)s)"
    )
    parser.add_argument("--tolerance", type=float, default=0.001, help="of the step (%(default)s)")
    args = parser.parse_args()

    spec = ub.load_workload(WORKLOAD).spec
    target = spec.tokens_per_npu / spec.reference.rows[0].tokens_per_s_per_npu * 1e3

    def change(value: float) -> float:
        return step_ms(value, args.layers)

    for value, step in secant(change, START, target, args.tolerance):
        print(f"{KEY} {value:.3f}: step {step:.1f} ms")
    print(f"paper: step {target:.1f} ms")


if __name__ == "__main__":
    try:
        main()
    except ub.UbfabricError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
