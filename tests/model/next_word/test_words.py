"""The word machine: where outcomes begin and end, however the bytes are cut into tokens."""

from __future__ import annotations

from itertools import pairwise

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from model import InputError
from model.next_word.words import State, WordRule
from tests.model.next_word.oracle import decided_outcome

RULE = WordRule()


def first(text: str | bytes, state: State | None = None, rule: WordRule = RULE) -> tuple[str | None, bytes]:
    """Returns the kind and bytes of a text's first outcome, read byte by byte."""
    state, done = state or State("before_word"), b""
    for byte in text.encode() if isinstance(text, str) else text:
        step = rule.read(state, bytes([byte]))
        done = (done if state.phase == "inside" else b"") + step.certain
        if step.kind is not None:
            return step.kind, done
        state = step.state
    return None, done


@pytest.mark.parametrize(
    "text, kind, outcome",
    [
        (" heart,", "word", "heart"),
        ("heart and", "word", "heart"),
        (" don't ", "word", "don't"),
        (" don’t ", "word", "don’t"),
        (" dogs' ", "word", "dogs"),
        (" mother-in-law.", "word", "mother-in-law"),
        (" well--known", "word", "well"),
        (" rock-\n", "word", "rock"),
        (" café!", "word", "café"),
        (" cafe\u0301!", "word", "cafe\u0301"),  # a combining accent is a mark
        (" 1980's ", "word", "1980's"),
        (" m²,", "word", "m²"),
        (" 'tis", "punctuation", "'"),
        (", and", "punctuation", ","),
        (" — ", "punctuation", "—"),
        (" 😀!", "punctuation", "😀"),
        ("  two", "space", " "),
        ("\n", "space", "\n"),
        (" \n", "space", "\n"),
        ("\u00a0", "space", "\u00a0"),
        (" 北京", "character", "北"),
        ("ประเทศ", "character", "ป"),
        ("กั้น", "character", "กั้"),  # a Thai letter with its marks
        ("abc北京", "word", "abc"),
        ("한국어 ", "word", "한국어"),
        (b"\xff", "byte", b"\xff"),
        (b"ab\xff", "word", b"ab"),
        (b"\xe2\x80A", "byte", b"\xe2"),
        (b"ab\xe2\x80A", "word", b"ab"),
        (b"\xed\xa0\x80", "byte", b"\xed"),  # a surrogate, which UTF-8 does not have
    ],
)
def test_the_first_outcome(text, kind, outcome):
    assert first(text) == (kind, outcome.encode() if isinstance(outcome, str) else outcome)


