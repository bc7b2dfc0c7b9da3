"""The BPE trainer equals the definition of BPE, and the readable encoder equals tiktoken."""

from __future__ import annotations

import doctest
import random
from collections import Counter
from itertools import pairwise

import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokenizers import bpe
from data.tokenizers.pretokenize import PATTERNS

# tiktoken and regex may know different versions of Unicode: no characters that Python itself does not know.
ASSIGNED = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=60)
TEXT = ASSIGNED | st.text("ab' \n\t\x1c\x85\xa0\u3000é1٣-!", max_size=40)


def by_definition(pretokens: Counter[str], *, vocab_size: int, min_frequency: int) -> list[bytes]:
    """Slow byte pair encoding: counts all pairs of all words again after each merge."""
    words = [([bytes([byte]) for byte in pretoken.encode()], count) for pretoken, count in pretokens.items()]
    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < vocab_size:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for parts, count in words:
            for pair in pairwise(parts):
                pairs[pair] += count
        if max(pairs.values(), default=0) < min_frequency:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], tokens.index(pair[0]), tokens.index(pair[1])))
        if left + right not in tokens:
            tokens.append(left + right)
        for parts, _ in words:
            place = 0
            while place < len(parts) - 1:
                if parts[place] == left and parts[place + 1] == right:
                    parts[place : place + 2] = [left + right]
                place += 1
    return tokens


def naive_train(texts: list[str], vocab_size: int, pattern: str, min_frequency: int = 1) -> list[bytes]:
    """The definition of BPE training, on pretokens that the regular expression itself cuts."""
    counts = Counter(match[0] for text in texts for match in regex.finditer(PATTERNS[pattern], text))
    return by_definition(counts, vocab_size=vocab_size, min_frequency=min_frequency)


def random_corpus(source: random.Random) -> list[str]:
    alphabet = source.choice(["a", "ab", "ab ", "abc  \n", "aé日😀 '", "the quick s'll 12!\r\n\x1c"])
    return ["".join(source.choices(alphabet, k=source.randrange(60))) for _ in range(source.randrange(4))]


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
def test_merges_equal_those_of_the_definition(pattern: str) -> None:
    source = random.Random(1)
    for _ in range(500):
        texts, vocab_size, least = random_corpus(source), 256 + source.randrange(40), source.choice([1, 1, 2, 5])
        ranks = bpe.train(texts, vocab_size=vocab_size, pattern=pattern, min_frequency=least)
        assert list(ranks) == naive_train(texts, vocab_size, pattern, least), texts
        assert list(ranks.values()) == list(range(len(ranks)))


def test_the_example_in_the_docstring_is_right() -> None:
    result = doctest.testmod(bpe)
    assert result.attempted == 3 and not result.failed


def test_two_pairs_with_the_same_bytes_are_one_token() -> None:
    # After x+a and b+c, a token abc can come from ab+c and, where x took no part, from a+bc.
    texts = ["bc bc bc bc bc bc abc xabc abcd ab ab ab ab ab ab ab abc abc zabcz bcbc aabc"]
    ranks = bpe.train(texts, vocab_size=400)
    assert list(ranks) == naive_train(texts, 400, "gpt2")


@pytest.mark.parametrize("texts", [[], [""], ["a"], ["a b c"]])
def test_training_stops_when_merges_run_out(texts: list[str]) -> None:
    ranks = bpe.train(texts, vocab_size=5000)
    assert 256 <= len(ranks) < 260
    assert len(bpe.train(["abab"], vocab_size=5000)) == 258  # ab, abab


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_the_gpt2_pattern_cuts_like_tiktokens_own(text: str) -> None:
    from tiktoken_ext.openai_public import r50k_pat_str

    ranks = bpe.train([text], vocab_size=300)
    theirs = tiktoken.Encoding("theirs", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})
    assert theirs.encode_ordinary(text) == bpe.encode(text, ranks)
