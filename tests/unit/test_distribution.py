"""Quantiles are values that occurred, exact for few values and within 1/2048 for many."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ubfabric.distribution import Distribution


def test_distribution_is_exact_for_few_values_and_near_for_many():
    few = Distribution()
    few.add(np.array([5, 1_000_003, 7]), np.array([1, 1, 2]))
    assert [few.quantile(q) for q in (0.0, 0.25, 0.26, 0.75, 0.76, 1.0)] == [
        *(5, 5, 7, 7, 1_000_003, 1_000_003)
    ]
    assert (few.total, few.min, few.max) == (4, 5, 1_000_003)
    assert few.mean == (5 + 14 + 1_000_003) / 4
    rng = np.random.default_rng(1)
    values = rng.lognormal(16, 1, 50_000).astype(np.int64)
    many, parts = Distribution(), [Distribution() for _ in range(3)]
    for part, chunk in zip(parts, np.array_split(values, 3), strict=True):
        part.add(chunk)
        many.update(part)
    many.update(Distribution())
    for q in (0.01, 0.5, 0.9, 0.99, 1.0):
        exact = np.quantile(values, q, method="inverted_cdf")
        assert exact <= many.quantile(q) <= exact * (1 + 1 / 2048)
        assert many.quantile(q) in values
    assert many.mean == pytest.approx(values.mean())
    x, fraction = many.cdf()
    assert (np.diff(x) > 0).all() and fraction[-1] == 1.0


def test_distribution_refuses_what_it_cannot_hold():
    empty = Distribution()
    assert math.isnan(empty.mean) and empty.describe() == {}
    with pytest.raises(ValueError, match="empty"):
        empty.quantile(0.5)
    with pytest.raises(ValueError, match="negative"):
        empty.add(np.array([3, -1]))
    empty.add(np.array([3, 4]), np.array([0, 0]))
    assert empty.total == 0
