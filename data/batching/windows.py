"""Windows of the token stream (packing=stream), and the interface of windows."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .. import InputError
from ..preparation.shards import Part, Split
from .order import keys

# (position of the first input, number of targets): inputs tokens[p : p + n], targets tokens[p + 1 : p + n + 1]
Piece = tuple[int, int]


class Windows(Protocol):
    """The windows of one part of a split, numbered from 0. A window is one row of a batch, made of pieces."""

    name: str  # of the part
    seed: int  # of the order of its windows

    def __len__(self) -> int: ...  # windows per epoch

    def pieces(self, epochs: np.ndarray, windows: np.ndarray) -> list[list[Piece]]: ...  # epochs, windows: (n,)

    def describe(self) -> str: ...  # one line for the user


class StreamWindows:
    """Adjacent windows of `context` targets, cut from the token stream across document boundaries.

    The first window starts at a random offset that differs from epoch to epoch, so the boundaries move and a token is
    seen in different contexts. There is one window fewer than would fit, so the offset varies over at least a window.

        stream      |e|document|e|document|e|document|e|
        epoch 0        [window][window][window]
        epoch 1      [window][window][window]
    """

    def __init__(self, split: Split, part: Part, *, context: int, seed: int) -> None:
        self.name, self.context, self.seed = part.name, context, seed
        self.first = max(1, part.start) - 1  # the first input: the end token before the part's first document
        targets = part.stop - self.first - 1
        if targets < context:
            raise InputError(
                f"{split.directory}: the {split.name} split of {part.name} has {targets + 1} tokens, fewer than "
                f"model.context + 1 = {context + 1}: set model.context={targets} or smaller, or add text"
            )
        self.count = max(1, targets // context - 1)
        self.slack = targets - self.count * context

    def __len__(self) -> int:
        return self.count

    def pieces(self, epochs: np.ndarray, windows: np.ndarray) -> list[list[Piece]]:
        """Returns the pieces of each window (n,) in its epoch (n,); here always one piece."""
        offsets = {epoch: int(keys(7, self.seed, epoch)[-1]) % (self.slack + 1) for epoch in set(epochs.tolist())}
        pairs = zip(epochs.tolist(), windows.tolist(), strict=True)
        return [[(self.first + offsets[epoch] + window * self.context, self.context)] for epoch, window in pairs]

    def describe(self) -> str:
        return f"stream of {self.name}: {len(self):,} windows of {self.context} tokens"
