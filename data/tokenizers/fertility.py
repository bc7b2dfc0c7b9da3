"""Fertility: the number of tokens per word, for each script. Used to compare tokenizers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import regex

from .base import Tokenizer

SCRIPTS = (
    *("Latin", "Greek", "Cyrillic", "Armenian", "Georgian", "Hebrew", "Arabic", "Ethiopic", "Devanagari", "Bengali"),
    *("Gurmukhi", "Gujarati", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Lao", "Tibetan"),
    *("Myanmar", "Khmer", "Mongolian", "Hangul", "Hiragana", "Katakana", "Han", "Other"),
)
# A word is a run of letters of one script, with their combining marks. Scripts not listed above count as one script.
WORD = regex.compile(
    "|".join(rf"(?P<{name}>(?:(?=\p{{Script={name}}})\p{{L}}\p{{M}}*)+)" for name in SCRIPTS[:-1])
    + r"|(?P<Other>(?:\p{L}\p{M}*)+?)"
)


@dataclass
class Words:
    """The words of a text, as arrays with one entry per word (except widths)."""

    widths: np.ndarray  # bytes of each character of the text
    scripts: np.ndarray  # indices in SCRIPTS
    characters: np.ndarray  # number of characters
    starts: np.ndarray  # positions in the UTF-8 text
    stops: np.ndarray

    @classmethod
    def from_text(cls, text: str) -> Words:
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
        offsets = np.concatenate([[0], np.cumsum(widths)])
        found = [(SCRIPTS.index(match.lastgroup), *match.span()) for match in WORD.finditer(text)]
        scripts, first, stop = np.array(found, np.int64).reshape(-1, 3).T
        return cls(widths, scripts, stop - first, offsets[first], offsets[stop])


@dataclass
class Fertility:
    """Number of words and characters of one script, and of the tokens that overlap them."""

    words: int
    characters: int
    tokens: int

    @property
    def per_word(self) -> float:
        return self.tokens / self.words

    @property
    def per_character(self) -> float:
        return self.tokens / self.characters


def fertility(tokenizer: Tokenizer, texts: list[Words], encoded: list[np.ndarray]) -> dict[str, Fertility]:
    """Returns the figures of each script in the texts, the most frequent first.

    encoded: the ids of each text.
    """
    lengths = np.array([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)])
    totals = np.zeros((len(SCRIPTS), 3), np.int64)  # words, characters, tokens
    for words, ids in zip(texts, encoded, strict=True):
        # In kind char a token is one character, whatever the bytes that an unknown one decodes to.
        ends = np.cumsum(words.widths if tokenizer.kind == "char" else lengths[ids])
        first, last = (np.searchsorted(ends, place, side="right") for place in (words.starts, words.stops - 1))
        for column, amount in enumerate((np.ones_like(first), words.characters, last - first + 1)):
            np.add.at(totals[:, column], words.scripts, amount)
    order = sorted((number for number in range(len(SCRIPTS)) if totals[number, 0]), key=lambda n: -totals[n, 1])
    return {SCRIPTS[number]: Fertility(*totals[number].tolist()) for number in order}
