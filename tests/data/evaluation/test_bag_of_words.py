"""The bag-of-words baseline: its optimum is that of another method, it learns words, and nothing else."""

from __future__ import annotations

import tracemalloc

import numpy as np

from data.evaluation.bag_of_words import BagOfWords, Sparse, fit, softmax


def texts_and_labels(n: int, seed: int) -> tuple[list[str], np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, n)
    common, own = "the a of and in".split(), [["river", "stream"], ["king", "queen"], ["atom", "ion"]]
    return [" ".join([*random.choice(common, 6), *random.choice(own[label], 2)]) for label in labels], labels


def test_it_learns_words_that_tell_labels_apart():
    texts, labels = texts_and_labels(120, 0)
    model = BagOfWords.train(texts, labels, 3)
    others, truth = texts_and_labels(60, 1)
    found = model.probabilities(others)
    assert np.allclose(found.sum(1), 1, atol=1e-5) and (found.argmax(1) == truth).mean() > 0.98
    again = BagOfWords.train(texts, labels, 3)
    assert np.array_equal(again.weights, model.weights)


def test_unknown_words_do_not_count():
    texts, labels = ["good one", "bad one", "good", "bad"] * 10, np.array([1, 0, 1, 0] * 10)
    model = BagOfWords.train(texts, labels, 2)
    assert model.probabilities(["Good!", "one bad"]).argmax(1).tolist() == [1, 0]
    neutral = model.probabilities(["zebra", ""])
    assert np.allclose(neutral[0], neutral[1])


def test_many_labels_need_little_memory():
    rows = Sparse.of([{(i + 37 * j) % 500: 1.0 + j for j in range(100)} for i in range(200)], 500)
    dense, weights = np.zeros((200, 500), np.float32), np.random.default_rng(0).random((500, 300), np.float32)
    dense[rows.row, rows.column] = rows.value
    tracemalloc.start()
    try:
        found = rows.times(weights), rows.transposed_times(weights[:200])
        assert tracemalloc.get_traced_memory()[1] < 4e6  # not 200 * 100 * 300 products
    finally:
        tracemalloc.stop()
    assert np.allclose(found[0], dense @ weights, rtol=1e-4)
    assert np.allclose(found[1], dense.T @ weights[:200], rtol=1e-4)


def test_the_optimum_is_that_of_plain_gradient_descent():
    random = np.random.default_rng(3)
    dense = random.random((40, 6)).astype(np.float32) * (random.random((40, 6)) < 0.5)
    dense /= np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-9)
    labels = random.integers(0, 3, 40)
    rows = Sparse.of([{int(j): float(row[j]) for j in np.flatnonzero(row)} for row in dense], 6)
    assert np.allclose(rows.times(np.eye(6, dtype=np.float32)), dense)
    assert np.allclose(rows.transposed_times(dense), dense.T @ dense, atol=1e-5)
    weights, truth = np.zeros((6, 3)), np.eye(3)[labels]
    for _ in range(20_000):  # plain gradient descent in float64
        weights -= (dense.T @ (softmax(dense @ weights) - truth) + 0.1 * weights) / 20
    assert np.abs(fit(rows, labels, 3, 0.1) - weights).max() < 1e-2
