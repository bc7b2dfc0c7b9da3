"""Pretokens: no text is lost, and the fast ways to count them are exact."""

from __future__ import annotations

import random
import re
import sys
import unicodedata
from collections import Counter
from itertools import pairwise

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from data import InputError
from data.tokenizers import pretokenize
from data.tokenizers.pretokenize import PATTERNS, Pattern

TEXT = st.text(max_size=60) | st.text("ab' \n\t\x1c\x85\xa0\u3000é1٣-!", max_size=40)
OWN_PATTERN = r"\p{Lu}?\p{Ll}+|(\d)+"  # with a group, and blind to most of Unicode
# One character of each category, some that only a newer Unicode than Python's has, and those that borders depend on.
CATEGORIES = {unicodedata.category(chr(code)): chr(code) for code in range(sys.maxunicode) if code % 7 == 0}
NEWER = "".join(chr(code) for code in range(0x323B0, 0x323C0)) + "\u1c89\ua7cb\U00010d4a\U0001cc00"
ALPHABETS = [
    "a \n",
    "aB1.' \n\r",
    "sS'\u017ftvmld \n",
    " \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u2028\u3000x.",
    "".join(char for category, char in CATEGORIES.items() if category != "Cs") + " \n\r'",
    NEWER + " \n\r.a1",
    "日本。、 \né́ #_",
]


def random_text(source: random.Random) -> str:
    return "".join(source.choices(source.choice(ALPHABETS), k=source.randrange(40)))


def random_runs(source: random.Random) -> str:
    """Text with runs about as long as those that are cut."""
    lengths = (1, 2, 500, 1000, 1022, 1023, 1024, 1025, 1030, 2050)
    return "".join(source.choice(" \n.aé。") * source.choice(lengths) for _ in range(source.randrange(6)))


@pytest.mark.parametrize("name", ["gpt2", "gpt4"])
def test_the_fast_count_is_exact(name: str) -> None:
    source = random.Random(2)
    for _ in range(10_000):
        text = random_text(source)
        assert pretokenize.count_batch(name, [text]) == Counter(regex.findall(PATTERNS[name], text)), ascii(text)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "gpt4"])
def test_the_fast_count_is_exact_a_million_times(name: str) -> None:
    source = random.Random(3)
    for _ in range(20_000):
        texts = [random_text(source) for _ in range(50)]
        assert pretokenize.count_batch(name, texts) == Counter(
            pretoken for t in texts for pretoken in regex.findall(PATTERNS[name], t)
        ), texts


@pytest.mark.parametrize("name", ["gpt2", "gpt4"])
def test_spans_join_to_the_text_and_cut_no_pretoken(name: str) -> None:
    source = random.Random(4)
    for _ in range(5_000):
        text = random_text(source)
        spans = pretokenize.SPANS[PATTERNS[name]].findall(text)
        assert "".join(spans) == text and all(spans)
        pretokens = [pretoken for span in spans for pretoken in regex.findall(PATTERNS[name], span)]
        assert pretokens == regex.findall(PATTERNS[name], text), ascii(text)


@pytest.mark.parametrize("name", ["gpt2", "gpt4", OWN_PATTERN])
def test_long_runs_are_counted_as_pretokens_returns_them(name: str) -> None:
    source = random.Random(5)
    for _ in range(150):
        texts = [random_runs(source) for _ in range(2)]
        assert pretokenize.count_batch(name, texts) == Counter(
            pretoken for text in texts for pretoken in Pattern(name).pretokens(text)
        )


def test_long_runs_are_cut_by_their_definition() -> None:
    source = random.Random(6)
    for _ in range(300):
        text = random_runs(source)
        borders = [0, *(match.end() for match in pretokenize.LONG_RUN.finditer(text)), len(text)]
        expected = [text[a:b] for a, b in pairwise(borders) if a < b] or [text]
        assert Pattern("gpt2").segments(text) == Pattern("gpt4").segments(text) == expected


@pytest.mark.parametrize("name", ["gpt2", "gpt4", OWN_PATTERN])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_processes_counts_the_same(name: str, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretokenize, "BATCH", 100)
    source = random.Random(7)
    texts = [random_text(source) for _ in range(200)] + ["some words\n" * 100, " ".join(ALPHABETS), ""]
    expected = Counter(pretoken for text in texts for pretoken in Pattern(name).pretokens(text))
    assert pretokenize.count_pretokens(iter(texts), Pattern(name), workers=workers) == expected


def test_texts_are_read_one_by_one() -> None:
    alive = []

    class Text(str):
        def __del__(self) -> None:
            alive.pop()

    def texts():
        for number in range(100):
            alive.append(number)
            yield Text("word " * 20_000)
            assert len(alive) < 20

    assert pretokenize.count_pretokens(texts(), Pattern("gpt2"), workers=1)[" word"] > 10**6


def test_white_space_agrees_with_regex_at_every_code_point() -> None:
    every = "".join(map(chr, range(0x110000)))
    assert re.findall(pretokenize.SPACE, every) == regex.findall(r"\s", every)
    assert re.findall(pretokenize.NON_SPACE, every) == regex.findall(r"\S", every)


@settings(max_examples=200, deadline=None)
@given(TEXT, st.sampled_from(["gpt2", "gpt4", OWN_PATTERN, "x"]))
def test_pretokens_join_to_the_text(text: str, pattern: str) -> None:
    pretokens = Pattern(pattern).pretokens(text)
    assert "".join(pretokens) == text
    assert all(pretokens)


def test_the_gpt4_pattern_cuts_like_cl100k() -> None:
    pretokens = Pattern("gpt4").pretokens("I'LL pay$12345 (now)!\n\n  \n two  spaces \n ")
    assert "|".join(pretokens) == "I|'LL| pay|$|123|45| (|now|)!\n\n|  \n| two| | spaces| \n "


@pytest.mark.parametrize("letter", ["a", " ", "\n", "é", "😀", "!"])
@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", r"[\s\S]+", OWN_PATTERN])
def test_no_pretoken_of_a_long_run_is_long(letter: str, pattern: str) -> None:
    text = f"start {letter * 100_000} end"
    pretokens = Pattern(pattern).pretokens(text)
    assert "".join(pretokens) == text
    assert max(map(len, pretokens)) <= 2 * pretokenize.MAX_RUN


def test_ordinary_text_is_not_cut() -> None:
    text = "word " * 10_000 + "x" * (pretokenize.MAX_RUN - 1)
    for pattern in ("gpt2", "gpt4", OWN_PATTERN):
        assert Pattern(pattern).segments(text) == [text]


@pytest.mark.parametrize("pattern", ["", "(", "a*", "[z-a]", r"\p{Nonsense}", "a{3,1}", "(?=b)"])
def test_a_useless_pattern_is_an_input_error(pattern: str) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.pattern=") as caught:
        Pattern(pattern).pretokens("abc")
    assert "\n" not in str(caught.value)
