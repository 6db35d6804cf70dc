"""Some of a model's layers in place of all: the draw, and what it leaves unknown.

``k`` of the ``N`` MoE layers of a model are drawn by seed, each set of ``k`` as likely as any
other (a simple random sample without replacement), and a layer keeps its number, its popularity
of experts and its routing. What all ``N`` layers would give with the same seed is then
estimated with an interval that covers it in 95 of 100 draws, as far as the approximations below
hold. The draw is the only randomness in it: other tokens, other popularity, another machine,
and what the model leaves out are not covered. With all layers drawn nothing is unknown, and the
interval has no width.

**Sum over the missing layers** (step, TPOT). ``m`` increments of the sample have mean ``y`` and
standard deviation ``s``; ``n = N - k`` layers are missing. Their sum is estimated as ``n y``.
The missing layers are a random sample as well, disjoint from the first, so the variance of the
difference of the means of both is ``S^2 (1/m + 1/n)`` and the interval is

    n y +- t n s sqrt(1/m + 1/n)            t: Student's, m - 1 degrees of freedom

which is the finite population correction in another form. Two approximations: Student's t wants
increments that are not too skewed, and the increments are taken as independent of their order.
Where the attention stream bounds the step, a slow layer is followed by a short increment (their
sum over many layers hardly varies), and the interval is wider than it needs to be.

**Means and percentiles of latencies.** A layer is a cluster of many values. For the value ``x``
at fraction ``q``, layer ``l`` has the weight ``w_l`` (its messages or tasks), and ``F_l`` of it
does not exceed ``x``. The share ``F`` over all layers is a ratio of two totals, with the
standard error of such (linearised, with correction)

    e = sqrt((1 - k/N) / k * sum((w_l (F_l - q))^2) / (k - 1)) / mean(w)

and the interval of the percentile runs from the percentile ``q - t e`` to ``q + t e`` (R. S.
Woodruff, "Confidence intervals for medians and other position measures", J. Am. Stat. Assoc.
47, 1952). Beyond 0 and 1 it has no bound: a few layers say little about the 99th percentile.
The rest is in W. G. Cochran, "Sampling Techniques", 3rd ed., 1977.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ubfabric.distribution import Distribution

#: Share of draws whose interval should cover the truth.
CONFIDENCE = 0.95

#: Lower and upper end; None where there is no bound.
Interval = tuple[float | None, float | None]


def draw_layers(n_layers: int, count: int, rng: np.random.Generator) -> list[int]:
    """Draw layers without replacement.

    Parameters
    ----------
    n_layers : int
        Layers to draw from, 0 to ``n_layers - 1``.
    count : int
        Layers to draw. More of the same generator contain fewer: the first 4 are among the first 5.
    rng : numpy.random.Generator

    Returns
    -------
    list of int
        Ascending.
    """
    return sorted(int(layer) for layer in rng.permutation(n_layers)[:count])


def student_t(freedom: int) -> float:
    """Return how many standard errors an interval of :data:`CONFIDENCE` spans to each side."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def sum_error(values: np.ndarray, missing: int) -> float | None:
    """Return the standard error of ``missing`` times the mean as an estimate of the missing sum.

    Parameters
    ----------
    values : ndarray of float, shape (m,)
        What the sample has.
    missing : int
        Values not in the sample; with none the error is 0.

    Returns
    -------
    float or None
        None if fewer than two values leave it unknown.
    """
    if not missing:
        return 0.0
    if len(values) < 2:
        return None
    return float(missing * values.std(ddof=1) * math.sqrt(1 / len(values) + 1 / missing))


def sum_interval(
    values: np.ndarray, missing: int, known: float = 0.0
) -> tuple[float, float] | None:
    """Return the interval of ``known`` plus the sum over the missing values.

    Parameters
    ----------
    values : ndarray of float, shape (m,)
        What the sample has.
    missing : int
        Values not in the sample.
    known : float
        Added to both ends.

    Returns
    -------
    tuple of float, or None
        None if fewer than two values leave it unknown.
    """
    error = sum_error(values, missing)
    if error is None:
        return None
    if not missing:
        return known, known
    middle, reach = known + missing * float(values.mean()), student_t(len(values) - 1) * error
    return middle - reach, middle + reach


def quantile_interval(
    layers: Sequence[Distribution], q: float, population: int, value: float
) -> Interval:
    """Return the interval of a percentile over all layers, from those of the sample.

    Parameters
    ----------
    layers : sequence of Distribution
        Values of each layer of the sample.
    q : float
        Fraction, above 0 and below 1.
    population : int
        Layers that there are.
    value : float
        The percentile of the sample, which the interval contains.

    Returns
    -------
    low, high : float or None
        None where the sample gives no bound.
    """
    if len(layers) >= population:
        return value, value
    if len(layers) < 2:
        return None, None
    pooled = Distribution()
    for layer in layers:
        pooled.update(layer)
    middle = pooled.quantile(q)
    weights = np.array([layer.total for layer in layers], np.float64)
    below = np.array([layer.weight_up_to(middle) for layer in layers], np.float64)
    reach = student_t(len(layers) - 1) * _ratio_error(below - q * weights, weights, population)
    low, high = q - reach, q + reach
    return (
        None if low <= 0 else min(float(pooled.quantile(low)), value),
        None if high >= 1 else max(float(pooled.quantile(high)), value),
    )


def mean_interval(layers: Sequence[Distribution], population: int, value: float) -> Interval:
    """Return the interval of the mean over all layers, from those of the sample.

    Parameters
    ----------
    layers, population, value
        As in :func:`quantile_interval`; ``value`` is the mean of the sample.
    """
    if len(layers) >= population:
        return value, value
    if len(layers) < 2:
        return None, None
    weights = np.array([layer.total for layer in layers], np.float64)
    totals = np.array([layer.mean * layer.total for layer in layers], np.float64)
    ratio = totals.sum() / weights.sum()
    reach = student_t(len(layers) - 1) * _ratio_error(totals - ratio * weights, weights, population)
    return value - reach, value + reach


def _ratio_error(residuals: np.ndarray, weights: np.ndarray, population: int) -> float:
    """Return the standard error of a ratio of totals over the population."""
    k = len(weights)
    variance = (1 - k / population) / k * float((residuals**2).sum()) / (k - 1)
    return math.sqrt(variance) / float(weights.mean())
