"""Batches: windows of a token stream, each batch a pure function of (seed, step)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import InputError
from .shards import Split

IGNORE = -100  # a target from which nothing is to be learned


class Batch(NamedTuple):
    inputs: np.ndarray  # (B, T) int64
    targets: np.ndarray  # (B, T) int64: the token after each input, or IGNORE


def mix(values: np.ndarray) -> np.ndarray:
    """uint64 -> well-scattered uint64, one to one: the finaliser of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def keys(count: int, *numbers: int) -> np.ndarray:
    """`count` uint64 keys, a pure function of the numbers: a random generator without a state."""
    state = np.zeros(1, np.uint64)
    for number in numbers:
        state = mix(state + np.array([number % 2**64], np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return mix(state + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def permute(positions: np.ndarray, *, size: int, seed: int, epoch: int) -> np.ndarray:
    """Where a random permutation of range(size) sends each position; nothing of length `size` is ever stored.

    A Feistel network permutes the next power of four; values that it sends outside range(size) go through it again
    until they fall inside (cycle walking: Black and Rogaway 2002), which keeps it one to one.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64(2**half - 1)
    round_keys = keys(6, seed, epoch)
    values = positions.astype(np.uint64)
    outside = np.ones(values.shape, bool)
    while outside.any():
        walking = values[outside]
        left, right = walking >> shift, walking & mask
        for key in round_keys:
            left, right = right, left ^ (mix(right + key) & mask)
        values[outside] = (left << shift) | right
        outside = values >= size
    return values.astype(np.int64)


def epoch_order(step: int, *, batch_size: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(epoch, item) of each row of a global batch: every item exactly once an epoch, batches may span epochs."""
    epochs, positions = np.divmod(step * batch_size + np.arange(batch_size), size)
    items = np.empty_like(positions)
    for epoch in np.unique(epochs).tolist():
        rows = epochs == epoch
        items[rows] = permute(positions[rows], size=size, seed=seed, epoch=epoch)
    return epochs, items


class WindowBatches:
    """Training batches of a split: windows of `context` tokens, each exactly once an epoch.

    An epoch's windows lie side by side; where the first begins changes from epoch to epoch, within what does not fill
    a window and one window more, so that a token is not always seen behind the same ones.
    """

    def __init__(self, split: Split, *, context: int, batch_size: int, seed: int) -> None:
        _check_length(split, context)
        self.split, self.context, self.batch_size, self.seed = split, context, batch_size, seed
        self.windows = max(1, (split.n_tokens - 1) // context - 1)  # an epoch's
        self.tokens_per_epoch = self.windows * context

    def epochs(self, step: int) -> float:
        """Epochs seen after `step` steps."""
        return step * self.batch_size / self.windows

    def starts(self, step: int) -> np.ndarray:
        """Position of the first input of each row of the global batch."""
        slack = self.split.n_tokens - 1 - self.tokens_per_epoch
        epochs, windows = epoch_order(step, batch_size=self.batch_size, size=self.windows, seed=self.seed)
        offsets = {epoch: int(keys(7, self.seed, epoch)[-1]) % (slack + 1) for epoch in set(epochs.tolist())}
        return np.array([offsets[epoch] for epoch in epochs.tolist()]) + windows * self.context

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """The rows of the global batch of a step (counted from 0): a function of (seed, step), whatever the ranks."""
        starts = self.starts(step)[rows]
        ids = np.empty((len(starts), self.context + 1), np.int64)
        for row, start in enumerate(starts.tolist()):
            ids[row] = self.split.tokens[start : start + self.context + 1]
        return Batch(ids[:, :-1].copy(), ids[:, 1:].copy())

    def supervised_tokens(self, step: int) -> int:
        """Targets that are not IGNORE in the global batch."""
        return self.batch_size * self.context

    def describe(self, step: int) -> str:
        """Where the batch comes from, for messages about it."""
        starts = self.starts(step).tolist()
        shown = [f"{self.split.document_at(start)} (token {start})" for start in starts[:8]]
        return f"windows of {self.context} tokens from {', '.join(shown)}{', ...' if len(starts) > 8 else ''}"


class WindowEvaluation:
    """The whole split once: windows side by side from the start, so that each token but the first is a target once."""

    def __init__(self, split: Split, *, context: int) -> None:
        if split.n_tokens < 2:
            raise InputError(f"{split.directory}: the {split.name} split is empty; add text")
        self.split, self.context = split, context
        self.n_bytes = split.n_bytes  # of the targets' text; an end token has none
        self.n_targets = split.n_tokens - 1

    def __len__(self) -> int:
        return -(-self.n_targets // self.context)

    def batch(self, start: int, stop: int) -> Batch:
        """Windows start..stop; beyond the last token inputs are 0 and targets IGNORE, so any range is a full batch."""
        inputs = np.zeros((stop - start, self.context), np.int64)
        targets = np.full_like(inputs, IGNORE)
        for row, window in enumerate(range(start, min(stop, len(self)))):
            ids = self.split.tokens[window * self.context : (window + 1) * self.context + 1]
            inputs[row, : len(ids) - 1], targets[row, : len(ids) - 1] = ids[:-1], ids[1:]
        return Batch(inputs, targets)


def _check_length(split: Split, context: int) -> None:
    if split.n_tokens < context + 1:
        raise InputError(
            f"{split.directory}: the {split.name} split has {split.n_tokens} tokens, fewer than "
            f"model.context + 1 = {context + 1}: set model.context={split.n_tokens - 1} or smaller, or add text"
        )
