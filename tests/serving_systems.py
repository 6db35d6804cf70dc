"""Pools and times for tests of requests: small, and with times that can be worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from ubfabric.requests import Requests, make_requests
from ubfabric.serving import Pools, Served, Simulation
from ubfabric.step_times import MeasuredTransfers, StepTimes, TimeTable

MS = 10**9


def pools(**changes: Any) -> Pools:
    """Return one instance each: two dies of four requests, no MTP, no objectives."""
    values: dict[str, Any] = {
        "prefill_instances": 1,
        "prefill_npus": 1,
        "batch_tokens": 1000,
        "decode_instances": 1,
        "decode_dies": 2,
        "decode_npus": 1,
        "batch_per_die": 4,
        "kv_capacity_tokens": 100_000,
        "mtp_tokens": 0,
        "mtp_acceptance": 0.0,
        "every_die_reads": False,
        "block_tokens": 10,
        "cache_blocks": None,
        "cache_nodes": ("cpu-0", "cpu-1", "cpu-2"),
        "ttft_objective_ps": None,
        "tpot_objective_ps": None,
        "sample_interval_ps": 100 * MS,
        "seed": 1,
    }
    return Pools(**(values | changes))


def table(name: str, ms: Any, **axes: list[float]) -> TimeTable:
    """Return a table of milliseconds."""
    return TimeTable(name, axes, np.rint(np.asarray(ms, float) * MS).astype(np.int64))


def transfers(name: str, ms: float) -> MeasuredTransfers:
    """Return transfers that take ``ms`` each whatever their size, up to a million tokens."""
    return MeasuredTransfers(table(name, [[ms]], tokens=[1_000_000], concurrent=[1]))


def times(
    decode: TimeTable | None = None, prefill: TimeTable | None = None, **ms: float
) -> StepTimes:
    """Return times: a step takes 10 ms, a batch 100 ms, a KV transfer 5, a read 20, a write 7."""
    flat_step = table("decode", [[10.0]], batch_per_die=[1], kv_tokens=[1])
    flat_batch = table("prefill", [[[100.0]]], tokens=[1], prompt_tokens=[1], cached_share=[0.0])
    found = {"kv_transfer": 5.0, "cache_read": 20.0, "cache_write": 7.0} | ms
    return StepTimes(
        decode or flat_step,
        prefill or flat_batch,
        **{name: transfers(name, value) for name, value in found.items()},
    )


def requests(
    arrival_ms: list[float],
    prompt: list[int] | int = 100,
    output: list[int] | int = 3,
    **more: Any,
) -> Requests:
    """Return requests; a number in place of a list is that of all."""
    n = len(arrival_ms)
    prompts = np.broadcast_to(prompt, n)
    outputs = np.broadcast_to(output, n)
    arrival = np.rint(np.asarray(arrival_ms, float) * MS).astype(np.int64)
    return make_requests(arrival, prompts, outputs, **more)


def run(asked: Requests, of: Pools, at: StepTimes, window_ps: int | None = None) -> Served:
    """Serve requests without a progress bar."""
    if window_ps is None:
        window_ps = int(asked.arrival_ps[-1])
    return Simulation(asked, of, at, window_ps).run(progress=False)


def ms(served: Served, name: str) -> list[float]:
    """Return a column of times in milliseconds."""
    values: list[float] = (served.columns[name] / MS).tolist()
    return values
