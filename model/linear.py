"""One function: activations times a matrix of weights, by the kernel that suits the device, the dtype and the rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def choose_product(x: Tensor, weight: Tensor) -> str:
    """Names the kernel: `sum`, `onednn` or `linear` (torch's own choice).

    Decoding reads every weight once for each token, so what counts is the rate at which a kernel reads them. On a CPU,
    F.linear hands float32 to a BLAS that does so at a quarter to a half of the memory's rate, oneDNN at up to twice
    that; and a compiler that fuses a whole step of one row into loops of its own comes near to the memory's rate.
    Neither has a gradient, and autocast knows neither.
    """
    if x.device.type == "cpu" and not torch.is_grad_enabled():
        if torch.compiler.is_compiling():
            return "sum" if x.numel() == x.shape[-1] else "linear"
        float32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if float32 and torch.backends.mkldnn.is_available():
            return "onednn"
    return "linear"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., I) times weight (O, I) transposed, plus bias (O,): (..., O)."""
    kernel = choose_product(x, weight)
    if kernel == "onednn":
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    if kernel == "sum":  # in float32, whatever the weights are stored in
        y = (weight * x.float().unsqueeze(-2)).sum(-1)
        return y if bias is None else y + bias
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """nn.Linear with that function for its product."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
