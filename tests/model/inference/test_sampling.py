"""Sampling: probabilities sum to 1, filters keep the right tokens, noise is uniform and depends only on its key."""

from __future__ import annotations

import math

import pytest
import torch

from model import InputError
from model.inference.sampling import SamplingConfig, checked, draw, filtered, penalize, probabilities, uniform
from model.seeds import hash_seed

LOGITS = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)) * 3
KNOWN = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
SETTINGS = [
    SamplingConfig(),
    SamplingConfig(temperature=0),
    SamplingConfig(temperature=1e-45),
    SamplingConfig(temperature=1e-30),
    SamplingConfig(temperature=1e30),
    SamplingConfig(top_k=7),
    SamplingConfig(top_k=10**9),
    SamplingConfig(top_p=0.0),
    SamplingConfig(top_p=1.0),
    SamplingConfig(min_p=0.0),
    SamplingConfig(min_p=1.0),
    SamplingConfig(typical_p=0.0),
    SamplingConfig(typical_p=0.5),
    SamplingConfig(typical_p=1.0),
    SamplingConfig(temperature=0.7, top_k=20, top_p=0.9, min_p=0.01, typical_p=0.95),
]


def kept(sampling: SamplingConfig, probs: torch.Tensor = KNOWN) -> list[int]:
    return (probabilities(probs.log(), sampling)[0] > 0).nonzero().flatten().tolist()


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("impossible", [False, True])
def test_probabilities_sum_to_one(sampling, impossible):
    logits = LOGITS.masked_fill(torch.arange(50) % 3 == 0, -math.inf) if impossible else LOGITS
    probs = probabilities(logits, sampling)
    assert probs.dtype == torch.float32 and (probs >= 0).all()
    assert not (probs[logits == -math.inf] > 0).any()
    torch.testing.assert_close(probs.sum(-1), torch.ones(5), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_a_row_does_not_depend_on_its_neighbours(sampling):
    wide = torch.randn(6, 1000, generator=torch.Generator().manual_seed(1))  # flat: top_p needs more than 256 tokens
    wide[::2] *= 8  # and peaked
    together = probabilities(wide, sampling)
    assert all(torch.equal(together[i : i + 1], probabilities(wide[i : i + 1], sampling)) for i in range(6))


def test_top_k_keeps_exactly_k_under_ties():
    probs = probabilities(torch.zeros(2, 50), SamplingConfig(top_k=7))
    assert (probs > 0).sum(-1).tolist() == [7, 7]
    assert torch.equal(probs[0].nonzero().flatten(), torch.arange(7))
    torch.testing.assert_close(probs[0, :7], torch.full((7,), 1 / 7))
    assert kept(SamplingConfig(top_k=2), torch.tensor([[0.2, 0.4, 0.2, 0.2]])) == [0, 1]


def test_top_p_keeps_the_fewest_that_reach_p():
    expected = {0.0: [0], 0.4: [0], 0.6: [0, 1], 0.9: [0, 1, 2], 1.0: [0, 1, 2, 3]}
    assert {p: kept(SamplingConfig(top_p=p)) for p in expected} == expected
    assert kept(SamplingConfig(top_p=0.3), torch.full((1, 4), 0.25)) == [0, 1]
    flat = torch.full((1, 1000), 1e-3)
    assert len(kept(SamplingConfig(top_p=0.4005), flat)) == 401  # more than are looked at first


def test_min_p_keeps_tokens_that_reach_that_fraction_of_the_best():
    expected = {0.0: [0, 1, 2, 3], 0.2: [0, 1, 2], 0.5: [0, 1], 1.0: [0]}
    assert {p: kept(SamplingConfig(min_p=p)) for p in expected} == expected


def test_typical_keeps_the_tokens_whose_surprisal_is_closest_to_the_entropy():
    entropy = -(KNOWN * KNOWN.log()).sum()  # 1.14 nats; the tokens surprise by 0.69, 1.20, 1.90, 3.00
    nearest = (-KNOWN.log() - entropy).abs()[0].argsort().tolist()
    assert nearest[0] == 1  # not the most probable one
    expected = {0.0: nearest[:1], 0.3: nearest[:1], 0.7: nearest[:2], 0.9: nearest[:3], 1.0: nearest}
    assert {p: kept(SamplingConfig(typical_p=p)) for p in expected} == {p: sorted(ids) for p, ids in expected.items()}


def test_each_filter_applies_to_what_the_previous_one_kept():
    stages = dict(filtered(KNOWN.log(), SamplingConfig(top_k=3, top_p=0.8, min_p=0.7)))
    assert list(stages) == ["temperature", "top_k", "top_p", "min_p"]
    left = {name: (probs[0] * 800).round().int().tolist() for name, probs in stages.items()}
    # of the three that top_k leaves, the first two hold 84 % of the mass; before they held 80 % less a rounding
    assert left == {
        "temperature": [400, 240, 120, 40],
        "top_k": [421, 253, 126, 0],
        "top_p": [500, 300, 0, 0],
        "min_p": [800, 0, 0, 0],
    }


def test_temperature_to_zero_is_argmax():
    cold = probabilities(LOGITS, SamplingConfig(temperature=1e-4))
    assert torch.equal(cold.argmax(-1), LOGITS.argmax(-1))
    torch.testing.assert_close(probabilities(LOGITS, SamplingConfig(temperature=0)), cold, atol=1e-4, rtol=0)


def test_penalties_match_their_definitions():
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0, 1.0]])
    seen = torch.tensor([[True, True, False, False, True]])
    counts = torch.tensor([[3.0, 0.0, 0.0, 0.0, 1.0]])

    def after(**settings):
        return penalize(logits, SamplingConfig(**settings), seen=seen, counts=counts)[0].tolist()

    assert after(repetition_penalty=2.0) == [1, -4, 2, -2, 0.5]
    assert after(presence_penalty=0.5) == [1.5, -2, 2, -2, 0.5]
    assert after(frequency_penalty=0.5) == [0.5, -2, 2, -2, 0.5]
    assert after(repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5) == [-0.75, -4, 2, -2, -0.25]


