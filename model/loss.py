"""Cross-entropy of the output head: only where there is a target, and in chunks where the logits would be large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # targets that carry no loss
LARGE_LOGITS = 1 << 25  # elements (128 MiB in float32): from here on, a CPU computes the loss in chunks
CHUNK_TOKENS = 512


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """logits (N, V), targets (N,) -> the sum of -ln p over the targets, a float32 tensor ()."""
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="sum")


def head_loss(head: Callable[[Tensor], Tensor], weight: Tensor, h: Tensor, targets: Tensor) -> Tensor:
    """h (N, D), targets (N,) -> summed_loss(head(h), targets); `weight` (V, D) is the head's matrix.

    On a CPU, tokens without a target (prompts in fine-tuning) skip the head, and large logits are computed in chunks
    and never held as a whole. GPUs and compiled models keep the plain form, whose shapes are fixed.
    """
    if h.device.type != "cpu" or torch.compiler.is_compiling():
        return summed_loss(head(h), targets)
    kept = (targets != IGNORE).nonzero()[:, 0]
    if len(kept) < len(targets):
        h, targets = h.index_select(0, kept), targets.index_select(0, kept)
    if len(targets) * len(weight) < LARGE_LOGITS:
        return summed_loss(head(h), targets)
    if torch.is_grad_enabled() and weight.requires_grad:
        return ChunkedLoss.apply(h, weight, head, targets)
    chunks = zip(h.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True)
    return torch.stack([summed_loss(head(h_chunk), target_chunk) for h_chunk, target_chunk in chunks]).sum()


class ChunkedLoss(torch.autograd.Function):
    """Computes each chunk's gradient together with its loss, then drops its logits.

    The loss is a scalar, so backward only multiplies by the incoming gradient.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor) -> Tensor:
        losses, dh, dw = [], [], torch.zeros_like(weight)
        for h_chunk, target_chunk in zip(h.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True):
            h_chunk = h_chunk.detach().requires_grad_()
            with torch.enable_grad():
                loss = summed_loss(head(h_chunk), target_chunk)
            dh_chunk, dw_chunk = torch.autograd.grad(loss, (h_chunk, weight))
            dh.append(dh_chunk)
            dw += dw_chunk
            losses.append(loss.detach())
        ctx.gradients = torch.cat(dh), dw
        return torch.stack(losses).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dh, dw = ctx.gradients
        return dh * grad, dw * grad, None, None
