"""Sampling: probabilities are probabilities, filters keep what they say, text is reproducible and cache-exact."""

from __future__ import annotations

import pytest
import torch

from model import InputError
from model.device import Compute
from model.generate import generate
from model.sampling import SamplingConfig, probabilities, sample
from model.seeds import hash_seed

from .families import FAMILIES, make

LOGITS = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0),
        SamplingConfig(temperature=1e-30),
        SamplingConfig(temperature=1e30),
        SamplingConfig(top_k=7),
        SamplingConfig(top_k=10**9),
        SamplingConfig(top_p=0.0),
        SamplingConfig(top_p=1.0),
        SamplingConfig(temperature=0.7, top_k=20, top_p=0.9),
    ],
)
def test_probabilities_sum_to_one(sampling):
    probs = probabilities(LOGITS, sampling)
    assert (probs >= 0).all()
    torch.testing.assert_close(probs.sum(-1), torch.ones(5), atol=1e-5, rtol=0)


def test_top_k_keeps_exactly_k_under_ties():
    probs = probabilities(torch.zeros(2, 50), SamplingConfig(top_k=7))
    assert (probs > 0).sum(-1).tolist() == [7, 7]
    assert torch.equal(probs[0].nonzero().flatten(), torch.arange(7))
    torch.testing.assert_close(probs[0, :7], torch.full((7,), 1 / 7))


def test_top_p_keeps_the_fewest_that_reach_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = {p: (probabilities(logits, SamplingConfig(top_p=p)) > 0).sum().item() for p in (0.0, 0.4, 0.6, 0.9, 1.0)}
    assert kept == {0.0: 1, 0.4: 1, 0.6: 2, 0.9: 3, 1.0: 4}


def test_temperature_to_zero_is_argmax():
    cold = probabilities(LOGITS, SamplingConfig(temperature=1e-4))
    assert torch.equal(cold.argmax(-1), LOGITS.argmax(-1))
    torch.testing.assert_close(probabilities(LOGITS, SamplingConfig(temperature=0)), cold, atol=1e-4, rtol=0)


def test_sampled_frequencies_are_the_probabilities():
    probs = probabilities(LOGITS[:1, :6], SamplingConfig())
    generators = [torch.Generator().manual_seed(hash_seed(0, row)) for row in range(4000)]
    drawn = sample(probs.expand(4000, -1), generators)
    frequency = torch.bincount(drawn, minlength=6) / 4000
    sigma = (probs[0] * (1 - probs[0]) / 4000).sqrt()
    assert ((frequency - probs[0]).abs() < 4 * sigma + 1e-9).all()


def test_impossible_tokens_are_never_drawn():
    probs = probabilities(LOGITS, SamplingConfig(top_k=2))
    for seed in range(200):
        ids = sample(probs, [torch.Generator().manual_seed(hash_seed(seed, row)) for row in range(5)])
        assert (probs.gather(-1, ids[:, None]) > 0).all()


def run(model, prompts, **options):
    tokens = [[] for _ in prompts]
    logs = [[] for _ in prompts]
    for new, chosen in generate(model, prompts, **options):
        for row, token in enumerate(new):
            if token is not None:
                tokens[row].append(token)
                logs[row].append(chosen[row])
    return tokens, logs


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_decoding_then_scoring_gives_equal_log_probabilities(family):
    model = make(family)
    prompts = [[1, 2, 3], [4] * 20, [9]]
    tokens, logs = run(model, prompts, max_new_tokens=20, seed=5)
    for prompt, made, log in zip(prompts, tokens, logs, strict=True):
        scores = torch.log_softmax(model(torch.tensor([prompt + made]))[0], dim=-1)
        rescored = scores[len(prompt) - 1 : -1].gather(-1, torch.tensor(made)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(log), rescored, atol=1e-4, rtol=0)


