"""Baseline losses: unigram and bigram models, compared with a naive calculation and with known entropies."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from data.preparation.shards import Split, Tokens
from data.reporting import baselines
from data.reporting.baselines import baseline_losses, corpus_baselines, ngram_losses, text_baselines
from data.tokenizers import build
from data.tokenizers.build import TokenizerConfig


def split(ids) -> Split:
    return Split(None, "train", Tokens([np.asarray(ids, np.uint16)]), n_bytes=1, fingerprint="")


def test_losses_equal_a_naive_count():
    train, val, size = [0, 1, 2, 1, 2, 1, 0], [0, 2, 1, 2, 3], 5
    counts, pairs = Counter(train), Counter(pairwise(train))
    nats = {"unigram": [], "bigram": []}
    for first, second in pairwise(val):
        unigram = (counts[second] + 1) / (len(train) + size)
        followers = [pair for pair in pairs if pair[0] == first]
        total = sum(pairs[pair] for pair in followers)
        mixed = (pairs[first, second] + len(followers) * unigram) / (total + len(followers))
        nats["unigram"].append(-math.log(unigram))
        nats["bigram"].append(-math.log(mixed))
    found = baseline_losses(split(train), split(val), vocab_size=size)
    assert found["uniform"] == pytest.approx(math.log(5))
    for name, losses in nats.items():
        assert found[name] == pytest.approx(sum(losses) / len(losses)), name


def test_a_token_without_followers_falls_back_to_the_unigram():
    found = baseline_losses(split([0, 0, 0, 1]), split([1, 0]), vocab_size=3)
    assert found["bigram"] == pytest.approx(found["unigram"])


def test_the_bigram_loss_of_a_markov_chain_is_its_entropy_rate(monkeypatch):
    generator, ids = np.random.default_rng(0), [0]
    chain = np.array([[0.9, 0.1, 0.0], [0.0, 0.5, 0.5], [0.6, 0.2, 0.2]])
    for _ in range(40_000):
        ids.append(generator.choice(3, p=chain[ids[-1]]))
    rate = np.mean([-math.log(chain[a, b]) for a, b in pairwise(ids[20_000:])])
    found = baseline_losses(split(ids[:20_000]), split(ids[20_000:]), vocab_size=3)
    assert found["bigram"] == pytest.approx(rate, abs=0.01)
    assert found["bigram"] < found["unigram"] < found["uniform"] + 0.01
    monkeypatch.setattr(baselines, "MAX_TOKENS", 6400)  # an evenly spaced sample gives nearly the same
    part = baseline_losses(split(ids[:20_000]), split(ids[20_000:]), vocab_size=3)
    assert part["bigram"] == pytest.approx(found["bigram"], abs=0.05) and part != found


def test_baselines_are_bits_per_byte_of_the_text():
    generator = np.random.default_rng(0)
    train, val = (generator.integers(0, 4, 40_000) + ord("a") for _ in range(2))
    found = corpus_baselines([train], [val], build.build(TokenizerConfig(kind="byte"), []))
    for name in ("unigram", "bigram", "xz", "xz_val", "xz_val_after"):
        assert 1.95 < found[name] < 2.7, name
    assert found["train_bytes"] == found["val_bytes"] == 40_000


def naive_ngram(pieces, targets, size, order) -> list[float]:
    """The same models, one token after the other."""
    lengths = range(1, order + 1)
    grams = Counter(tuple(x[i : i + n]) for n in lengths for x in pieces for i in range(len(x) - n + 1))
    total = sum(map(len, pieces))

    def p(before: tuple, token: int) -> float:
        if not before:
            return (grams[(token,)] + 1) / (total + size)
        follow = {gram[-1]: n for gram, n in grams.items() if len(gram) == len(before) + 1 and gram[:-1] == before}
        lower = p(before[1:], token)
        return (follow.get(token, 0) + len(follow) * lower) / (sum(follow.values()) + len(follow)) if follow else lower

    found = []
    for n in range(order):
        each = [p(tuple(t[max(0, i - n) : i]), t[i]) for t in targets for i in range(1, len(t))]
        found.append(-sum(map(math.log, each)) / len(each))
    return found


def test_five_grams_equal_a_naive_count_and_do_not_cross_pieces():
    generator = np.random.default_rng(2)
    pieces, targets = (
        [generator.integers(0, 3, length).tolist() for length in lengths] for lengths in ((60, 1, 80), (30, 2, 25))
    )
    expected = naive_ngram(pieces, targets, 4, 5)
    found = ngram_losses([np.array(x) for x in pieces], [np.array(x) for x in targets], vocab_size=4, order=5)
    assert found == pytest.approx(expected)
    assert found[0] != pytest.approx(found[4])


def test_a_repeated_text_compresses_and_five_grams_learn_it():
    text = b"to be or not to be, that is the question. " * 200
    found, ids = text_baselines(text), np.frombuffer(text, np.uint8).astype(np.int64)
    assert 0 < found["xz -9e"] < 0.5 and 0 < found["gzip -9"] < 0.5
    losses = ngram_losses([ids[:4000]], [ids[4000:]], vocab_size=256, order=5)
    assert losses == sorted(losses, reverse=True) and losses[4] < 0.3
