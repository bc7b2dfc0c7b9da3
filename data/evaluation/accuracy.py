"""95 % confidence intervals of an accuracy or a ratio, over independent answers or over groups of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
Z = 1.959964  # the 97.5 % quantile of the normal distribution


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """Returns the 95 % interval (low, high) for independent answers (Wilson 1927). Holds near 0 and 1 and for few."""
    center = (right + Z * Z / 2) / (total + Z * Z)
    half_width = Z / (total + Z * Z) * math.sqrt(right * (total - right) / total + Z * Z / 4)
    return max(0.0, center - half_width), min(1.0, center + half_width)


def group_interval(values: np.ndarray, groups: Sequence[str], *, seed: int) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval (low, high) of the mean of `values` (n,), where those of one group (n,) are
    not independent: it resamples whole groups.
    """
    _, index = np.unique(groups, return_inverse=True)
    return ratio_interval(np.bincount(index, values), np.bincount(index), seed=seed)


def ratio_interval(sums: np.ndarray, sizes: np.ndarray, *, seed: int) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval (low, high) of sums.sum() / sizes.sum(), resampling their entries, (n,) each.

    With sums of nats and sizes in bytes, an entry is a document.
    """
    random, ratios = np.random.default_rng(seed), np.empty(RESAMPLES)
    for k in range(len(ratios)):
        sampled = random.integers(len(sums), size=len(sums))
        ratios[k] = sums[sampled].sum() / max(1, sizes[sampled].sum())
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def accuracy_interval(right: np.ndarray, groups: Sequence[str] | None, *, seed: int) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of `right` (n,): Wilson's, or over groups if some have several answers."""
    if groups is None or len(set(groups)) == len(groups):
        return wilson_interval(int(right.sum()), len(right))
    return group_interval(right, groups, seed=seed)
