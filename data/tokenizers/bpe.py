"""Byte-level byte pair encoding (BPE): training of a vocabulary, and a readable encoder that defines the ids.

Gage 1994; Sennrich et al. 2016 (arXiv:1508.07909); on bytes, Radford et al. 2019 (GPT-2). Text is first cut into
pretokens, roughly words (see pretokenize.py), and each pretoken is written as its UTF-8 bytes. Training then merges the
most frequent pair of adjacent tokens into a new token, again and again, until the vocabulary is full. No token crosses
a pretoken boundary. Encoding applies the learned merges to new text in the same order.

A vocabulary is a dict `ranks` from a token's bytes to its rank, which is also its id: 0 to 255 are the single bytes,
then come the merges in the order in which they were learned. For example:

    >>> ranks = train(["low lower lowest slow"], vocab_size=260)
    >>> list(ranks.items())[256:]  # "lo" and then "low" occur four times, " low" and then " lowe" twice
    [(b'lo', 256), (b'low', 257), (b' low', 258), (b' lowe', 259)]
    >>> encode("slower low", ranks)  # s, low, e, r, " low"
    [115, 257, 101, 114, 258]
"""

from __future__ import annotations

import base64
import heapq
import math
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from .. import InputError
from .pretokenize import Pattern, count_pretokens

SINGLE_BYTES = {bytes([byte]): byte for byte in range(256)}
MAX_VOCABULARY = 1_000_000  # learn_merges writes a token as one character, and Unicode ends at 1,114,112


def train(
    texts: Iterable[str], *, vocab_size: int, pattern: str = "gpt2", min_frequency: int = 1, workers: int = 0
) -> dict[bytes, int]:
    """Learns at most vocab_size tokens; fewer if no pair of adjacent tokens occurs min_frequency times.

    Returns the rank of each token. Among equally frequent pairs the one with the smaller ids is merged first, so the
    same text always gives the same tokens. Texts are read once and not kept; large amounts of text are counted by
    `workers` processes (0: one per CPU).
    """
    counts = count_pretokens(texts, Pattern(pattern), workers=workers)
    return learn_merges(counts, vocab_size=vocab_size, min_frequency=min_frequency)


def learn_merges(counts: dict[str, int], *, vocab_size: int, min_frequency: int = 1) -> dict[bytes, int]:
    """Learns tokens from pretokens, given the number of occurrences of each; see train.

    Inside, a token is written as the character whose code point is its id. A word (a pretoken, merged so far) is then a
    str and a pair of tokens is a str of length two, so that string methods do the work at the speed of C.
    """
    assert 256 <= vocab_size <= MAX_VOCABULARY and min_frequency >= 1, (vocab_size, min_frequency)
    ranks = dict(SINGLE_BYTES)
    tokens = list(ranks)  # tokens[i] is the token with id i
    words = [pretoken.encode().decode("latin-1") for pretoken in counts]
    occurrences = list(counts.values())
    pair_counts, words_with = _count_pairs(words, occurrences)

    # The heap is lazy: a pair whose count rises is pushed again; an entry whose count fell is corrected when popped.
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)

    def move_counts(old: str, new: str, indices: list[int]) -> None:
        """Updates the counts after the pair `old` has become the pair `new` in the words with these indices."""
        count = sum(map(occurrences.__getitem__, indices))
        pair_counts[old] -= count
        pair_counts[new] += count
        words_with[new] += indices
        heapq.heappush(heap, (-pair_counts[new], new))

    while heap and len(tokens) < vocab_size:
        negative, pair = heapq.heappop(heap)
        count = pair_counts[pair]
        if count != -negative:
            if 0 < count < -negative:
                heapq.heappush(heap, (-count, pair))
            continue
        if count < min_frequency:
            break
        # Two pairs can give the same bytes (ab+c and a+bc); the second one then joins the existing token.
        first, second = pair[0], pair[1]
        token = tokens[ord(first)] + tokens[ord(second)]
        merged = chr(ranks.setdefault(token, len(tokens)))
        if len(ranks) > len(tokens):
            tokens.append(token)

        by_left_neighbour: defaultdict[str, list[int]] = defaultdict(list)  # token -> indices of words; "" at the edge
        by_right_neighbour: defaultdict[str, list[int]] = defaultdict(list)
        for index in words_with.pop(pair):
            left, found, right = words[index].partition(pair)
            while found:
                words[index] = word = left + merged + right
                by_left_neighbour[left[-1:]].append(index)
                by_right_neighbour[right[:1]].append(index)
                left, found, right = word.partition(pair)
        for neighbour, indices in by_left_neighbour.items():
            if neighbour:
                move_counts(neighbour + first, neighbour + merged, indices)
        for neighbour, indices in by_right_neighbour.items():
            if neighbour:
                move_counts(second + neighbour, merged + neighbour, indices)
        del pair_counts[pair]
    return ranks


