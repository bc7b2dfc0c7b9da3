"""One function: scaled dot-product attention by the kernel that suits the device, the dtype and the length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST_EXPLICIT = 512  # beyond this the T x T scores no longer fit the caches of a CPU, and the fused kernel wins


def choose_kernel(
    device_type: str, dtype: torch.dtype, length: int, *, queries: int | None = None, compiling: bool = False
) -> str:
    """Names the kernel: `explicit`, `sum` or `sdpa` (torch's fused ones).

    On CPUs, bfloat16 matrix products are fast and torch's fused bfloat16 kernel is not, so at short lengths the
    explicit form wins by up to 5x; one query a head reads each key once, which a compiler does best in sums that it
    fuses with what is around them. Everywhere else the fused kernel is at least as fast, and needs no T x T memory.
    """
    if device_type == "cpu" and queries == 1:
        return "sum" if compiling else "sdpa"
    if device_type == "cpu" and dtype == torch.bfloat16 and length <= LONGEST_EXPLICIT:
        return "explicit"
    return "sdpa"


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of q (B, H, T, E) over k and v (B, K, S, E), H a multiple of K; returns (B, H, T, E).

    mask is boolean, broadcastable to (B, H, T, S), True where a query may look. None: causal, with T == S; a single
    query looks at all. q and k are rounded to the dtype of v.
    """
    T, compiling = q.shape[2], torch.compiler.is_compiling() and not torch.is_grad_enabled()
    q, k = q.to(v.dtype), k.to(v.dtype)  # norms and rotary tables may have made them float32
    kernel = choose_kernel(q.device.type, q.dtype, k.shape[2], queries=T, compiling=compiling)
    if kernel == "explicit":
        return explicit_attention(q, k, v, mask)
    if kernel == "sum":
        return one_query_attention(q, k, v, mask)
    grouped = q.shape[1] != k.shape[1]  # each key/value head then serves H // K query heads
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and T > 1, enable_gqa=grouped)


def confine(starts: Tensor) -> tuple[Tensor, Tensor]:
    """Attention within documents that share a row: their positions (B, T), each counted anew, and a mask (B, 1, T, T).

    starts (B, T): where in the row the document of each token begins; the token sees what lies from there to itself.
    """
    places = torch.arange(starts.shape[1], device=starts.device)
    return places - starts, ((starts[:, :, None] <= places) & (places <= places[:, None]))[:, None]


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(E)) v, written out: the reference for every kernel (Vaswani et al. 2017, eq. 1)."""
    B, H, T, E = q.shape
    K, S = k.shape[1], k.shape[2]
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, float("-inf"))  # 0: may look
    if K == H and mask.dim() == 2:  # one product that scales and adds, without a T x T tensor for either
        scores = torch.baddbmm(bias, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=E**-0.5).view(B, H, T, S)
        return torch.softmax(scores, dim=-1).to(v.dtype) @ v
    if K == H:
        return torch.softmax(q @ k.mT * E**-0.5 + bias, dim=-1).to(v.dtype) @ v
    q = q.reshape(B, K, H // K, T, E)  # the H // K query heads of a group share one key/value head
    k, v = k.unsqueeze(2), v.unsqueeze(2)  # (B, K, 1, S, E)
    bias = bias.unsqueeze(-3) if bias.dim() > 2 else bias
    scores = q @ k.transpose(-2, -1) * E**-0.5 + bias  # (B, K, H // K, T, S)
    return (torch.softmax(scores, dim=-1).to(v.dtype) @ v).reshape(B, H, T, E)


def one_query_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The same for T = 1, as sums of products in float32; mask (B, 1, 1, S)."""
    B, H, _, E = q.shape
    K = k.shape[1]
    scores = (q.reshape(B, K, H // K, 1, E).float() * k.unsqueeze(2).float()).sum(-1) * E**-0.5  # (B, K, H // K, S)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, :, 0, None], float("-inf"))
    return (torch.softmax(scores, dim=-1).unsqueeze(-1) * v.unsqueeze(2)).sum(-2).reshape(B, H, 1, E)
