"""Documents in windows: each begins one, long ones are cut into whole windows, what is left over is packed."""

from __future__ import annotations

import numpy as np

from .. import InputError
from ..preparation.shards import Part, Split
from .windows import Piece


def pack(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Best-fit decreasing: the number of the bin that each item goes into, bins counted from 0.

    The largest item comes first, and each goes where it leaves the least room (Johnson et al. 1974; for training text
    Ding et al. 2024). Sizes (n,) are in 1..capacity, so items of a size are placed together: the tightest open bin
    takes as many of them as it can, for with each it becomes tighter still. That is fast for millions.
    """
    bins = np.empty(len(sizes), np.int64)
    largest_first = np.argsort(-sizes, kind="stable")
    counts = np.bincount(sizes, minlength=capacity + 1)
    open_bins = [np.empty(0, np.int64)] * (capacity + 1)  # those with this much room
    n_open = np.zeros(capacity + 1, np.int64)
    n_bins = placed = 0
    for size in range(capacity, 0, -1):
        items = largest_first[placed : placed + counts[size]]
        placed += len(items)
        if not len(items):
            continue
        for room in [*(size + np.flatnonzero(n_open[size:capacity])).tolist(), capacity]:
            each = room // size
            needed = -(-len(items) // each)
            if room == capacity:
                chosen = np.arange(n_bins, n_bins + needed)
                n_bins += needed
            else:
                chosen, open_bins[room] = np.split(open_bins[room], [needed])
                n_open[room] = len(open_bins[room])
            now, items = items[: len(chosen) * each], items[len(chosen) * each :]
            bins[now] = np.repeat(chosen, each)[: len(now)]
            in_last = len(now) - (len(chosen) - 1) * each
            for left, more in ((room - each * size, chosen[:-1]), (room - in_last * size, chosen[-1:])):
                open_bins[left] = np.concatenate([open_bins[left], more])
                n_open[left] = len(open_bins[left])
            if not len(items):
                break
    return bins


class DocumentWindows:
    """The windows that the documents of a part of a split make; every epoch the same ones.

    A document of n tokens has n + 1 targets: each of its tokens and the END behind it, the first predicted from the END
    before it. As many whole windows as they fill are cut from its beginning; the rest, shorter than a window, shares
    one with other rests. The first target of a later window is predicted from the token before it, and from nothing
    else. So every token of the split but the END that starts it is a target exactly once an epoch, and none is cropped.
    """

    def __init__(self, split: Split, part: Part, *, context: int, seed: int) -> None:
        self.name, self.context, self.seed = part.name, context, seed
        offsets = np.asarray(split.document_offsets, np.int64)
        first, last = np.searchsorted(offsets, [part.start, part.stop]).tolist()
        if first == last:
            raise InputError(f"{split.directory}: the {split.name} split of {part.name} has no document; add text")
        ends = np.append(offsets[first + 1 : last], offsets[last] if last < len(offsets) else split.n_tokens)
        self.starts = offsets[first:last] - 1  # the first input of each document: the END before it
        whole, rests = np.divmod(ends - offsets[first:last], context)
        self.windows_before = np.cumsum(np.append(0, whole))  # whole windows of the documents before each
        with_rest = np.flatnonzero(rests)
        bins = pack(rests[with_rest], context)
        self.rest_starts, self.rest_sizes = (
            (self.starts + whole * context)[with_rest],
            rests[with_rest].astype(np.int32),
        )
        self.by_bin = np.argsort(bins, kind="stable").astype(np.int32)
        self.bin_starts = np.cumsum(np.append(0, np.bincount(bins)))
        self.documents, self.divided = last - first, int((whole + (rests > 0) > 1).sum())
        self.targets = int((ends - offsets[first:last]).sum())

    def __len__(self) -> int:
        return int(self.windows_before[-1]) + len(self.bin_starts) - 1

    @property
    def utilisation(self) -> float:
        """The share of an epoch's window places that hold a token to learn; the others are padding."""
        return self.targets / (len(self) * self.context)

    def pieces(self, epochs: np.ndarray, windows: np.ndarray) -> list[list[Piece]]:
        """What each of these windows (n,) is made of, whatever its epoch (n,)."""
        return [self._whole(window) if window < self.windows_before[-1] else self._packed(window) for window in windows]

    def _whole(self, window: int) -> list[Piece]:
        document = int(np.searchsorted(self.windows_before, window, side="right")) - 1
        ahead = int(window - self.windows_before[document])
        return [(int(self.starts[document]) + ahead * self.context, self.context)]

    def _packed(self, window: int) -> list[Piece]:
        place = window - self.windows_before[-1]
        rests = self.by_bin[self.bin_starts[place] : self.bin_starts[place + 1]]
        return list(zip(self.rest_starts[rests].tolist(), self.rest_sizes[rests].tolist(), strict=True))

    def describe(self) -> str:
        return (
            f"documents of {self.name}: {self.documents:,} in {len(self):,} windows of {self.context} tokens, "
            f"{self.utilisation:.2%} used, {1 - self.utilisation:.2%} padding; none cropped (0 % of the tokens), "
            f"{self.divided:,} longer than a window and divided"
        )
