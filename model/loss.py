"""Cross-entropy of the output head, in chunks where the logits would be large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # targets that carry no loss
LARGE_LOGITS = 1 << 25  # elements (128 MiB in float32): from here on a CPU computes the loss in chunks
CHUNK_LOGITS = 1 << 20  # elements in a chunk, so that it stays in the CPU's caches


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """logits (N, V), targets (N,) -> the sum of -ln p over the targets, a float32 tensor ()."""
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="sum")


def head_loss(head: Callable[[Tensor], Tensor], weight: Tensor, h: Tensor, targets: Tensor) -> Tensor:
    """The summed loss of head(h) on targets (N,), a float32 tensor (); h (N, D).

    `weight` is the head's matrix (V, D). On a CPU, large logits are computed, scored and differentiated in chunks of
    tokens: they never pass through memory as a whole. A compiler fuses the plain form itself.
    """
    large = len(targets) * len(weight) >= LARGE_LOGITS and h.device.type == "cpu" and not torch.compiler.is_compiling()
    if not large:
        return summed_loss(head(h), targets)
    tokens = max(1, CHUNK_LOGITS // len(weight))
    if torch.is_grad_enabled() and weight.requires_grad:
        return ChunkedLoss.apply(h, weight, head, targets, tokens)
    chunks = zip(h.split(tokens), targets.split(tokens), strict=True)
    return torch.stack([summed_loss(head(part), wanted) for part, wanted in chunks]).sum()


class ChunkedLoss(torch.autograd.Function):
    """The loss is where backward starts, so each chunk's gradient is computed in forward and its logits are dropped."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor, tokens: int
    ) -> Tensor:
        losses, dh, dw = [], [], torch.zeros_like(weight)
        for part, wanted in zip(h.split(tokens), targets.split(tokens), strict=True):
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                loss = summed_loss(head(part), wanted)
            d_part, d_weight = torch.autograd.grad(loss, (part, weight))
            dh.append(d_part)
            dw += d_weight
            losses.append(loss.detach())
        ctx.gradients = torch.cat(dh), dw
        return torch.stack(losses).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dh, dw = ctx.gradients
        return dh * gradients[0], dw * gradients[0], None, None, None
