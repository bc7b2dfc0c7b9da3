"""Characters: what kind each one is, which script it belongs to, and the traces of a wrong decoding."""

from __future__ import annotations

from functools import cache

import numpy as np
import regex

CLASSES = ("white space", "letters", "digits", "symbols", "control", "invisible")
WHITE_SPACE, LETTER, DIGIT, SYMBOL, CONTROL, INVISIBLE = range(6)
_MEMBERS = (  # a later one takes from an earlier one; what is left over is a symbol
    (LETTER, r"[\p{L}\p{M}]+"),
    (DIGIT, r"\p{N}+"),
    (INVISIBLE, r"[\p{Cf}\p{Co}\p{Cn}\p{Cs}]+"),
    (WHITE_SPACE, r"[\s\p{Z}]+"),
    (CONTROL, r"[\x00-\x08\x0e-\x1f\x7f-\x9f]+"),  # Cc without tabs, line ends and form feeds, which text has
)
WITHOUT_SPACES = "Han Hiragana Katakana Thai Lao Khmer Myanmar Tibetan".split()  # there a character counts as a word
SCRIPTS = (
    "Latin Greek Cyrillic Armenian Hebrew Arabic Syriac Thaana Devanagari Bengali Gurmukhi Gujarati Oriya Tamil Telugu "
    "Kannada Malayalam Sinhala Thai Lao Tibetan Myanmar Georgian Hangul Ethiopic Cherokee Khmer Mongolian Hiragana "
    "Katakana Bopomofo Han Coptic Tifinagh"
).split()

# UTF-8 that was read as Windows-1252 or Latin-1: the first byte's character, then those of 0x80 to 0xBF. Only the
# beginnings that are common in damaged text and rare in other: "CAFÉ»" is no damage, though its last two would decode.
_QUOTES = "‚„‘’“”‹›–—…•\xa0«»"
_LATER = "€ƒ†‡ˆ‰ŠŒŽ˜™šœžŸ\x80-\x9f¡-ª¬-º¼-¿"
_ANY = _LATER + _QUOTES
MOJIBAKE = regex.compile(
    rf"[ÂÃ][{_ANY}]|[ÄÅ][{_LATER}]|(?:[ÐÑ][{_ANY}]){{2,}}|(?:[ÎÏ][{_ANY}]){{2,}}|[âãï][{_ANY}]{{2}}|ð[{_ANY}]{{3}}|\ufffd"
)


def code_points(text: str) -> np.ndarray:
    """The characters of a text as numbers (uint32); lone surrogates too."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@cache
def classes() -> np.ndarray:
    """(0x110000,) uint8: for each code point its place in CLASSES."""
    return _table(_MEMBERS, otherwise=SYMBOL)


@cache
def word_kinds() -> np.ndarray:
    """(0x110000,) uint8: 1 for what words consist of, 2 for characters that are words by themselves, else 0."""
    alone = "".join(rf"\p{{Script={script}}}" for script in WITHOUT_SPACES)
    word = r"[\p{L}\p{M}\p{N}]"
    return _table(((1, word + "+"), (2, rf"(?:(?={word})[{alone}])+")), otherwise=0)


def _table(members: tuple[tuple[int, str], ...], *, otherwise: int) -> np.ndarray:
    table = np.full(0x110000, otherwise, np.uint8)
    everything = np.arange(0x110000, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    for number, pattern in members:
        for match in regex.finditer(pattern, everything):
            table[match.start() : match.end()] = number
    return table


_SCRIPT = regex.compile("|".join(rf"(?P<{script}>\p{{Script={script}}})" for script in SCRIPTS))


@cache
def script_of(character: str) -> str:
    """The script that a letter belongs to: one of SCRIPTS, or "other"."""
    match = _SCRIPT.match(character)
    return match.lastgroup if match and match.lastgroup else "other"


def mojibake(text: str) -> int:
    """How often a text shows damage of a wrong decoding: "Ã¼" for "ü", "â€™" for "’", U+FFFD for what was lost.

    An estimate: it knows the usual patterns, and now and then one of them is meant.
    """
    return 0 if text.isascii() else sum(1 for _ in MOJIBAKE.finditer(text))


def repaired(text: str) -> tuple[str, int]:
    """The text with UTF-8 that was read as Windows-1252 put right where that can be, and how often it was."""
    count = 0

    def repair(match: regex.Match) -> str:
        nonlocal count
        try:
            right = b"".join(map(_byte, match.group())).decode()
        except UnicodeError:
            return match.group()
        count += 1
        return right

    return (text, 0) if text.isascii() else (MOJIBAKE.sub(repair, text), count)


def _byte(character: str) -> bytes:
    """The byte that Windows-1252 shows as this character; Latin-1's where Windows-1252 has none."""
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1")
