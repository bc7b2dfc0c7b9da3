"""Classes of characters: those of Unicode, as the `regex` package has them, with the changes of the README."""

from __future__ import annotations

import sys
import unicodedata
from itertools import pairwise

import pytest
import regex

from model.next_word.characters import EXCEPTIONS, SCRIPTS, word_break

CLASSES = {
    "ALetter": "letter", "Hebrew_Letter": "hebrew", "Numeric": "number", "Katakana": "katakana",
    "ExtendNumLet": "connector", "MidLetter": "mid_letter", "MidNum": "mid_number", "Double_Quote": "double_quote",
    "Extend": "extend", "Format": "extend", "ZWJ": "joiner", "Regional_Indicator": "flag",
}  # fmt: skip


@pytest.mark.slow
def test_classes_are_those_of_unicode():
    known = (chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) != "Cn")
    text = "".join(regex.findall(r"[^\s\p{Cn}\p{Co}\p{Cs}]", "".join(known)))
    expected = dict.fromkeys(text, "punctuation")
    expected |= dict.fromkeys(regex.findall(r"[\p{L}\p{Nl}]", text), "ideograph")
    expected |= dict.fromkeys(regex.findall(r"\p{Extended_Pictographic}", text), "emoji")
    for name, kind in CLASSES.items():
        expected |= dict.fromkeys(regex.findall(rf"\p{{Word_Break={name}}}", text), kind)
    expected |= dict.fromkeys(regex.findall(r"\p{No}", text), "letter")
    expected |= dict.fromkeys(".․﹒．", "mid_number") | dict.fromkeys(":﹕：︓'’‘＇", "punctuation")
    kinds = {character: word_break(character) for character in text}
    different = {character: kind for character, kind in kinds.items() if kind != expected[character]}
    assert {(expected[character], kind) for character, kind in different.items()} <= {("punctuation", "emoji")}
    assert len(text) > 140_000 and len(different) < 1500


@pytest.mark.parametrize(
    "character, kind", [("😀", "emoji"), ("❤", "emoji"), ("♯", "emoji"), ("→", "punctuation"), ("±", "punctuation")]
)
def test_symbols_in_the_blocks_of_emoji_count_as_emoji(character, kind):
    assert word_break(character) == kind


def test_tables_have_no_overlapping_ranges():
    for table in (EXCEPTIONS, SCRIPTS):
        codes = [entry.partition("-") for entries in table.values() for entry in entries.split()]
        ranges = sorted((int(first, 16), int(last or first, 16)) for first, _, last in codes)
        assert all(first <= last for first, last in ranges)
        assert all(one[1] < other[0] for one, other in pairwise(ranges)), table
