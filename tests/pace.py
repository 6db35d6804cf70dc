"""A yardstick for limits of processor time, which a slow or busy machine stretches as well."""

from __future__ import annotations

import time


def pace_s() -> float:
    """Return processor time of a fixed piece of Python work, the best of five.

    Returns
    -------
    float
        Seconds; about 0.05 on one core of a server of 2023.
    """
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        table = {str(number): [number, number * number] for number in range(100_000)}
        assert sum(len(key) + value[0] for key, value in table.items()) > 0
        best = min(best, time.process_time() - start)
    return best