def test_rows_depend_on_their_own_prompt_and_seed_alone():
    model = make("modern")
    together, _ = run(model, [[1, 2, 3], [5, 6, 7, 8, 9]], max_new_tokens=15, seed=3)
    alone, _ = run(model, [[1, 2, 3]], max_new_tokens=15, seed=3)
    assert together[0] == alone[0]
    assert run(model, [[1, 2, 3]], max_new_tokens=15, seed=3) == run(model, [[1, 2, 3]], max_new_tokens=15, seed=3)
    assert run(model, [[1, 2, 3]], max_new_tokens=15, seed=4)[0] != alone
    same_prompt, _ = run(model, [[1], [1]], max_new_tokens=15, seed=3)
    assert same_prompt[0] != same_prompt[1]


@torch.no_grad()
def test_greedy_is_argmax_of_full_forwards():
    model = make("llama")
    (made,), _ = run(model, [[1, 2, 3]], max_new_tokens=12, sampling=SamplingConfig(temperature=0))
    ids = [1, 2, 3]
    for token in made:
        assert token == model(torch.tensor([ids]))[0, -1].argmax().item()
        ids.append(token)


def test_a_row_stops_at_its_end_token_and_others_go_on():
    model = make("modern")
    free, _ = run(model, [[1, 2, 3], [4, 5]], max_new_tokens=30, seed=1)
    end = free[0][4]
    stopped, logs = run(model, [[1, 2, 3], [4, 5]], max_new_tokens=30, seed=1, end_id=end)
    assert stopped[0] == free[0][: free[0].index(end) + 1]
    assert len(logs[0]) == len(stopped[0])
    expected = free[1][: free[1].index(end) + 1] if end in free[1] else free[1]
    assert stopped[1] == expected


def test_a_finished_row_may_outlive_the_cache_of_its_neighbours():
    model = make("modern")  # context 48
    prompts = [[1] * 47, [2]]
    free, _ = run(model, prompts, max_new_tokens=1, seed=1)
    made, _ = run(model, prompts, max_new_tokens=40, seed=1, end_id=free[0][0])
    assert made[0] == free[0]
    alone, _ = run(model, [[7], [2]], max_new_tokens=40, seed=1, end_id=free[0][0])
    assert made[1] == alone[1]


@torch.no_grad()
def test_text_may_grow_beyond_the_context():
    model = make("gpt2")  # learned positions: nothing exists beyond 48
    (made,), _ = run(model, [[1] * 40], max_new_tokens=60, sampling=SamplingConfig(temperature=0))
    assert len(made) == 60
    text = [1] * 40 + made
    window = text[:49][-25:]  # the first token beyond the context is chosen from the newest half
    assert made[9] == model(torch.tensor([window]))[0, -1].argmax().item()


def test_a_prompt_longer_than_the_context_counts_by_its_end():
    model = make("modern")
    long = [(7 * i) % 96 for i in range(100)]
    assert run(model, [long], max_new_tokens=5)[0] == run(model, [long[-48:]], max_new_tokens=5)[0]


def test_an_empty_prompt_is_refused():
    with pytest.raises(InputError, match="empty prompt"):
        next(generate(make("modern"), [[]], max_new_tokens=1))


def test_sampling_problems_are_named():
    with pytest.raises(InputError, match="top_k=0"):
        next(generate(make("modern"), [[1]], max_new_tokens=1, sampling=SamplingConfig(top_k=0)))
    assert len(SamplingConfig(temperature=-1, top_k=0, top_p=1.5).problems()) == 3
    assert SamplingConfig(temperature=float("nan")).problems()
    assert SamplingConfig().problems() == []


def test_what_runs_between_two_tokens_is_not_in_the_model_s_number_format():
    compute = Compute(torch.device("cpu"), torch.bfloat16, compile=False)
    for ids, _ in generate(make("modern"), [[1, 2, 3]], max_new_tokens=3, compute=compute):
        assert len(ids) == 1 and not torch.is_autocast_enabled("cpu")
