"""The curation rules that look at one document: drop it, or remove lines and characters from it.

duplicates.py has the rules that compare documents; removals.py counts the removals.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from fnmatch import translate
from typing import Any

import regex

from . import characters

_CONTROL = regex.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")  # U+FEFF: byte order marks of concatenated files


@dataclass
class CurateConfig:
    """What to remove from a corpus, or to repair in it. A rule that is false or null is off; shares are 0 to 1."""

    exact_duplicates: bool = True  # drop documents with the same text as an earlier one
    # drop training documents with the same text as a validation document; with near_duplicates also near copies
    overlap: bool = True
    near_duplicates: bool = False  # drop documents with nearly the text of an earlier one; needs the extra `curate`
    # for near_duplicates: share of runs of three words that two texts share; 0.65: about 1 word in 13 differs
    similarity: float = field(default=0.65, metadata={"needs": ("near_duplicates=true",)})
    min_characters: int | None = None  # drop shorter documents
    max_characters: int | None = None  # drop longer documents
    min_letters: float | None = None  # drop documents with a smaller share of letters (white space does not count)
    max_digits: float | None = None  # drop documents with a larger share of digits
    max_symbols: float | None = None  # drop documents with a larger share of characters that are not letters or digits
    max_repeated_lines: float | None = None  # drop documents with a larger share of repeated lines
    max_mojibake: float | None = None  # drop documents with more mojibake (Ã¼, â€™, U+FFFD) per character
    # repair text decoded with a wrong encoding: Ã¼ becomes ü; â€™ and U+0092 become ’
    repair_mojibake: bool = False
    control_characters: bool = False  # remove control characters, except tabs, line ends and form feeds
    # remove lines that match a pattern such as "*All rights reserved*", or one of a list
    drop_lines: Any = field(default=None, metadata={"kind": "pattern", "list": True})
    line_copies: int | None = None  # keep each line of a document at most this many times

    def validate(self) -> list[str]:
        """Returns the errors in the settings, one line each."""
        found = []
        shares = ("min_letters", "max_digits", "max_symbols", "max_repeated_lines", "max_mojibake")
        for name in (*shares, "min_characters", "max_characters", "line_copies"):
            value = getattr(self, name)
            if value is not None and name in shares and not 0 <= value <= 1:
                found.append(f"curate.{name}={value} must be between 0 and 1, or null")
            if value is not None and name not in shares and value < 1:
                found.append(f"curate.{name}={value} must be at least 1, or null")
        low, high = self.min_characters, self.max_characters
        if low and high and low > high:
            found.append(f"curate.min_characters={low} is more than max_characters={high}")
        if not 0.3 <= self.similarity <= 1:
            found.append(f"curate.similarity={self.similarity} must be between 0.3 (else different texts match) and 1")
        if not all(isinstance(pattern, str) and pattern.strip("*? \t") for pattern in self.patterns()):
            given = json.dumps(self.drop_lines)
            found.append(f"curate.drop_lines={given} must be a pattern or a list of patterns, with more than * and ?")
        return found

    def patterns(self) -> list[str]:
        """Returns drop_lines as a list."""
        return [self.drop_lines] if isinstance(self.drop_lines, str) else list(self.drop_lines or [])


Cleaned = dict[str, tuple[int, int]]  # rule -> (characters or lines, their bytes)


def clean(text: str, config: CurateConfig) -> tuple[str, Cleaned]:
    """Returns the cleaned text, and what the rules removed from it.

    For repaired mojibake, the bytes are the difference in the text's length.
    """
    removed: Cleaned = {}
    before = text
    if config.repair_mojibake:
        text, count = characters.repair_mojibake(text)
        if count:
            removed["repair_mojibake"] = count, _size(before) - _size(text)
    before = text
    if config.control_characters:
        text, count = _CONTROL.subn("", text)
        if count:
            removed["control_characters"] = count, _size(before) - _size(text)
    if config.drop_lines or config.line_copies:
        text = _without_lines(text, config, removed)
    return text, removed


def _without_lines(text: str, config: CurateConfig, removed: Cleaned) -> str:
    """Applies drop_lines and line_copies, and counts in `removed`."""
    pattern = regex.compile("|".join(map(translate, config.patterns()))) if config.drop_lines else None
    seen: Counter[str] = Counter()
    kept = []
    for line in text.splitlines(keepends=True):
        stripped, rule = line.strip(), ""
        if pattern and stripped and pattern.match(stripped):
            rule = "drop_lines"
        elif config.line_copies and stripped:
            seen[stripped] += 1
            rule = "line_copies" if seen[stripped] > config.line_copies else ""
        if rule:
            count, n_bytes = removed.get(rule, (0, 0))
            removed[rule] = count + 1, n_bytes + _size(line)
        else:
            kept.append(line)
    return "".join(kept)


def matching_patterns(text: str, patterns: list[str], config: CurateConfig) -> set[str]:
    """Returns the patterns of drop_lines that match a line of a text, after the rules that run before drop_lines."""
    text, _ = clean(text, replace(config, drop_lines=None, line_copies=None))
    lines = {line.strip() for line in text.splitlines()}
    return {pattern for pattern in patterns if any(map(regex.compile(translate(pattern)).match, lines))}


def refuse(text: str, config: CurateConfig) -> str | None:
    """Returns the rule that drops a cleaned document, or None if it stays."""
    if not text or text.isspace():
        return "empty"
    if config.min_characters and len(text) < config.min_characters:
        return "min_characters"
    if config.max_characters and len(text) > config.max_characters:
        return "max_characters"
    if config.min_letters is not None or config.max_digits is not None or config.max_symbols is not None:
        letters, digits, symbols = characters.class_shares(Counter(text))
        if config.min_letters is not None and letters < config.min_letters:
            return "min_letters"
        if config.max_digits is not None and digits > config.max_digits:
            return "max_digits"
        if config.max_symbols is not None and symbols > config.max_symbols:
            return "max_symbols"
    if config.max_repeated_lines is not None and _repeated_lines(text) > config.max_repeated_lines:
        return "max_repeated_lines"
    if config.max_mojibake is not None and characters.count_mojibake(text) > config.max_mojibake * len(text):
        return "max_mojibake"
    return None


def _repeated_lines(text: str) -> float:
    """Returns the share of a document's non-empty lines that repeat an earlier one."""
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    return 1 - len(set(lines)) / len(lines) if lines else 0.0


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
