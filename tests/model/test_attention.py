"""Every attention kernel equals the explicit reference, forward and gradient."""

from __future__ import annotations

import itertools

import pytest
import torch

from model import attention, gpt
from model.attention import (
    attend,
    choose_kernel,
    document_mask,
    document_table,
    explicit_attention,
    has_varlen_kernel,
    one_query_attention,
)
from tests.families import FAMILIES, make


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
    table = document_table(torch.tensor([[0] * 5 + [5] * 7, [0] * 12]))
    assert table.tolist() == [[0, 5] + [12] * 10, [0] + [12] * 11]
    positions, mask = document_mask(table, 12, dtype=torch.float32, head_dim=16)
    assert positions.tolist() == [[*range(5), *range(7)], [*range(12)]]
    y = attend(q, k, v, mask)
    for row, document in ((0, slice(0, 5)), (0, slice(5, 12)), (1, slice(0, 12))):
        alone = attend(*(t[row : row + 1, :, document] for t in (q, k, v)))
        torch.testing.assert_close(y[row : row + 1, :, document], alone)


def varlen_reference(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size):
    """torch.nn.attention.varlen.varlen_attn, whose kernel needs a GPU: q, k and v are (tokens, H, E)."""
    bounds = cu_seq_q.tolist()
    assert cu_seq_q.dtype == torch.int32 and cu_seq_k is cu_seq_q and window_size == (-1, 0)
    assert bounds == sorted(bounds) and bounds[0] == 0 and bounds[-1] == len(q) and max_q == max_k
    parts = []
    for start, end in itertools.pairwise(bounds):
        assert end - start <= max_q
        parts.append(explicit_attention(*(x[start:end].transpose(0, 1)[None] for x in (q, k, v)))[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_variable_length_kernel_gives_the_loss_and_gradient_of_the_dense_mask(family, monkeypatch):
    """Three rows of up to nine documents, of one token and more."""
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(96, (3, 40), generator=random)
    cuts = [[0], [0, 1, 2, 17, 39], [0, 4, 8, 12, 13, 20, 30, 31, 33]]
    doc_starts = torch.zeros_like(ids)
    for row, starts in enumerate(cuts):
        for start in starts:
            doc_starts[row, start:] = start
    results = []
    for varlen in (False, True):
        monkeypatch.setattr(attention, "has_varlen_kernel", lambda *how, varlen=varlen: varlen)
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_reference)
        model = make(family)
        loss = model(ids, targets=ids, documents=document_table(doc_starts))
        loss.backward()
        results.append((loss.detach(), *(p.grad for p in model.parameters())))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_variable_length_kernel_compiles_into_one_graph(family, monkeypatch):
    """Traces torch's own function, forward and backward, on the meta device, where it computes nothing."""
    monkeypatch.setattr(attention, "has_varlen_kernel", lambda *how: True)
    monkeypatch.setattr(gpt, "working_dtype", lambda tensor: torch.float32)  # meta has no autocast
    model = make(family).to("meta")
    ids, table = (torch.zeros(3, n, dtype=torch.int64, device="meta") for n in (40, 8))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    compiled(ids, documents=table).sum().backward()  # cross-entropy has no gradient on meta
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_only_gpus_in_half_precision_have_the_variable_length_kernel(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gpu, half = torch.device("cuda", 0), torch.bfloat16
    assert has_varlen_kernel(gpu, half, 64) and has_varlen_kernel(gpu, torch.float16, 128)
    assert not has_varlen_kernel(gpu, torch.float32, 64) and not has_varlen_kernel(torch.device("cpu"), half, 64)
    assert not has_varlen_kernel(gpu, half, 44) and not has_varlen_kernel(gpu, half, 256)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not has_varlen_kernel(gpu, torch.float16, 64)


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
