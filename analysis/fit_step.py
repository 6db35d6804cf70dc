"""Fit the one parameter of prefill, once for each of two serving systems.

``machine.efficiency.prefill``: in ``traffic/machines/cloudmatrix384.yaml`` on the tokens/s an NPU
of CloudMatrix-Infer with perfect EPLB (6,688), in ``traffic/cann-recipes-prefill-ep32.yaml`` on
those of the CANN recipes with one microbatch (5,237). Nothing is fitted to a result of decode, and
nothing else to one of prefill, so all other rows are predictions. Prints the values tried; changes
no file.

python analysis/fit_step.py --workload cann-recipes-prefill-ep32
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import ubfabric as ub

TOPOLOGY, PAYLOAD_BYTES = "two-nodes", 8192
KEY = "efficiency.prefill"
#: Changes of each workload that lead to the point of the row that is fitted.
FITS = {
    "deepseek-r1-prefill-ep32": {"serving.microbatches": 2},
    "cann-recipes-prefill-ep32": {"serving.microbatches": 1},
}
#: Two values to begin with.
START = (0.7, 0.9)


def step_ms(workload: str, value: float, layers: int) -> tuple[float, float]:
    """Return the simulated step with a value of the key, and the measured one of the same point."""
    first = ub.load_workload(workload).spec.model.dense_layers
    trace = ub.generate_trace(
        workload,
        layers=range(first, first + layers),
        seed=1,
        overrides={**FITS[workload], f"machine.{KEY}": value},
    )
    measured = trace.metadata["paper_row"]["tokens_per_s_per_npu"]
    target = trace.metadata["tokens_per_npu"] / measured * 1e3
    with tempfile.TemporaryDirectory() as folder:
        result = ub.replay(
            ub.build_topology(TOPOLOGY),
            trace,
            Path(folder) / "run",
            payload_bytes=PAYLOAD_BYTES,
            progress=False,
        )
        return float(ub.rebuild_tokens(result).summary["step_ms"]), target


def secant(
    change: Callable[[float], tuple[float, float]], start: tuple[float, float], tolerance: float
) -> list[tuple[float, float, float]]:
    """Return value, result and target of each try; the last one is within the tolerance, if any."""
    points = [(value, *change(value)) for value in start]
    while abs(points[-1][1] / points[-1][2] - 1) > tolerance and len(points) < 8:
        (low, at_low, _), (high, at_high, target) = points[-2:]
        value = low + (high - low) * (target - at_low) / (at_high - at_low)
        points.append((value, *change(value)))
    return points


def main() -> None:
    """Print the values at which the simulated steps are the measured ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=FITS, help="one of them; both if not given")
    parser.add_argument(
        "--layers", type=int, default=8, help="MoE layers, the first ones (%(default)s)"
    )
    parser.add_argument("--tolerance", type=float, default=0.001, help="of the step (%(default)s)")
    args = parser.parse_args()

    for workload in [args.workload] if args.workload else FITS:

        def change(value: float, workload: str = workload) -> tuple[float, float]:
            return step_ms(workload, value, args.layers)

        points = secant(change, START, args.tolerance)
        for value, step, _ in points:
            print(f"{workload}: {KEY} {value:.3f}: step {step:.1f} ms")
        print(f"{workload}: measured step {points[-1][2]:.1f} ms")


if __name__ == "__main__":
    try:
        main()
    except ub.UbfabricError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
