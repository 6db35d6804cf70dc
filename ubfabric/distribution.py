"""A weighted distribution that is gathered batch by batch in constant memory."""

from __future__ import annotations

import math

import numpy as np

#: The percentiles that ubfabric reports.
QUANTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}


class Distribution:
    """A weighted distribution of times that grows batch by batch in constant memory.

    Values are gathered in bins of 1/2048 of their size (exactly below 4,096); each bin
    keeps the largest value it saw. A quantile is thus a value that occurred, at most
    0.05 % above the exact one, and exact while no two values share a bin.
    """

    _BITS = 11

    def __init__(self) -> None:
        self._weights = np.zeros(0, dtype=np.int64)
        self._tops = np.zeros(0, dtype=np.int64)
        self._sum = 0
        self.min: int | None = None
        self.max: int | None = None

    def add(self, values: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Add values.

        Parameters
        ----------
        values : ndarray of int64, shape (n,), not negative
        weights : ndarray of int, shape (n,), optional
            How often each value counts; 1 by default, 0 or more.
        """
        values = np.asarray(values, dtype=np.int64)
        if weights is not None:
            weights = np.asarray(weights, dtype=np.int64)
            counted = weights > 0
            values, weights = values[counted], weights[counted]
        if not len(values):
            return
        if values.min() < 0:
            raise ValueError(f"found a negative time of {values.min()} ps")
        bins = self._bins(values)
        size = int(bins.max()) + 1
        self._reach(size)
        self._weights[:size] += np.bincount(bins, weights, size).astype(np.int64)
        np.maximum.at(self._tops, bins, values)
        scale = values if weights is None else values * weights
        self._sum += int(scale.sum())
        low, high = int(values.min()), int(values.max())
        self.min = low if self.min is None else min(self.min, low)
        self.max = high if self.max is None else max(self.max, high)

    @classmethod
    def _bins(cls, values: np.ndarray) -> np.ndarray:
        """Return the bin of each value."""
        # Exact up to 2^53 ps, two and a half hours of simulated time.
        exponent = np.frexp(values.astype(np.float64))[1] - 1
        shift = np.maximum(exponent - cls._BITS, 0)
        bins: np.ndarray = (shift.astype(np.int64) << cls._BITS) + (values >> shift)
        return bins

    def _reach(self, size: int) -> None:
        """Have at least so many bins."""
        known = len(self._weights)
        if size > known:
            grown = np.zeros((2, size), np.int64)
            grown[:, :known] = self._weights, self._tops
            self._weights, self._tops = grown

    def update(self, other: Distribution) -> None:
        """Add all values of another distribution."""
        if other.min is None or other.max is None:
            return
        self._reach(len(other._weights))
        self._weights[: len(other._weights)] += other._weights
        np.maximum(self._tops[: len(other._tops)], other._tops, out=self._tops[: len(other._tops)])
        self._sum += other._sum
        self.min = other.min if self.min is None else min(self.min, other.min)
        self.max = other.max if self.max is None else max(self.max, other.max)

    @property
    def total(self) -> int:
        """Sum of the weights."""
        return int(self._weights.sum())

    @property
    def mean(self) -> float:
        """Weighted mean; NaN when empty."""
        return self._sum / self.total if self.total else math.nan

    def quantile(self, q: float) -> int:
        """Return the smallest value that at least the fraction ``q`` does not exceed.

        Raises
        ------
        ValueError
            If the distribution is empty.
        """
        total = self.total
        if not total:
            raise ValueError("an empty distribution has no quantiles")
        # The small term undoes rounding such as 0.07 * 100 = 7.000000000000001.
        rank = max(1, math.ceil(q * total - 1e-9 * total))
        return int(self._tops[np.searchsorted(np.cumsum(self._weights), rank)])

    def weight_up_to(self, value: int) -> int:
        """Return the weight of the values in the bin of ``value`` and below."""
        last = int(self._bins(np.array([value], np.int64))[0])
        return int(self._weights[: last + 1].sum())

    def cdf(self) -> tuple[np.ndarray, np.ndarray]:
        """Return values and the fraction that does not exceed each.

        Returns
        -------
        values : ndarray of int64, shape (n_bins,)
        fractions : ndarray of float64, shape (n_bins,)
        """
        used = np.flatnonzero(self._weights)
        cumulative = np.cumsum(self._weights[used])
        return self._tops[used], cumulative / max(self.total, 1)

    def describe(self, scale: float = 1.0) -> dict[str, float]:
        """Return mean, p50, p90, p99 and max, divided by ``scale``; empty when empty."""
        if self.max is None:
            return {}
        values: dict[str, float] = {"mean": self.mean / scale}
        values |= {name: self.quantile(q) / scale for name, q in QUANTILES.items()}
        return values | {"max": self.max / scale}