def test_noise_is_uniform():
    u = uniform([hash_seed(1, row) for row in range(400)], torch.arange(500).expand(400, -1))
    assert u.dtype == torch.float64 and u.min() > 0 and u.max() < 1 and len(u.unique()) == u.numel()
    counts = torch.histc(u, bins=1000, min=0, max=1)
    chi_square = ((counts - 200) ** 2 / 200).sum().item()
    assert abs(chi_square - 999) < 4 * math.sqrt(2 * 999)
    ordered = u.flatten().sort().values
    steps = torch.arange(1, u.numel() + 1, dtype=torch.float64) / u.numel()
    assert (ordered - steps).abs().max() * math.sqrt(u.numel()) < 1.95  # Kolmogorov-Smirnov at 0.1 %
    for bit in range(1, 53):  # every bit is a fair coin
        ones = (u * 2.0**bit).floor().remainder(2).mean().item()
        assert abs(ones - 0.5) < 4.5 * 0.5 / math.sqrt(u.numel()), bit


def test_noise_of_neighbouring_keys_tokens_and_positions_is_independent():
    keys = [hash_seed(seed, index, position) for seed in (0, 1) for index in range(12) for position in range(12)]
    u = uniform(keys, torch.arange(3000).expand(len(keys), -1)) - 0.5
    along_keys = (u @ u.T / (3000 / 12)).fill_diagonal_(0)
    assert along_keys.abs().max() * math.sqrt(3000) < 5.5
    along_tokens = (u[:, 1:] * u[:, :-1]).mean().item() * 12
    assert abs(along_tokens) * math.sqrt(u.numel()) < 4


def test_noise_is_a_function_of_key_and_token_only():
    tokens = torch.arange(1000)
    everything = uniform([5, 6, 7], tokens.expand(3, -1))
    some = torch.tensor([[999, 3], [0, 500], [3, 3]])
    assert torch.equal(uniform([5, 6, 7], some), everything.gather(-1, some))
    assert torch.equal(uniform([7], tokens)[0], everything[2])
    # SplitMix64 from 0, as its authors' program prints it; read as signed numbers, which turns the uppermost bit
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert uniform([0], torch.arange(1, 4)[None])[0].tolist() == [(((x ^ 1 << 63) >> 12) + 0.5) / 2**52 for x in first]


@pytest.mark.parametrize("max_nonzero", [None, 6])
def test_drawn_frequencies_are_the_probabilities(max_nonzero):
    probs = torch.zeros(20_000, 100)
    probs[:, 40:46] = torch.softmax(LOGITS[0, :6] / 2, dim=-1)
    drawn = draw(probs, [hash_seed(0, row, 0) for row in range(len(probs))], max_nonzero=max_nonzero)
    frequency = torch.bincount(drawn, minlength=100) / len(probs)
    sigma = (probs[0] * (1 - probs[0]) / len(probs)).sqrt()
    assert ((frequency - probs[0]).abs() <= 4 * sigma).all()  # and so nothing impossible is drawn


def test_knowing_the_number_of_nonzero_probabilities_does_not_change_the_draw():
    probs = probabilities(torch.randn(300, 400, generator=torch.Generator().manual_seed(2)), SamplingConfig(top_k=9))
    keys = [hash_seed(3, row) for row in range(300)]
    assert torch.equal(draw(probs, keys), draw(probs, keys, max_nonzero=9))
    assert torch.equal(draw(probs, keys)[100:101], draw(probs[100:101], keys[100:101], max_nonzero=20))


def test_all_errors_are_reported_at_once():
    wrong = SamplingConfig(
        temperature=-1, top_k=0, top_p=1.5, min_p=-0.1, typical_p=2, repetition_penalty=0, presence_penalty=math.nan,
        frequency_penalty=math.inf, min_new_tokens=-1, stop=("",), bad_words=("a", ""), force_words=(3,),
    )  # fmt: skip
    problems = wrong.validate()
    assert [problem.split("=")[0] for problem in problems] == list(vars(wrong))
    assert SamplingConfig(temperature=math.nan).validate() and SamplingConfig(temperature=math.inf).validate()
    assert SamplingConfig(stop=("a\ud800",)).validate()
    assert SamplingConfig(stop="ab").validate() and SamplingConfig().validate() == []  # type: ignore[arg-type]
    with pytest.raises(InputError, match="top_k=0 must be at least 1"):
        checked(SamplingConfig(top_k=0))
