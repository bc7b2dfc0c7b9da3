"""The chunked loss has the sums and gradients of the plain form."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from model import loss
from model.device import Compute
from tests.families import FAMILIES, make

CPU = torch.device("cpu")


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of 50 tokens; 12 targets carry no loss."""
    ids = torch.randint(90, (2, 26), generator=torch.Generator().manual_seed(1))
    targets = ids[:, 1:].clone()
    targets[0, 3:15] = loss.IGNORE
    return ids[:, :-1].contiguous(), targets


def gradients(model, dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    inputs, targets = batch()
    model.zero_grad(set_to_none=True)
    with Compute(CPU, dtype, compile=False).autocast():
        total = model(inputs, targets=targets)
    (total / 64).backward()  # a power of two, so that bfloat16 rounds alike before and after it
    return total.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.fixture
def chunked(monkeypatch):
    """Returns a function that makes every loss from then on chunked."""

    def switch() -> None:
        monkeypatch.setitem(loss.CHUNK_TOKENS, "cpu", 7)  # does not divide 50
        monkeypatch.setitem(loss.LARGE_LOGITS, "cpu", 0)

    return switch


@pytest.fixture
def sizes(monkeypatch):
    """The number of tokens in each call of summed_loss."""
    seen: list[int] = []
    summed = loss.summed_loss

    def counted(h, *rest, **options):
        seen.append(len(h))
        return summed(h, *rest, **options)

    monkeypatch.setattr(loss, "summed_loss", counted)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_give_the_plain_loss_and_gradient(family, dtype, chunked, sizes):
    model = make(family).train()
    plain, expected = gradients(model, dtype)
    chunked()
    total, found = gradients(model, dtype)
    assert sizes == [38] + [7] * 5 + [3]  # the tokens with a target
    torch.testing.assert_close(total, plain, rtol=1e-6, atol=0)
    bound = 1e-5 if dtype == torch.float32 else 0.01  # bfloat16 rounds to 0.004
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= bound * gradient.norm(), name


def test_float16_is_not_chunked_so_that_its_loss_scale_acts_before_rounding(chunked, sizes):
    """The gradient of one target's row sums over all tokens and overflows float16 unless it is scaled down first."""
    h, targets = torch.full((100, 64), 1000.0), torch.zeros(100, dtype=torch.int64)
    weight = torch.nn.Parameter(torch.zeros(96, 64))
    chunked()
    with Compute(CPU, torch.float16, compile=False).autocast():
        total = loss.head_loss(h, weight, targets, vocab_size=96)
    (total / 100).backward()
    assert sizes == [100] and weight.grad.isfinite().all() and weight.grad[0].abs().min() > 900


def test_only_large_logits_are_chunked(monkeypatch, sizes):
    model = make("modern")  # 96 ids, padded to 128
    monkeypatch.setitem(loss.CHUNK_TOKENS, "cpu", 7)
    for limit, calls in ((38 * 128 + 1, [38]), (38 * 128, [7] * 5 + [3])):
        monkeypatch.setitem(loss.LARGE_LOGITS, "cpu", limit)
        gradients(model, torch.float32)
        assert sizes == calls
        sizes.clear()


def test_evaluation_in_chunks_gives_the_plain_sum(chunked, sizes):
    model = make("modern").eval()
    inputs, targets = batch()
    with torch.no_grad():
        plain = model(inputs, targets=targets)
        chunked()
        torch.testing.assert_close(model(inputs, targets=targets), plain, rtol=1e-6, atol=0)
    assert sizes == [38] + [7] * 5 + [3]  # the tokens with a target
    logits = model(inputs)
    everything = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(everything, plain, rtol=1e-6, atol=0)


def test_a_frozen_head_gives_the_plain_gradient_too(chunked, sizes):
    model = make("modern").train()
    _, expected = gradients(model, torch.float32)
    chunked()
    model.lm_head.weight.requires_grad_(False)
    _, found = gradients(model, torch.float32)
    assert sizes == [38] + [7] * 5 + [3]  # the tokens with a target
    assert found.pop("lm_head.weight") is None and found["embed.weight"] is not None
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_sees_only_tokens_with_a_target(family, sizes):
    inputs, targets = batch()
    model = make(family).train()
    found = gradients(model, torch.float32)
    assert sizes == [38]
    model.zero_grad()
    logits = model(inputs)
    everything = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    (everything / 64).backward()
    torch.testing.assert_close(found[0], everything.detach(), rtol=1e-6, atol=0)
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[1][name], p.grad, rtol=1e-4, atol=1e-6)


def test_a_batch_without_targets_has_no_loss_and_no_gradient():
    model = make("modern").train()
    inputs, targets = batch()
    total = model(inputs, targets=torch.full_like(targets, loss.IGNORE))
    total.backward()
    assert total == 0 and all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_compiled_chunks_are_one_graph_with_the_plain_loss_and_gradient():
    """As on a GPU, where the compiled model computes large logits in chunks."""
    model = make("modern_grouped")
    inputs, targets = batch()
    h = model.hidden(inputs).detach().flatten(0, 1).requires_grad_()
    sizes = {"vocab_size": model.config.vocab_size, "cap": model.config.logit_softcap}

    def plain() -> torch.Tensor:
        return loss.summed_loss(h, model.head_weight, targets.flatten(), **sizes)

    def chunked() -> torch.Tensor:
        return loss.ChunkedLoss.apply(h, model.head_weight, targets.flatten(), partial(loss.summed_loss, **sizes), 7)

    found = []
    for total in (plain(), torch.compile(chunked, backend="aot_eager", fullgraph=True, dynamic=False)()):
        found.append((total, *torch.autograd.grad(total / 64, (h, model.head_weight))))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)
