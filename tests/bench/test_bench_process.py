"""Start-up and memory, each in a fresh process: numbers, no pass or fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

#: What the script of that name prints, in words, and its unit.
MEASURED = {
    "startup": {
        "import_s": ("import, processor time", "s"),
        "load_s": ("ns-3 and the library, processor time", "s"),
        "all_s": ("nothing to the first packets delivered, processor time", "s"),
        "peak_mb": ("peak memory of that", "MB"),
        "classes_s": ("the classes of ns-3 in Python besides, processor time", "s"),
        "classes_mb": ("peak memory with them", "MB"),
    },
    "exchange": {"exchange_mb": ("peak memory of all pairs of 384 ranks on one thread", "MB")},
    "flow": {
        "waiting_bytes": ("a flow whose sender computes", "B"),
        "handed_over_bytes": ("a flow that its sender has handed over", "B"),
    },
    "packet": {"packet_bytes": ("a packet in the fabric", "B")},
}


@pytest.mark.benchmark
@pytest.mark.parametrize("mode", list(MEASURED))
def test_fresh_process(benchmark, report, tmp_path, mode):
    script = Path(__file__).with_name("bench_process.py")

    def run() -> dict[str, float]:
        done = subprocess.run(
            [sys.executable, script, mode], check=True, capture_output=True, text=True, cwd=tmp_path
        )
        return json.loads(done.stdout)

    found = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info.update(found)
    for key, (what, unit) in MEASURED[mode].items():
        report.processes.append((what, found[key], unit))
