"""Windows of the continuous stream: where each of them begins, in every epoch anew."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .. import InputError
from ..preparation.shards import Part, Split
from .order import keys

Piece = tuple[int, int]  # the position of its first input, and how many targets follow, each one token behind its input


class Windows(Protocol):
    """The windows that one part of a split makes, a number for each."""

    name: str  # the part's
    seed: int  # of their order

    def __len__(self) -> int: ...  # an epoch's

    def pieces(self, epochs: np.ndarray, windows: np.ndarray) -> list[list[Piece]]: ...  # each (n,)

    def describe(self) -> str: ...  # a line for the user


class StreamWindows:
    """The windows of `context` targets that lie side by side in a part of a split, documents one after the other.

    Where the first begins changes from epoch to epoch, within what does not fill a window and one window more, so that
    a token is not always seen behind the same ones.
    """

    def __init__(self, split: Split, part: Part, *, context: int, seed: int) -> None:
        self.name, self.context, self.seed = part.name, context, seed
        self.first = max(1, part.start) - 1  # the END before the part's first document is its first input
        targets = part.stop - self.first - 1
        if targets < context:
            raise InputError(
                f"{split.directory}: the {split.name} split of {part.name} has {targets + 1} tokens, fewer than "
                f"model.context + 1 = {context + 1}: set model.context={targets} or smaller, or add text"
            )
        self.count = max(1, targets // context - 1)  # an epoch's
        self.slack = targets - self.count * context

    def __len__(self) -> int:
        return self.count

    def pieces(self, epochs: np.ndarray, windows: np.ndarray) -> list[list[Piece]]:
        """What each of these windows (n,) is made of in its epoch (n,): one piece."""
        offsets = {epoch: int(keys(7, self.seed, epoch)[-1]) % (self.slack + 1) for epoch in set(epochs.tolist())}
        pairs = zip(epochs.tolist(), windows.tolist(), strict=True)
        return [[(self.first + offsets[epoch] + window * self.context, self.context)] for epoch, window in pairs]

    def describe(self) -> str:
        return f"windows of {self.context} tokens of {self.name}, side by side: {len(self):,}"
