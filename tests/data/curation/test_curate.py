"""Rules for single documents: each removes what it says and counts it; by default no text changes."""

from __future__ import annotations

import pytest

from data.corpus.corpora import documents
from data.curation.characters import CLASSES, class_of, count_mojibake, repair_mojibake, script_of
from data.curation.curate import CurateConfig, clean, refuse

PROSE = "Take the tablets with a glass of water, in the morning, before the first meal of the day."


def test_by_default_no_document_changes_and_only_empty_ones_are_dropped():
    odd = [
        "a",
        "\x07\x0c",
        "Ã¼",
        "\ufeffx\u00ad",
        "1 2 3",
        "}\n}\n}\n",
        "\ud800",
        *(d.text for d in documents("pystdlib", include="[a-j]*")),
    ]
    assert all(clean(text, CurateConfig()) == (text, {}) and refuse(text, CurateConfig()) is None for text in odd)
    assert refuse("", CurateConfig()) == refuse(" \n\t\u3000", CurateConfig()) == "empty"


@pytest.mark.parametrize(
    "rules, text, left, count",
    [
        ({"control_characters": True}, "\x00a\tb\x07\r\n\x0c\ufeffü\x85", "a\tb\r\n\x0cü", 4),
        ({"drop_lines": "*rights reserved*"}, "a\n© All rights reserved.\r\nb", "a\nb", 1),
        ({"drop_lines": ["Page ?", "x"]}, "Page 1\nPage 12\n x \n", "Page 12\n", 2),
        ({"line_copies": 1}, "a\nb\n\n a\n\nb", "a\nb\n\n\n", 2),
        ({"repair_mojibake": True}, "fÃ¼r Â°C â€™ CAFÉ»", "für °C ’ CAFÉ»", 3),
        ({"repair_mojibake": True}, "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "привет", 1),
    ],
)
def test_cleaning_removes_and_counts(rules, text, left, count):
    (rule,) = rules
    n_bytes = len(text.encode()) - len(left.encode())
    assert clean(text, CurateConfig(**rules)) == (left, {rule: (count, n_bytes)})
    again, none = clean(left, CurateConfig(**rules))
    assert again == left and none == {}


@pytest.mark.parametrize(
    "rules, dropped, stays",
    [
        ({"min_characters": 5}, "abcd", "abcde"),
        ({"max_characters": 5}, "abcdef", "abcde"),
        ({"min_letters": 0.5}, "ab 123", "abc 123"),
        ({"max_digits": 0.5}, "ab 123", "abc 123"),
        ({"max_symbols": 0.2}, "ab, c.", PROSE),
        ({"max_repeated_lines": 0.3}, "a\nb\n\na\n", "a\nb\n\n\nc\n"),
        ({"max_mojibake": 0.05}, "fÃ¼r fÃ¼r", "für für " * 9 + "fÃ¼r"),
    ],
)
def test_each_filter_drops_documents_beyond_its_limit(rules, dropped, stays):
    config = CurateConfig(**rules)
    assert not config.validate()
    assert refuse(dropped, config) == next(iter(rules)) and refuse(stays, config) is None
    assert refuse(dropped, CurateConfig()) is None


def test_the_share_of_symbols_is_exact():
    config = CurateConfig(max_symbols=0.0)
    assert all(refuse("a" * n + "1" * m, config) is None for n in range(30) for m in range(1, 30))


def test_letters_are_counted_in_every_script_and_in_long_documents():
    for text in ("Übergrößenträger", "здоровье", "患者接受治疗", "स्वास्थ्य", "รักษา", "صحة"):
        assert refuse(text, CurateConfig(min_letters=1.0)) is None
    assert refuse("a" * 999_999 + "1" * 1_000_002, CurateConfig(max_digits=0.5)) == "max_digits"


def test_all_wrong_settings_are_listed():
    config = CurateConfig(
        min_letters=2, similarity=0.1, line_copies=0, min_characters=9, max_characters=3, drop_lines="*"
    )
    found = config.validate()
    assert len(found) == 5 and all("curate." in line for line in found)
    assert not CurateConfig().validate()


def test_mojibake_is_counted_and_correct_text_is_unchanged():
    damaged = "Übelkeit, Müdigkeit – „häufig“ 5 µg, λόγος, привет, 患者 🙂".encode().decode("cp1252", "replace")
    assert count_mojibake(damaged) == 10
    for sound in (
        "Müdigkeit, Übelkeit",
        "CAFÉ» «Ça va?»",
        "die Umlaute „Ä“ und „Ö“",
        "Ångström",
        "São João",
        "ÅÄÖ",
        "Ñandú",
    ):
        assert count_mojibake(sound) == 0 and repair_mojibake(sound) == (sound, 0)
    assert count_mojibake("lost: \ufffd") == 1 and repair_mojibake("\ufffd") == ("\ufffd", 0)


def test_classes_and_scripts_of_characters():
    letters, space = "letters", "white space"
    expected = [letters, "digits", "symbols", space, "control", "invisible", space, letters]
    assert [class_of(c) for c in "a1. \x07\u00ad\n\u0301"] == expected and set(expected) == set(CLASSES)
    assert [script_of(c) for c in "aяλ患あกã"] == ["Latin", "Cyrillic", "Greek", "Han", "Hiragana", "Thai", "Latin"]


def test_control_characters_that_windows_1252_has_are_repaired_to_its_characters():
    for code in range(0x80, 0xA0):
        text, removed = clean(f"don{chr(code)}t", CurateConfig(repair_mojibake=True))
        expected = bytes([code]).decode("cp1252", "ignore")
        assert text == f"don{expected or chr(code)}t" and bool(removed) == bool(expected)
    assert clean("Â\x92 â\x80\x99 Ã\x9f \x85", CurateConfig(repair_mojibake=True))[0] == "’ ’ ß …"
    assert clean("don\x92t", CurateConfig())[0] == "don\x92t"
