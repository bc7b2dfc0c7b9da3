"""Speculative decoding: the same logits from fewer forwards; drafts repeat what the text said before."""

from __future__ import annotations

import pytest
import torch

from model.device import Compute
from model.inference.decode import Decoder
from model.inference.sampling import SamplingConfig
from model.inference.speculate import SpeculativeDecoder
from tests.families import FAMILIES, make
from tests.model.inference.helpers import new_ids

CPU = Compute(torch.device("cpu"), torch.float32, compile=False)


class Counter:
    """A Decoder that counts its forwards."""

    def __init__(self, model, *, capacity=48):
        self.decoder, self.forwards = Decoder(model, rows=1, capacity=capacity, compute=CPU), 0
        self.capacity = self.decoder.capacity
        self.prefill = self.decoder.prefill

    @property
    def cache(self):
        return self.decoder.cache

    def step(self, ids):
        self.forwards += 1
        return self.decoder.step(ids)

    def extend(self, ids):
        self.forwards += 1
        assert int(self.cache.length) + ids.shape[1] <= self.capacity
        return self.decoder.extend(ids)


PROMPT = [5, 6, 7, 8, 9, 5, 6, 7]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "continuation",
    [
        [8, 9, 5, 6, 7, 8, 9, 5, 6, 7],  # as drafted, to the end and beyond
        [8, 1, 2, 3, 5, 6, 7, 8, 9, 4, 5, 6],  # wrong in the middle of a draft, twice
        [10, 11, 12, 13, 14],  # nothing to draft
        [3] * 40,  # until the cache is full
    ],
)
@torch.no_grad()
def test_logits_are_those_of_full_forwards(family, continuation):
    model = make(family)
    speculator = SpeculativeDecoder(Counter(model))
    logits = speculator.prefill([PROMPT])
    text = list(PROMPT)
    for token in continuation:
        torch.testing.assert_close(logits, model(torch.tensor([text]))[:, -1], atol=1e-4, rtol=1e-4)
        logits = speculator.step(torch.tensor([token]))
        text.append(token)


def test_a_right_draft_saves_forwards():
    for continuation, forwards in (
        ([8, 9, 5, 6, 7, 8, 9, 5, 6, 7], 2),  # one forward reads the first token and four drafted ones, and so on
        ([8, 9, 1, 2], 3),
        ([10, 11, 12, 13, 14], 5),
    ):
        counter = Counter(make("modern"))
        speculator = SpeculativeDecoder(counter, max_draft=4)
        speculator.prefill([PROMPT])
        for token in continuation:
            speculator.step(torch.tensor([token]))
        assert counter.forwards == forwards


def test_the_draft_is_what_followed_the_newest_longest_match():
    def draft(text, **options):
        speculator = SpeculativeDecoder(Counter(make("modern")), **options)
        speculator.prefill([text])
        return speculator.predict()

    assert draft([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], max_draft=3) == [4, 9, 2]  # 1 2 3 rather than 2 3
    assert draft([2, 3, 4, 9, 2, 3, 5, 7, 2, 3], max_draft=2) == [5, 7]  # the newer of two places
    assert draft([1, 2, 1, 2, 1, 2], max_draft=5) == [1, 2, 1, 2, 1]  # repeats itself
    assert draft([1, 2, 3, 4], max_draft=5) == [] and draft([7], max_draft=5) == []
    assert draft([1, 2, 3, 1, 2], max_draft=9, ngram_sizes=(3,)) == []
    assert len(draft([4] * 45, max_draft=9)) == 3  # the cache holds 48


@pytest.mark.parametrize("sampling", [SamplingConfig(temperature=0), SamplingConfig(temperature=0.2)])
def test_text_with_repetitions_is_the_same_from_fewer_forwards(sampling):
    model, forwards = make("llama", context=128, vocab_size=10), []  # so few tokens repeat themselves
    model.register_forward_hook(lambda *_: forwards.append(1))
    plain = new_ids(model, [PROMPT], max_new_tokens=100, sampling=sampling)
    n_plain = len(forwards)
    assert new_ids(model, [PROMPT], max_new_tokens=100, sampling=sampling, speculative=True) == plain
    assert len(forwards) - n_plain < n_plain - 10
