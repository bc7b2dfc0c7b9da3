"""A baseline that reads no order: logistic regression on the words and word pairs of a text."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import regex

WORD = regex.compile(r"\w+")
MAX_FEATURES = 50_000
STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3)  # L2 regularisation; a fifth of the training texts chooses
STEPS = 200


def features(text: str) -> Iterator[str]:
    words = WORD.findall(text.lower())
    yield from words
    yield from map(" ".join, itertools.pairwise(words))


@dataclass(frozen=True)
class Sparse:
    """A sparse matrix (rows, columns): the non-zero entries, by row and by column."""

    shape: tuple[int, int]
    row: np.ndarray  # (entries,), ascending
    column: np.ndarray
    value: np.ndarray
    by_column: np.ndarray  # the order of the entries by column

    @staticmethod
    def of(rows: Sequence[dict[int, float]], n_columns: int) -> Sparse:
        row = np.repeat(np.arange(len(rows)), [len(entries) for entries in rows])
        column = np.array([column for entries in rows for column in entries], np.int64)
        value = np.array([value for entries in rows for value in entries.values()], np.float32)
        return Sparse((len(rows), n_columns), row, column, value, np.argsort(column, kind="stable"))

    def times(self, matrix: np.ndarray) -> np.ndarray:
        """matrix (columns, L) -> (rows, L)"""
        return sums(self.row, self.value[:, None] * matrix[self.column], self.shape[0])

    def transposed_times(self, matrix: np.ndarray) -> np.ndarray:
        """matrix (rows, L) -> (columns, L)"""
        order = self.by_column
        return sums(self.column[order], self.value[order, None] * matrix[self.row[order]], self.shape[1])


def sums(index: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """index (entries,), ascending, values (entries, L) -> the sum of the values of each index, (n, L)."""
    found = np.zeros((n, values.shape[1]), np.float32)
    if len(index):
        starts = np.flatnonzero(np.diff(index, prepend=-1))
        found[index[starts]] = np.add.reduceat(values, starts, axis=0)
    return found


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


@dataclass(frozen=True)
class BagOfWords:
    """Multinomial logistic regression on tf-idf: 1 + log of the count, times the inverse document frequency, length 1.

    The features are the words and word pairs, in lower case, that at least two training texts contain.
    """

    columns: dict[str, int]
    inverse_frequency: np.ndarray  # (columns,)
    weights: np.ndarray  # (columns + 1, L); the last row is the bias

    @staticmethod
    def train(texts: Sequence[str], labels: np.ndarray, n_labels: int, *, seed: int = 1) -> BagOfWords:
        """texts, labels (n,): label numbers. Deterministic; `seed` chooses the fifth that picks the regularisation."""
        counted = [Counter(features(text)) for text in texts]
        documents = Counter(name for counts in counted for name in counts)
        names = [name for name, count in documents.most_common(MAX_FEATURES) if count > 1]
        columns = {name: index for index, name in enumerate(names)}
        inverse = np.array([np.log((1 + len(texts)) / (1 + documents[name])) + 1 for name in names], np.float32)
        empty = BagOfWords(columns, inverse, np.zeros((len(names) + 1, n_labels), np.float32))
        rows = [empty._row(counts) for counts in counted]
        held_out = np.random.default_rng(seed).permutation(len(texts)) < len(texts) // 5
        best = STRENGTHS[-1]
        if held_out.any() and len(set(labels[~held_out].tolist())) > 1:
            some = Sparse.of([row for row, out in zip(rows, held_out, strict=True) if not out], len(names) + 1)
            others = Sparse.of([row for row, out in zip(rows, held_out, strict=True) if out], len(names) + 1)
            scores = {}
            for strength in STRENGTHS:
                weights = fit(some, labels[~held_out], n_labels, strength)
                scores[strength] = (others.times(weights).argmax(1) == labels[held_out]).mean()
            best = max(STRENGTHS, key=lambda strength: (scores[strength], strength))
        return BagOfWords(columns, inverse, fit(Sparse.of(rows, len(names) + 1), labels, n_labels, best))

    def _row(self, counts: Counter[str]) -> dict[int, float]:
        known = [(self.columns[name], count) for name, count in counts.items() if name in self.columns]
        row = {column: (1 + np.log(count)) * self.inverse_frequency[column] for column, count in known}
        length = np.sqrt(sum(value * value for value in row.values())) or 1.0
        return {column: value / length for column, value in row.items()} | {len(self.columns): 1.0}

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """texts (n,) -> the probability of each label, (n, L)."""
        rows = Sparse.of([self._row(Counter(features(text))) for text in texts], len(self.weights))
        return softmax(rows.times(self.weights))


def fit(rows: Sparse, labels: np.ndarray, n_labels: int, strength: float) -> np.ndarray:
    """Minimises the mean cross-entropy plus strength / 2 * |weights|^2 with accelerated gradient steps (Nesterov 1983).

    A row has length at most sqrt(2), so the gradient's Lipschitz constant is at most 1.
    """
    n, n_columns = rows.shape
    truth = np.zeros((n, n_labels), np.float32)
    truth[np.arange(n), labels] = 1
    weights = previous = np.zeros((n_columns, n_labels), np.float32)
    for step in range(1, STEPS + 1):
        ahead = weights + (step - 1) / (step + 2) * (weights - previous)
        errors = (softmax(rows.times(ahead)) - truth) / n
        previous, weights = weights, ahead - rows.transposed_times(errors) - strength * ahead
    return weights
