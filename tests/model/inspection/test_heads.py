"""Heads: scores find planted patterns; an ablated layer equals attention switched off."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from model import InputError
from model.inspection import heads
from model.inspection.heads import ablate_heads, bootstrap_interval, head_scores
from tests.families import FAMILIES, make


def planted(offset):
    """Weights (L, B, H, T, T) of one head that reads the token `offset` before, the first token near the start."""

    def weights(model, ids):
        B, T = ids.shape
        read = (torch.arange(T) - offset).clamp(min=0)
        return F.one_hot(read, T).float().expand(1, B, 1, T, T)

    return weights


def test_each_score_finds_its_pattern_and_no_other(monkeypatch):
    model = make("modern")
    n = (model.config.context - 1) // 2
    for name, offset in {"induction": n - 1, "previous_token": 1, "duplicate_token": n}.items():
        monkeypatch.setattr(heads, "attention_weights", planted(offset))
        scores = head_scores(model, start=0)
        found = {other: float(getattr(scores, other)) for other in scores.chance}
        assert found[name] == 1 and sum(found.values()) < 1.05, found  # the first token's neighbour has no choice


def test_the_scores_are_between_0_and_1_and_do_not_draw_special_tokens(monkeypatch):
    model = make("llama")
    scores = head_scores(model, start=95, exclude=[3])
    assert scores.induction.shape == (3, 4) and ((scores.previous_token > 0) & (scores.previous_token < 1)).all()
    n = (model.config.context - 1) // 2
    assert scores.chance["previous_token"] == pytest.approx(sum(1 / (t + 1) for t in range(1, 2 * n + 1)) / (2 * n))
    seen = []
    monkeypatch.setattr(heads, "attention_weights", lambda model, ids: seen.append(ids) or planted(1)(model, ids))
    head_scores(model, start=95, exclude=[3])
    [ids] = seen
    assert (ids[:, 0] == 95).all() and not (ids[:, 1:, None] == torch.tensor([3, 95])).any()
    assert torch.equal(ids[:, 1 : n + 1], ids[:, n + 1 :])
    with pytest.raises(InputError, match="at least 5 tokens"):
        head_scores(make("modern", context=4), start=0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_without_all_heads_a_layer_has_no_attention(family):
    model = make(family)
    windows = torch.randint(0, 96, (3, 17))
    found = ablate_heads(model, windows, kind="zero")
    whole = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    assert found.loss == pytest.approx(float(whole), rel=1e-5) and found.tokens == 48
    for layer in range(3):
        off = make(family)
        off.blocks[layer].attention.output.weight.zero_()
        loss = F.cross_entropy(off(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        assert float(found.increase[layer, -1]) == pytest.approx(float(loss - whole), abs=2e-5)


@torch.no_grad()
def test_a_head_is_replaced_by_its_mean_over_all_positions():
    model = make("llama")
    windows = torch.randint(0, 96, (4, 13))
    found = ablate_heads(model, windows)
    seen = []
    layer, head, E = 1, 2, model.config.head_dim
    output = model.blocks[layer].attention.output
    handle = output.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits = model(windows[:, :-1])
    handle.remove()
    part = slice(head * E, (head + 1) * E)

    def replaced(_, args):
        z = args[0].clone()
        z[..., part] = seen[0][..., part].mean((0, 1))
        return (z,)

    output.register_forward_pre_hook(replaced)
    targets = windows[:, 1:].flatten()
    difference = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), targets)
    difference -= F.cross_entropy(logits.flatten(0, 1), targets)
    assert float(found.increase[layer, head]) == pytest.approx(float(difference), abs=2e-5)
    assert (
        found.increase.shape == (3, 5) and (found.low <= found.increase).all() and (found.increase <= found.high).all()
    )
    with pytest.raises(InputError, match="mean, zero"):
        ablate_heads(model, windows, kind="nothing")


def test_intervals_cover_the_mean_about_as_often_as_they_say():
    generator = torch.Generator().manual_seed(0)
    low, high = bootstrap_interval(torch.randn(400, 30, generator=generator), seed=1)
    covered = float(((low < 0) & (high > 0)).float().mean())
    assert 0.88 < covered < 0.98  # of few values, bootstrap intervals are a little narrow
    assert math.isnan(float(bootstrap_interval(torch.ones(1), seed=1)[0]))
