"""The kernels for decoding one row give what torch's own linear layer gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.inference import kernels


def operands(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, rows, 48, generator=generator), torch.randn(80, 48, generator=generator)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("intel", [True, False])
def test_decoding_linear_equals_the_plain_form(rows, onednn, intel, monkeypatch):
    x, weight = operands(rows)
    monkeypatch.setattr(kernels, "is_intel", lambda: intel)
    if not onednn:
        monkeypatch.setattr(kernels, "has_onednn_linear", lambda: False)
    for bias in (None, torch.arange(80.0)):
        layer = kernels.DecodingLinear(weight, bias, torch.float32)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), F.linear(x, weight, bias), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("intel", [True, False])
def test_a_row_in_bfloat16_equals_the_plain_form(intel, monkeypatch):
    x, weight = (tensor.bfloat16() for tensor in operands(1))
    monkeypatch.setattr(kernels, "is_intel", lambda: intel)
    with torch.no_grad():
        y = kernels.decoding_linear(x, weight)
    assert y.dtype == torch.bfloat16 and y.shape == (1, 1, 80)
    torch.testing.assert_close(y.float(), F.linear(x.float(), weight.float()), atol=0.05, rtol=1 / 128)


def test_fused_sums_equal_the_plain_form():
    x, weight = operands(1)
    torch.testing.assert_close(kernels.fused_sum(x, weight), F.linear(x, weight), atol=1e-5, rtol=1e-5)


def test_with_a_gradient_the_plain_form_is_used():
    x, weight = operands(3)
    weight.requires_grad_()
    kernels.decoding_linear(x, weight).sum().backward()
    assert weight.grad is not None and torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_copy_in_huge_pages_has_the_same_values(dtype):
    tensor = (100 * torch.randn(1500, 1501)).to(dtype)
    moved = kernels.in_huge_pages(tensor)
    assert moved.dtype == dtype and torch.equal(moved, tensor)
    if tensor.nbytes >= kernels.HUGE_PAGE and moved is not tensor:
        assert moved.data_ptr() % kernels.HUGE_PAGE == 0


def test_a_small_tensor_stays_where_it_is():
    tensor = torch.randn(10)
    assert kernels.in_huge_pages(tensor) is tensor
