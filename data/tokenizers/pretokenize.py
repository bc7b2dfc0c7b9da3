"""How text is cut into pieces before byte pairs are merged, and how often each piece occurs in a corpus.

A token never crosses the border of a piece, so of a corpus only its different pieces matter, each with its count: of
thirty megabytes, a hundred thousand. Finding them is most of the time that training takes.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from itertools import chain, islice, pairwise

import regex

from .. import InputError
from ..pool import Pool, available_cpus

LONGEST_RUN = 1024  # characters; see Pattern.segments
BATCH = 500_000  # characters that a process counts at a time
WORTH_POOL = 16  # batches, from which on starting processes pays
REMEMBERED = 400_000  # stretches that a process counts before it cuts them into pieces

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


def compile_known(expression: str, flags: int = 0) -> re.Pattern[str]:
    """An expression of this file for Python's own `re`, which before 3.11.5 errs where a quantifier is possessive.

    Greedy ones find the same in these, and take a little longer.
    """
    possessive = sys.version_info >= (3, 11, 5)
    return re.compile(expression if possessive else re.sub(r"([?*+])\+", r"\1", expression), flags)


# White space as `regex` and tiktoken understand it. To Python's own `re`, \x1c to \x1f are white space as well.
SPACE, SOLID = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"
LONG_RUN = re.compile(rf"{SPACE}{{{LONGEST_RUN}}}|{SOLID}{{{LONGEST_RUN}}}")
CHANGE = re.compile(rf"{SPACE}{SOLID}|{SOLID}{SPACE}")

# A stretch is text between two places where any piece must end, whatever stands around it, so it can be cut by itself.
# `re` finds stretches several times faster than `regex` finds pieces, and most of them occur again and again.
# No piece of the gpt2 pattern goes on from something solid into white space. Of the gpt4 pattern one can: a sign takes
# the line ends behind it along. Before these a stretch ends only after an ASCII letter or digit, and after an ASCII
# sign it takes them along; of other characters `re` may not know whether they are letters: there the stretch goes on.
ALNUM, SIGN = "[0-9A-Za-z]", r"[!-/:-@\[-`{-~]"
STRETCHES = {
    PATTERNS["gpt2"]: compile_known(rf"{SPACE}*{SOLID}+|{SPACE}+"),
    PATTERNS["gpt4"]: compile_known(
        rf"(?=[\s\S]){SPACE}*+(?:{SOLID}++(?<!{ALNUM})(?<!{SIGN})[\r\n]++{SPACE}*+)*+"
        rf"(?:{SOLID}++(?:(?<={SIGN})[\r\n]++)?+)?+"
    ),
}
SAFE_CUT = re.compile(rf"{ALNUM}(?= )")  # here a stretch ends in both


class Pattern:
    """The regular expression that cuts text into pieces: a name from PATTERNS, or an expression of one's own."""

    def __init__(self, name_or_expression: str) -> None:
        self.expression = PATTERNS.get(name_or_expression, name_or_expression)
        self.stretches = STRETCHES.get(self.expression)  # None: nothing is known about this expression
        # Where an expression of one's own matches nothing, the next character is a piece by itself: no text is lost.
        self.source = self.expression if self.stretches else rf"{self.expression}|[\s\S]"
        try:
            self.compiled = regex.compile(self.source)
        except (regex.error, OverflowError, RecursionError) as error:
            raise InputError(f"tokenizer.pattern={self.expression!r} is not a regular expression: {error}") from None
        if self.compiled.match(""):
            raise InputError(f"tokenizer.pattern={self.expression!r} can match nothing at all: use + where it has *")

    def parts(self, text: str) -> Iterator[str]:
        """A long text in parts of about BATCH characters, where that makes no difference to its pieces."""
        start = 0
        while self.stretches and len(text) - start > 2 * BATCH and (cut := SAFE_CUT.search(text, start + BATCH)):
            yield text[start : cut.end()]
            start = cut.end()
        yield text[start:]

    def segments(self, text: str) -> list[str]:
        """Cut the text where a piece might be very long; nearly always the answer is the text itself.

        Encoding a piece can take time that grows with the square of its length, so a megabyte of one letter might take
        hours, and regular expressions give up on such a megabyte of spaces.
        Known patterns stop at white space: a run of either kind is cut after each LONGEST_RUN characters. An expression
        of one's own may not, so its pieces are measured. The cut is a function of the text alone.
        """
        if self.stretches:
            # A long run covers a whole block of half its length, in which nothing changes.
            half = LONGEST_RUN // 2
            if all(CHANGE.search(text, start, start + half) for start in range(0, len(text) - half + 1, half)):
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
        return [text[start:stop] for start, stop in pairwise(borders) if start < stop] or [text]

    def pieces(self, text: str) -> list[str]:
        """The pieces in their order; joined they are the text."""
        if self.stretches and len(text) <= LONGEST_RUN:
            return self.compiled.findall(text)
        # finditer, because findall returns the groups of an expression that has any.
        return [match[0] for segment in self.segments(text) for match in self.compiled.finditer(segment)]


