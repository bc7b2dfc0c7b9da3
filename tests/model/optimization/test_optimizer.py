"""Optimizers and schedules: right against references, skipping leaves no trace, state goes round."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from model import InputError
from model.optimization.muon import newton_schulz
from model.optimization.optimizer import Optimizer, split_parameters
from model.optimization.schedule import OptimizerConfig, lr_multiplier
from model.training.skip_updates import BAD, OVERFLOW, SPIKE, LossScale, SkipGuard
from tests.families import FAMILIES, make

ONE, NO, YES = torch.tensor(1.0), torch.tensor(False), torch.tensor(True)


def with_gradients(seed: int = 0, family: str = "gpt2") -> nn.Module:
    model = make(family, n_layer=2)
    fill_gradients(model, seed)
    return model


def fill_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def test_adamw_is_the_paper_s_update():
    config = OptimizerConfig(name="adamw", learning_rate=0.01, weight_decay=0.1, beta1=0.9, beta2=0.95, epsilon=1e-8)
    model = with_gradients()
    optimizer = Optimizer(model, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step(0.5, divisor=torch.tensor(2.0), skip=NO)
    fill_gradients(model, 1)
    second = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step(1.0, divisor=ONE, skip=NO)
    for name, p in model.named_parameters():
        w, m, v = before[name], torch.zeros_like(p), torch.zeros_like(p)
        decay = 0.1 if p.dim() >= 2 else 0.0
        for t, (g, rate) in enumerate([(first[name] / 2, 0.005), (second[name], 0.01)], start=1):
            m = 0.9 * m + 0.1 * g
            v = 0.95 * v + 0.05 * g.square()
            w = w * (1 - rate * decay)
            w = w - rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        torch.testing.assert_close(p.detach(), w, atol=1e-6, rtol=1e-5)


def test_a_skipped_update_changes_nothing_and_a_divisor_is_a_division():
    model, halved = with_gradients(), with_gradients()
    optimizer, other = (Optimizer(m, OptimizerConfig(name="adamw")) for m in (model, halved))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step(1.0, divisor=torch.tensor(1.0), skip=torch.tensor(True))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    for p in halved.parameters():
        p.grad.div_(2)
    optimizer.step(1.0, divisor=torch.tensor(2.0), skip=torch.tensor(False))
    other.step(1.0, divisor=torch.tensor(1.0), skip=torch.tensor(False))
    for p, q in zip(model.parameters(), halved.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_no_weight_decay_on_one_dimensional_parameters():
    optimizer = Optimizer(make("gpt2"), OptimizerConfig(name="adamw"))
    decayed, free = optimizer.adamw.param_groups
    assert decayed["weight_decay"] > 0 and free["weight_decay"] == 0
    assert all(p.dim() >= 2 for p in decayed["params"]) and all(p.dim() < 2 for p in free["params"])
    assert len(free["params"]) > 0


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 48), (2, 48, 16)])
def test_orthogonalise_keeps_directions_and_levels_lengths(shape):
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    inner = u.mT @ newton_schulz(g, torch.float32) @ v.mT  # diagonal: the new singular values
    values = torch.diagonal(inner, dim1=1, dim2=2)
    assert values.min() > 0.1 and values.max() < 1.3
    assert values.mean() > 0.75
    assert (inner - torch.diag_embed(values)).abs().max() < 1e-3


def test_muon_updates_queries_keys_and_values_as_matrices_of_their_own():
    model = with_gradients(family="modern_grouped")
    optimizer = Optimizer(model, OptimizerConfig(name="muon", learning_rate=0.1, weight_decay=0.0))
    weight = model.blocks[0].attention.qkv.weight
    before, gradient = weight.detach().clone(), weight.grad.clone()
    optimizer.step(1.0, divisor=ONE, skip=NO)
    start = 0
    for rows in (64, 32, 32):
        g = gradient[None, start : start + rows]
        expected = newton_schulz(g * (1 - 0.95**2), torch.float32)[0]  # Nesterov's mix points the same way
        torch.testing.assert_close(
            (before - weight.detach())[start : start + rows], 0.1 * expected, atol=1e-5, rtol=1e-3
        )
        start += rows


def test_muon_takes_hidden_matrices_and_nothing_else():
    hidden, rest = split_parameters(make("gpt2"))
    assert all(name.startswith("blocks.") and name.endswith("weight") for name in hidden)
    assert {"embed.weight", "position_embed.weight", "norm.weight", "blocks.0.mlp.up.bias"} <= rest.keys()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_skipped_update_leaves_no_trace(kind):
    runs = []
    for poisoned in (False, True):
        model = with_gradients(seed=1)
        optimizer = Optimizer(model, OptimizerConfig(name=kind))
        optimizer.step(1.0, divisor=ONE, skip=NO)
        if poisoned:
            fill_gradients(model, 2)
            next(iter(model.parameters())).grad[0, 0] = float("nan")
            model.blocks[0].mlp.up.weight.grad[0, 0] = float("inf")
            optimizer.step(1.0, divisor=torch.tensor(float("nan")), skip=YES)
        fill_gradients(model, 3)
        optimizer.step(1.0, divisor=ONE, skip=NO)
        runs.append((model.state_dict(), optimizer.state_dict()))
    for clean, after_skip in zip(*runs, strict=True):
        assert clean.keys() == after_skip.keys()
        for name in clean:
            assert torch.equal(clean[name], after_skip[name]), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_goes_round(kind, family):
    model = with_gradients(seed=1, family=family)
    optimizer = Optimizer(model, OptimizerConfig(name=kind))
    optimizer.step(1.0, divisor=ONE, skip=NO)
    other = make(family, n_layer=2, seed=9)
    other.load_state_dict(model.state_dict())
    resumed = Optimizer(other, OptimizerConfig(name=kind))
    resumed.load_state_dict({name: value.clone() for name, value in optimizer.state_dict().items()})
    for m, o in ((model, optimizer), (other, resumed)):
        fill_gradients(m, 2)
        o.step(0.7, divisor=ONE, skip=NO)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_another_optimizer_s_state_is_refused():
    model = with_gradients()
    muon = Optimizer(model, OptimizerConfig(name="muon"))
    muon.step(1.0, divisor=ONE, skip=NO)
    with pytest.raises(InputError, match="optimizer"):
        Optimizer(model, OptimizerConfig(name="adamw")).load_state_dict(muon.state_dict())


def test_schedules():
    wsd = OptimizerConfig(schedule="wsd", warmup_steps=10, decay_ratio=0.5)
    rates = [lr_multiplier(wsd, step, 100) for step in range(100)]
    assert rates[:2] == [1 / 11, 2 / 11] and rates[10:51] == [1.0] * 41
    assert all(a > b for a, b in pairwise(rates[50:])) and 0 < rates[-1] < 0.03
    cosine = OptimizerConfig(schedule="cosine", warmup_steps=0, min_lr_ratio=0.1)
    assert lr_multiplier(cosine, 0, 100) == 1.0 and abs(lr_multiplier(cosine, 50, 100) - 0.55) < 1e-9
    assert 0.1 < lr_multiplier(cosine, 99, 100) < 0.11
    assert lr_multiplier(OptimizerConfig(schedule="constant"), 99, 100) == 1.0
    assert lr_multiplier(OptimizerConfig(), 0, 5) == 1.0  # a warm-up that nobody asked for never eats a short run
    late = OptimizerConfig(schedule="wsd", warmup_steps=90, decay_ratio=0.5)
    assert [lr_multiplier(late, step, 100) for step in (89, 90)] == [90 / 91, 1.0]


def test_config_problems_are_all_named():
    bad = OptimizerConfig(name="sgd", learning_rate=0, beta2=1.0, grad_clip=-1, schedule="step", warmup_steps=-3)
    assert len(bad.validate()) == 6
    assert OptimizerConfig().validate() == []


def test_loss_scale_halves_on_overflow_and_doubles_after_2000_good_steps():
    scale = LossScale(torch.float16, torch.device("cpu"))
    scale.update(torch.tensor(float("inf")))
    assert scale.scale.item() == 2**15
    for _ in range(1999):
        scale.update(ONE)
    other = LossScale(torch.float16, torch.device("cpu"))
    other.load_state_dict({name: value.clone() for name, value in scale.state_dict().items()})
    for s in (scale, other):
        assert s.scale.item() == 2**15
        s.update(ONE)
        assert s.scale.item() == 2**16
    still = LossScale(torch.bfloat16, torch.device("cpu"))
    still.update(torch.tensor(float("inf")))
    assert still.scale.item() == 1.0 and still.state_dict() == {}


def test_guard_counts_bad_steps_apart_from_overflows(monkeypatch):
    cpu = torch.device("cpu")
    guard, plain = SkipGuard(cpu), LossScale(torch.float32, cpu)
    flags = [
        bool(guard.check(torch.tensor(norm), step, plain)) for step, norm in enumerate([1, float("nan"), float("inf")])
    ]
    assert flags == [False, True, True]
    guard.look()
    assert guard.in_row == guard.counts[BAD] == guard.last[BAD] == 2 and guard.counts[OVERFLOW] == 0
    guard.check(ONE, 3, plain)
    guard.look()
    assert guard.in_row == 0 and guard.counts[BAD] == guard.last[BAD] == 2
    guard, half = SkipGuard(cpu), LossScale(torch.float16, cpu)
    assert bool(guard.check(torch.tensor(float("inf")), 0, half))
    guard.look()
    assert guard.in_row == guard.counts[BAD] == 0 and guard.counts[OVERFLOW] == 1
    half.scale.fill_(1.0)  # no scale left to lower: bad
    assert bool(guard.check(torch.tensor(float("inf")), 1, half))
    guard.look()
    assert guard.in_row == guard.counts[BAD] == guard.counts[OVERFLOW] == 1
    monkeypatch.setattr(SkipGuard, "UNSEEN", 5)
    for step in range(12):
        guard.check(torch.tensor(float("nan")), step, plain)
        assert len(guard.waiting) < 5
    assert guard.report(limit=99, describe=str) == [
        "warning: skipped 13 update(s) whose gradient is not finite, the last at step 12: 11"
    ]
    assert guard.report(limit=99, describe=str) == []


def spiking(deviations: float, *, jump: int) -> tuple[SkipGuard, list[bool]]:
    """What a guard decides over 120 noisy updates, of which one has ten times the loss and all from `jump` on twice."""
    cpu = torch.device("cpu")
    guard, plain = SkipGuard(cpu, spike_deviations=deviations), LossScale(torch.float32, cpu)
    generator = torch.Generator().manual_seed(0)
    flags = []
    for step in range(120):
        norm, loss = 1 + 0.1 * torch.rand(2, generator=generator)
        level = 10 if step == 70 else 2 if step >= jump else 1
        flags.append(bool(guard.check(norm, step, plain, loss=loss * level)))
    return guard, flags


def test_spikes_are_skipped_where_asked_for_and_a_new_level_is_learned():
    _, flags = spiking(0.0, jump=99)
    assert not any(flags)
    guard, flags = spiking(6.0, jump=999)
    assert [step for step, flag in enumerate(flags) if flag] == [70]
    [warning] = guard.report(limit=10, describe=lambda step: f"batch of step {step}")
    assert "stands out" in warning and "step 71: batch of step 70" in warning
    _, flags = spiking(6.0, jump=90)
    assert flags[90] and not any(flags[105:])


def test_a_guard_put_back_decides_the_same():
    guard, _ = spiking(6.0, jump=999)
    other = SkipGuard(torch.device("cpu"), spike_deviations=6.0)
    other.load_state_dict({name: value.clone() for name, value in guard.state_dict().items()})
    for level in (1.0, 1.2, 3.0, 1.0, float("nan"), 1.3):
        for one in (guard, other):
            one.check(torch.tensor(level), 0, LossScale(torch.float32, torch.device("cpu")), loss=torch.tensor(level))
        assert all(torch.equal(guard.state_dict()[name], value) for name, value in other.state_dict().items())
        guard.look(), other.look()
        assert guard.counts[SPIKE] - 1 == other.counts[SPIKE] and guard.counts[BAD] == other.counts[BAD]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_cautious_decay_shrinks_only_what_the_update_moves_towards_zero(kind):
    results = {}
    for name, settings in {"none": {"weight_decay": 0.0}, "plain": {}, "cautious": {"cautious": True}}.items():
        model = with_gradients()
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        config = OptimizerConfig(name=kind, learning_rate=0.01, adamw_learning_rate=0.01, **settings)
        Optimizer(model, config).step(1.0, divisor=ONE, skip=NO)
        results[name] = {key: p.detach() for key, p in model.named_parameters()}
    for key, start in before.items():
        none, plain, cautious = (results[name][key] for name in ("none", "plain", "cautious"))
        if start.dim() < 2:
            assert torch.equal(none, cautious)
            continue
        towards_zero = start * (none - start) < 0
        clear = (none - start).abs() > 1e-5  # rounding may turn the sign of the rest
        assert 0.1 < towards_zero.float().mean() < 0.9
        assert torch.equal(cautious[clear & ~towards_zero], none[clear & ~towards_zero])
        torch.testing.assert_close(
            cautious[clear & towards_zero], plain[clear & towards_zero], atol=3e-5, rtol=0, msg=key
        )
        assert (cautious[clear & towards_zero] != none[clear & towards_zero]).float().mean() > 0.8


def test_cautious_decay_leaves_a_skipped_update_alone():
    model = with_gradients()
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    Optimizer(model, OptimizerConfig(cautious=True)).step(1.0, divisor=ONE, skip=YES)
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())
