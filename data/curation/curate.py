"""Curation: the rules by which documents, lines and characters are left out of a corpus, each of them counted.

Here are those that look at one document; data/duplicates.py compares documents with one another.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from fnmatch import translate
from typing import Any

import numpy as np
import regex

from . import characters

_CONTROL = regex.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]+")  # U+FEFF: byte order marks of files joined together


@dataclass
class CurateConfig:
    """What is left out of a corpus, or put right in it. A rule that is false or null is off; shares are 0 to 1."""

    exact_duplicates: bool = True  # drops documents whose text an earlier one has
    overlap: bool = True  # drops training documents that validation has too; near copies too where these are sought
    near_duplicates: bool = False  # drops documents that are nearly another's text; needs the extra `curate`
    similarity: float = 0.65  # how nearly: the share of runs of three words that both have; 0.65: 1 word in 13 differs
    min_characters: int | None = None  # drops shorter documents
    max_characters: int | None = None  # drops longer documents
    min_letters: float | None = None  # drops documents with a smaller share of letters among all but white space
    max_digits: float | None = None  # drops documents with a larger share of digits
    max_symbols: float | None = None  # drops documents with a larger share of what is neither letter nor digit
    max_repeated_lines: float | None = None  # drops documents with a larger share of lines that they had before
    max_mojibake: float | None = None  # drops documents with a larger share of characters like Ã¼, â€™ or U+FFFD
    repair_mojibake: bool = False  # makes ü of Ã¼ and ’ of â€™ again
    control_characters: bool = False  # removes control characters, but for tabs, line ends and form feeds
    # removes lines that match: a pattern like "*All rights reserved*", or a list of them
    drop_lines: Any = field(default=None, metadata={"kind": "pattern", "list": True})
    line_copies: int | None = None  # removes a line that a document has had this many times already

    def validate(self) -> list[str]:
        """Everything that is wrong with the settings, one line each."""
        found = []
        for name in ("min_letters", "max_digits", "max_symbols", "max_repeated_lines", "max_mojibake"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                found.append(f"curate.{name}={share} is a share: it must be 0 to 1, or null")
        if not 0.3 <= self.similarity <= 1:
            found.append(f"curate.similarity={self.similarity} must be 0.3 to 1: below that unlike documents are near")
        for name in ("min_characters", "max_characters", "line_copies"):
            number = getattr(self, name)
            if number is not None and number < 1:
                found.append(f"curate.{name}={number} must be at least 1, or null")
        if self.min_characters and self.max_characters and self.min_characters > self.max_characters:
            found.append(
                f"curate.min_characters={self.min_characters} is more than max_characters={self.max_characters}"
            )
        if not all(isinstance(pattern, str) and pattern.strip("*? \t") for pattern in self.patterns()):
            found.append(
                f"curate.drop_lines={self.drop_lines!r} must be a pattern, or a list of them, not of stars alone"
            )
        return found

    def patterns(self) -> list[str]:
        """drop_lines as a list."""
        return [self.drop_lines] if isinstance(self.drop_lines, str) else list(self.drop_lines or [])


Cleaned = dict[str, tuple[int, int]]  # rule -> how many characters or lines, and how many bytes they had


def clean(text: str, config: CurateConfig) -> tuple[str, Cleaned]:
    """The text without what the rules remove, and what that was: by rule, how many characters or lines, how many bytes.

    Of what is put right the bytes are those that the text became shorter by.
    """
    removed: Cleaned = {}
    if config.repair_mojibake:
        right, count = characters.repaired(text)
        if count:
            removed["repair_mojibake"] = count, _size(text) - _size(right)
            text = right
    if config.control_characters:
        without = _CONTROL.sub("", text)
        if len(without) < len(text):
            removed["control_characters"] = len(text) - len(without), _size(text) - _size(without)
            text = without
    if config.drop_lines or config.line_copies:
        text = _without_lines(text, config, removed)
    return text, removed


def _without_lines(text: str, config: CurateConfig, removed: Cleaned) -> str:
    pattern = regex.compile("|".join(map(translate, config.patterns()))) if config.drop_lines else None
    seen: Counter[str] = Counter()
    kept = []
    for line in text.splitlines(keepends=True):
        bare, rule = line.strip(), ""
        if pattern and bare and pattern.match(bare):
            rule = "drop_lines"
        elif config.line_copies and bare:
            seen[bare] += 1
            rule = "line_copies" if seen[bare] > config.line_copies else ""
        if rule:
            count, n_bytes = removed.get(rule, (0, 0))
            removed[rule] = count + 1, n_bytes + _size(line)
        else:
            kept.append(line)
    return "".join(kept)


def matching(text: str, patterns: list[str], config: CurateConfig) -> set[str]:
    """Those of some patterns of drop_lines that match a line of a text, as the rules before drop_lines leave it."""
    text, _ = clean(text, replace(config, drop_lines=None, line_copies=None))
    lines = {line.strip() for line in text.splitlines()}
    return {pattern for pattern in patterns if any(map(regex.compile(translate(pattern)).match, lines))}


def refuse(text: str, config: CurateConfig) -> str | None:
    """The rule by which a document, cleaned already, is dropped; None if it stays."""
    if not text or text.isspace():
        return "empty"
    if config.min_characters and len(text) < config.min_characters:
        return "min_characters"
    if config.max_characters and len(text) > config.max_characters:
        return "max_characters"
    if config.min_letters is not None or config.max_digits is not None or config.max_symbols is not None:
        letters, digits, symbols = class_shares(text)
        if config.min_letters is not None and letters < config.min_letters:
            return "min_letters"
        if config.max_digits is not None and digits > config.max_digits:
            return "max_digits"
        if config.max_symbols is not None and symbols > config.max_symbols:
            return "max_symbols"
    if config.max_repeated_lines is not None and repeated_lines(text) > config.max_repeated_lines:
        return "max_repeated_lines"
    if config.max_mojibake is not None and characters.mojibake(text) > config.max_mojibake * len(text):
        return "max_mojibake"
    return None


def class_shares(text: str) -> tuple[float, float, float]:
    """The shares of letters, of digits and of all else among the characters that are not white space."""
    counts = np.zeros(len(characters.CLASSES), np.int64)
    for start in range(0, len(text), 1_000_000):  # of a long document a part at a time
        kinds = characters.classes()[characters.code_points(text[start : start + 1_000_000])]
        counts += np.bincount(kinds, minlength=counts.size)
    total = max(1, int(counts.sum() - counts[characters.WHITE_SPACE]))
    letters, digits = counts[characters.LETTER] / total, counts[characters.DIGIT] / total
    others = counts.sum() - counts[[characters.WHITE_SPACE, characters.LETTER, characters.DIGIT]].sum()
    return float(letters), float(digits), float(others / total)


def repeated_lines(text: str) -> float:
    """The share of a document's lines, empty ones not counted, that it had before."""
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    return 1 - len(set(lines)) / len(lines) if lines else 0.0


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
