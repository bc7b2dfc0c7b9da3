"""Weights in fewer bits for decoding, whose speed is that of reading the weights; and the loss in quality."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..device import Compute
from ..gpt import GPT
from .kernels import DecodingLinear, in_huge_pages

FEW_ROWS = 32  # up to this many rows the int8 kernel beats unpacking the matrix for an ordinary product


class Int8Linear(nn.Module):
    """A linear layer with symmetric int8 weights (O, I), from -127 to 127, and one scale per output (O,).

    The scale is the output's largest absolute weight / 127, so rounding changes a weight by at most half a scale.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        weight = weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=1e-30) / 127  # the minimum keeps rows of zeros (padding) zero
        scale = scale.to(torch.bfloat16)  # the kernel is slow with float32 scales; divide by the rounded value
        integers = (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.register_buffer("weight", in_huge_pages(integers))
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
    """Replaces a loaded model's linear layers in place by the fastest for decoding; returns the model.

    The matrices are stored as `compute` says: int8, bfloat16, float16 or unchanged float32. Embedding, norms, biases
    and the residual stream stay float32. A head tied to the embedding gets a matrix of its own. Inference only.
    """
    if compute.device.type != "cpu" and not compute.cast_weights:
        return model  # plain nn.Linear is the fastest there

    def replacement(layer: nn.Linear | nn.Embedding) -> nn.Module:
        bias = getattr(layer, "bias", None)
        return Int8Linear(layer.weight, bias) if compute.int8 else DecodingLinear(layer.weight, bias, compute.dtype)

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, replacement(child))
    if model.lm_head is None:
        model.lm_head = replacement(model.embed)
    return model


@dataclass(frozen=True)
class QualityLoss:
    """The distance between a quantized model's next-token predictions and the exact ones, over a text's positions."""

    largest: float  # |logit difference|, after subtracting each position's mean logit
    mean: float
    divergence: float  # mean KL(exact || quantized), nats per token
    positions: int

    def __str__(self) -> str:
        return (
            f"logits differ by {self.mean:.4f} on average and {self.largest:.3f} at most, "
            f"KL {self.divergence:.1e} nats per token over {self.positions} positions"
        )


def compare_logits(exact: Tensor, quantized: Tensor) -> QualityLoss:
    """Compares two models' logits (..., V) on one text, less each position's mean, which affects no probability."""
    p, q = (torch.log_softmax(logits.double().flatten(0, -2), dim=-1) for logits in (exact, quantized))
    difference = ((q - q.mean(-1, keepdim=True)) - (p - p.mean(-1, keepdim=True))).abs()
    divergence = (p.exp() * (p - q)).sum(-1).mean()
    return QualityLoss(difference.max().item(), difference.mean().item(), divergence.item(), len(p))
