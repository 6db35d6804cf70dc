"""How much faster a sweep is on two workers than its points one after another."""

from __future__ import annotations

import resource
import time

import pandas as pd
import pytest

from ubfabric.sweep import plan_sweep, run_sweep, simulate

#: 24 points of EP32 on two servers, 512 B packets.
SWEEP = {
    "topology": "two-nodes",
    "workload": "decode-ep32-sample",
    "run": {"payload_bytes": 512},
    "grid": {
        "workload.serving.batch_per_npu": [24, 32, 40, 48],
        "run.seed": [1, 2, 3],
        "run.path_policy": ["round-robin", "flow-hash"],
    },
}


def _children_s() -> float:
    """Return the processor time of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.benchmark
@pytest.mark.parametrize("layers", [16, 58])
def test_print_speed_up_of_two_workers(tmp_path, layers):
    """Numbers, no pass or fail; both ways end with the same figures.

    Points of some of the layers are so short that the start of the workers is felt, points of all
    of them are as long as most are.
    """
    sweep = SWEEP | {"run": SWEEP["run"] | {"layers": layers}}
    simulate(plan_sweep(sweep)[0].simulation)  # ns-3 is loaded: one process needs it once
    started, spent = time.perf_counter(), time.process_time()
    points = plan_sweep(sweep)  # as the sweep does
    assert len(points) == 24
    rows = [simulate(point.simulation)["row"] for point in points]
    one_s, one_cpu_s = time.perf_counter() - started, time.process_time() - spent
    started, spent, led = time.perf_counter(), _children_s(), time.process_time()
    table = run_sweep(sweep, tmp_path / "two", workers=2)
    two_s, two_cpu_s = time.perf_counter() - started, _children_s() - spent
    lead_cpu_s = time.process_time() - led
    pd.testing.assert_frame_equal(table[list(rows[0])], pd.DataFrame(rows), check_dtype=False)
    print(
        f"\n24 points of {layers} layers in sequence {one_s:.1f} s ({one_s / 24:.1f} s a point), "
        f"on two workers {two_s:.1f} s with their start: {one_s / two_s:.2f} times as fast; "
        f"processor time {one_cpu_s:.1f} s in sequence, {two_cpu_s:.1f} s of both workers and "
        f"{lead_cpu_s:.1f} s of the process that leads them"
    )
