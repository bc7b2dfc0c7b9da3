"""Fast BPE encoding: looks up known text in a table with numpy, and leaves new text to tiktoken.

Most text repeats the same few thousand words. So text is cut into spans, at places where a pretoken ends in any context
(see pretokenize.py). Short spans, read as two 64-bit numbers, are looked up in a hash table, a whole block of text at a
time. tiktoken, which is written in Rust, encodes those that are not found. The table has a fixed size: a new span
replaces an older one with the same hash. A lock guards it, so that several threads can encode at the same time.
"""

from __future__ import annotations

import string
import threading
from typing import Any

import numpy as np

from .. import InputError
from ..pool import available_cpus
from .pretokenize import PATTERNS, Pattern, batches

MIN_LOOKUP = 5_000  # characters; shorter texts go to tiktoken
BLOCK = 20_000  # spans looked up at a time: enough for numpy to be fast, few enough for the CPU's cache
MAX_SPAN = 16  # bytes of a span that the table can hold
N_SLOTS = 1 << 18  # of the table, a power of two
MAX_IDS = 1 << 20  # when the table holds more ids than this, replaced spans included, a new table is started
SEPARATOR = b"\0"  # between texts; a text that contains it goes to tiktoken

# Masks for the first and the second eight bytes of a span, by its length.
LOW = np.array([(1 << 8 * min(length, 8)) - 1 for length in range(MAX_SPAN + 1)], np.uint64)
HIGH = np.array([(1 << 8 * max(length - 8, 0)) - 1 for length in range(MAX_SPAN + 1)], np.uint64)
HASH_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)  # odd, with irregular bits


def tiktoken_encoding(ranks: dict[bytes, int], pattern: Pattern) -> Any:
    """Returns a tiktoken.Encoding, which gives the ids of bpe.encode. InputError if it cannot read the pattern."""
    import tiktoken

    try:
        return tiktoken.Encoding("bpe", pat_str=pattern.source, mergeable_ranks=ranks, special_tokens={})
    except ValueError as error:  # its regular expressions are nearly, but not quite, those of `regex`
        reason = f"{str(error).splitlines()[0]}; simplify it"
        raise InputError(f"tokenizer.pattern={pattern.expression!r} is not supported by tiktoken: {reason}") from None


def _cut_table(pattern: str) -> np.ndarray:
    """True at left + 256 * right if a pretoken ends between these two bytes in any context. Covers only ASCII."""
    space, letter, digit, symbol = " \t\n\v\f\r", string.ascii_letters, string.digits, string.punctuation
    pairs = [(letter, digit), (digit, letter), (letter + digit, symbol)]
    if pattern == PATTERNS["gpt2"]:
        # Not after an apostrophe, which can start a contraction.
        pairs += [(letter + digit + symbol, space), (symbol.replace("'", ""), letter + digit)]
    else:
        # A symbol takes the line ends after it along, and a letter the symbol before it.
        pairs += [(letter + digit + symbol, " \t\v\f"), (letter + digit, "\r\n"), (symbol, digit)]
    table = np.zeros((256, 256), bool)
    for left, right in pairs:
        table[np.ix_([*right.encode()], [*left.encode()])] = True
    return table.ravel()


CUTS = {expression: _cut_table(expression) for expression in PATTERNS.values()}
IS_SYMBOL, IS_LINE_END = (np.isin(np.arange(256), [*kind.encode()]) for kind in (string.punctuation, "\r\n"))


