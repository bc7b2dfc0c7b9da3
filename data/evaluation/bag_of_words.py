"""A baseline that reads no order: logistic regression on the words of a text."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import regex

WORD = regex.compile(r"\w+")
MAX_FEATURES = 50_000
STRENGTHS = (1.0, 0.1, 0.01)  # of the L2 penalty; the accuracy on a fifth of the training texts chooses
BLOCK = 1 << 17  # products that are held at once
STEPS, MEMORY, TOLERANCE = 200, 10, 1e-5  # of L-BFGS


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


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
        return weighted_sums(self.row, self.value, self.column, matrix, self.shape[0])

    def transposed_times(self, matrix: np.ndarray) -> np.ndarray:
        """matrix (rows, L) -> (columns, L)"""
        order = self.by_column
        return weighted_sums(self.column[order], self.value[order], self.row[order], matrix, self.shape[1])


def weighted_sums(index: np.ndarray, value: np.ndarray, row: np.ndarray, matrix: np.ndarray, n: int) -> np.ndarray:
    """index, ascending, value and row (entries,), matrix (rows, L) -> the sum of value * matrix[row] by index, (n, L).

    Blocks of entries stay in the CPU's cache.
    """
    found = np.zeros((n, matrix.shape[1]), np.float32)
    size = max(1, BLOCK // matrix.shape[1])
    for block in (slice(start, start + size) for start in range(0, len(index), size)):
        starts = np.flatnonzero(np.diff(index[block], prepend=-1))
        found[index[block][starts]] += np.add.reduceat(value[block, None] * matrix[row[block]], starts, axis=0)
    return found


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


@dataclass(frozen=True)
class BagOfWords:
    """Multinomial logistic regression on tf-idf: 1 + log of the count, times the inverse document frequency, length 1.

    The words are in lower case, and at least two training texts contain each.
    """

    columns: dict[str, int]
    inverse_frequency: np.ndarray  # (columns,)
    weights: np.ndarray  # (columns + 1, L); the last row is the bias

    @staticmethod
    def train(texts: Sequence[str], labels: np.ndarray, n_labels: int, *, seed: int = 1) -> BagOfWords:
        """texts, labels (n,): label numbers. Deterministic; `seed` chooses the fifth that picks the penalty."""
        counted = [Counter(words(text)) for text in texts]
        documents = Counter(name for counts in counted for name in counts)
        names = [name for name, count in documents.most_common(MAX_FEATURES) if count > 1]
        columns = {name: index for index, name in enumerate(names)}
        inverse = np.array([np.log((1 + len(texts)) / (1 + documents[name])) + 1 for name in names], np.float32)
        empty = BagOfWords(columns, inverse, np.zeros((len(names) + 1, n_labels), np.float32))
        rows = [empty._row(counts) for counts in counted]
        held_out = np.random.default_rng(seed).permutation(len(texts)) < len(texts) // 5
        best = STRENGTHS[-1]
        if held_out.any() and len(set(labels[~held_out].tolist())) > 1:
            some, others = (
                Sparse.of([row for row, out in zip(rows, held_out, strict=True) if out == side], len(names) + 1)
                for side in (False, True)
            )
            right = {}
            for strength in STRENGTHS:
                weights = fit(some, labels[~held_out], n_labels, strength)
                right[strength] = int((others.times(weights).argmax(1) == labels[held_out]).sum())
            best = max(STRENGTHS, key=lambda strength: right[strength])
        return BagOfWords(columns, inverse, fit(Sparse.of(rows, len(names) + 1), labels, n_labels, best))

    def _row(self, counts: Counter[str]) -> dict[int, float]:
        known = [(self.columns[name], count) for name, count in counts.items() if name in self.columns]
        row = {column: (1 + np.log(count)) * self.inverse_frequency[column] for column, count in known}
        length = np.sqrt(sum(value * value for value in row.values())) or 1.0
        return {column: value / length for column, value in row.items()} | {len(self.columns): 1.0}

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """texts (n,) -> the probability of each label, (n, L)."""
        rows = Sparse.of([self._row(Counter(words(text))) for text in texts], len(self.weights))
        return softmax(rows.times(self.weights))


def fit(rows: Sparse, labels: np.ndarray, n_labels: int, strength: float) -> np.ndarray:
    """Minimizes the summed cross-entropy plus strength / 2 * |weights|^2; returns the weights (columns, L)."""
    truth = np.zeros((rows.shape[0], n_labels), np.float32)
    truth[np.arange(len(labels)), labels] = 1

    def loss_and_gradient(weights: np.ndarray) -> tuple[float, np.ndarray]:
        probs = softmax(rows.times(weights))
        loss = -np.log(np.maximum(probs[np.arange(len(labels)), labels], 1e-30)).sum()
        gradient = rows.transposed_times(probs - truth) + strength * weights
        return float(loss) + strength / 2 * float((weights**2).sum()), gradient

    return minimize(loss_and_gradient, np.zeros((rows.shape[1], n_labels), np.float32))


def minimize(function: Callable[[np.ndarray], tuple[float, np.ndarray]], x: np.ndarray) -> np.ndarray:
    """L-BFGS (Liu and Nocedal 1989): quasi-Newton steps from the last changes of position and gradient.

    function: x -> (value, gradient). Halves a step until the value falls (Armijo); ends when that gains little.
    """
    value, gradient = function(x)
    pairs: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=MEMORY)  # changes of x and of the gradient
    for _ in range(STEPS):
        direction, factors = gradient.copy(), []
        for dx, dg in reversed(pairs):
            factors.append(np.vdot(dx, direction) / np.vdot(dx, dg))
            direction -= factors[-1] * dg
        dx, dg = pairs[-1] if pairs else (gradient, gradient * np.linalg.norm(gradient))
        direction *= np.vdot(dx, dg) / np.vdot(dg, dg)
        for (dx, dg), factor in zip(pairs, reversed(factors), strict=True):
            direction += (factor - np.vdot(dg, direction) / np.vdot(dx, dg)) * dx
        slope, step = float(np.vdot(direction, gradient)), 1.0
        new_value, new_gradient = function(x - direction)
        while new_value > value - 1e-4 * step * slope and step > 1e-6:
            step /= 2
            new_value, new_gradient = function(x - step * direction)
        if new_value > value * (1 - TOLERANCE):
            return x
        pairs.append((-step * direction, new_gradient - gradient))
        x, value, gradient = x - step * direction, new_value, new_gradient
    return x
