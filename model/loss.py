"""Cross-entropy of the output head: only where there is a target, and in chunks where the logits would be large."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .device import working_dtype

IGNORE = -100  # targets that carry no loss
# From this number of logits on, the loss is computed in chunks of this many tokens.
LARGE_LOGITS = {"cpu": 1 << 25, "gpu": 1 << 29}  # 128 MiB in float32, 1 GiB in bfloat16
CHUNK_TOKENS = {"cpu": 512, "gpu": 8192}


def soft_cap(logits: Tensor, cap: float) -> Tensor:
    """Limits logits smoothly to (-cap, cap), in float32 (Gemma Team 2024, section 2); 0 leaves them as they are."""
    return cap * torch.tanh(logits.float() / cap) if cap else logits


def summed_loss(h: Tensor, weight: Tensor, targets: Tensor, *, vocab_size: int, cap: float) -> Tensor:
    """h (N, D), head matrix `weight` (padded V, D), targets (N,) -> the sum of -ln p over the targets, float32 ().

    The logits of the padded vocabulary become -inf instead of being cut off: GPUs are slower on rows of an odd width.
    """
    logits = soft_cap(F.linear(h, weight), cap)  # (N, padded V)
    logits[:, vocab_size:] = float("-inf")
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="sum")


def tokens_at_once(n_tokens: int, padded_vocab: int, kind: str) -> int:
    """Returns for how many of the tokens logits are held at the same time; kind: cpu or gpu."""
    return n_tokens if n_tokens * padded_vocab < LARGE_LOGITS[kind] else min(n_tokens, CHUNK_TOKENS[kind])


def head_loss(h: Tensor, weight: Tensor, targets: Tensor, *, vocab_size: int, cap: float = 0.0) -> Tensor:
    """Returns what summed_loss returns. Large logits are computed in chunks and never held as a whole.

    On a CPU, tokens without a target (prompts in fine-tuning) skip the head. Two cases keep the plain form: models
    compiled for a CPU, where it is faster, and float16, whose loss scale must act before gradients are rounded.
    """
    loss_of = partial(summed_loss, vocab_size=vocab_size, cap=cap)
    kind = "cpu" if h.device.type == "cpu" else "gpu"
    if kind == "cpu":
        if torch.compiler.is_compiling():
            return loss_of(h, weight, targets)
        kept = (targets != IGNORE).nonzero()[:, 0]
        if len(kept) < len(targets):
            h, targets = h.index_select(0, kept), targets.index_select(0, kept)
    size = tokens_at_once(len(targets), len(weight), kind)
    if size == len(targets):
        return loss_of(h, weight, targets)
    if not torch.is_grad_enabled():
        chunks = zip(h.split(size), targets.split(size), strict=True)
        return torch.stack([loss_of(h_chunk, weight, target_chunk) for h_chunk, target_chunk in chunks]).sum()
    if working_dtype(h) == torch.float16:
        return loss_of(h, weight, targets)
    return ChunkedLoss.apply(h, weight, targets, loss_of, size)


class ChunkedLoss(torch.autograd.Function):
    """Computes each chunk's gradient together with its loss, then drops its logits.

    The loss is a scalar, so backward only multiplies by the incoming gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, targets: Tensor, loss_of: Callable[..., Tensor], chunk_tokens: int
    ) -> Tensor:
        trained = ctx.needs_input_grad[1]
        loss_and_gradients = torch.func.grad_and_value(loss_of, argnums=(0, 1) if trained else (0,))
        losses, dh, dw = [], [], torch.zeros_like(weight) if trained else None
        weight = weight.to(working_dtype(weight))  # once, instead of by autocast in each chunk
        for h_chunk, target_chunk in zip(h.split(chunk_tokens), targets.split(chunk_tokens), strict=True):
            (dh_chunk, *dw_chunk), loss = loss_and_gradients(h_chunk, weight, target_chunk)
            losses.append(loss)
            dh.append(dh_chunk)
            if dw is not None:
                dw += dw_chunk[0]
        ctx.save_for_backward(torch.cat(dh), dw)
        return torch.stack(losses).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dh, dw = ctx.saved_tensors
        return dh * grad, None if dw is None else dw * grad, None, None, None
