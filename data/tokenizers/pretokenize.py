"""Pre-tokenization: cuts text into pretokens before BPE merges, and counts how often each occurs in a corpus.

A token never crosses the border of a pretoken, so BPE training needs only the distinct pretokens with their counts:
about a hundred thousand in thirty megabytes. Finding them takes most of the training time, hence the fast paths here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice, pairwise

import regex

from .. import InputError
from ..pool import Pool, available_cpus

MAX_RUN = 1024  # characters; see Pattern.segments
BATCH = 500_000  # characters that a process counts at a time
MIN_POOL_BATCHES = 16  # from this many batches on, starting worker processes pays

PATTERNS = {
    # A contraction; letters, digits or other characters, each with at most one space before; white space, except one
    # space that goes with what follows.
    "gpt2": r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # The same, but contractions in upper case too, any one symbol before a word, digits in groups of at most
    # three, and line ends kept together.
    "gpt4": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s+(?![\s\S])|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
}


# White space as `regex` and tiktoken define it. Python's `re` also counts \x1c to \x1f as white space.
SPACE, NON_SPACE = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"
LONG_RUN = re.compile(rf"{SPACE}{{{MAX_RUN}}}|{NON_SPACE}{{{MAX_RUN}}}")
CHANGE = re.compile(rf"{SPACE}{NON_SPACE}|{NON_SPACE}{SPACE}")

# A span is text between two places where a pretoken ends in any context, so it can be cut into pretokens on its own.
# `re` finds spans several times faster than `regex` finds pretokens, and most spans occur many times.
# A gpt2 pretoken never continues from non-space into white space. A gpt4 pretoken can: symbols take the line ends after
# them along. So before line ends, a gpt4 span ends only after an ASCII letter or digit, and after ASCII symbols it
# includes them. After other characters, which `re` may classify differently, the span continues.
ALNUM, SYMBOL = "[0-9A-Za-z]", r"[!-/:-@\[-`{-~]"
SPANS = {
    PATTERNS["gpt2"]: re.compile(rf"{SPACE}*{NON_SPACE}+|{SPACE}+"),
    PATTERNS["gpt4"]: re.compile(
        rf"(?=[\s\S]){SPACE}*(?:{NON_SPACE}+(?<!{ALNUM})(?<!{SYMBOL})[\r\n]+{SPACE}*)*"
        rf"(?:{NON_SPACE}+(?:(?<={SYMBOL})[\r\n]+)?)?"
    ),
}
SAFE_CUT = re.compile(rf"{ALNUM}(?= )")  # a span ends here with both patterns


class Pattern:
    """The regular expression that cuts text into pretokens: a name from PATTERNS, or an expression of your own."""

    def __init__(self, name_or_expression: str) -> None:
        self.expression = PATTERNS.get(name_or_expression, name_or_expression)
        self.spans = SPANS.get(self.expression)  # None for an expression of your own: no fast path
        # Where such an expression matches nothing, the next character is a pretoken, so that no text is lost.
        self.source = self.expression if self.spans else rf"{self.expression}|[\s\S]"
        try:
            self.compiled = regex.compile(self.source)
        except (regex.error, OverflowError, RecursionError) as error:
            raise InputError(f"tokenizer.pattern={self.expression!r} is not a regular expression: {error}") from None
        if self.compiled.match(""):
            raise InputError(f"tokenizer.pattern={self.expression!r} can match an empty string: use + instead of *")

    def split_long(self, text: str) -> Iterator[str]:
        """Yields a long text in parts of about BATCH characters, cut where that does not change its pretokens."""
        start = 0
        while self.spans and len(text) - start > 2 * BATCH and (cut := SAFE_CUT.search(text, start + BATCH)):
            yield text[start : cut.end()]
            start = cut.end()
        yield text[start:]

    def segments(self, text: str) -> list[str]:
        """Cuts the text where a pretoken could be very long; for ordinary text, returns the text itself.

        The time to encode a pretoken can grow with the square of its length, so a megabyte of one letter could take
        hours, and regular expressions fail on a megabyte of spaces. With the known patterns, a run of white space or of
        non-space is cut after every MAX_RUN characters. With other expressions, the pretokens are measured and the long
        ones cut. The cuts depend only on the text.
        """
        if self.spans:
            # A run of MAX_RUN characters covers at least one whole block of half that length.
            half = MAX_RUN // 2
            if all(CHANGE.search(text, start, start + half) for start in range(0, len(text) - half + 1, half)):
                return [text]
            cuts = [match.end() for match in LONG_RUN.finditer(text)]
        else:
            cuts, covered = [], 0
            for start, stop in (match.span() for match in self.compiled.finditer(text)):
                covered += stop - start
                if stop - start > MAX_RUN:
                    cuts += [*range(start, stop, MAX_RUN), stop]
                elif start == stop:
                    raise InputError(
                        f"tokenizer.pattern={self.expression!r} matches an empty string at {text[start : start + 20]!r}"
                    )
            if covered != len(text):
                raise InputError(f"tokenizer.pattern={self.expression!r} leaves out some of the text")
        borders = [0, *cuts, len(text)]
        return [text[start:stop] for start, stop in pairwise(borders) if start < stop] or [text]

    def pretokens(self, text: str) -> list[str]:
        """Returns the pretokens in order; joined, they are the text."""
        if self.spans and len(text) <= MAX_RUN:
            return self.compiled.findall(text)
        # finditer: findall would return the groups of an expression that has any.
        return [match[0] for segment in self.segments(text) for match in self.compiled.finditer(segment)]


def count_batch(pattern: str, texts: Iterable[str]) -> dict[str, int]:
    """Returns the count of each pretoken in the texts. Counts spans first, if the pattern (a name or an expression) has
    them.
    """
    compiled, spans, pretokens = Pattern(pattern), Counter[str](), Counter[str]()
    if not compiled.spans:
        for text in texts:
            pretokens.update(compiled.pretokens(text))
        return pretokens
    for text in texts:
        for segment in compiled.segments(text):
            spans.update(compiled.spans.findall(segment))
    for span, count in spans.items():
        for pretoken in compiled.compiled.findall(span):
            pretokens[pretoken] = pretokens.get(pretoken, 0) + count
    return pretokens


def count_pretokens(texts: Iterable[str], pattern: Pattern, *, workers: int = 0) -> Counter[str]:
    """Returns the count of each pretoken in the texts, which are read once and not kept.

    Large amounts of text are counted by `workers` processes; 0: one per CPU.
    """
    total: Counter[str] = Counter()
    stream = batches(part for text in texts for part in pattern.split_long(text))
    first = list(islice(stream, MIN_POOL_BATCHES))
    with Pool((workers or available_cpus()) if len(first) == MIN_POOL_BATCHES else 1) as pool:
        for _, counts in pool.map(partial(count_batch, pattern.expression), chain(first, stream)):
            total.update(counts)
    return total


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yields the texts in lists of about BATCH characters."""
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
