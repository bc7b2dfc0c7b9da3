"""Byte-level byte pair encoding: how a vocabulary is learned from text, and a slow encoder to read and to test against.

The idea (Gage 1994; Sennrich et al. 2016; on bytes, Radford et al. 2019): text is cut into pieces, roughly words; each
piece starts as its UTF-8 bytes; again and again the most frequent pair of neighbours becomes one new token.
No token ever crosses the border of a piece. The vocabulary is a dict from a token's bytes to its rank: 0 to 255 are the
single bytes, then the merges in the order in which they were learned. A token's rank is also its id.
"""

from __future__ import annotations

import base64
import heapq
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import regex

from . import InputError

SINGLE_BYTES = {bytes([byte]): byte for byte in range(256)}
LONGEST_RUN = 1024  # characters; see Pattern.segments
LARGEST_VOCABULARY = 1_000_000  # train() writes a token as one character, and Unicode ends at 1,114,112

PATTERNS = {
    # A contraction; letters, digits or other signs, each with at most one space before; white space, leaving one space
    # for what follows.
    "gpt2": r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # As above, but contractions in any case, any one sign glued to a word, digits in threes, line ends kept together.
    "gpt4": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s+(?![\s\S])|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
}
# White space as `regex` and tiktoken understand it. To Python's own `re`, \x1c to \x1f are white space as well.
SPACE, SOLID = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"
LONG_RUN = re.compile(rf"{SPACE}{{{LONGEST_RUN}}}|{SOLID}{{{LONGEST_RUN}}}")
# A piece of the gpt2 pattern never goes on from something solid into white space, so each stretch of white space and
# what follows it can be cut by itself. `re` finds these stretches several times faster than `regex` finds the pieces.
GPT2_STRETCH = re.compile(rf"{SPACE}*{SOLID}+|{SPACE}+\Z")


class Pattern:
    """The regular expression that cuts text into pieces: a name from PATTERNS, or an expression of one's own."""

    def __init__(self, name_or_expression: str) -> None:
        self.expression = PATTERNS.get(name_or_expression, name_or_expression)
        self.known = self.expression in PATTERNS.values()
        # Where an expression of one's own matches nothing, the next character is a piece by itself: no text is lost.
        self.source = self.expression if self.known else rf"{self.expression}|[\s\S]"
        try:
            self.compiled = regex.compile(self.source)
        except (regex.error, OverflowError, RecursionError) as error:
            raise InputError(f"tokenizer.pattern={self.expression!r} is not a regular expression: {error}") from None
        if self.compiled.match(""):
            raise InputError(f"tokenizer.pattern={self.expression!r} can match nothing at all: use + where it has *")

    def segments(self, text: str) -> list[str]:
        """Cut the text where a piece might be very long; nearly always the answer is the text itself.

        Encoding a piece can take time that grows with the square of its length, so a megabyte of one letter might take
        hours, and regular expressions give up on such a megabyte of spaces.
        Known patterns stop at white space: a run of either kind is cut after each LONGEST_RUN characters. An expression
        of one's own may not, so its pieces are measured. The cut is a function of the text alone.
        """
        if self.known:
            if len(text) <= LONGEST_RUN:
                return [text]
            cuts = [match.end() for match in LONG_RUN.finditer(text)]
        else:
            cuts, covered = [], 0
            for start, stop in (match.span() for match in self.compiled.finditer(text)):
                covered += stop - start
                if stop - start > LONGEST_RUN:
                    cuts += [*range(start, stop, LONGEST_RUN), stop]
                elif start == stop:
                    raise InputError(
                        f"tokenizer.pattern={self.expression!r} matches nothing at {text[start : start + 20]!r}"
                    )
            if covered != len(text):
                raise InputError(f"tokenizer.pattern={self.expression!r} leaves out some of the text")
        borders = [0, *cuts, len(text)]
        return [text[start:stop] for start, stop in pairwise(borders) if start < stop]

    def pieces(self, text: str) -> list[str]:
        """The pieces in their order; joined they are the text."""
        if self.known and len(text) <= LONGEST_RUN:
            return self.compiled.findall(text)
        # finditer, because findall returns the groups of an expression that has any.
        return [match[0] for segment in self.segments(text) for match in self.compiled.finditer(segment)]

    def count(self, texts: Iterable[str]) -> Counter[str]:
        """How often each piece occurs."""
        if self.expression != PATTERNS["gpt2"]:
            counts: Counter[str] = Counter()
            for text in texts:
                counts.update(self.pieces(text))
            return counts
        stretches: Counter[str] = Counter()
        for text in texts:
            stretches.update(GPT2_STRETCH.findall(text))
        pieces: defaultdict[str, int] = defaultdict(int)
        for stretch, count in stretches.items():
            for piece in self.pieces(stretch):
                pieces[piece] += count
        return Counter(pieces)


def train(texts: Iterable[str], *, vocab_size: int, pattern: str = "gpt2") -> dict[bytes, int]:
    """Learn at most vocab_size tokens; fewer when no piece has two neighbours left to merge.

    Returns each token's bytes with its rank. Of equally frequent pairs the one with the smaller ids is merged first, so
    equal text gives equal tokens.
    """
    assert 256 <= vocab_size <= LARGEST_VOCABULARY, vocab_size
    counts = Pattern(pattern).count(texts)
    ranks = dict(SINGLE_BYTES)
    token_of = list(ranks)

    # A token is written as the character whose code point is its id, so a word is a str, a pair is a str of length two,
    # and applying a merge is str.replace: left to right, without overlap, at the speed of C.
    words = [piece.encode().decode("latin-1") for piece in counts]
    word_counts = list(counts.values())
    pair_counts: defaultdict[str, int] = defaultdict(int)
    words_with: defaultdict[str, list[int]] = defaultdict(list)  # may name a word twice, or one that has changed since
    for index, word in enumerate(words):
        for pair in map(str.__add__, word, word[1:]):
            pair_counts[pair] += word_counts[index]
            words_with[pair].append(index)

    # The heap is lazy: a count that rises is pushed again, one that falls stays until it surfaces and is found wrong.
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    while heap and len(token_of) < vocab_size:
        negative, pair = heapq.heappop(heap)
        count = pair_counts[pair]
        if count != -negative:
            if 0 < count < -negative:
                heapq.heappush(heap, (-count, pair))
            continue
        # The same bytes can be learned from two pairs (ab+c, a+bc): the second joins the first token.
        token = token_of[ord(pair[0])] + token_of[ord(pair[1])]
        merged = chr(ranks.setdefault(token, len(token_of)))
        if len(ranks) > len(token_of):
            token_of.append(token)

        changes: defaultdict[str, int] = defaultdict(int)
        for index in words_with.pop(pair):
            before = words[index]
            after = before.replace(pair, merged)
            if before == after:
                continue
            words[index] = after
            count = word_counts[index]
            place = before.find(pair)
            if before.find(pair, place + 1) < 0:  # one place, the usual case: only its surroundings change
                first = max(place - 1, 0)
                before, after = before[first : place + 3], after[first : place + 2]
            for neighbours in map(str.__add__, before, before[1:]):
                changes[neighbours] -= count
            for neighbours in map(str.__add__, after, after[1:]):
                changes[neighbours] += count
                if merged in neighbours:
                    words_with[neighbours].append(index)
        for neighbours, change in changes.items():
            if change:
                pair_counts[neighbours] += change
                if change > 0:
                    heapq.heappush(heap, (-pair_counts[neighbours], neighbours))
        pair_counts.pop(pair, None)
    return ranks


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
