"""How sure a share of right answers is: 95 % intervals over examples and over whole groups of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share whose answers are independent (Wilson 1927); sound at 0 and 1 and for few."""
    z = 1.959964
    middle = (right + z * z / 2) / (total + z * z)
    reach = z / (total + z * z) * math.sqrt(right * (total - right) / total + z * z / 4)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def group_interval(right: np.ndarray, groups: Sequence[str], *, seed: int) -> tuple[float, float]:
    """A 95 % bootstrap interval of the mean that draws whole groups: answers within one group are not independent."""
    _, index = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(index, right), np.bincount(index)
    random, means = np.random.default_rng(seed), np.empty(10_000)
    for k in range(len(means)):
        drawn = random.integers(len(sums), size=len(sums))
        means[k] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
