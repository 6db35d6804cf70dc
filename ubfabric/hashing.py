"""Luck by what it concerns: well mixed numbers of arrays, the same in any order."""

from __future__ import annotations

import numpy as np


def mix(values: np.ndarray) -> np.ndarray:
    """Return a well mixed number for each of an array.

    Parameters
    ----------
    values : ndarray of uint64

    Returns
    -------
    ndarray of uint64
        The next output of the generator splitmix64 with each value as its state.
    """
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
