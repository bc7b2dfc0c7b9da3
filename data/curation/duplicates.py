"""Duplicates: documents with the same text as another, or nearly the same, within a split and across the splits.

Near copies are found as Broder (1997) showed: two documents are as similar as the share of their shingles, runs of
three words, that both have (Jaccard); and of a random order of all shingles, the first one in either document is the
same with just that probability. A signature keeps one byte of that first shingle for each of 256 orders (Li and König
2010), so that 256 bytes stand for a document of any length. Signatures that agree in a whole band of bytes (Leskovec,
Rajaraman and Ullman, chapter 3) are compared in full. The orders are computed by rensa, the rest by numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .. import InputError
from . import characters
from .curate import CurateConfig

SIGNATURE = 256  # bytes a document, and random orders: they tell similarity to about 0.03
CAUTION = 0.02  # by which they must exceed it: better to keep a near copy than to drop what is none
SHINGLE = 3  # words
FEWEST = 8  # shingles: below it similarity says nothing, and a document is only compared as a whole
PIECE = 250_000  # characters of a document that are looked at together
BLOCK = 1 << 16  # pairs that are compared together
NEIGHBOURS = 3  # in a band's order, besides the first that agrees
FOUND_WITH = 0.95  # the least chance that two documents of just `similarity` meet in a band
POWERS = np.cumprod(np.full(256, 0x9E3779B1, np.uint32), dtype=np.uint32)  # wrapping, as all of this arithmetic does


class Copy(NamedTuple):
    """What is known of a document whose text is there already."""

    rule: str  # duplicate, near duplicate; in validation, near copy in validation: these are training documents
    of: int  # position of the document that stays
    removed: bool  # false where its rule is off: then it is only counted


def signature(text: str, config: CurateConfig) -> bytes | None:
    """What the search for near copies needs to know of a document: SIGNATURE bytes, all of them zero where it is too
    short to be compared; None where the search is off. Needs the package rensa."""
    if not config.near_duplicates:
        return None
    permuted = _rensa().RMinHash.digest_matrix_from_flat_token_hashes
    lowest, shingles = np.full(SIGNATURE, 2**32 - 1, np.uint32), 0
    for start in range(0, len(text), PIECE):
        hashes = shingle_hashes(text[start : start + PIECE])
        if hashes.size:
            shingles += hashes.size
            (row,) = permuted(hashes, np.array([0, hashes.size], np.uint64), SIGNATURE, 1).to_rows()
            lowest = np.minimum(lowest, np.array(row, np.uint32))
    return lowest.astype(np.uint8).tobytes() if shingles >= FEWEST else bytes(SIGNATURE)


def shingle_hashes(text: str) -> np.ndarray:
    """A uint64 for each run of three words, whatever their case and what stands between them.

    A word is a run of letters, marks and digits, or one character of a script that is written without spaces.
    """
    points = characters.code_points(text.lower())
    kinds = characters.word_kinds()[points]  # 0 between words, 1 in a word, 2 a word by itself
    begins = kinds > 0
    begins[1:] &= (kinds[1:] == 2) | (kinds[:-1] != 1)
    starts = np.flatnonzero(begins)
    if starts.size < SHINGLE:
        return np.zeros(0, np.uint64)
    # A word's hash is a polynomial in its characters; those between it and the next word count as zeros. A character's
    # place in its word is taken modulo 256, which is what uint8 does by itself.
    first = starts[0]
    place = np.arange(first, points.size).astype(np.uint8)
    place -= np.repeat(starts.astype(np.uint8), np.diff(starts, append=points.size))
    terms = points[first:] * POWERS[place]
    terms *= kinds[first:] > 0
    words = _scattered(np.add.reduceat(terms, starts - first).astype(np.uint64))
    return _scattered(3 * words[:-2] + 5 * words[1:-1] + words[2:])


def duplicates(
    digests: np.ndarray, signatures: np.ndarray | None, is_val: np.ndarray, config: CurateConfig
) -> dict[int, Copy]:
    """Which documents have their text, or nearly, from one that stays: position -> what is known of it.

    digests: (N, 16 or more) uint8, a hash of each text; signatures: (N, SIGNATURE) uint8, or None for exact copies
    alone; is_val: (N,) bool. Both arrays may be memory maps; beside them some 150 bytes a document are needed.
    Documents are taken in their order, validation before training; each is compared with those that stay, so what is
    near to what was removed, but not to anything that stays, stays too.
    """
    order = np.argsort(~np.asarray(is_val, bool), kind="stable")  # place in the order -> position
    found: dict[int, Copy] = {}
    gone: set[int] = set()  # places of documents that are removed, or have the very text of another
    in_training: dict[int, int] = {}  # of a text that validation has too, the first place in training, if it stays
    for earlier, later in exact_pairs(digests, order):
        copy = _copy("duplicate", int(order[earlier]), int(order[later]), is_val, config)
        if config.exact_duplicates and not copy.removed and in_training.setdefault(earlier, later) != later:
            copy = _copy("duplicate", int(order[in_training[earlier]]), int(order[later]), is_val, config)
        found[int(order[later])] = copy
        gone.add(later)
    if signatures is not None and len(order):
        for earlier, later in near_pairs(signatures, order, config.similarity):
            if earlier not in gone and later not in gone:
                copy = _copy("near", int(order[earlier]), int(order[later]), is_val, config)
                found[int(order[later])] = copy
                if copy.removed:
                    gone.add(later)
        for position, copy in found.items():  # what stays beside its equal goes with it
            if not copy.removed and (first := found.get(copy.of)) and first.removed:
                found[position] = _copy("near", first.of, position, is_val, config)
    return found


def _copy(kind: str, earlier: int, later: int, is_val: np.ndarray, config: CurateConfig) -> Copy:
    near = kind == "near"
    if is_val[earlier] and not is_val[later]:
        return Copy("near copy in validation" if near else "in validation", earlier, config.overlap)
    return Copy("near duplicate" if near else "duplicate", earlier, near or config.exact_duplicates)


def exact_pairs(digests: np.ndarray, order: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, other) places of documents with equal digests."""
    halves = np.ascontiguousarray(digests[:, :16]).view(np.uint64)[order]
    by_digest = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: among equal ones the first is first
    new = np.append(True, (halves[by_digest[1:]] != halves[by_digest[:-1]]).any(axis=1))[: len(order)]
    first = by_digest[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    again = np.sort(by_digest[~new])
    first_of = np.empty(len(order), np.int64)
    first_of[by_digest] = first
    yield from zip(first_of[again].tolist(), again.tolist(), strict=True)


def near_pairs(signatures: np.ndarray, order: np.ndarray, similarity: float) -> Iterator[tuple[int, int]]:
    """(earlier, later) places of documents whose signatures say that they are that similar, by the later one."""
    rows = band_rows(similarity)
    together = np.empty(0, np.int64)  # later * N + earlier, rising; most pairs meet in many bands
    for start in range(0, SIGNATURE - rows + 1, rows):
        pairs = _band_pairs(signatures[:, start : start + rows], signatures, order, similarity)
        together = np.union1d(together, pairs[:, 0] * len(order) + pairs[:, 1])
    for later, earlier in (divmod(code, len(order)) for code in map(int, together)):
        yield earlier, later


def band_rows(similarity: float) -> int:
    """How many bytes a band may have so that documents just that similar agree in one of the bands nearly always."""
    rows = [r for r in range(1, 9) if 1 - (1 - similarity**r) ** (SIGNATURE // r) >= FOUND_WITH]
    return max(rows, default=1)


def _band_pairs(band: np.ndarray, signatures: np.ndarray, order: np.ndarray, similarity: float) -> np.ndarray:
    """(later, earlier) of documents that agree in a band and, compared in full, are similar enough.

    Each is compared with the first that agrees and with the last few before it: in a band on which a million
    documents agree that is still only a few each.
    """
    keys = np.zeros((len(order), 8), np.uint8)
    keys[:, : band.shape[1]] = band[order]
    numbers = keys.view(np.uint64)[:, 0]
    by_key = np.argsort(numbers, kind="stable")
    numbers = numbers[by_key]
    places = np.arange(len(order))
    first = np.maximum.accumulate(np.where(np.append(True, numbers[1:] != numbers[:-1]), places, 0))
    found = [np.empty((0, 2), np.int64)]
    for back in range(NEIGHBOURS + 1):  # 0: the first that agrees
        other = places - back if back else first
        rows = np.flatnonzero((other > first if back else other < places) & (other >= 0))
        for start in range(0, rows.size, BLOCK):
            some = rows[start : start + BLOCK]
            later, earlier = by_key[some], by_key[other[some]]
            one, two = signatures[order[later]], signatures[order[earlier]]
            # Bytes that agree by chance, one in 256, are taken off. Documents that are too short agree in nothing.
            equal = ((one == two).mean(axis=1) - 1 / 256) / (1 - 1 / 256)
            near = (equal >= min(1.0, similarity + CAUTION)) & one.any(axis=1)
            found.append(np.stack([later[near], earlier[near]], axis=1))
    return np.concatenate(found)


def _scattered(values: np.ndarray) -> np.ndarray:
    """uint64 -> uint64 in which each bit depends on all: the finaliser of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> 30)) * 0xBF58476D1CE4E5B9
    values = (values ^ (values >> 27)) * 0x94D049BB133111EB
    return values ^ (values >> 31)


def _rensa():
    try:
        import rensa
    except ImportError:
        raise InputError(
            "curate.near_duplicates=true needs the package rensa: pip install -e '.[curate]', or leave it false"
        ) from None
    return rensa
