"""Fertility: the number of tokens per word, for each script. Used to compare tokenizers."""

from __future__ import annotations

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


def words_of(text: str) -> np.ndarray:
    """Returns the words of a text: index in SCRIPTS, characters, start and stop in its UTF-8, int64 (words, 4)."""
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    offsets = np.append(0, np.cumsum(widths))
    found = [(SCRIPTS.index(match.lastgroup), *match.span()) for match in WORD.finditer(text)]
    scripts, start, stop = np.array(found, np.int64).reshape(-1, 3).T
    return np.stack([scripts, stop - start, offsets[start], offsets[stop]], axis=1)


def fertility(
    tokenizer: Tokenizer, words: list[np.ndarray], encoded: list[np.ndarray]
) -> dict[str, dict[str, int | float]]:
    """Returns the figures of each script, the most frequent first: its words and characters, the tokens that overlap
    its words, and the tokens per word and per character.

    words: words_of() each text. encoded: the ids of each text.
    """
    lengths = np.array([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)])
    totals = np.zeros((len(SCRIPTS), 3), np.int64)  # words, characters, tokens
    for (scripts, characters, start, stop), ids in zip((table.T for table in words), encoded, strict=True):
        tokens = characters  # of kind char: a token is one character, whatever an unknown one decodes to
        if tokenizer.kind != "char":
            ends = np.cumsum(lengths[ids])
            tokens = np.searchsorted(ends, stop - 1, side="right") - np.searchsorted(ends, start, side="right") + 1
        np.add.at(totals, scripts, np.stack([np.ones_like(start), characters, tokens], axis=1))
    found = {}
    for script in sorted(np.flatnonzero(totals[:, 0]).tolist(), key=lambda number: -totals[number, 1]):
        n_words, characters, tokens = totals[script].tolist()
        found[SCRIPTS[script]] = {
            "words": n_words,
            "characters": characters,
            "tokens": tokens,
            "per_word": tokens / n_words,
            "per_character": tokens / characters,
        }
    return found
