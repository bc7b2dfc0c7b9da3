"""Steps of the model with a backward pass written by hand.

Torch's own derivatives of these read and write each tensor up to twice as often, and on a CPU that is where small
models spend their time. A compiler does better still from the plain formulas, and so do GPUs: they get those. GELU is
the other way round: its formula is for the compiler, which would compute an exponential twice.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def by_hand(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def compiled_training(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled() and torch.compiler.is_compiling()


def rms_norm(x: Tensor, epsilon: float) -> Tensor:
    """Scales the last axis to a root mean square of 1 (Zhang and Sennrich 2019). Never has weights."""
    return RMSNormByHand.apply(x, epsilon) if by_hand(x) else F.rms_norm(x, (x.shape[-1],), eps=epsilon)


def relu_squared(x: Tensor) -> Tensor:
    """max(0, x)^2 (So et al. 2021)."""
    return ReluSquaredByHand.apply(x) if by_hand(x) else F.relu(x).square()


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x times the normal distribution's share below x (Hendrycks and Gimpel 2016); approximate: as F.gelu's."""
    if approximate == "none" and compiled_training(x):
        return GeluByFormula.apply(x)
    return F.gelu(x, approximate=approximate)


class RMSNorm(nn.RMSNorm):
    """nn.RMSNorm with that function where it has no weights."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps or 0.0) if self.weight is None else super().forward(x)


class RMSNormByHand(torch.autograd.Function):
    """y = x s with s = (mean x^2 + epsilon)^-1/2; so dx = s (dy - y mean(dy y)). Computed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = (norm.square_() / x.shape[-1] + epsilon).rsqrt_()
        y = wide * scale
        ctx.save_for_backward(y, scale)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        dy = gradients[0].float()
        mean = torch.linalg.vecdot(dy, y).unsqueeze(-1) / y.shape[-1]
        return torch.addcmul(dy, y, mean, value=-1).mul_(scale).to(gradients[0].dtype), None


class ReluSquaredByHand(torch.autograd.Function):
    """y = r^2 with r = max(0, x); so dx = 2 r dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        r = F.relu(x)
        ctx.save_for_backward(r)
        return r.square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (r,), (dy,) = ctx.saved_tensors, gradients
        return torch.addcmul(dy.new_zeros(()), dy, r, value=2)


class GeluByFormula(torch.autograd.Function):
    """y = x P(x), dx = (P(x) + x p(x)) dy with the normal distribution P and its density p, from one exponential.

    P to within 3e-7, rounding included (Abramowitz and Stegun 1964, 7.1.26), computed in float32.
    """

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * normal(wide)[0]).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,), (dy,) = ctx.saved_tensors, gradients
        wide = x.float()
        below, density = normal(wide)
        return (dy.float() * (below + wide * density)).to(dy.dtype)


def normal(x: Tensor) -> tuple[Tensor, Tensor]:
    """The standard normal distribution: the share below x, and the density at x."""
    bell = torch.exp(-0.5 * x.square())
    t = 1 / (1 + 0.3275911 * math.sqrt(0.5) * x.abs())
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * series * bell
    return torch.where(x < 0, tail, 1 - tail), bell / math.sqrt(2 * math.pi)