@pytest.mark.parametrize(
    "rule, text, kind, outcome",
    [
        ("WB3", "\r\n", "space", "\r"),  # a change: UAX #29 keeps the two together
        ("WB3a", "\n\u0301a", "space", "\n"),
        ("WB3b", "a\u200c\n", "word", "a\u200c"),
        ("WB3c", "👩\u200d👩\u200d👧!", "punctuation", "👩\u200d👩\u200d👧"),
        ("WB3c", "❤\ufe0f\u200d🔥!", "punctuation", "❤\ufe0f\u200d🔥"),
        ("WB3c", "👩\u200d\u0301👧", "punctuation", "👩\u200d\u0301"),
        ("WB3c", "a\u200d👧", "word", "a\u200d"),  # a change: joins emoji only
        ("WB4", "می\u200cروم.", "word", "می\u200cروم"),  # Persian, with a zero-width non-joiner
        ("WB4", "Schiff\u00adfahrt ", "word", "Schiff\u00adfahrt"),  # a soft hyphen
        ("WB4", "ක්\u200dර ", "word", "ක්\u200dර"),  # Sinhala, with a zero-width joiner
        ("WB4", "a\ufeffb\u2060c ", "word", "a\ufeffb\u2060c"),
        ("WB4", "can\u0301't\u0301 ", "word", "can\u0301't\u0301"),
        ("WB4", "can'\u0301t ", "word", "can'\u0301t"),
        ("WB4", "can'\u0301 ", "word", "can"),
        ("WB4", "👍🏽!", "punctuation", "👍🏽"),  # a skin tone
        ("WB4", "🏴\U000e0067\U000e0062\U000e007f!", "punctuation", "🏴\U000e0067\U000e0062\U000e007f"),
        ("WB4", "か\u3099の", "character", "か\u3099"),  # a decomposed kana
        ("WB4", "1\ufe0f\u20e3!", "word", "1\ufe0f\u20e3"),  # a keycap
        ("WB4", "!\u0301", "punctuation", "!"),  # a change: punctuation ends at once
        ("WB4", "\u200fa", "punctuation", "\u200f"),
        ("WB4", "ab\u200bc", "word", "ab"),  # a zero-width space is no format character here
        ("WB5", "Straße ", "word", "Straße"),
        ("WB5", "ab\u05d0 ", "word", "ab\u05d0"),
        ("WB6", "col·legi ", "word", "col·legi"),
        ("WB6", "col· ", "word", "col"),
        ("WB6", "a·1", "word", "a"),
        ("WB6", "a:b", "word", "a"),  # a change: the colon joins nothing
        ("WB6", "e.g. ", "word", "e"),  # a change: the full stop joins digits only
        ("WB7", "צה״ל ", "word", "צה״ל"),  # gershayim
        ("WB7", "O‘ahu ", "word", "O‘ahu"),
        ("WB7", "a··b", "word", "a"),
        ("WB7a", "רח' ", "word", "רח'"),  # an abbreviation
        ("WB7a", "ג'ורג' ", "word", "ג'ורג'"),
        ("WB7a", "a' ", "word", "a"),
        ("WB7b", 'צה"ל ', "word", 'צה"ל'),
        ("WB7b", 'צה"a', "word", "צה"),
        ("WB7c", 'a"b', "word", "a"),
        ("WB8", "1984 ", "word", "1984"),
        ("WB9", "A3 ", "word", "A3"),
        ("WB10", "3D ", "word", "3D"),
        ("WB11", "3.14 ", "word", "3.14"),
        ("WB11", "1,000,000.50 ", "word", "1,000,000.50"),
        ("WB11", "1'000 ", "word", "1'000"),
        ("WB12", "3. ", "word", "3"),
        ("WB12", "1,a", "word", "1"),
        ("WB12", "1·2", "word", "1"),
        ("WB12", "1..2", "word", "1"),
        ("WB13", "カタカナ語", "word", "カタカナ"),
        ("WB13", "カー・", "word", "カー"),
        ("WB13", "aカ", "word", "a"),
        ("WB13a", "snake_ ", "word", "snake_"),
        ("WB13a", "___ ", "punctuation", "___"),
        ("WB13b", "_name_2 ", "word", "_name_2"),
        ("WB15", "🇩🇪🇫🇷", "punctuation", "🇩🇪"),
        ("WB16", "🇩a", "punctuation", "🇩"),
        ("WB16", "🇩\u200d🇪\u200d🇫", "punctuation", "🇩\u200d🇪\u200d"),
        ("WB999", "a$", "word", "a"),
        ("WB999", "北a", "character", "北"),
        ("no-break", "1\u202f000", "word", "1"),  # a change: this space ends a word
    ],
)
def test_each_rule_of_uax_29(rule, text, kind, outcome):
    assert first(text + "\n") == (kind, outcome.encode()), rule


@pytest.mark.parametrize(
    "text",
    [
        *(
            " heart",
            " don'",
            " rock-",
            b"ab\xe2\x80",
            " ",
            "",
            b"\xf0\x9f\x98",
            " don’",
            "می\u200c",
            "col·",
            "3.",
            "1,",
        ),
        *("x_", "_", "北", "ก", "😀", "👩\u200d", "🇩", "🇩🇪", 'צה"', "רח'", "don'\u00ad"),
    ],
)
def test_an_outcome_stays_open_until_the_next_bytes_decide(text):
    assert first(text)[0] is None


@pytest.mark.parametrize(
    "prompt, text, expected",
    [
        ("your", "self", ("continues", b"")),
        ("your", " heart ", ("word", b"heart")),
        ("your", "'s", ("continues", b"")),
        ("your", "' ", ("punctuation", b"'")),
        ("your", "'", (None, b"'")),
        ("your", ",", ("punctuation", b",")),
        ("your", "北 ", ("character", "北".encode())),
        ("your", b"\xc3\xa9", ("continues", b"")),
        ("your", b"\xe2\x80\x99s", ("continues", b"")),
        ("rock-", "n", ("continues", b"")),
        ("rock-", " n ", ("word", b"n")),
        ("rock-", "-", ("punctuation", b"-")),
        ("-", "n ", ("word", b"n")),
        ("", "Listen ", ("word", b"Listen")),
        ("Hello,", "you ", ("word", b"you")),
        ("北", "京 ", ("character", "京".encode())),
        ("می", "\u200cروم", ("continues", b"")),
        ("می\u200c", "ر", ("continues", b"")),
        ("می\u200c", " ر ", ("word", "ر".encode())),
        ("col·", "l", ("continues", b"")),
        ("col·", "\n", ("space", b"\n")),
        ("3", ".1", ("continues", b"")),
        ("3", ".\n", ("punctuation", b".")),
        ("3.", "1", ("continues", b"")),
        ("3.", "a ", ("word", b"a")),
        ("x_", "y", ("continues", b"")),
        ("רח", "' ", ("continues", b"")),
        ("カ", "タ", ("continues", b"")),
        ("か", "\u3099", ("continues", b"")),
        ("👩\u200d", "👧", ("continues", b"")),
        ("🇩", "🇪", ("continues", b"")),
        ("🇩🇪", "🇫!", ("punctuation", "🇫".encode())),
        ("a🇩🇪🇫", "🇷", ("continues", b"")),
        ("don'\u00ad", "t", ("continues", b"")),
        ("don", "'\u00ad ", ("punctuation", b"'")),
        ("don'", "\u00ad ", ("punctuation", "\u00ad".encode())),
        ("!", "\u200f", ("punctuation", "\u200f".encode())),
    ],
)
def test_a_prompts_last_word_may_continue(prompt, text, expected):
    assert first(text, RULE.start(prompt, spaced=False)) == expected


