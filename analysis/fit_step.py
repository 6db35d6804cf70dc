"""Fit one parameter of a machine on one row of the paper, of decode or of prefill.

decode    communication.message_cost on TPOT at batch 96 an NPU (49.4 ms)
prefill   efficiency.prefill on the tokens/s an NPU with perfect EPLB (6,688)

Both are keys of ``traffic/machines/cloudmatrix384.yaml``. Nothing else is fitted to a result of
decode or prefill, so all other rows are predictions. Prints the values tried; changes no file.

python analysis/fit_step.py decode|prefill
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import ubfabric as ub

#: Workload, key to fit, topology, payload of a packet.
FITS = {
    "decode": ("deepseek-r1-decode-ep320", "communication.message_cost", "cloudmatrix384", None),
    "prefill": ("deepseek-r1-prefill-ep32", "efficiency.prefill", "two-nodes", 8192),
}
#: MoE layers to simulate; those of prefill differ by a tenth.
LAYERS = {"decode": 3, "prefill": 8}
#: Two values to begin with.
START = {"decode": (3.0, 4.0), "prefill": (0.7, 0.9)}


def step_ms(name: str, value: float, layers: int) -> float:
    """Return the simulated step of a row with a value of its key."""
    workload, key, topology, payload_bytes = FITS[name]
    first = ub.load_workload(workload).spec.model.dense_layers
    given = f"{value:.6f} us" if name == "decode" else value
    trace = ub.generate_trace(
        workload,
        layers=range(first, first + layers),
        seed=1,
        overrides={f"machine.{key}": given},
    )
    with tempfile.TemporaryDirectory() as folder:
        result = ub.replay(
            ub.build_topology(topology),
            trace,
            Path(folder) / "run",
            payload_bytes=payload_bytes,
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
    parser.add_argument("row", choices=FITS, help="which row to fit on")
    parser.add_argument("--layers", type=int, help=f"MoE layers, the first {LAYERS}")
    parser.add_argument("--tolerance", type=float, default=0.001, help="of the step (%(default)s)")
    args = parser.parse_args()

    spec = ub.load_workload(FITS[args.row][0]).spec
    row = spec.reference.rows[0]
    if args.row == "decode":
        target = row.tpot / 1e9 * (1 + spec.serving.mtp_acceptance)
    else:
        target = spec.tokens_per_npu / row.tokens_per_s_per_npu * 1e3

    def change(value: float) -> float:
        return step_ms(args.row, value, args.layers or LAYERS[args.row])

    for value, step in secant(change, START[args.row], target, args.tolerance):
        print(f"{FITS[args.row][1]} {value:.3f}: step {step:.1f} ms")
    print(f"paper: step {target:.1f} ms")


if __name__ == "__main__":
    try:
        main()
    except ub.UbfabricError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
