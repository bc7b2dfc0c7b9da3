"""data.curate: each rule removes what it says, counts it, and with none on nothing changes."""

from __future__ import annotations

import pytest

from data.corpus.corpora import documents
from data.curation.characters import classes, count_mojibake, repair_mojibake, script_of
from data.curation.curate import CurateConfig, clean, refuse

PROSE = "Take the tablets with a glass of water, in the morning, before the first meal of the day."


def test_by_default_no_document_changes_and_only_those_without_text_go():
    odd = [
        "a",
        "\x07\x0c",
        "Ã¼",
        "\ufeffx\u00ad",
        "1 2 3",
        "}\n}\n}\n",
        "\ud800",
        *(d.text for d in documents("pystdlib")),
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
def test_cleaning_removes_what_it_says_and_counts_it(rules, text, left, count):
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
def test_each_filter_drops_what_is_beyond_its_limit_and_names_itself(rules, dropped, stays):
    config = CurateConfig(**rules)
    assert not config.validate()
    assert refuse(dropped, config) == next(iter(rules)) and refuse(stays, config) is None
    assert refuse(dropped, CurateConfig()) is None


def test_a_share_of_symbols_is_exact():
    config = CurateConfig(max_symbols=0.0)
    assert all(refuse("a" * n + "1" * m, config) is None for n in range(30) for m in range(1, 30))


def test_letters_are_counted_in_every_script_and_in_long_documents():
    for text in ("Übergrößenträger", "здоровье", "患者接受治疗", "स्वास्थ्य", "รักษา", "صحة"):
        assert refuse(text, CurateConfig(min_letters=1.0)) is None
    assert refuse("a" * 999_999 + "1" * 1_000_002, CurateConfig(max_digits=0.5)) == "max_digits"


def test_what_is_wrong_with_the_settings_is_said_all_at_once():
    config = CurateConfig(
        min_letters=2, similarity=0.1, line_copies=0, min_characters=9, max_characters=3, drop_lines="*"
    )
    found = config.validate()
    assert len(found) == 5 and all("curate." in line for line in found)
    assert not CurateConfig().validate()


def test_damage_is_seen_and_sound_text_left_alone():
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


def test_tables_of_characters_agree_with_their_names():
    assert [int(classes()[ord(c)]) for c in "a1. \x07\u00ad\n\u0301"] == [1, 2, 3, 0, 4, 5, 0, 1]
    assert [script_of(c) for c in "aяλ患あกã"] == ["Latin", "Cyrillic", "Greek", "Han", "Hiragana", "Thai", "Latin"]
