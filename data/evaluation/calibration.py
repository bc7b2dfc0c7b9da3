"""Are probabilities as good as they claim to be? Temperature scaling and the reliability of a classifier."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .bag_of_words import softmax

FEWEST = 50  # a temperature fitted on fewer examples is noise
RANGE = (0.05, 20.0)
BINS = 15
RESAMPLES = 2_000


def probabilities(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """scores (n, L): log-probabilities of the labels -> softmax(scores / temperature), (n, L)."""
    return softmax(scores.astype(float) / temperature)


def loss(scores: np.ndarray, truth: np.ndarray, temperature: float) -> float:
    """Returns the mean negative log-probability of the true labels, nats."""
    chosen = probabilities(scores, temperature)[np.arange(len(truth)), truth]
    return float(-np.log(np.maximum(chosen, 1e-300)).mean())


def fit_temperature(scores: np.ndarray, truth: np.ndarray) -> float:
    """Returns the temperature with the smallest loss (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    scores (n, L): log-probabilities of the labels; truth (n,): label numbers. 1 for fewer than 50 examples.
    """
    if len(truth) < FEWEST:
        return 1.0
    ratio = (math.sqrt(5) - 1) / 2
    low, high = math.log(RANGE[0]), math.log(RANGE[1])
    for _ in range(40):  # golden-section search: the loss has one minimum
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if loss(scores, truth, math.exp(a)) < loss(scores, truth, math.exp(b)):
            high = b
        else:
            low = a
    return math.exp((low + high) / 2)


def cross_fitted(scores: np.ndarray, truth: np.ndarray, *, seed: int = 1) -> np.ndarray:
    """Returns calibrated probabilities (n, L), those of each half with the temperature fitted on the other half."""
    half = np.random.default_rng(seed).permutation(len(truth)) < len(truth) // 2
    found = np.empty(scores.shape)
    for side in (half, ~half):
        found[side] = probabilities(scores[side], fit_temperature(scores[~side], truth[~side]))
    return found


@dataclass(frozen=True)
class Bin:
    """The answers with a confidence in one of 15 intervals of equal width."""

    count: int
    confidence: float  # mean probability of the answers
    accuracy: float  # share of right answers


def reliability(probs: np.ndarray, truth: np.ndarray) -> list[Bin]:
    """probs (n, L), truth (n,) -> the bins of a reliability diagram that have answers."""
    confidence, right = probs.max(1), probs.argmax(1) == truth
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        Bin(int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean()))
        for inside in (number == k for k in range(BINS))
        if inside.any()
    ]


def calibration_error(probs: np.ndarray, truth: np.ndarray) -> float:
    """Returns the expected calibration error: the mean gap between confidence and accuracy over 15 bins."""
    return sum(b.count * abs(b.confidence - b.accuracy) for b in reliability(probs, truth)) / len(truth)


def calibration_error_interval(probs: np.ndarray, truth: np.ndarray, *, seed: int = 1) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval (low, high) of the calibration error, over examples.

    The error of a resample is biased upwards, as any binned error of few examples is; the interval is shifted by the
    bias that the bootstrap itself shows.
    """
    gap = probs.max(1) - (probs.argmax(1) == truth)
    number = np.minimum((probs.max(1) * BINS).astype(int), BINS - 1)
    random = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES):
        drawn = random.integers(len(gap), size=len(gap))
        values.append(np.abs(np.bincount(number[drawn], gap[drawn], BINS)).sum() / len(gap))
    estimate = calibration_error(probs, truth)
    low, high = np.quantile(values, [0.025, 0.975]) - (np.mean(values) - estimate)
    return max(0.0, float(low)), float(high)
