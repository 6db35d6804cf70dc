"""Intervals of a sample of layers: by hand, and how often they cover the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ubfabric.distribution import Distribution
from ubfabric.sampling import (
    draw_layers,
    mean_interval,
    quantile_interval,
    student_t,
    sum_error,
    sum_interval,
)


def distributions(rows):
    found = []
    for values in rows:
        found.append(Distribution())
        found[-1].add(np.asarray(values, np.int64))
    return found


def test_students_t_is_that_of_the_tables():
    assert [round(student_t(n), 3) for n in (1, 2, 4, 10, 30)] == [
        12.706, 4.303, 2.776, 2.228, 2.042,
    ]  # fmt: skip


def test_a_draw_is_ascending_and_grows_by_more_of_the_same():
    few = draw_layers(58, 4, np.random.default_rng(3))
    more = draw_layers(58, 5, np.random.default_rng(3))
    assert few == sorted(few) and set(few) < set(more)
    assert draw_layers(58, 58, np.random.default_rng(3)) == list(range(58))


def test_the_sum_of_missing_values_by_hand():
    """10 and 14, 3 missing: 36 +- 12.706 x 3 x sqrt(8) x sqrt(1/2 + 1/3)."""
    error = 3 * math.sqrt(8) * math.sqrt(1 / 2 + 1 / 3)
    values = np.array([10.0, 14.0])
    assert sum_error(values, 3) == pytest.approx(error)
    low, high = sum_interval(values, 3, known=100.0)
    assert (low + high) / 2 == pytest.approx(136.0)
    assert (high - low) / 2 == pytest.approx(12.7062 * error, rel=1e-5)
    assert sum_interval(values, 0, known=24.0) == (24.0, 24.0)
    assert sum_interval(values[:1], 3) is None and sum_error(values[:0], 3) is None
    assert sum_interval(values[:0], 0, known=1.0) == (1.0, 1.0)


def test_the_mean_of_clusters_by_hand():
    """Totals 30 and 10 of weights 2 and 1: 40 / 3; residuals +-10/3; 2 of 4 layers."""
    error = math.sqrt((1 - 2 / 4) / 2 * 2 * (10 / 3) ** 2 / 1) / 1.5
    low, high = mean_interval(distributions([[10, 20], [10]]), 4, 40 / 3)
    assert (high - low) / 2 == pytest.approx(12.7062 * error, rel=1e-5)
    assert (high + low) / 2 == pytest.approx(40 / 3)


def test_a_percentile_of_clusters_by_hand():
    """Three layers of 100 values, of which 40, 50 and 60 do not exceed the median."""
    rows = [[*range(100 - n, 100), *range(1_000, 1_000 + 100 - n)] for n in (40, 50, 60)]
    layers = distributions(rows)
    pooled = np.sort(np.concatenate(rows))
    value = float(pooled[149])
    error = math.sqrt((1 - 3 / 30) / 3 * (100 + 0 + 100) / 2) / 100
    reach = 4.30265 * error
    low, high = quantile_interval(layers, 0.5, 30, value)
    assert low == pooled[math.ceil((0.5 - reach) * 300) - 1]
    assert high == pooled[math.ceil((0.5 + reach) * 300) - 1]
    assert low < value < high
    # layers that differ in their tails do not bound what lies beyond
    spread = distributions([[1] * 100, [1] * 90 + [9] * 10, [1] * 100])
    assert quantile_interval(spread, 0.97, 30, 9.0)[1] is None
    spread = distributions([[9] * 100, [9] * 90 + [1] * 10, [9] * 100])
    assert quantile_interval(spread, 0.03, 30, 1.0)[0] is None


@pytest.mark.parametrize(
    "interval", [mean_interval, lambda *a: quantile_interval(a[0], 0.5, *a[1:])]
)
def test_one_layer_bounds_nothing_and_all_layers_leave_nothing_open(interval):
    layers = distributions([[1, 2, 3], [4, 5, 6]])
    assert interval(layers[:1], 5, 2.0) == (None, None)
    assert interval(layers, 2, 3.0) == (3.0, 3.0)


def coverage(draw_population, estimate, truth, k, n=58, n_draws=2_000):
    rng = np.random.default_rng(k)
    population = draw_population(rng)
    true = truth(population)
    hits = 0
    for _ in range(n_draws):
        chosen = rng.permutation(n)[:k]
        low, high = estimate([population[at] for at in chosen])
        hits += (low is None or low <= true * (1 + 1e-9)) and (
            high is None or high >= true * (1 - 1e-9)
        )
    return hits / n_draws


@pytest.mark.parametrize("k", [3, 8, 30, 57])
def test_the_interval_of_a_sum_covers_it_as_often_as_it_says(k):
    """2,000 draws: three standard errors of 95 % are 1.5 points; the tails are those of t."""
    found = coverage(
        lambda rng: rng.normal(1_000, 50, 58),
        lambda sample: sum_interval(np.array(sample), 58 - k, known=float(sum(sample))),
        lambda population: population.sum(),
        k,
    )
    assert found == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("k", [8, 30])
def test_intervals_of_clusters_cover_the_truth_about_as_often(k):
    """A ratio and a linearisation, so near 95 % and not at it: 91 to 99 %."""

    def layers(rng):
        scale = rng.lognormal(0, 0.2, 58)
        return distributions([rng.gamma(4, 1_000 * s, 200 + rng.integers(50)) for s in scale])

    def pooled(sample):
        whole = Distribution()
        for one in sample:
            whole.update(one)
        return whole

    for name, estimate, truth in (
        ("mean", lambda s: mean_interval(s, 58, pooled(s).mean), lambda p: pooled(p).mean),
        *(
            (
                q,
                lambda s, q=q: quantile_interval(s, q, 58, pooled(s).quantile(q)),
                lambda p, q=q: pooled(p).quantile(q),
            )
            for q in (0.5, 0.99)
        ),
    ):
        assert 0.91 <= coverage(layers, estimate, truth, k, n_draws=300) <= 0.99, name
