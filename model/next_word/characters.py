"""The class of a character for the word machine: Unicode's property Word_Break (UAX #29), with a few changes.

Most classes follow from the general category in unicodedata; the tables below hold the exceptions, from Unicode 18. A
test compares all characters with the `regex` package. README.md lists the changes.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

# Hexadecimal code points and ranges.
EXCEPTIONS = {
    "mid_letter": "B7 387 55F 5F4 2027",  # may join two letters; without the colon
    "mid_number": "2C 2E 3B 37E 589 60C-60D 66C 7F8 2024 2044 FE50 FE52 FE54 FF0C FF0E FF1B",  # may join two digits
    "double_quote": "22",  # may join two Hebrew letters
    "joiner": "200D",  # ZWJ
    "extend": "200C 1F3FB-1F3FF FF9E-FF9F",  # ZWNJ, skin tones, halfwidth voiced sound marks
    "flag": "1F1E6-1F1FF",  # Regional_Indicator: two make a flag
    "number": "600-605 66B 6DD 890-891 8E2 110BD 110CD",
    "katakana": "3031-3035 309B-309C 30A0-30FA 30FC-30FF 31F0-31FF 32D0-32FE 3300-3357 FF66-FF9D 1AFF0-1AFFE 1B000 "
    "1B120-1B12F 1B155 1B164-1B168",
    "letter": "B8 2C2-2C5 2D2-2D7 2DE-2DF 2E5-2FF 55A-55C 55E 58A 5F3 70F 24B6-24E9 A708-A716 A720-A721 A789-A78A AB5B "
    "1F130-1F149 1F150-1F169 1F170-1F189",
    "emoji": "A9 AE 203C 2049 2122 2194-2199 21A9-21AA 231A-231B 2328 23CF 23E9-23F3 23F8-23FA 25AA-25AB 25B6 25C0 "
    "25FB-25FE 2600-2767 2794-27BF 2934-2935 2B05-2B07 2B1B-2B1C 2B50 2B55 3030 303D 3297 3299 1F000-1F0FF "
    "1F10D-1F12F 1F16A-1F16F 1F18A-1F1E5 1F200-1F3FA 1F400-1FAFF 1FC00-1FFFD",  # Extended_Pictographic and neighbours
    "punctuation": "200B",  # a zero-width space ends a word
}
# For letters only (general categories L and Nl).
SCRIPTS = {
    "hebrew": "5D0-5F2 FB1D-FB4F",
    # Scripts without spaces between words: ideographs, Hiragana, Thai, Lao, Myanmar, Khmer, Tai, Ahom.
    "ideograph": "E00-EFF 1000-109F 1780-17FF 1950-19DF 1A20-1AAF 3006-3007 3021-3029 3038-303A 3041-309F 3400-4DBF "
    "4E00-9FFF A9E0-A9FF AA60-AADF F900-FAFF 11700-1174F 17000-18DFF 1B001-1B2FF 20000-3FFFF",
}


def _ranges(table: dict[str, str]) -> list[tuple[int, int, str]]:
    """Returns (first code point, last code point, class) for each entry."""
    found = []
    for name, entries in table.items():
        for entry in entries.split():
            first, _, last = entry.partition("-")
            found.append((int(first, 16), int(last or first, 16), name))
    return found


_EXCEPTIONS, _SCRIPTS = _ranges(EXCEPTIONS), _ranges(SCRIPTS)
_BY_CATEGORY = {"Nd": "number", "Cf": "extend", "Pc": "connector", "M": "extend", "L": "letter", "N": "letter"}


@lru_cache(maxsize=1 << 16)
def word_break(character: str) -> str:
    """Returns the class of a character that is not white space.

    letter, hebrew, number, katakana, connector (such as _), ideograph (of a script without spaces), emoji, flag: begin
    an outcome. mid_letter, mid_number, double_quote: may join two of those. extend (marks and format characters) and
    joiner (ZWJ): belong to the character before them. punctuation: everything else.
    """
    code, category = ord(character), unicodedata.category(character)
    tables = [_EXCEPTIONS, _SCRIPTS] if category[0] == "L" or category == "Nl" else [_EXCEPTIONS]
    for first, last, name in (entry for table in tables for entry in table):
        if first <= code <= last:
            return name
    return _BY_CATEGORY.get(category) or _BY_CATEGORY.get(category[0], "punctuation")
