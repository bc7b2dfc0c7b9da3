"""Exact and near duplicates, within a split and across the splits.

Near duplicates (Broder 1997): the similarity of two documents is the Jaccard index of their shingles, the runs of three
words. In a random order of all shingles, two documents have the same first shingle with just that probability. So the
fraction of many random orders in which the first shingles agree estimates the similarity. A signature keeps one byte of
the first shingle in each of 256 orders (b-bit minwise hashing: Li and König 2010). To avoid comparing all pairs, only
signatures that agree in a whole band of bytes are compared (locality-sensitive hashing: Leskovec, Rajaraman and Ullman,
chapter 3). The package rensa computes the orders, numpy the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .. import InputError
from . import characters
from .curate import CurateConfig

SIGNATURE = 256  # bytes per document, one for each random order; they estimate similarity to about 0.03
MARGIN = 0.02  # above the wanted similarity, so that few documents are dropped by mistake
SHINGLE = 3  # words
MIN_SHINGLES = 8  # shorter documents are only compared for exact equality
PIECE = 250_000  # characters of a document that are hashed together
BLOCK = 1 << 16  # pairs that are compared together
NEIGHBOURS = 3  # earlier documents in a band to compare with, besides the first
FOUND_WITH = 0.95  # minimum probability that two documents of exactly the wanted similarity share a band
POWERS = np.cumprod(np.full(256, 0x9E3779B1, np.uint32), dtype=np.uint32)  # modulo 2**32


class Copy(NamedTuple):
    """A document whose text exists already."""

    rule: str  # duplicate, near duplicate; for training documents also: in validation, near copy in validation
    original: int  # position of the document that stays
    removed: bool  # False if its rule is off, so that it is only counted


def signature(text: str, config: CurateConfig) -> bytes | None:
    """Returns a document's signature: SIGNATURE bytes, all zero if it is too short; None if near_duplicates is off."""
    if not config.near_duplicates:
        return None
    try:
        from rensa import RMinHash
    except ImportError:
        message = "curate.near_duplicates=true needs the package rensa: pip install -e '.[curate]', or leave it false"
        raise InputError(message) from None
    minima = RMinHash.digest_matrix_from_flat_token_hashes
    lowest, shingles = np.full(SIGNATURE, 2**32 - 1, np.uint32), 0
    for start in range(0, len(text), PIECE):
        hashes = shingle_hashes(text[start : start + PIECE])
        if hashes.size:
            shingles += hashes.size
            (row,) = minima(hashes, np.array([0, hashes.size], np.uint64), SIGNATURE, 1).to_rows()
            lowest = np.minimum(lowest, np.array(row, np.uint32))
    return lowest.astype(np.uint8).tobytes() if shingles >= MIN_SHINGLES else bytes(SIGNATURE)


def shingle_hashes(text: str) -> np.ndarray:
    """Returns a hash for each run of three words, uint64 (n,); case and punctuation do not matter.

    A word is a run of letters, marks and digits, or one character of a script that is written without spaces.
    """
    points = characters.code_points(text.lower())
    kinds = characters.word_kinds()[points]  # 0 between words, 1 in a word, 2 a word by itself
    begins = kinds > 0
    begins[1:] &= (kinds[1:] == 2) | (kinds[:-1] != 1)
    starts = np.flatnonzero(begins)
    if starts.size < SHINGLE:
        return np.zeros(0, np.uint64)
    # A word's hash is a polynomial in its characters, with zeros for the characters up to the next word. A character's
    # index in its word is modulo 256 (uint8).
    first = starts[0]
    index = np.arange(first, points.size).astype(np.uint8)
    index -= np.repeat(starts.astype(np.uint8), np.diff(starts, append=points.size))
    terms = points[first:] * POWERS[index]
    terms *= kinds[first:] > 0
    words = _mix(np.add.reduceat(terms, starts - first).astype(np.uint64))
    return _mix(3 * words[:-2] + 5 * words[1:-1] + words[2:])


