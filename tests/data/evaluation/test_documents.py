"""Losses by document: totals and perplexities add up, intervals are over documents, differences are paired."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from data.evaluation.documents import DocumentLosses, bits_difference, texts_of
from data.preparation.config import PrepareConfig
from data.preparation.prepare import prepare
from data.preparation.shards import open_split
from data.tokenizers.build import TokenizerConfig, load

TEXTS = ["to be, or not", "an apple", "be  not\nafraid of greatness"]


@pytest.fixture
def split(tmp_path):
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text)
    cfg = PrepareConfig(
        corpus=str(tmp_path / "*.txt"),
        datasets=str(tmp_path / "d"),
        val_fraction=0.0,
        tokenizer=TokenizerConfig("byte"),
    )
    return open_split(prepare(cfg), "train")


def test_every_token_belongs_to_the_document_that_it_is_in(split):
    texts = texts_of(split, load(split.directory / "tokenizer"))
    assert sorted(text.decode() for text in texts) == sorted(TEXTS)
    nats = np.arange(split.n_tokens - 1, dtype=float)
    found = DocumentLosses.of(nats, split, texts)
    lengths = [len(text) + 1 for text in texts]  # with the end token
    starts = np.cumsum([0, *lengths])
    assert found.tokens.tolist() == lengths and found.n_bytes.tolist() == [length - 1 for length in lengths]
    assert found.nats.tolist() == [nats[a:b].sum() for a, b in itertools.pairwise(starts)]
    assert found.words.tolist() == [len(text.split()) for text in texts]


def test_figures_follow_from_their_definitions():
    losses = DocumentLosses(np.array([10.0, 30.0]), np.array([5, 5]), np.array([20, 20]), np.array([2, 3]))
    found = losses.figures(seed=1)
    assert found["loss"] == 4 and found["perplexity_per_token"] == pytest.approx(math.exp(4))
    assert found["bits_per_byte"] == pytest.approx(40 / math.log(2) / 40)
    assert found["perplexity_per_word"] == pytest.approx(math.exp(40 / 5))
    # Resampled, the text is twice the first document, both, or twice the second.
    assert found["bits_per_byte_low"] == pytest.approx(0.5 / math.log(2))
    assert found["bits_per_byte_high"] == pytest.approx(1.5 / math.log(2))


def test_a_single_document_has_no_interval_and_lost_text_no_bits():
    one = DocumentLosses(np.array([10.0]), np.array([5]), np.array([20]), np.array([2]))
    assert one.figures(seed=1)["bits_per_byte_low"] is None and one.figures(seed=1)["bits_per_byte"] > 0
    lost = one.figures(seed=1, known=False)
    assert lost["bits_per_byte"] is None is lost["perplexity_per_word"] and lost["loss"] == 2


def test_a_paired_interval_is_narrower_than_the_spread_of_documents():
    generator = np.random.default_rng(1)
    n_bytes = generator.integers(50, 500, 200)
    before = n_bytes * generator.uniform(0.5, 2.0, 200)  # documents differ much more than the models
    found = bits_difference(before, before - 0.05 * n_bytes, n_bytes, seed=1)
    assert found["difference"] == pytest.approx(-0.05 / math.log(2)) == found["after"] - found["before"]
    assert found["low"] == pytest.approx(found["high"]) == pytest.approx(found["difference"])