def test_a_prompts_trailing_space_counts_as_the_skipped_one():
    state = RULE.start("your ", spaced=True)
    assert first("heart ", state) == ("word", b"heart")
    assert first(" heart", state) == ("space", b" ")


@pytest.mark.parametrize(
    "kind, text, expected",
    [
        ("space", " x_y=1, z", ("word", b"x_y=1,")),
        ("space", " 北京 ", ("word", "北京".encode())),
        ("space", "\tx", ("space", b"\t")),
        ("character", "heart", ("character", b"h")),
        ("character", " heart", ("space", b" ")),
    ],
)
def test_other_rules(kind, text, expected):
    assert first(text, rule=WordRule(kind=kind)) == expected


def test_apostrophes_and_hyphens_can_be_chosen():
    rule = WordRule(mid_any="'’")
    assert first(" mother-in-law", rule=rule) == ("word", b"mother")
    assert first(" don't ", rule=rule) == ("word", b"don't")
    assert first(" don't ", rule=WordRule(mid_any="")) == ("word", b"don")


def test_an_unknown_rule_is_refused():
    with pytest.raises(InputError, match="word_rule='words' is not one of unicode, space, character"):
        WordRule(kind="words")


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.sampled_from([b"a", b"'", b"\xe2", b"\x80", b"\x99", b" ", b"-", b"\xff", "é".encode(), b",", b"a'"]))
)
def test_certain_bytes_are_a_prefix_of_the_outcome(pieces):
    state, certain, heads = State("before_word"), b"", []
    for piece in [*pieces, b",\n"]:
        step = RULE.read(state, piece)
        certain = (certain if state.phase == "inside" else b"") + step.certain
        if step.kind is not None:
            break
        heads.append(certain)
        state = step.state
    assert step.kind is not None and all(certain.startswith(head) for head in heads)


@pytest.mark.parametrize(
    "state, kind, certain",
    [
        (State("inside", context="letter"), "word", b""),
        (State("inside", b"'", "letter"), "word", b""),
        (State("inside", context="ideograph"), "character", b""),
        (State("inside", context="emoji"), "punctuation", b""),
        (State("before_word"), "special", b""),
        (State("prompt", context="letter"), "special", b""),
        (State("prompt", b"'", "letter"), "punctuation", b"'"),
        (State("before_word", b"\xe2\x80"), "byte", b"\xe2"),
    ],
)
def test_a_special_token_closes_an_open_outcome(state, kind, certain):
    assert RULE.end(state)[:2] == (kind, certain)


ALPHABET = "ab1é²·.,;:'’-\"_\u200c\u200d\u00ad\u0301אבカア北かกั้😀👩🏽🇩🇪 \n!\u202f\u200f\ufe0f"
TEXTS = st.text(st.sampled_from(ALPHABET), max_size=8)


@settings(max_examples=500, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 20), max_size=3))
def test_the_cuts_between_tokens_do_not_matter(text, cuts):
    data = text.encode() + b"\n,"
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    state, done = State("before_word"), b""
    for start, end in pairwise(places):
        step = RULE.read(state, data[start:end])
        done = (done if state.phase == "inside" else b"") + step.certain
        if step.kind is not None:
            break
        state = step.state
    assert (step.kind, done) == first(data)


@settings(max_examples=1000, deadline=None)
@given(TEXTS, TEXTS)
def test_the_machine_agrees_with_a_regular_expression(prompt, text):
    """Also on when the outcome is decided, and on whether the prompt's last word continues."""
    prompt = prompt.rstrip(" ")
    kind, outcome = first(text, RULE.start(prompt, spaced=False))
    assert decided_outcome(prompt, text) == (None if kind is None else outcome.decode() or kind)


PIECES = st.sampled_from(
    ["a", "é", "1", "א", "カ", "北", "_", "·", "״", ",", ";", '"', "!", "\n", "a\u200cb", "e\u0301a", "1\u00ad1"]
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=6))
def test_where_no_change_applies_words_are_those_of_the_regex_package(pieces):
    text = "".join(pieces)
    expected = next(filter(None, regex.split(r"\b", text + "!", flags=regex.WORD | regex.VERSION1)))
    assert first(text + "!")[1].decode() == (expected if expected[0] not in ',;!"\n·״' else expected[0])