class Counting:
    """Counts the pieces of text that comes bit by bit: stretches at first, if the pattern has them."""

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self.counts: Counter[str] = Counter()  # of stretches, or of pieces
        self.cut = self.cut_ascii = pattern.compiled.findall
        if pattern.stretches:  # in ASCII the pattern is short, and `re` is faster than `regex`
            plain = pattern.expression.replace(r"\p{L}\p{N}]", "A-Za-z0-9]").replace(r"\p{L}", "[A-Za-z]")
            self.cut_ascii = compile_known(plain.replace(r"\p{N}", "[0-9]"), re.ASCII).findall

    def add(self, texts: Iterable[str]) -> dict[str, int]:
        """Counts what is in the texts. When there is much to remember, finish's result, else nothing."""
        for text in texts:
            if self.pattern.stretches:
                for segment in self.pattern.segments(text):
                    self.counts.update(self.pattern.stretches.findall(segment))
            else:
                self.counts.update(self.pattern.pieces(text))
        return self.finish() if len(self.counts) > REMEMBERED else {}

    def finish(self) -> dict[str, int]:
        """How often each piece occurred since the last time."""
        counts, self.counts = self.counts, Counter()
        if not self.pattern.stretches:
            return counts
        pieces: dict[str, int] = {}
        for stretch, count in counts.items():
            for piece in (self.cut_ascii if stretch.isascii() else self.cut)(stretch):
                pieces[piece] = pieces.get(piece, 0) + count
        return pieces


def count(texts: Iterable[str], pattern: Pattern, *, workers: int = 0) -> Counter[str]:
    """How often each piece occurs in the texts, of which no more is held than is being counted.

    Much text is counted by `workers` processes; 0: as many as there are CPUs.
    """
    total: Counter[str] = Counter()
    stream = batches(part for text in texts for part in pattern.parts(text))
    beginning = list(islice(stream, WORTH_POOL))
    if len(beginning) < WORTH_POOL or (workers or available_cpus()) < 2:
        counting = Counting(pattern)
        for batch in chain(beginning, stream):
            _add(total, counting.add(batch))
        _add(total, counting.finish())
        return total
    with Pool(workers or available_cpus()) as pool:
        # Its processes take turns, so that each gets one None at the end, and then gives back what it still has.
        work = chain(beginning, stream, [None] * len(pool.workers))
        for _, counts in pool.map(partial(_count_there, pattern.expression), work):
            _add(total, counts)
    return total


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in lists of about BATCH characters."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _add(total: Counter[str], counts: dict[str, int]) -> None:
    for piece, count in counts.items():
        total[piece] += count


def _count_there(expression: str, texts: list[str] | None) -> dict[str, int]:
    """In a worker process: counts the texts, or gives back what was counted."""
    counting = _counting(expression)
    return counting.finish() if texts is None else counting.add(texts)


@lru_cache(maxsize=1)
def _counting(expression: str) -> Counting:
    return Counting(Pattern(expression))