def duplicates(
    digests: np.ndarray, signatures: np.ndarray | None, is_val: np.ndarray, config: CurateConfig
) -> dict[int, Copy]:
    """Returns the documents that are copies: position -> Copy.

    digests: (N, 16 or more) uint8, a hash of each text. signatures: (N, SIGNATURE) uint8, or None to find only exact
    copies. is_val: (N,) bool. digests and signatures may be memory maps. Documents are compared in their order,
    validation before training, with the documents that stay: one that is only similar to a removed one stays.
    """
    order = np.argsort(~np.asarray(is_val, bool), kind="stable")  # rank in the comparison -> position
    found: dict[int, Copy] = {}
    gone: set[int] = set()  # positions of documents that are removed, or are exact copies
    in_training: dict[int, int] = {}  # validation document -> its first copy in training that stays

    def copy_of(original: int, copy: int, *, near: bool) -> Copy:
        if is_val[original] and not is_val[copy]:
            return Copy("near copy in validation" if near else "in validation", original, config.overlap)
        return Copy("near duplicate" if near else "duplicate", original, near or config.exact_duplicates)

    for first, position in exact_pairs(digests, order):
        found[position] = copy_of(first, position, near=False)
        if (
            config.exact_duplicates
            and not found[position].removed
            and in_training.setdefault(first, position) != position
        ):
            found[position] = copy_of(in_training[first], position, near=False)
        gone.add(position)
    if signatures is not None and len(order):
        for earlier, later in near_pairs(signatures, order, config.similarity):
            first, position = int(order[earlier]), int(order[later])
            if first not in gone and position not in gone:
                found[position] = copy_of(first, position, near=True)
                if found[position].removed:
                    gone.add(position)
        for position, copy in found.items():  # an exact copy that was kept is removed with its original
            if not copy.removed and copy.original in found and found[copy.original].removed:
                found[position] = copy_of(found[copy.original].original, position, near=True)
    return found


def exact_pairs(digests: np.ndarray, order: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields the positions (first, later) of documents with equal digests, in the given order."""
    keys = np.ascontiguousarray(digests[:, :16]).view("S16")[order, 0]
    _, firsts, inverse = np.unique(keys, return_index=True, return_inverse=True)
    first = firsts[inverse]
    later = np.flatnonzero(first != np.arange(len(order)))
    yield from zip(order[first[later]].tolist(), order[later].tolist(), strict=True)


def near_pairs(signatures: np.ndarray, order: np.ndarray, similarity: float) -> Iterator[tuple[int, int]]:
    """Yields (earlier, later) ranks of documents with at least this estimated similarity, sorted by the later one."""
    rows = band_rows(similarity)
    pair_codes = np.empty(0, np.int64)  # later * N + earlier, sorted and unique: most pairs share many bands
    for start in range(0, SIGNATURE - rows + 1, rows):
        pairs = _band_pairs(signatures[:, start : start + rows], signatures, order, similarity)
        pair_codes = np.union1d(pair_codes, pairs[:, 0] * len(order) + pairs[:, 1])
    for later, earlier in (divmod(code, len(order)) for code in map(int, pair_codes)):
        yield earlier, later


def band_rows(similarity: float) -> int:
    """Returns the largest band size (bytes) with which documents of this similarity share a band almost always."""
    rows = [r for r in range(1, 9) if 1 - (1 - similarity**r) ** (SIGNATURE // r) >= FOUND_WITH]
    return max(rows, default=1)


def _band_pairs(band: np.ndarray, signatures: np.ndarray, order: np.ndarray, similarity: float) -> np.ndarray:
    """Returns (later, earlier) ranks (n, 2) of documents that agree in a band and whose signatures are similar enough.

    Each document is compared with the first one that agrees and with the few before it. So the work per document is
    bounded even if a million documents agree in a band.
    """
    keys = np.zeros((len(order), 8), np.uint8)
    keys[:, : band.shape[1]] = band[order]
    numbers = keys.view(np.uint64)[:, 0]
    by_key = np.argsort(numbers, kind="stable")
    numbers = numbers[by_key]
    indices = np.arange(len(order))
    first = np.maximum.accumulate(np.where(np.append(True, numbers[1:] != numbers[:-1]), indices, 0))
    found = [np.empty((0, 2), np.int64)]
    for back in range(NEIGHBOURS + 1):  # 0: the first that agrees
        other = indices - back if back else first
        rows = np.flatnonzero((other > first if back else other < indices) & (other >= 0))
        for start in range(0, rows.size, BLOCK):
            block = rows[start : start + BLOCK]
            later, earlier = by_key[block], by_key[other[block]]
            one, two = signatures[order[later]], signatures[order[earlier]]
            # Corrected for the one byte in 256 that agrees by chance. All-zero signatures (too short) never match.
            equal = ((one == two).mean(axis=1) - 1 / 256) / (1 - 1 / 256)
            near = (equal >= min(1.0, similarity + MARGIN)) & one.any(axis=1)
            found.append(np.stack([later[near], earlier[near]], axis=1))
    return np.concatenate(found)


def _mix(values: np.ndarray) -> np.ndarray:
    """Scrambles uint64 one to one: the finalizer of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> 30)) * 0xBF58476D1CE4E5B9
    values = (values ^ (values >> 27)) * 0x94D049BB133111EB
    return values ^ (values >> 31)
