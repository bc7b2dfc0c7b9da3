"""A suffix array over token ids: every place where a run of ids occurs, by binary search."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable

import numpy as np

FIRST_LOOK = 64  # ids of a text that are compared with the corpus at first


def suffix_array(ids: np.ndarray) -> np.ndarray:
    """ids (n,), not negative -> the positions (n,) of all suffixes in lexicographic order; a prefix comes first.

    Prefix doubling (Manber and Myers 1993): suffixes that are sorted by their first k ids are sorted by 2 k with the
    rank of the suffix k further on as a second key. It starts from as many ids as fit 64 bits, and after that sorts
    only suffixes whose place is still open (Larsson and Sadakane 2007): in ordinary text few are after 16 ids.
    """
    n = len(ids)
    assert n < 2**31, n
    if n == 0:
        return np.empty(0, np.int64)
    bits = (int(ids.max()) + 1).bit_length()  # 0 stands for the end, before every id
    k = 64 // bits
    padded = np.zeros(n + k, np.uint64)
    padded[:n] = ids
    padded[:n] += 1
    keys = np.zeros(n, np.uint64)
    for offset in range(k):
        keys = (keys << np.uint64(bits)) | padded[offset : offset + n]
    order = np.argsort(keys)
    starts = _group_starts(keys[order])
    ranks = np.empty(n + 1, np.int64)  # the first place in the order of the suffixes that are equal so far
    ranks[order], ranks[n] = starts, -1
    places = _open(starts, np.arange(n))
    while len(places):
        suffixes = order[places]
        first, second = ranks[suffixes], ranks[np.minimum(suffixes + k, n)]
        sort = np.argsort((first << 32) + (second + 1))
        suffixes, first, second = suffixes[sort], first[sort], second[sort]
        order[places] = suffixes
        starts = places[_group_starts(first, second)]
        ranks[suffixes] = starts
        places = _open(starts, places)
        k *= 2
    return order


def _group_starts(*keys: np.ndarray) -> np.ndarray:
    """sorted keys (m,) each -> for each entry, the index of the first entry that is equal to it in all keys."""
    changes = np.zeros(len(keys[0]), bool)
    for key in keys:
        changes[1:] |= key[1:] != key[:-1]
    return np.maximum.accumulate(np.where(changes, np.arange(len(changes)), 0))


def _open(starts: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Returns the places whose suffix shares its group with another. starts, places (m,), in order."""
    same = np.zeros(len(starts) + 1, bool)
    same[1:-1] = starts[1:] == starts[:-1]
    return places[same[1:] | same[:-1]]


class Index:
    """Finds runs of ids in `ids` (n,). Memory: the ids twice and 8 bytes per id."""

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = np.asarray(ids)
        self.order = suffix_array(self.ids)
        # Big-endian bytes compare as the ids do, at the speed of memcmp.
        self.dtype = np.dtype(f">u{max(2, self.ids.dtype.itemsize)}")
        self._bytes = self.ids.astype(self.dtype).tobytes()

    def _prefix(self, n_bytes: int) -> Callable[[int], bytes]:
        """Returns the function that gives the first `n_bytes` of the suffix at a position."""
        width, content = self.dtype.itemsize, self._bytes
        return lambda position: content[position * width : position * width + n_bytes]

    def places(self, run: np.ndarray) -> np.ndarray:
        """Returns every position at which the run of ids occurs, in increasing order."""
        wanted = np.asarray(run).astype(self.dtype).tobytes()
        prefix = self._prefix(len(wanted))
        low = bisect_left(self.order, wanted, key=prefix)
        return np.sort(self.order[low : bisect_right(self.order, wanted, lo=low, key=prefix)])

    def match_lengths(self, text: np.ndarray) -> np.ndarray:
        """text (m,) -> for each position, the length of the longest run that starts there and occurs in `ids`."""
        lengths = np.zeros(len(text), np.int64)
        content = np.asarray(text).astype(self.dtype)
        for start in range(len(text)):
            looked_at = FIRST_LOOK  # ids; more if all of them match
            while True:
                run = content[start : start + looked_at]
                lengths[start] = self._longest_match(run)
                if lengths[start] < looked_at or start + looked_at >= len(text):
                    break
                looked_at *= 2
        return lengths

    def _longest_match(self, run: np.ndarray) -> int:
        """Returns the length of the longest beginning of the run that occurs in `ids`."""
        wanted = run.tobytes()
        place = bisect_left(self.order, wanted, key=self._prefix(len(wanted)))
        # The suffixes that have most in common with the run are the neighbours of the place where it belongs.
        near = self.order[max(0, place - 1) : place + 1].tolist()
        return max((self._common(run, position) for position in near), default=0)

    def _common(self, run: np.ndarray, position: int) -> int:
        """Returns how many ids a run has in common with those at a position of the corpus."""
        other = self.ids[position : position + len(run)]
        different = np.flatnonzero(run[: len(other)] != other)
        return int(different[0]) if len(different) else len(other)
