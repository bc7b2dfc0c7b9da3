"""Byte-level byte pair encoding: how a vocabulary is learned from text, and a slow encoder to read and to test against.

The idea (Gage 1994; Sennrich et al. 2016; on bytes, Radford et al. 2019): text is cut into pieces, roughly words; each
piece starts as its UTF-8 bytes; again and again the most frequent pair of neighbours becomes one new token.
No token ever crosses the border of a piece. The vocabulary is a dict from a token's bytes to its rank: 0 to 255 are the
single bytes, then the merges in the order in which they were learned. A token's rank is also its id.
"""

from __future__ import annotations

import base64
import gc
import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from .. import InputError
from .pretokenize import Pattern, count

SINGLE_BYTES = {bytes([byte]): byte for byte in range(256)}
LARGEST_VOCABULARY = 1_000_000  # train() writes a token as one character, and Unicode ends at 1,114,112


def train(
    texts: Iterable[str], *, vocab_size: int, pattern: str = "gpt2", min_frequency: int = 1, workers: int = 0
) -> dict[bytes, int]:
    """Learn at most vocab_size tokens; fewer when no pair of neighbours occurs min_frequency times.

    Returns each token's bytes with its rank. Of equally frequent pairs the one with the smaller ids is merged first, so
    equal text gives equal tokens. Texts are read once and not kept; much text is counted by `workers` processes
    (0: as many as there are CPUs).
    """
    assert 256 <= vocab_size <= LARGEST_VOCABULARY and min_frequency >= 1, (vocab_size, min_frequency)
    return learn(count(texts, Pattern(pattern), workers=workers), vocab_size=vocab_size, min_frequency=min_frequency)


def learn(counts: dict[str, int], *, vocab_size: int, min_frequency: int = 1) -> dict[bytes, int]:
    """The same, of pieces of text that are counted already."""
    with _no_garbage_collection():
        return merge(counts, vocab_size=vocab_size, min_frequency=min_frequency)


def merge(counts: dict[str, int], *, vocab_size: int, min_frequency: int = 1) -> dict[bytes, int]:
    """Learn tokens from pieces of text, each with the number of its occurrences.

    A token is written as the character whose code point is its id. So a word is a str, a pair is a str of length two,
    and strings do the work at the speed of C.
    """
    ranks = dict(SINGLE_BYTES)
    token_of = list(ranks)
    words = [piece.encode().decode("latin-1") for piece in counts]
    occurrences = list(counts.values())
    pair_counts, words_with = _pairs(words, occurrences)

    # The heap is lazy: a count that rises is pushed again, one that falls stays until it surfaces and is found wrong.
    heap = [(-number, pair) for pair, number in pair_counts.items()]
    heapq.heapify(heap)

    def turn(old: str, new: str, indices: list[int]) -> None:
        """In these words, a pair has become another."""
        number = sum(map(occurrences.__getitem__, indices))
        pair_counts[old] -= number
        pair_counts[new] += number
        words_with[new] += indices
        heapq.heappush(heap, (-pair_counts[new], new))

    while heap and len(token_of) < vocab_size:
        negative, pair = heapq.heappop(heap)
        number = pair_counts[pair]
        if number != -negative:
            if 0 < number < -negative:
                heapq.heappush(heap, (-number, pair))
            continue
        if number < min_frequency:
            break
        # The same bytes can be learned from two pairs (ab+c, a+bc): the second joins the first token.
        first, second = pair[0], pair[1]
        token = token_of[ord(first)] + token_of[ord(second)]
        merged = chr(ranks.setdefault(token, len(token_of)))
        if len(ranks) > len(token_of):
            token_of.append(token)

        words_after: defaultdict[str, list[int]] = defaultdict(list)  # by the neighbour on the left, "" at the border
        words_before: defaultdict[str, list[int]] = defaultdict(list)  # by the one on the right
        for index in words_with.pop(pair):
            left, found, right = words[index].partition(pair)
            while found:
                words[index] = word = left + merged + right
                words_after[left[-1:]].append(index)
                words_before[right[:1]].append(index)
                left, found, right = word.partition(pair)
        for neighbour, indices in words_after.items():
            if neighbour:
                turn(neighbour + first, neighbour + merged, indices)
        for neighbour, indices in words_before.items():
            if neighbour:
                turn(second + neighbour, merged + neighbour, indices)
        del pair_counts[pair]
    return ranks


