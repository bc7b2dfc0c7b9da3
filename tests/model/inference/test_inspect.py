"""Explained sampling: the alternatives are the model's, and the filters account for every change in probability."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from model.inference.sampling import SamplingConfig
from tests.families import make
from tests.model.inference.helpers import GREEDY, ascii_vocabulary, new_tokens


@torch.no_grad()
def test_alternatives_are_the_most_probable_tokens_of_the_model():
    model = make("llama")
    [row] = new_tokens(model, [[1, 2, 3]], max_new_tokens=6, top_logprobs=4, sampling=SamplingConfig(top_k=2))
    ids = [1, 2, 3]
    for new in row:
        best = model(torch.tensor([ids]))[0, -1].softmax(-1).topk(4)
        assert [token for token, _ in new.alternatives] == best.indices.tolist()
        found = torch.tensor([p for _, p in new.alternatives])
        torch.testing.assert_close(found, best.values, atol=1e-5, rtol=0)
        ids.append(new.id)
    [[new]] = new_tokens(model, [[1]], max_new_tokens=1, top_logprobs=1000)
    assert len(new.alternatives) == 96


def test_an_explanation_follows_the_probability_through_the_filters():
    sampling = SamplingConfig(temperature=0.8, top_k=10, top_p=0.9, repetition_penalty=1.5, bad_words=("A",))
    options = {"max_new_tokens": 12, "sampling": sampling, "vocabulary": ascii_vocabulary(0)}
    prompts = [[1, 2, 3], [9]]
    explained = new_tokens(make("modern"), prompts, explain=True, **options)
    plain = new_tokens(make("modern"), prompts, **options)
    for row, plain_row in zip(explained, plain, strict=True):
        for new, same in zip(row, plain_row, strict=True):
            assert new.id == same.id and same.rank is None and not same.filters
            filters = new.filters
            assert [step.name for step in filters] == ["constraints", "penalties", "temperature", "top_k", "top_p"]
            assert math.isclose(math.log(filters[0].before), new.model_log_probability, abs_tol=1e-4)
            assert math.isclose(math.log(filters[-1].after), new.log_probability, abs_tol=1e-4)
            assert all(one.after == other.before for one, other in pairwise(filters))
            constraints, penalties, temperature, top_k, top_p = filters
            assert 0 < constraints.removed < 1 and penalties.removed == temperature.removed == 0
            for step in (constraints, top_k, top_p):  # each renormalizes what it keeps
                assert math.isclose(step.after * (1 - step.removed), step.before, rel_tol=1e-3)
            assert 1 <= new.rank <= 96


def test_greedy_tokens_are_ranked_first():
    [row] = new_tokens(make("modern"), [[1, 2]], max_new_tokens=5, sampling=GREEDY, explain=True)
    for new in row:
        assert new.rank == 1 and new.log_probability == 0
        removed = new.filters[0].removed
        assert math.isclose(removed, 1 - math.exp(new.model_log_probability), abs_tol=1e-5)
