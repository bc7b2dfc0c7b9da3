"""Classes and scripts of characters, and mojibake: text that was decoded with a wrong encoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache

import numpy as np
import regex

CLASSES = ("white space", "letters", "digits", "symbols", "control", "invisible")
_CLASS = regex.compile(  # the first that matches; all other characters are symbols
    r"(?P<control>[\x00-\x08\x0e-\x1f\x7f-\x9f])"  # Cc, except tabs, line ends and form feeds
    r"|(?P<space>[\s\p{Z}])|(?P<invisible>[\p{Cf}\p{Co}\p{Cn}\p{Cs}])|(?P<digits>\p{N})|(?P<letters>[\p{L}\p{M}])"
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
def word_kinds() -> np.ndarray:
    """Returns a kind for each code point, uint8 (0x110000,): 1 in words, 2 a word by itself, 0 between words."""
    table = np.zeros(0x110000, np.uint8)
    everything = np.arange(0x110000, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    alone = "".join(rf"\p{{Script={script}}}" for script in WITHOUT_SPACES)
    for match in regex.finditer(r"[\p{L}\p{M}\p{N}]+", everything):
        table[match.start() : match.end()] = 1
    for match in regex.finditer(rf"[{alone}]+", everything):
        table[match.start() : match.end()] *= 2
    return table


@cache
def class_of(character: str) -> str:
    """Returns the class of a character, one of CLASSES."""
    match = _CLASS.match(character)
    return "symbols" if match is None else (match.lastgroup or "").replace("space", "white space")


def class_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """Returns the number of characters in each of CLASSES, for a text's counts by character."""
    found = dict.fromkeys(CLASSES, 0)
    for character, count in counts.items():
        found[class_of(character)] += count
    return found


def class_shares(counts: Mapping[str, int]) -> tuple[float, float, float]:
    """Returns the shares of letters, digits and all others among the characters that are not white space."""
    found = class_counts(counts)
    visible = sum(found.values()) - found["white space"]
    letters, digits = found["letters"], found["digits"]
    return letters / max(1, visible), digits / max(1, visible), (visible - letters - digits) / max(1, visible)


_SCRIPT = regex.compile("|".join(rf"(?P<{script}>\p{{Script={script}}})" for script in SCRIPTS))


@cache
def script_of(character: str) -> str:
    """Returns the script of a letter: one of SCRIPTS, or "other"."""
    match = _SCRIPT.match(character)
    return match.lastgroup if match and match.lastgroup else "other"


def letters_by_script(counts: Mapping[str, int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for character, count in counts.items():
        if class_of(character) == "letters":
            found[script_of(character)] += count
    return found


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
