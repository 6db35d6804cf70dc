"""How long it takes to serve an hour of requests when step times are at hand."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np
import pytest
from serving_systems import MS, pools, table

from ubfabric.requests import PoissonArrivals
from ubfabric.serving import simulate_requests
from ubfabric.step_times import MeasuredTransfers, StepTimes

HOUR_PS = 3600 * 10**12


def _times() -> StepTimes:
    """Return times of about the paper's sizes; what they are has no part in the speed."""
    tokens, kv = np.array([16384, 65536, 262144]), np.array([1024, 4096, 8192])
    batch = np.array([4, 12, 24, 48])[:, None]
    decode = table(
        "decode",
        10 + 0.9 * batch + 0.6 * batch * kv / 4096,
        batch_per_die=batch[:, 0],
        kv_tokens=kv,
    )
    prefill = table(
        "prefill",
        (20 + 2450 * tokens / 262144)[:, None, None],
        tokens=tokens,
        prompt_tokens=[4096],
        cached_share=[0.0],
    )
    transfer = MeasuredTransfers(
        table("transfer", [[1.5], [12.0]], tokens=[512, 4096], concurrent=[1])
    )
    return StepTimes(decode, prefill, transfer, transfer, transfer)


@pytest.mark.benchmark
@pytest.mark.parametrize("output_tokens", [256, 2048])
def test_print_an_hour_of_requests(output_tokens):
    """Numbers, no pass or fail; 140 requests/s of 4,096 prompt tokens, EP320."""
    lengths = {"policy": "constant", "tokens": output_tokens}
    arrivals = PoissonArrivals.model_validate(
        {
            "policy": "poisson",
            "rate_per_s": 140.0,
            "prompt_tokens": {"policy": "constant", "tokens": 4096},
            "output_tokens": lengths,
        }
    )
    asked = arrivals.requests(Path(), HOUR_PS, 128, 1)
    of = pools(
        prefill_instances=6,
        prefill_npus=16,
        batch_tokens=262_144,
        decode_dies=320,
        decode_npus=160,
        batch_per_die=48,
        kv_capacity_tokens=600_000,
        mtp_tokens=1,
        mtp_acceptance=0.7,
        tpot_objective_ps=50 * MS,
        sample_interval_ps=1000 * MS,
    )
    started, spent = time.perf_counter(), time.process_time()
    served = simulate_requests(asked, of, _times(), progress=False)
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - spent
    steps = sum(decode["steps"] for decode in served.counters["decode"])
    assert (served.columns["finish_ps"] > 0).all()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        f"\none hour, {len(asked):,} requests of {output_tokens} tokens, {steps:,} decode steps: "
        f"{wall_s:.1f} s, {cpu_s:.1f} s of processor time; peak of the process "
        f"{peak_mb:,.0f} MB"
    )
