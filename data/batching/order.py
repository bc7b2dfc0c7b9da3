"""Random order without a state: permutations that are computed where they are needed, and nowhere stored."""

from __future__ import annotations

import numpy as np


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


def epoch_order(places: np.ndarray, *, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(epoch, item) of each place in an endless row of items: every item exactly once an epoch."""
    epochs, positions = np.divmod(places, size)
    items = np.empty_like(positions)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        items[here] = permute(positions[here], size=size, seed=seed, epoch=epoch)
    return epochs, items
