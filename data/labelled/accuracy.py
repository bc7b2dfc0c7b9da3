"""95 % confidence intervals of an accuracy, over independent answers or over groups of answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """Returns the 95 % interval (low, high) for independent answers (Wilson 1927). Holds near 0 and 1 and for few."""
    z = 1.959964
    center = (right + z * z / 2) / (total + z * z)
    half_width = z / (total + z * z) * math.sqrt(right * (total - right) / total + z * z / 4)
    return max(0.0, center - half_width), min(1.0, center + half_width)


def group_interval(right: np.ndarray, groups: Sequence[str], *, seed: int) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval (low, high) of the mean of `right` (n,), where answers of one group (n,) are
    not independent: it resamples whole groups.
    """
    _, index = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(index, right), np.bincount(index)
    random, means = np.random.default_rng(seed), np.empty(10_000)
    for k in range(len(means)):
        sampled = random.integers(len(sums), size=len(sums))
        means[k] = sums[sampled].sum() / sizes[sampled].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