class Encoder:
    """Gives the same ids as tiktoken with these ranks and this pattern, faster for large amounts of text."""

    def __init__(self, ranks: dict[bytes, int], pattern: Pattern) -> None:
        self.pattern = pattern
        self._tiktoken = tiktoken_encoding(ranks, pattern)
        self._cuts = CUTS.get(pattern.expression)
        self._table: _Table | None = None  # allocated at the first use
        self._lock = threading.Lock()  # guards the table; held for one block, so that no thread waits long

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the ids of each text, as uint32."""
        segments = [
            [s for part in self.pattern.split_long(text) for s in self.pattern.segments(part)] for text in texts
        ]
        encoded = (ids for batch in batches(s for of_text in segments for s in of_text) for ids in self._batch(batch))
        of_texts = [[next(encoded) for _ in of_text] for of_text in segments]
        return [ids[0] if len(ids) == 1 else np.concatenate(ids) for ids in of_texts]

    def encode_piece(self, piece: bytes) -> list[int]:
        """Returns the ids of one pretoken, which need not be UTF-8."""
        return self._tiktoken._encode_single_piece(piece)

    def _batch(self, texts: list[str]) -> list[np.ndarray]:
        if sum(map(len, texts)) <= MIN_LOOKUP:
            return [np.array(self._tiktoken.encode_ordinary(text), np.uint32) for text in texts]
        if self._cuts is None or any("\0" in text for text in texts):
            encoded = self._tiktoken.encode_ordinary_batch(texts, num_threads=available_cpus())
            return [np.array(ids, np.uint32) for ids in encoded]
        return self._look_up(texts, self._cuts)

    def _look_up(self, texts: list[str], cuts: np.ndarray) -> list[np.ndarray]:
        contents = [text.encode() for text in texts]
        data = SEPARATOR.join([*contents, bytes(MAX_SPAN)])
        ends = np.cumsum([len(content) + 1 for content in contents])  # of the texts, with their separators
        is_start = np.zeros(ends[-1] + 1, bool)  # is_start[i]: a span starts at byte i
        is_start[1:] = cuts[np.ndarray(ends[-1], "<u2", data, strides=(1,))]
        if self.pattern.expression == PATTERNS["gpt4"]:  # also after the line ends that a symbol takes along
            codes = np.frombuffer(data, np.uint8, ends[-1] + 1)
            line_end = IS_LINE_END[codes]
            is_start[2:] |= IS_SYMBOL[codes[:-2]] & line_end[1:-1] & ~line_end[2:]
        is_start[0] = is_start[ends] = is_start[ends - 1] = True  # a separator is a span of its own
        starts = np.flatnonzero(is_start)
        blocks = [self._block(data, starts[at : at + BLOCK + 1]) for at in range(0, len(starts) - 1, BLOCK)]
        ids, counts = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        id_ends = np.cumsum(counts)[np.searchsorted(starts, ends) - 1]
        return np.split(ids, id_ends[:-1])

    def _block(self, data: bytes, borders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids of all spans between these borders, concatenated, and the number of ids of each span."""
        with self._lock:
            return self._look_up_block(data, borders)

    def _look_up_block(self, data: bytes, borders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What _block returns; reads and fills the table, so the lock must be held."""
        if self._table is None or self._table.n_ids > MAX_IDS:
            self._table = _Table()
        table = self._table
        starts, lengths = borders[:-1], np.diff(borders)
        short = lengths <= MAX_SPAN
        masked = np.where(short, lengths, 0)
        words = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))  # words[i]: the eight bytes from byte i on
        low, high = words[starts] & LOW[masked], words[starts + 8 * short] & HIGH[masked]
        slots = table.slots(low, high)
        separator = short & (low == 0)
        first, counts = table.first[slots], table.counts[slots]
        counts[separator] = 0
        new = np.flatnonzero(~(short & (table.low[slots] == low) & (table.high[slots] == high) | separator))
        if len(new):
            distinct: dict[bytes, int] = {}
            limits = zip(starts[new].tolist(), borders[new + 1].tolist(), strict=True)
            numbers = [distinct.setdefault(data[start:stop], len(distinct)) for start, stop in limits]
            bounds = table.add([self._tiktoken.encode_ordinary(span.decode()) for span in distinct])
            first[new], counts[new] = bounds[numbers], np.diff(bounds)[numbers]
            kept = new[short[new]]
            into = slots[kept]
            table.low[into], table.high[into] = low[kept], high[kept]
            table.first[into], table.counts[into] = first[kept], counts[kept]
        ends = np.cumsum(counts)
        return table.ids[np.repeat(first - ends + counts, counts) + np.arange(ends[-1])], counts


class _Table:
    """A hash table of spans. Each slot holds a span's bytes (low, high) and its part of `ids` (first, counts)."""

    def __init__(self) -> None:
        self.low, self.high = np.zeros((2, N_SLOTS), np.uint64)
        self.first, self.counts = np.zeros((2, N_SLOTS), np.int64)
        self.ids, self.n_ids = np.zeros(MAX_IDS, np.uint32), 0

    def slots(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        mixed = low * HASH_FACTORS[0] ^ high * HASH_FACTORS[1]
        mixed = (mixed ^ mixed >> np.uint64(29)) * HASH_FACTORS[0]
        return (mixed >> np.uint64(65 - N_SLOTS.bit_length())).astype(np.int64)

    def add(self, encoded: list[list[int]]) -> np.ndarray:
        """Appends the ids of several spans. Returns bounds: span i has ids[bounds[i] : bounds[i + 1]]."""
        bounds = self.n_ids + np.cumsum([0, *map(len, encoded)])
        if bounds[-1] > len(self.ids):
            self.ids = np.concatenate([self.ids[: self.n_ids], np.zeros(bounds[-1], np.uint32)])
        self.ids[self.n_ids : bounds[-1]] = [token for ids in encoded for token in ids]
        self.n_ids = int(bounds[-1])
        return bounds
