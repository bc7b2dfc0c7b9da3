"""How good the answers of a classifier are, and whether one classifier is better than another on the same examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .accuracy import Z, accuracy_interval, group_interval

RESAMPLES = 2_000
Z_POWER = 0.841621  # the 80 % quantile of the normal distribution: the power that `examples_needed` asks for


def confusion(answers: np.ndarray, truth: np.ndarray, n_labels: int) -> np.ndarray:
    """answers (n,), truth (n,): label numbers -> counts (n_labels, n_labels), [truth, answer].

    An answer of -1, something outside the label set, is counted nowhere.
    """
    inside = answers >= 0
    flat = np.bincount(truth[inside] * n_labels + answers[inside], minlength=n_labels * n_labels)
    return flat.reshape(n_labels, n_labels)


def macro_f1(answers: np.ndarray, truth: np.ndarray, n_labels: int, *, weights: np.ndarray | None = None) -> float:
    """Returns the mean F1 over the labels that occur in the truth or among the answers; -1 is in no label set.

    weights (n,): how often each example counts, by default once.
    """

    def count(numbers: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.bincount(numbers[where], None if weights is None else weights[where], minlength=n_labels)

    right = count(truth, (answers == truth) & (truth >= 0))
    total = count(answers, answers >= 0) + count(truth, truth >= 0)
    f1 = np.divide(2 * right, total, out=np.zeros(n_labels), where=total > 0)
    return float(f1.sum() / max(1, (total > 0).sum()))


def macro_f1_interval(
    answers: np.ndarray, truth: np.ndarray, n_labels: int, *, groups: Sequence[str] | None = None, seed: int
) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval (low, high) of macro-F1, over whole groups if there are some."""
    _, index = np.unique(np.arange(len(truth)) if groups is None else np.asarray(groups), return_inverse=True)
    n_groups, random = int(index.max()) + 1, np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES):
        drawn = np.bincount(random.integers(n_groups, size=n_groups), minlength=n_groups)
        values.append(macro_f1(answers, truth, n_labels, weights=drawn[index]))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """Two classifiers, a and b, on the same examples. Intervals are 95 %."""

    examples: int
    accuracy_a: float
    accuracy_b: float
    interval_a: tuple[float, float]
    interval_b: tuple[float, float]
    difference: float  # accuracy of b minus that of a
    interval: tuple[float, float]  # of the difference, paired
    only_a: int  # examples that only a answers correctly
    only_b: int
    p: float  # exact McNemar test of equal accuracies, two-sided
    examples_needed: int | None  # to find a difference of this size with a power of 0.8; None without a difference

    @staticmethod
    def of(
        right_a: np.ndarray, right_b: np.ndarray, *, groups: Sequence[str] | None = None, seed: int = 1
    ) -> Comparison:
        """right_a, right_b (n,): 1 where the classifier is right. groups (n,): examples of one are not independent."""
        n = len(right_a)
        difference = right_b.astype(float) - right_a.astype(float)
        only_a, only_b = int((difference < 0).sum()), int((difference > 0).sum())
        names = [str(i) for i in range(n)] if groups is None else groups
        return Comparison(
            n,
            float(right_a.mean()),
            float(right_b.mean()),
            accuracy_interval(right_a, groups, seed=seed),
            accuracy_interval(right_b, groups, seed=seed),
            float(difference.mean()),
            group_interval(difference, names, seed=seed),
            only_a,
            only_b,
            mcnemar(only_a, only_b),
            examples_needed(only_a / n, only_b / n),
        )


def mcnemar(only_a: int, only_b: int) -> float:
    """Returns the exact two-sided p of McNemar's test (1947): are the two kinds of disagreement equally frequent?"""
    n, fewer = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    log_choose = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(math.exp(value - n * math.log(2)) for value in log_choose))


def examples_needed(only_a: float, only_b: float) -> int | None:
    """Returns how many examples find the difference between two shares of disagreement (Connor 1987)."""
    difference, disagreement = only_b - only_a, only_a + only_b
    if difference == 0:
        return None
    root = Z * math.sqrt(disagreement) + Z_POWER * math.sqrt(max(0.0, disagreement - difference**2))
    return math.ceil((root / difference) ** 2)
