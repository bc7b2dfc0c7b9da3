"""Comparison of two classifiers: against definitions written out, exact sums and simulated data."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from data.evaluation import comparison
from data.evaluation.comparison import Comparison, confusion, examples_needed, macro_f1, macro_f1_interval, mcnemar


def f1_by_definition(answers, truth, n_labels) -> float:
    scores = []
    for label in range(n_labels):
        right = int(((answers == label) & (truth == label)).sum())
        answered, true = int((answers == label).sum()), int((truth == label).sum())
        if answered + true:
            precision, recall = right / answered if answered else 0.0, right / true if true else 0.0
            scores.append(2 * precision * recall / (precision + recall) if right else 0.0)
    return sum(scores) / len(scores)


def test_macro_f1_and_confusion_follow_their_definitions():
    random = np.random.default_rng(0)
    for _ in range(20):
        truth, answers = random.integers(0, 4, 50), random.integers(-1, 5, 50)
        assert macro_f1(answers, truth, 6) == pytest.approx(f1_by_definition(answers, truth, 6))
        table = confusion(answers, truth, 6)
        assert table.sum() == (answers >= 0).sum() and np.trace(table) == (answers == truth).sum()
        assert table[2, 3] == ((truth == 2) & (answers == 3)).sum()


def test_examples_whose_label_is_not_in_the_set_only_make_their_answers_wrong():
    truth, answers = np.array([0, 0, 1, -1, -1]), np.array([0, 1, 1, 1, -1])
    # Label 0: one right, one answer, two examples. Label 1: one right, three answers, one example.
    assert macro_f1(answers, truth, 2) == pytest.approx((2 / 3 + 2 / 4) / 2)
    low, high = macro_f1_interval(answers, truth, 2, groups=["a"] * 5, seed=1)
    assert low == pytest.approx(high) == pytest.approx((2 / 3 + 2 / 4) / 2)


def test_the_interval_of_macro_f1_holds_the_value_and_is_wider_over_groups():
    random = np.random.default_rng(1)
    truth = random.integers(0, 3, 300)
    groups = [f"g{i // 30}" for i in range(300)]
    answers = np.where(np.repeat(random.random(10) < 0.6, 30), truth, (truth + 1) % 3)  # whole groups are wrong
    value = macro_f1(answers, truth, 3)
    low, high = macro_f1_interval(answers, truth, 3, seed=1)
    group_low, group_high = macro_f1_interval(answers, truth, 3, groups=groups, seed=1)
    assert group_low < low < value < high < group_high


def test_the_interval_of_macro_f1_needs_little_memory_for_many_labels(monkeypatch):
    monkeypatch.setattr(comparison, "RESAMPLES", 5)
    truth = np.arange(5000) % 2000
    tracemalloc.start()
    try:
        macro_f1_interval(truth, truth, 2000, seed=1)
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (0, 5), (3, 9), (10, 10), (40, 61)])
def test_mcnemar_is_the_binomial_sum(only_a, only_b):
    n = only_a + only_b
    exact = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n)
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a) == pytest.approx(exact)


def test_a_paired_comparison_sees_what_two_intervals_hide():
    right_a = np.array([1] * 160 + [0] * 40)
    right_b = right_a.copy()
    right_b[160:175] = 1  # b answers 15 more, and nothing worse
    found = Comparison.of(right_a, right_b)
    assert (found.accuracy_a, found.accuracy_b, found.only_a, found.only_b) == (0.8, 0.875, 0, 15)
    assert found.interval_a[1] > found.interval_b[0]  # the two intervals overlap
    assert found.difference == pytest.approx(0.075) and found.interval[0] > 0 and found.p < 0.001
    assert Comparison.of(right_b, right_a).difference == -found.difference
    grouped = Comparison.of(right_a, right_b, groups=[f"g{i // 40}" for i in range(200)])
    assert grouped.interval[0] <= 0 < grouped.interval[1]  # all of it comes from one of five groups


def test_examples_needed_has_the_power_that_it_promises():
    only_a, only_b = 0.05, 0.12
    needed = examples_needed(only_a, only_b)
    random, found = np.random.default_rng(2), 0
    for _ in range(400):
        a, b, _ = random.multinomial(needed, [only_a, only_b, 1 - only_a - only_b])
        found += abs(b - a) / math.sqrt(a + b) > 1.96
    assert 0.74 < found / 400 < 0.86
    assert examples_needed(0.1, 0.1) is None
