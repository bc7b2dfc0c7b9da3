"""The optimizer equals its references, a skipped update leaves no trace, and its state can be restored."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model import InputError
from model.optimization.optimizer import Optimizer
from model.optimization.schedule import OptimizerConfig
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


def test_adamw_equals_the_papers_update():
    config = OptimizerConfig(name="adamw", learning_rate=0.01, weight_decay=0.1, beta1=0.9, beta2=0.95, eps=1e-8)
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


def test_a_divisor_divides_the_gradient():
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
def test_a_restored_optimizer_makes_the_same_update(kind, family):
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


def test_momenta_of_older_checkpoints_with_queries_keys_and_values_apart_can_be_restored():
    model = with_gradients(family="modern_grouped")
    optimizer, resumed = (Optimizer(model, OptimizerConfig()) for _ in range(2))
    optimizer.step(1.0, divisor=ONE, skip=NO)
    state, name = optimizer.state_dict(), "muon.momentum.blocks.1.attention.qkv.weight"
    whole = state.pop(name)
    apart = {f"{name}.{start}-{stop}": whole[start:stop] for start, stop in ((96, 128), (0, 64), (64, 96))}
    resumed.load_state_dict(state | apart)
    assert torch.equal(resumed.state_dict()[name], whole)
    del apart[f"{name}.64-96"]
    with pytest.raises(InputError, match="does not fit this model"):
        resumed.load_state_dict(state | apart)


def test_the_state_before_the_first_update_can_be_restored():
    model, other = with_gradients(), with_gradients()
    optimizer, resumed = (Optimizer(m, OptimizerConfig()) for m in (model, other))
    resumed.load_state_dict(optimizer.state_dict())
    for one in (optimizer, resumed):
        one.step(1.0, divisor=ONE, skip=NO)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_an_incomplete_state_or_another_optimizers_is_refused(kind):
    model = with_gradients()
    states = {name: Optimizer(model, OptimizerConfig(name=name)).state_dict() for name in ("adamw", "muon")}
    optimizer, state = Optimizer(model, OptimizerConfig(name=kind)), states.pop(kind)
    without_a_block = {name: value for name, value in state.items() if ".blocks.1." not in name}
    without_a_norm = {name: value for name, value in state.items() if name != "adamw.exp_avg.norm.weight"}
    for wrong in (*states.values(), {}, without_a_block, without_a_norm):
        with pytest.raises(InputError, match="is another optimizer's or model's"):
            optimizer.load_state_dict(wrong)
    optimizer.load_state_dict(state)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_frozen_parameters_stay_and_layers_near_the_input_move_less(name):
    config = OptimizerConfig(name=name, learning_rate=0.01, adamw_learning_rate=0.01, layer_decay=0.5, weight_decay=0.0)
    model = make("modern")
    model.embed.weight.requires_grad_(False)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = Optimizer(model, config)
    for p in optimizer.parameters.values():
        p.grad = torch.ones_like(p)
    optimizer.step(1.0, divisor=torch.tensor(1.0), skip=torch.tensor(False))
    moved = {key: float((p.detach() - before[key]).abs().mean()) for key, p in model.named_parameters()}
    assert moved["embed.weight"] == 0 and not any("embed" in key for key in optimizer.state_dict())
    steps = [moved[f"blocks.{number}.mlp.up.weight"] for number in range(3)]
    assert steps[0] == pytest.approx(steps[1] / 2, rel=1e-3) and steps[1] == pytest.approx(steps[2] / 2, rel=1e-3)
    assert moved["lm_head.weight"] == pytest.approx(0.01, rel=1e-3)