def _pairs(words: list[str], occurrences: list[int]) -> tuple[defaultdict[str, int], defaultdict[str, list[int]]]:
    """How often each pair of bytes occurs, and the indices of the words that have it.

    (Later an index may be there twice, or though its word has lost the pair.)
    """
    pair_counts: defaultdict[str, int] = defaultdict(int)
    words_with: defaultdict[str, list[int]] = defaultdict(list)
    text = np.frombuffer("".join(words).encode("latin-1"), np.uint8).astype(np.uint16)
    owner = np.repeat(np.arange(len(words), dtype=np.uint32), [len(word) for word in words])
    inside = owner[1:] == owner[:-1]
    codes, owner = (text[:-1] << 8 | text[1:])[inside], owner[:-1][inside]
    order = np.argsort(codes, kind="stable")
    codes, owner = codes[order], owner[order]
    del text, inside, order  # tens of megabytes, which the lists below need
    numbers = np.array(range(len(words)), object)  # one object for each index, wherever it occurs: millions of times
    borders = np.flatnonzero(codes[1:] != codes[:-1]) + 1
    for start, stop in pairwise([0, *borders.tolist(), len(codes)] if len(codes) else []):
        pair = chr(codes[start] >> 8) + chr(codes[start] & 255)
        words_with[pair] = numbers[owner[start:stop]].tolist()
        pair_counts[pair] = sum(map(occurrences.__getitem__, words_with[pair]))
    return pair_counts, words_with


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of small objects, all needed: to look through them for garbage takes a tenth of the time or more."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def encode(text: str, ranks: dict[bytes, int], *, pattern: str = "gpt2") -> list[int]:
    """Encode by the definition, one merge at a time: to be read, and to hold the fast encoder against."""
    ids = []
    for piece in Pattern(pattern).pieces(text):
        whole = piece.encode()
        parts = [whole] if whole in ranks else [bytes([byte]) for byte in whole]
        while True:
            pairs = [left + right for left, right in pairwise(parts)]
            best = min(pairs, key=lambda pair: ranks.get(pair, math.inf), default=b"")
            if best not in ranks:
                break
            place = pairs.index(best)
            parts[place : place + 2] = [best]
        ids += [ranks[part] for part in parts]
    return ids


def production_encoder(ranks: dict[bytes, int], pattern: Pattern) -> Any:
    """A tiktoken.Encoding, written in Rust, that does what `encode` does. InputError if it cannot read the pattern."""
    import tiktoken

    try:
        return tiktoken.Encoding("bpe", pat_str=pattern.source, mergeable_ranks=ranks, special_tokens={})
    except ValueError as error:  # its regular expressions are nearly, but not quite, those of `regex`
        reason = str(error).splitlines()[0]
        raise InputError(
            f"tokenizer.pattern={pattern.expression!r} is not one that tiktoken can read: {reason}"
        ) from None


def format_ranks(ranks: dict[bytes, int]) -> bytes:
    """The ranks in tiktoken's format: a line is a token's bytes in base64, a space, its rank."""
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


def parse_ranks(content: bytes, *, place: str) -> dict[bytes, int]:
    """Read what format_ranks wrote, or another program in that format. InputError names the place and the line."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
            if not 0 <= int(rank) < 2 * LARGEST_VOCABULARY:
                raise ValueError(rank)
        except ValueError:
            raise InputError(f"{place}:{number}: {line[:60]!r} is not a token in base64 and its rank") from None
        if len(ranks) != number:
            raise InputError(f"{place}:{number}: the token {line[:60]!r} is there a second time")
    if not ranks.keys() >= SINGLE_BYTES.keys() or b"" in ranks or len(set(ranks.values())) != len(ranks):
        raise InputError(f"{place}: not a ranks file: a single byte has no token, or two tokens have one rank")
    return ranks
