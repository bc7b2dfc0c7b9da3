"""Random order without state: a permutation that is computed where it is needed and stored nowhere.

The item at each position is a function of (seed, epoch, position), so a batch needs only the seed and the step number:

    row number     step * batch_size + r, for row r of the batch: one endless sequence of rows
    epoch          row number // size
    position       row number %  size
    item           permute(position, size, seed, epoch)

permute() must be one to one on range(size), or an epoch would repeat some items and miss others. A Feistel network has
this property for any round function. It splits a number into halves (left, right) and repeats

    left, right = right, left XOR f(right, key)

Each round can be undone (right is known, so f can be computed again and removed by XOR), so no two numbers meet. With
six rounds and a good mixing function f, the result looks random. The network works on numbers of an even number of
bits, so it permutes range(4**k), the next power of four. To stay in range(size), a result that is too large goes
through the network again until it is small enough ("cycle walking": Black and Rogaway 2002). This is still one to
one, because it follows the cycles of a permutation and only leaves out the numbers outside. On average it takes fewer
than four turns. For size = 5 (k = 2) and a network that maps 3 -> 12 -> 7 -> 1, position 3 gets item 1.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 6
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: SplitMix64's increment


def mix(values: np.ndarray) -> np.ndarray:
    """Scrambles uint64 one to one: the finalizer of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def keys(count: int, *numbers: int) -> np.ndarray:
    """Returns `count` pseudorandom uint64, a pure function of the numbers."""
    state = np.zeros(1, np.uint64)
    for number in numbers:
        state = mix(state + np.array([number % 2**64], np.uint64) + GOLDEN)
    return mix(state + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)


def permute(positions: np.ndarray, *, size: int, seed: int, epoch: int) -> np.ndarray:
    """Applies a random permutation of range(size) to positions (n,) and returns items (n,), int64.

    Memory and time depend on n only, not on `size`.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half_bits), np.uint64(2**half_bits - 1)
    round_keys = keys(ROUNDS, seed, epoch)
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


def epoch_order(rows: np.ndarray, *, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (epochs, items), each (n,), for row numbers (n,) in the endless sequence: each item once an epoch."""
    epochs, positions = np.divmod(rows, size)
    items = np.empty_like(positions)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        items[here] = permute(positions[here], size=size, seed=seed, epoch=epoch)
    return epochs, items
