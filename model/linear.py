"""One function: activations times a matrix of weights, by the kernel that suits the device, the dtype and the rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fused import compiled_training


def choose_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    """Names the kernel: `sum`, `onednn`, `product` or `linear` (torch's own choice).

    Decoding reads every weight once for each token, so what counts is the rate at which a kernel reads them. On a CPU,
    F.linear hands float32 to a BLAS that does so at a quarter to a half of the memory's rate, oneDNN at up to twice
    that; and a compiler that fuses a whole step of one row into loops of its own comes near to the memory's rate.
    Neither has a gradient, and autocast knows neither. A compiled training step takes `product`, for its gradient.
    """
    if bias is None and compiled_training(x):
        return "product"
    if x.device.type == "cpu" and not torch.is_grad_enabled():
        if torch.compiler.is_compiling():
            return "sum" if x.numel() == x.shape[-1] else "linear"
        float32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if float32 and torch.backends.mkldnn.is_available():
            return "onednn"
    return "linear"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., I) times weight (O, I) transposed, plus bias (O,): (..., O)."""
    kernel = choose_product(x, weight, bias)
    if kernel == "onednn":
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    if kernel == "sum":  # in float32, whatever the weights are stored in
        y = (weight * x.float().unsqueeze(-2)).sum(-1)
        return y if bias is None else y + bias
    if kernel == "product":
        if torch.is_autocast_enabled("cpu"):
            x, weight = (each.to(torch.get_autocast_dtype("cpu")) for each in (x, weight))
        return Product.apply(x, weight)
    return F.linear(x, weight, bias)


class Product(torch.autograd.Function):
    """x (..., I) times w (O, I) transposed. F.linear's own gradient of w is computed as (I, O) and then turned, which
    takes a compiler's loops a tenth of the product's time.
    """

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return x @ w.T

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (x, w), (dy,) = ctx.saved_tensors, gradients
        return dy @ w, dy.flatten(0, -2).T @ x.flatten(0, -2)


class Linear(nn.Linear):
    """nn.Linear with that function for its product."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
