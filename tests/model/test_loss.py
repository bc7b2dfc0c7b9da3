"""The loss of the head in parts: the same sums and the same gradients as of all logits at once."""

from __future__ import annotations

import pytest
import torch

from model import loss
from model.device import Compute
from tests.families import FAMILIES, make

CPU = torch.device("cpu")


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of 50 tokens; of the targets some, and all of the second part, carry no loss."""
    ids = torch.randint(90, (2, 26), generator=torch.Generator().manual_seed(1))
    targets = ids[:, 1:].clone()
    targets[0, 3:15] = loss.IGNORE
    return ids[:, :-1].contiguous(), targets


def gradients(model, dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    inputs, targets = batch()
    model.zero_grad(set_to_none=True)
    with Compute(CPU, dtype, compile=False).autocast():
        total = model(inputs, targets=targets)
    (total * 0.02).backward()
    return total.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.fixture
def in_parts(monkeypatch):
    def switch() -> None:
        monkeypatch.setattr(loss, "PART_TOKENS", 7)  # which does not divide 50
        monkeypatch.setattr(loss, "PART_LOGITS", 0)

    return switch


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_give_the_gradient_of_the_whole(family, dtype, in_parts):
    model = make(family).train()
    whole, wanted = gradients(model, dtype)
    in_parts()
    total, found = gradients(model, dtype)
    torch.testing.assert_close(total, whole, rtol=1e-6, atol=0)
    bound = 1e-5 if dtype == torch.float32 else 0.01  # bfloat16 rounds to 0.004
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= bound * gradient.norm(), name


@pytest.fixture
def sizes(monkeypatch):
    """Of how many tokens the logits were, each time that a loss was computed."""
    seen: list[int] = []
    summed = loss.summed_loss
    monkeypatch.setattr(loss, "summed_loss", lambda *pair: seen.append(len(pair[0])) or summed(*pair))
    return seen


def test_no_more_logits_at_a_time_than_a_part_s(in_parts, sizes):
    in_parts()
    gradients(make("modern").train(), torch.float32)
    assert sizes == [7] * 7 + [1]


def test_evaluation_in_parts_is_the_same_sum(in_parts, sizes):
    model = make("modern").eval()
    inputs, targets = batch()
    with torch.no_grad():
        whole = model(inputs, targets=targets)
        in_parts()
        torch.testing.assert_close(model(inputs, targets=targets), whole, rtol=1e-6, atol=0)
    assert sizes == [50] + [7] * 7 + [1]
    logits = model(inputs)
    torch.testing.assert_close(loss.summed_loss(logits.flatten(0, 1), targets.flatten()), whole, rtol=1e-6, atol=0)


def test_a_head_that_is_not_trained_has_its_loss_in_parts_too(in_parts):
    model = make("modern").train()
    _, wanted = gradients(model, torch.float32)
    in_parts()
    model.lm_head.weight.requires_grad_(False)
    _, found = gradients(model, torch.float32)
    assert found.pop("lm_head.weight") is None and found["embed.weight"] is not None
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6)
