"""Classes and scripts of characters, and mojibake: text that was decoded with a wrong encoding."""

from __future__ import annotations

from functools import cache

import numpy as np
import regex

CLASSES = ("white space", "letters", "digits", "symbols", "control", "invisible")
WHITE_SPACE, LETTER, DIGIT, SYMBOL, CONTROL, INVISIBLE = range(6)
_MEMBERS = (  # a later entry overrides an earlier one; all other characters are symbols
    (LETTER, r"[\p{L}\p{M}]+"),
    (DIGIT, r"\p{N}+"),
    (INVISIBLE, r"[\p{Cf}\p{Co}\p{Cn}\p{Cs}]+"),
    (WHITE_SPACE, r"[\s\p{Z}]+"),
    (CONTROL, r"[\x00-\x08\x0e-\x1f\x7f-\x9f]+"),  # Cc, except tabs, line ends and form feeds
)
WITHOUT_SPACES = "Han Hiragana Katakana Thai Lao Khmer Myanmar Tibetan".split()  # scripts: a character counts as a word
SCRIPTS = (
    "Latin Greek Cyrillic Armenian Hebrew Arabic Syriac Thaana Devanagari Bengali Gurmukhi Gujarati Oriya Tamil Telugu "
    "Kannada Malayalam Sinhala Thai Lao Tibetan Myanmar Georgian Hangul Ethiopic Cherokee Khmer Mongolian Hiragana "
    "Katakana Bopomofo Han Coptic Tifinagh"
).split()

# UTF-8 that was read as Windows-1252 or Latin-1: a first byte, then bytes 0x80 to 0xBF. Only first bytes that are
# common in mojibake and rare in real text: "CAFÉ»" is not mojibake, although its last two characters would decode.
_QUOTES = "‚„‘’“”‹›–—…•\xa0«»"
_LATER = "€ƒ†‡ˆ‰ŠŒŽ˜™šœžŸ\x80-\x9f¡-ª¬-º¼-¿"
_ANY = _LATER + _QUOTES
MOJIBAKE = regex.compile(
    rf"[ÂÃ][{_ANY}]|[ÄÅ][{_LATER}]|(?:[ÐÑ][{_ANY}]){{2,}}|(?:[ÎÏ][{_ANY}]){{2,}}|[âãï][{_ANY}]{{2}}|ð[{_ANY}]{{3}}|\ufffd"
)
# The control characters U+0080 to U+009F whose byte is a character in Windows-1252: all but five.
WINDOWS_1252 = {
    chr(byte): character for byte in range(0x80, 0xA0) if (character := bytes([byte]).decode("cp1252", "ignore"))
}
HIGH_CONTROLS = regex.compile(f"[{''.join(WINDOWS_1252)}]")


def code_points(text: str) -> np.ndarray:
    """Returns the code points of a text, uint32 (n,); lone surrogates are allowed."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@cache
def classes() -> np.ndarray:
    """Returns the index in CLASSES of each code point, uint8 (0x110000,)."""
    return _table(_MEMBERS, otherwise=SYMBOL)


@cache
def word_kinds() -> np.ndarray:
    """Returns a kind for each code point, uint8 (0x110000,): 1 in words, 2 a word by itself, 0 between words."""
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
    """Returns the script of a letter: one of SCRIPTS, or "other"."""
    match = _SCRIPT.match(character)
    return match.lastgroup if match and match.lastgroup else "other"


def count_mojibake(text: str) -> int:
    """Counts traces of mojibake: "Ã¼" for "ü", "â€™" for "’", U+FFFD for lost characters.

    An estimate: it knows the usual patterns, which are occasionally intended.
    """
    return 0 if text.isascii() else sum(1 for _ in MOJIBAKE.finditer(text))


def repair_mojibake(text: str) -> tuple[str, int]:
    """Decodes UTF-8 that was read as Windows-1252, and then Windows-1252 that was read as Latin-1.

    Returns (text, number of repairs). The second step turns U+0092, a control character, into ’, as browsers do.
    """
    count = 0

    def repair(match: regex.Match) -> str:
        nonlocal count
        try:
            repaired = b"".join(map(_byte, match.group())).decode()
        except UnicodeError:
            return match.group()
        count += 1
        return repaired

    if text.isascii():
        return text, 0
    text, n_controls = HIGH_CONTROLS.subn(lambda match: WINDOWS_1252[match.group()], MOJIBAKE.sub(repair, text))
    return text, count + n_controls


def _byte(character: str) -> bytes:
    """Returns a character's byte in Windows-1252, or in Latin-1 if Windows-1252 has none."""
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1")
