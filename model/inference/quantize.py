"""Weights in fewer bits for decoding, which is as fast as the weights are read; and what that costs in quality."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..device import Compute
from ..gpt import GPT
from .kernels import DecodingLinear, decoding_linear

FEW_ROWS = 32  # up to here the int8 kernel beats unpacking the whole matrix for an ordinary product


class NarrowLinear(nn.Module):
    """A linear layer whose matrix is stored in bfloat16 or float16. The input is cast to it; the bias stays float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = decoding_linear(x.to(self.weight.dtype), self.weight)
        return y if self.bias is None else y + self.bias


class Int8Linear(nn.Module):
    """A linear layer whose weights are integers from -127 to 127 times one scale for each output.

    The scale is the largest weight of that output / 127, so a weight is off by at most half of it.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        weight = weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=1e-30) / 127  # (O,); a row of zeros, as of padding, stays zeros
        scale = scale.to(torch.bfloat16)  # as the kernel wants it, which is slow in float32; divide by just that
        self.register_buffer("weight", (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        if len(rows) <= FEW_ROWS:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:
            y = F.linear(rows, self.weight.to(torch.bfloat16)) * self.scale
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


@torch.no_grad()
def prepare_for_decoding(model: GPT, compute: Compute) -> GPT:
    """Replaces the linear layers of a loaded model, in place, by those that decode fastest; returns the model.

    The matrices are stored as `compute` asks: int8, bfloat16, float16, or float32 as they are. Embedding, norms, biases
    and the residual stream stay float32. A head tied to the embedding becomes a layer of its own. Inference only.
    """
    if compute.device.type != "cpu" and not compute.narrow:
        return model  # plain nn.Linear is the fastest there

    def replacement(layer: nn.Linear | nn.Embedding) -> nn.Module:
        bias = getattr(layer, "bias", None)
        if compute.int8:
            return Int8Linear(layer.weight, bias)
        if compute.narrow:
            return NarrowLinear(layer.weight, bias, dtype=compute.dtype)
        return DecodingLinear(layer.weight, bias)

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, replacement(child))
    if model.lm_head is None:
        model.lm_head = replacement(model.embed)
    return model


@dataclass(frozen=True)
class QualityLoss:
    """How far one model's next-token predictions are from the exact ones, over the positions of some text."""

    largest: float  # |logit difference|, the logits of each position taken relative to their mean
    mean: float
    divergence: float  # KL(exact || narrowed), the mean over positions in nats per token
    positions: int

    def __str__(self) -> str:
        return (
            f"logits off by {self.mean:.4f} on average and {self.largest:.3f} at most, "
            f"KL {self.divergence:.1e} nats per token over {self.positions} positions"
        )


def compare(exact: Tensor, narrowed: Tensor) -> QualityLoss:
    """Logits (..., V) of the same text from two models. Their mean at a position is taken out: it changes nothing."""
    p, q = (torch.log_softmax(logits.double().flatten(0, -2), dim=-1) for logits in (exact, narrowed))
    difference = ((q - q.mean(-1, keepdim=True)) - (p - p.mean(-1, keepdim=True))).abs()
    divergence = (p.exp() * (p - q)).sum(-1).mean()
    return QualityLoss(difference.max().item(), difference.mean().item(), divergence.item(), len(p))


@torch.no_grad()
def quality_loss(exact: GPT, narrowed: GPT, ids: Tensor, *, compute: Compute) -> QualityLoss:
    """Both read ids (B, T), teacher-forced: `exact` in float32, `narrowed` as `compute` says."""
    with compute.autocast():
        got = narrowed(ids)
    return compare(exact(ids), got)
