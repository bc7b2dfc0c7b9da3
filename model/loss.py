"""The loss: what the head's logits say of the targets, on a CPU a part of the tokens at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .gpt import GPT, Hidden

IGNORE = -100  # a target that carries no loss
PART_LOGITS, PART_TOKENS = 1 << 20, 256  # in a part: so many logits, but never fewer tokens


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The sum over targets (N,) of -ln p, a float32 tensor (); logits (N, V)."""
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="sum")


def head_loss(model: GPT, hidden: Hidden, targets: Tensor) -> Tensor:
    """The summed loss of model.head(hidden) for targets (N,), a float32 tensor ().

    On a CPU the logits of a whole batch, and all that cross-entropy makes of them, would go through memory a dozen
    times: in parts that fit the caches the same takes half the time, and a part's memory. A compiler fuses the whole.
    """
    tokens = max(PART_TOKENS, PART_LOGITS // model.config.vocab_size)
    if targets.device.type != "cpu" or torch.compiler.is_compiling() or len(targets) <= tokens:
        return summed_loss(model.head(hidden), targets)
    parts = [slice(start, start + tokens) for start in range(0, len(targets), tokens)]
    weight = getattr(model.embed if model.unembed is None else model.unembed, "weight", None)  # integers are no weight
    if torch.is_grad_enabled() and weight is not None and weight.requires_grad:
        return LossInParts.apply(hidden.h, weight, model.head, hidden, targets, parts)
    return torch.stack([summed_loss(model.head(hidden[part]), targets[part]) for part in parts]).sum()


class LossInParts(torch.autograd.Function):
    """Each part's gradient follows its loss at once, for the loss is where backward begins: no logits are kept.

    So backward can be called once, and torch.func knows nothing of it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        head: Callable[[Hidden], Tensor],
        hidden: Hidden,
        targets: Tensor,
        parts: list[slice],
    ) -> Tensor:
        """h: hidden.h, weight: the head's; both are here for their gradients."""
        losses, dh, dw = [], torch.empty_like(h), torch.zeros_like(weight)
        for part in parts:
            mine = hidden[part]
            mine.h.requires_grad_()
            with torch.enable_grad():
                loss = summed_loss(head(mine), targets[part])
            dh[part], each = torch.autograd.grad(loss, (mine.h, weight))
            dw += each
            losses.append(loss.detach())
        ctx.gradients = dh, dw
        return torch.stack(losses).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dh, dw = ctx.gradients
        del ctx.gradients
        return dh.mul_(gradients[0]), dw.mul_(gradients[0]), None, None, None, None
