"""The counts: what an independent count by hand gives, for every context, and no more of them than pays."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from data import ngrams, references
from data.shards import Split, Tokens


def split(ids) -> Split:
    return Split(None, "train", Tokens([np.asarray(ids, np.uint16)]), n_bytes=1, fingerprint="")


def text(size: int, length: int, seed: int = 0) -> list[int]:
    """A random text in which a token depends on the two before it; its last token of the vocabulary never occurs."""
    generator, ids = random.Random(seed), [0, 0]
    while len(ids) < length:
        likely = (3 * ids[-1] + 5 * ids[-2] + 1) % (size - 1)
        ids.append(likely if generator.random() < 0.6 else generator.randrange(size - 1))
    return ids


def by_hand(ids: list[int], size: int, longest: int):
    """p(token, context): Witten and Bell's mixture, with dictionaries; contexts longer than those seen are cut."""
    followers: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for length in range(longest + 1):
        for end in range(length, len(ids)):
            followers[tuple(ids[end - length : end])][ids[end]] += 1

    def p(token: int, context: tuple[int, ...]) -> float:
        shorter = p(token, context[1:]) if context else 1 / size
        counts = followers.get(context)
        if counts is None:
            return shorter
        return (counts[token] + len(counts) * shorter) / (counts.total() + len(counts))

    return p, {context for context in followers if len(context) <= longest}


@pytest.fixture(autouse=True)
def count_all(monkeypatch):
    monkeypatch.setattr(ngrams, "TOKENS_PER_CONTEXT", 1)


@pytest.mark.parametrize("size, length, longest", [(5, 400, 3), (5, 60, 4), (30, 2000, 2), (2, 50, 5)])
def test_every_row_is_what_counting_by_hand_gives(size, length, longest):
    ids = text(size, length)
    p, contexts = by_hand(ids, size, longest)
    found = ngrams.count(split(ids), vocab_size=size, length=longest)
    assert found.length == longest and found.tokens == length and len(found.keys) == len(contexts)
    assert (np.diff(found.keys) > 0).all() and found.keys[0] == 1
    for context in contexts:
        key = 1
        for token in reversed(context):
            key = key * size + token
        row = found.log_p[np.searchsorted(found.keys, key)].astype(float)
        assert row == pytest.approx([math.log(p(token, context)) for token in range(size)], rel=1e-3, abs=1e-3)
    sums = np.exp(found.log_p.astype(float)).sum(1)
    assert sums == pytest.approx(np.ones(len(sums)), abs=4e-3)


def test_a_length_is_counted_only_where_it_pays(monkeypatch):
    ids = text(20, 3000)
    whole = ngrams.count(split(ids), vocab_size=20, length=9)
    assert whole.length == 9
    monkeypatch.setattr(ngrams, "MOST_BYTES", 2 * 20 * (1 + 19 + 361))
    assert ngrams.count(split(ids), vocab_size=20, length=9).length == 2
    monkeypatch.setattr(ngrams, "TOKENS_PER_CONTEXT", 64)
    assert ngrams.count(split(ids), vocab_size=20, length=9).length == 1
    monkeypatch.setattr(ngrams, "TOKENS_PER_CONTEXT", 1000)
    assert ngrams.count(split(ids), vocab_size=20, length=9) is None


def test_contexts_that_would_not_fit_a_number_are_left_out():
    found = ngrams.count(split([1, 60_000] * 100), vocab_size=65_000, length=9)
    assert found is None or found.length <= 3


@pytest.mark.parametrize("ids", [[0], [0, 0], [0, 1, 0]])
def test_a_text_shorter_than_its_contexts_can_be_counted(ids):
    found = ngrams.count(split(ids), vocab_size=3, length=5)
    assert found is None or found.length < len(ids)


def test_of_a_large_text_an_even_part_says_the_same(monkeypatch):
    ids = text(5, 40_000)
    whole = ngrams.count(split(ids), vocab_size=5, length=2)
    monkeypatch.setattr(references, "MOST", 12_800)
    part = ngrams.count(split(ids), vocab_size=5, length=2)
    assert part.tokens == 12_800 and (part.keys == whole.keys).all()
    seen = whole.log_p > -6
    assert np.abs(part.log_p - whole.log_p)[seen].max() < 0.7
