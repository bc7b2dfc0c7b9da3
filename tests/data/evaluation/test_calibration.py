"""Calibration: the temperature that was applied is found again, and the error is what its definition says."""

from __future__ import annotations

import numpy as np
import pytest

from data.evaluation import calibration


def labelled_scores(n: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose softmax is the truth's distribution, times `temperature`: over-confident above 1."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, 4)) * 1.5
    probs = calibration.probabilities(logits)
    truth = np.array([random.choice(4, p=row) for row in probs])
    return logits * temperature, truth


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_found(temperature):
    scores, truth = labelled_scores(4000, temperature)
    found = calibration.fit_temperature(scores, truth)
    assert found == pytest.approx(temperature, rel=0.1)
    nearby = [calibration.loss(scores, truth, found * factor) for factor in (0.98, 1.0, 1.02)]
    assert min(nearby) == nearby[1]


def test_few_examples_are_not_fitted():
    scores, truth = labelled_scores(49, 5.0)
    assert calibration.fit_temperature(scores, truth) == 1.0


def test_cross_fitting_lowers_the_error_of_an_overconfident_classifier():
    scores, truth = labelled_scores(1500, 4.0)
    before = calibration.probabilities(scores)
    after = calibration.cross_fitted(scores, truth)
    assert np.allclose(after.sum(1), 1)
    assert calibration.calibration_error(after, truth) < 0.25 * calibration.calibration_error(before, truth)
    low, high = calibration.calibration_error_interval(before, truth)
    assert low < calibration.calibration_error(before, truth) < high
    assert low > calibration.calibration_error_interval(after, truth)[1]


def test_the_error_is_the_weighted_gap_of_the_bins():
    probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    truth = np.array([0, 1, 0, 0])
    rows = [(b.count, round(b.confidence, 6), b.accuracy) for b in calibration.reliability(probs, truth)]
    assert rows == [(2, 0.6, 1.0), (2, 0.9, 0.5)]
    assert calibration.calibration_error(probs, truth) == pytest.approx((2 * 0.4 + 2 * 0.4) / 4)
