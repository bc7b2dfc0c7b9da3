"""Every attention kernel equals the explicit reference, forward and gradient."""

from __future__ import annotations

import pytest
import torch

from model.attention import attend, choose_kernel, document_mask, explicit_attention, one_query_attention


def tensors(kv_heads: int, T: int, S: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, T, 16), (2, kv_heads, S, 16), (2, kv_heads, S, 16)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_fused_kernel_equals_the_reference(kv_heads, masked):
    T, S = (5, 12) if masked else (12, 12)
    mask = (
        (torch.arange(S) <= torch.arange(T)[:, None] + torch.tensor([3, 6])[:, None, None])[:, None] if masked else None
    )
    results = []
    for kernel in (attend, explicit_attention):
        q, k, v = tensors(kv_heads, T, S)
        y = kernel(q, k, v, mask)
        y.square().sum().backward()
        results.append((y.detach(), q.grad, k.grad, v.grad))
    for fused, explicit in zip(*results, strict=True):
        torch.testing.assert_close(fused, explicit, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_one_query_equals_the_reference(kv_heads, masked):
    q, k, v = (t.detach() for t in tensors(kv_heads, 1, 12))
    mask = (torch.arange(12) <= torch.tensor([3, 6])[:, None])[:, None, None] if masked else None  # (B, 1, 1, S)
    torch.testing.assert_close(one_query_attention(q, k, v, mask), explicit_attention(q, k, v, mask))
    assert one_query_attention(q, k, v.bfloat16(), mask).dtype == torch.float32


def test_attention_with_a_document_mask_equals_each_document_by_itself():
    q, k, v = (t.detach() for t in tensors(2, 12, 12))
    positions, mask = document_mask(torch.tensor([[0] * 5 + [5] * 7, [0] * 12]))
    assert positions.tolist() == [[*range(5), *range(7)], [*range(12)]]
    y = attend(q, k, v, mask)
    for row, document in ((0, slice(0, 5)), (0, slice(5, 12)), (1, slice(0, 12))):
        alone = attend(*(t[row : row + 1, :, document] for t in (q, k, v)))
        torch.testing.assert_close(y[row : row + 1, :, document], alone)


def test_reference_is_the_formula():
    q, k, v = (t.detach() for t in tensors(4, 6, 6))
    y = explicit_attention(q, k, v)
    for b, h, t in [(0, 0, 0), (1, 3, 5), (0, 2, 3)]:
        weights = torch.exp(k[b, h, : t + 1] @ q[b, h, t] / 4.0)
        expected = (weights[:, None] * v[b, h, : t + 1]).sum(0) / weights.sum()
        torch.testing.assert_close(y[b, h, t], expected, atol=1e-5, rtol=1e-5)


def test_short_bfloat16_attention_on_a_cpu_is_explicit():
    assert choose_kernel("cpu", torch.bfloat16, 128) == "explicit"
    assert choose_kernel("cpu", torch.bfloat16, 4096) == "sdpa"
    assert choose_kernel("cpu", torch.float32, 128) == "sdpa"
    assert choose_kernel("cuda", torch.bfloat16, 128) == "sdpa"
    q, k, v = (t.detach() for t in tensors(2, 12, 12))
    short = attend(*(t.bfloat16() for t in (q, k, v))).float()
    torch.testing.assert_close(short, explicit_attention(q, k, v), atol=0.05, rtol=0.05)
