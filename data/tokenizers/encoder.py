"""Byte pair encoding in production: what has been met before is looked up by numpy, what is new is left to tiktoken.

Text is mostly the same few thousand words. So it is cut where any piece must end (see pretokenize.py), and the words
between the cuts, read as two numbers of 64 bits, are looked up in a table, all of a block of text at a time. tiktoken,
a program in Rust, encodes those that are not found there. The table has a fixed size: a new word takes the place of
an older one with the same hash.
"""

from __future__ import annotations

import string

import numpy as np

from ..pool import available_cpus
from . import bpe
from .pretokenize import PATTERNS, Pattern, batches

WORTH = 5_000  # characters; fewer go to tiktoken alone
BLOCK = 20_000  # words that are looked up at a time: enough for numpy, few enough for the processor's cache
LONGEST = 16  # bytes of a word that has a place in the table
SLOTS = 1 << 18  # of the table, a power of two
IDS = 1 << 20  # after so many, those of words that have lost their places too, the table begins anew
BORDER = b"\0"  # between texts; one that has it inside goes to tiktoken alone

# Which bits of the first and of the second eight bytes belong to a word, by its length.
LOW = np.array([(1 << 8 * min(length, 8)) - 1 for length in range(LONGEST + 1)], np.uint64)
HIGH = np.array([(1 << 8 * max(length - 8, 0)) - 1 for length in range(LONGEST + 1)], np.uint64)
FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)  # odd, and without a pattern


def _cuts(pattern: str) -> np.ndarray:
    """Between which two bytes any piece ends, as a table over left + 256 * right. All of them are ASCII."""
    space, line_end, letter, digit = " \t\n\v\f\r", "\r\n", string.ascii_letters, string.digits
    sign = string.punctuation
    pairs = [(letter, digit), (digit, letter), (letter + digit, sign)]
    if pattern == PATTERNS["gpt2"]:
        # An apostrophe may begin a contraction.
        pairs += [(letter + digit + sign, space), (sign.replace("'", ""), letter + digit)]
    else:
        # A sign takes line ends along, and a letter takes the sign before it.
        pairs += [(letter + digit + sign, " \t\v\f"), (letter + digit, line_end), (sign, digit)]
    table = np.zeros((256, 256), bool)
    for left, right in pairs:
        table[np.ix_([*right.encode()], [*left.encode()])] = True
    return table.ravel()


CUTS = {expression: _cuts(expression) for expression in PATTERNS.values()}
IS_SIGN, IS_LINE_END = (np.isin(np.arange(256), [*kind.encode()]) for kind in (string.punctuation, "\r\n"))


class Encoder:
    """Gives the ids that tiktoken gives with these ranks and this pattern, faster where there is much text."""

    def __init__(self, ranks: dict[bytes, int], pattern: Pattern) -> None:
        self.pattern = pattern
        self._tiktoken = bpe.production_encoder(ranks, pattern)
        self._cuts = CUTS.get(pattern.expression)
        self._table: _Table | None = None  # made when it is needed

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, as uint32."""
        cut = [[s for part in self.pattern.parts(text) for s in self.pattern.segments(part)] for text in texts]
        encoded = (ids for batch in batches(s for of_text in cut for s in of_text) for ids in self._batch(batch))
        found = [[next(encoded) for _ in of_text] for of_text in cut]
        return [ids[0] if len(ids) == 1 else np.concatenate(ids) for ids in found]

    def _batch(self, texts: list[str]) -> list[np.ndarray]:
        if sum(map(len, texts)) <= WORTH:
            return [np.array(self._tiktoken.encode_ordinary(text), np.uint32) for text in texts]
        if self._cuts is None or any("\0" in text for text in texts):
            found = self._tiktoken.encode_ordinary_batch(texts, num_threads=available_cpus())
            return [np.array(ids, np.uint32) for ids in found]
        return self._look_up(texts, self._cuts)

    def _look_up(self, texts: list[str], cuts: np.ndarray) -> list[np.ndarray]:
        contents = [text.encode() for text in texts]
        data = BORDER.join([*contents, bytes(LONGEST)])
        after = np.cumsum([len(content) + 1 for content in contents])  # where the next text begins
        begins = np.zeros(after[-1] + 1, bool)  # whether a word does, by place
        begins[1:] = cuts[np.ndarray(after[-1], "<u2", data, strides=(1,))]
        if self.pattern.expression == PATTERNS["gpt4"]:  # behind the line ends that a sign has taken along
            codes = np.frombuffer(data, np.uint8, after[-1] + 1)
            line_end = IS_LINE_END[codes]
            begins[2:] |= IS_SIGN[codes[:-2]] & line_end[1:-1] & ~line_end[2:]
        begins[0] = begins[after] = begins[after - 1] = True  # a border is a word by itself
        places = np.flatnonzero(begins)
        blocks = [self._block(data, places[at : at + BLOCK + 1]) for at in range(0, len(places) - 1, BLOCK)]
        ids, counts = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        ends = np.cumsum(counts)[np.searchsorted(places, after) - 1]
        return np.split(ids, ends[:-1])

    def _block(self, data: bytes, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the words between these places, all in a row, and how many each word has."""
        if self._table is None or self._table.used > IDS:
            self._table = _Table()
        table = self._table
        starts, lengths = places[:-1], np.diff(places)
        short = lengths <= LONGEST
        kept = np.where(short, lengths, 0)
        eights = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))  # the eight bytes from each place on
        low, high = eights[starts] & LOW[kept], eights[starts + 8 * short] & HIGH[kept]
        slots = table.slots(low, high)
        border = short & (low == 0)
        first, counts = table.first[slots], table.counts[slots]
        counts[border] = 0
        new = np.flatnonzero(~(short & (table.low[slots] == low) & (table.high[slots] == high) | border))
        if len(new):
            words: dict[bytes, int] = {}
            spans = zip(starts[new].tolist(), places[new + 1].tolist(), strict=True)
            numbers = [words.setdefault(data[start:stop], len(words)) for start, stop in spans]
            bounds = table.add([self._tiktoken.encode_ordinary(word.decode()) for word in words])
            first[new], counts[new] = bounds[numbers], np.diff(bounds)[numbers]
            stay = new[short[new]]
            into = slots[stay]
            table.low[into], table.high[into] = low[stay], high[stay]
            table.first[into], table.counts[into] = first[stay], counts[stay]
        ends = np.cumsum(counts)
        return table.ids[np.repeat(first - ends + counts, counts) + np.arange(ends[-1])], counts


class _Table:
    """Words by a hash of their bytes; for each slot the bytes, and which of `ids` are the word's."""

    def __init__(self) -> None:
        self.low, self.high = np.zeros((2, SLOTS), np.uint64)
        self.first, self.counts = np.zeros((2, SLOTS), np.int64)
        self.ids, self.used = np.zeros(IDS, np.uint32), 0

    def slots(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        mixed = low * FACTORS[0] ^ high * FACTORS[1]
        mixed = (mixed ^ mixed >> np.uint64(29)) * FACTORS[0]
        return (mixed >> np.uint64(65 - SLOTS.bit_length())).astype(np.int64)

    def add(self, found: list[list[int]]) -> np.ndarray:
        """Keeps the ids of several words; word i has those from bounds[i] to bounds[i + 1]."""
        bounds = self.used + np.cumsum([0, *map(len, found)])
        if bounds[-1] > len(self.ids):
            self.ids = np.concatenate([self.ids[: self.used], np.zeros(bounds[-1], np.uint32)])
        self.ids[self.used : bounds[-1]] = [token for ids in found for token in ids]
        self.used = int(bounds[-1])
        return bounds
