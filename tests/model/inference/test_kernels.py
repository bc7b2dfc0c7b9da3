"""The kernels for decoding one row give what torch's own linear layer gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.inference import kernels


def operands(rows: int, bias: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, rows, 48, generator=generator), torch.randn(80, 48, generator=generator)
    return x, weight, torch.randn(80, generator=generator) if bias else None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("onednn", [True, False])
def test_decoding_linear_equals_the_plain_form(rows, bias, onednn, monkeypatch):
    x, weight, b = operands(rows, bias)
    if not onednn:
        monkeypatch.setattr(kernels, "has_onednn_linear", lambda: False)
    with torch.no_grad():
        torch.testing.assert_close(kernels.decoding_linear(x, weight, b), F.linear(x, weight, b), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_fused_sums_equal_the_plain_form(bias):
    x, weight, b = operands(1, bias)
    torch.testing.assert_close(kernels.fused_sum(x, weight, b), F.linear(x, weight, b), atol=1e-5, rtol=1e-5)


def test_with_a_gradient_the_plain_form_is_used():
    x, weight, _ = operands(3, False)
    weight.requires_grad_()
    kernels.decoding_linear(x, weight).sum().backward()
    assert weight.grad is not None and torch.isfinite(weight.grad).all()