def _count_pairs(words: list[str], occurrences: list[int]) -> tuple[defaultdict[str, int], defaultdict[str, list[int]]]:
    """Returns the count of each pair of bytes, and the indices of the words that contain it.

    Entries may later become stale: an index can repeat, or refer to a word that no longer has the pair.
    """
    pair_counts: defaultdict[str, int] = defaultdict(int)
    words_with: defaultdict[str, list[int]] = defaultdict(list)
    text = np.frombuffer("".join(words).encode("latin-1"), np.uint8).astype(np.uint16)  # (n_bytes,)
    owner = np.repeat(np.arange(len(words), dtype=np.uint32), [len(word) for word in words])  # the word of each byte
    within = owner[1:] == owner[:-1]  # (n_bytes - 1,): the pair lies within one word
    codes, owner = (text[:-1] << 8 | text[1:])[within], owner[:-1][within]  # (n_pairs,): first byte * 256 + second
    order = np.argsort(codes, kind="stable")
    codes, owner = codes[order], owner[order]
    numbers = np.array(range(len(words)), object)  # one int object per index, shared by all lists
    borders = np.flatnonzero(codes[1:] != codes[:-1]) + 1
    for start, stop in pairwise([0, *borders.tolist(), len(codes)] if len(codes) else []):
        pair = chr(codes[start] >> 8) + chr(codes[start] & 255)
        words_with[pair] = numbers[owner[start:stop]].tolist()
        pair_counts[pair] = sum(map(occurrences.__getitem__, words_with[pair]))
    return pair_counts, words_with


def encode(text: str, ranks: dict[bytes, int], *, pattern: str = "gpt2") -> list[int]:
    """Encodes by the definition, one merge at a time. Slow; tests compare the fast encoder with it."""
    ids = []
    for pretoken in Pattern(pattern).pretokens(text):
        whole = pretoken.encode()
        # As in tiktoken, a pretoken that is a token needs no merges.
        tokens = [whole] if whole in ranks else [bytes([byte]) for byte in whole]
        while True:
            pairs = [left + right for left, right in pairwise(tokens)]
            best = min(pairs, key=lambda pair: ranks.get(pair, math.inf), default=b"")
            if best not in ranks:
                break
            place = pairs.index(best)
            tokens[place : place + 2] = [best]
        ids += [ranks[token] for token in tokens]
    return ids


def format_ranks(ranks: dict[bytes, int]) -> bytes:
    """Returns a ranks file in tiktoken's format: on each line a token's bytes in base64, a space, its rank."""
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


def parse_ranks(content: bytes, *, place: str, all_bytes: bool = True) -> dict[bytes, int]:
    """Parses a ranks file, ours or another program's. Raises InputError, which names the place and the line.

    all_bytes: refuses a file in which a single byte has no token.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
            if not 0 <= int(rank) < 2 * MAX_VOCABULARY:
                raise ValueError(rank)
        except ValueError:
            raise InputError(f"{place}:{number}: {line[:60]!r} is not a token in base64 and its rank") from None
        if len(ranks) != number:
            raise InputError(f"{place}:{number}: the token {line[:60]!r} is a duplicate")
    missing = all_bytes and not ranks.keys() >= SINGLE_BYTES.keys()
    if missing or b"" in ranks or len(set(ranks.values())) != len(ranks):
        raise InputError(f"{place}: not a ranks file: a single byte has no token, or two tokens have the same rank")
    return ranks
