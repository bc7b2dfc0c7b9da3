"""The word machine: where outcomes begin and end, however the bytes are cut into tokens."""

from __future__ import annotations

from itertools import pairwise

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from model import InputError
from model.next_word.words import State, WordRule, checked

RULE = WordRule()


def first(text: str | bytes, state: State | None = None, rule: WordRule = RULE) -> tuple[str | None, bytes]:
    """Returns the kind and bytes of a text's first outcome, read byte by byte."""
    state, done = state or State("before_word"), b""
    for byte in text.encode() if isinstance(text, str) else text:
        step = rule.read(state, bytes([byte]))
        done = (done if state.phase == "word" else b"") + step.certain
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
        (" 1,5", "word", "1"),
        (" x_y", "word", "x"),
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


@pytest.mark.parametrize("text", [" heart", " don'", " rock-", b"ab\xe2\x80", " ", "", b"\xf0\x9f\x98", " don’"])
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
        ("your", "北", ("character", "北".encode())),
        ("your", b"\xc3\xa9", ("continues", b"")),
        ("your", b"\xe2\x80\x99s", ("continues", b"")),
        ("rock-", "n", ("continues", b"")),
        ("rock-", " n ", ("word", b"n")),
        ("rock-", "-", ("punctuation", b"-")),
        ("-", "n ", ("word", b"n")),
        ("", "Listen ", ("word", b"Listen")),
        ("Hello,", "you ", ("word", b"you")),
        ("北", "京", ("character", "京".encode())),
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


def test_mid_letters_can_be_chosen():
    assert first(" a_b'c ", rule=WordRule(mid_letters="_")) == ("word", b"a_b")


def test_an_unknown_rule_is_refused():
    with pytest.raises(InputError, match="word_rule='words' is not one of unicode, space, character"):
        checked(WordRule(kind="words"))


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.sampled_from([b"a", b"'", b"\xe2", b"\x80", b"\x99", b" ", b"-", b"\xff", "é".encode(), b",", b"a'"]))
)
def test_certain_bytes_are_a_prefix_of_the_outcome(pieces):
    state, certain, heads = State("before_word"), b"", []
    for piece in [*pieces, b",\n"]:
        step = RULE.read(state, piece)
        certain = (certain if state.phase == "word" else b"") + step.certain
        if step.kind is not None:
            break
        heads.append(certain)
        state = step.state
    assert step.kind is not None and all(certain.startswith(head) for head in heads)


@pytest.mark.parametrize(
    "state, kind, certain",
    [
        (State("word"), "word", b""),
        (State("word", b"'"), "word", b""),
        (State("before_word"), "special", b""),
        (State("prompt_word"), "special", b""),
        (State("prompt_word", b"'"), "punctuation", b"'"),
        (State("before_word", b"\xe2\x80"), "byte", b"\xe2"),
    ],
)
def test_a_special_token_closes_an_open_outcome(state, kind, certain):
    assert RULE.end(state)[:2] == (kind, certain)


TEXTS = st.text(st.sampled_from("ab'’- ,\né北😀ก́1"), max_size=8)


@settings(max_examples=500, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 20), max_size=3))
def test_the_cuts_between_tokens_do_not_matter(text, cuts):
    data = text.encode() + b"\n,"
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    state, done = State("before_word"), b""
    for start, end in pairwise(places):
        step = RULE.read(state, data[start:end])
        done = (done if state.phase == "word" else b"") + step.certain
        if step.kind is not None:
            break
        state = step.state
    assert (step.kind, done) == first(data)


@settings(max_examples=500, deadline=None)
@given(TEXTS)
def test_the_machine_agrees_with_a_regular_expression(text):
    text += "\n,"
    word = r"(?:(?![\u0E00-\u0E7F\u4E00-\u9FFF])[\p{L}\p{M}\p{N}])"
    found = regex.match(rf" ?({word}+(?:['’\-]{word}+)*)| ?(.)", text, flags=regex.DOTALL)
    if text.startswith(" ") and not found[1]:
        found = regex.match(r" (.)()", text, flags=regex.DOTALL)
        assert first(text)[1].decode() == found[1]
    else:
        assert first(text)[1].decode() == (found[1] or found[2])
