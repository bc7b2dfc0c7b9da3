"""Windows: rows of a batch as pieces of the token stream. Two kinds, and packing.

packing=stream     adjacent windows across document boundaries, with another offset each epoch
packing=documents  long documents are cut, and remainders are packed together:

    document A   [window][window][rem A]
    document B   [window][remain. B]                  ->  [window] [window] [window] [rem A|remain. B]
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .. import InputError
from ..preparation.shards import Part, Split
from .order import keys

SHORTEST_CONTEXT = 32  # that an error suggests; a shorter one would hold only a few words

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
            has = f"{split.directory}: the {split.name} split of {part.name} has {targets + 1} tokens"
            fix = f"set model.context={targets}" if targets >= SHORTEST_CONTEXT else "add text"
            raise InputError(f"{has}, fewer than model.context + 1 = {context + 1}: {fix}")
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


def pack(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Best-fit decreasing bin packing. Returns the bin of each item (n,), bins numbered from 0.

    Items are placed from the largest to the smallest, each in the fullest bin that still has room (Johnson et al.
    1974; for training text Ding et al. 2024). sizes (n,) are in 1..capacity. Items of the same size are placed
    together: the fullest bin takes as many of them as fit, since it stays the fullest. So the loop runs over the
    different sizes and rooms, and millions of items are fast.
    """
    bins = np.empty(len(sizes), np.int64)
    largest_first = np.argsort(-sizes, kind="stable")
    counts = np.bincount(sizes, minlength=capacity + 1)
    bins_by_room = [np.empty(0, np.int64)] * (capacity + 1)  # open bins, by the room left in them
    n_by_room = np.zeros(capacity + 1, np.int64)
    n_bins = placed = 0
    for size in range(capacity, 0, -1):
        items = largest_first[placed : placed + counts[size]]
        placed += len(items)
        if not len(items):
            continue
        for room in [*(size + np.flatnonzero(n_by_room[size:capacity])).tolist(), capacity]:
            per_bin = room // size
            needed = -(-len(items) // per_bin)
            if room == capacity:  # new bins
                chosen = np.arange(n_bins, n_bins + needed)
                n_bins += needed
            else:
                chosen, bins_by_room[room] = np.split(bins_by_room[room], [needed])
                n_by_room[room] = len(bins_by_room[room])
            now, items = items[: len(chosen) * per_bin], items[len(chosen) * per_bin :]
            bins[now] = np.repeat(chosen, per_bin)[: len(now)]
            in_last = len(now) - (len(chosen) - 1) * per_bin  # the last bin may get fewer
            for left, more in ((room - per_bin * size, chosen[:-1]), (room - in_last * size, chosen[-1:])):
                bins_by_room[left] = np.concatenate([bins_by_room[left], more])
                n_by_room[left] = len(bins_by_room[left])
            if not len(items):
                break
    return bins


class DocumentWindows:
    """The windows of the documents of a part, the same in every epoch.

    A document of n tokens has n + 1 targets: its tokens and its end token. Its first input is the end token before it.
    Whole windows are cut from its start; the remainder shares a window with other remainders. Every token of the
    split, except the end token that starts it, is a target exactly once per epoch, and nothing is cropped. The first
    target of a document's later window is predicted from one token only, the last of the window before.
    """

    def __init__(self, split: Split, part: Part, *, context: int, seed: int) -> None:
        self.name, self.context, self.seed = part.name, context, seed
        offsets = np.asarray(split.document_offsets, np.int64)
        first, last = np.searchsorted(offsets, [part.start, part.stop]).tolist()
        if first == last:
            raise InputError(f"{split.directory}: the {split.name} split of {part.name} has no document; add text")
        ends = np.append(offsets[first + 1 : last], offsets[last] if last < len(offsets) else split.n_tokens)
        self.doc_starts = offsets[first:last] - 1  # position of each document's first input: the end token before it
        whole, remainders = np.divmod(ends - offsets[first:last], context)  # windows, targets: each (documents,)
        self.windows_before = np.cumsum(np.append(0, whole))  # whole windows of all earlier documents
        with_remainder = np.flatnonzero(remainders)
        bins = pack(remainders[with_remainder], context)
        self.remainder_starts = (self.doc_starts + whole * context)[with_remainder]
        self.remainder_sizes = remainders[with_remainder].astype(np.int32)
        self.by_bin = np.argsort(bins, kind="stable").astype(np.int32)  # remainders, sorted by their bin
        self.bin_starts = np.cumsum(np.append(0, np.bincount(bins)))  # in by_bin
        self.documents, self.divided = last - first, int((whole + (remainders > 0) > 1).sum())
        self.targets = int((ends - offsets[first:last]).sum())

    def __len__(self) -> int:
        return int(self.windows_before[-1]) + len(self.bin_starts) - 1

    @property
    def utilization(self) -> float:
        """The fraction of positions in an epoch's windows that have a target; the others are padding."""
        return self.targets / (len(self) * self.context)

    def pieces(self, epochs: np.ndarray, windows: np.ndarray) -> list[list[Piece]]:
        """Returns the pieces of each window (n,); they do not depend on the epochs (n,)."""
        return [self._whole(window) if window < self.windows_before[-1] else self._packed(window) for window in windows]

    def _whole(self, window: int) -> list[Piece]:
        document = int(np.searchsorted(self.windows_before, window, side="right")) - 1
        in_document = int(window - self.windows_before[document])
        return [(int(self.doc_starts[document]) + in_document * self.context, self.context)]

    def _packed(self, window: int) -> list[Piece]:
        number = window - self.windows_before[-1]
        chosen = self.by_bin[self.bin_starts[number] : self.bin_starts[number + 1]]
        return list(zip(self.remainder_starts[chosen].tolist(), self.remainder_sizes[chosen].tolist(), strict=True))

    def describe(self) -> str:
        windows = f"documents of {self.name}: {self.documents:,} in {len(self):,} windows of {self.context} tokens"
        used = f"{self.utilization:.2%} used, {1 - self.utilization:.2%} padding; none cropped"
        return f"{windows}, {used}, {self.divided:,} longer than a window and divided"
