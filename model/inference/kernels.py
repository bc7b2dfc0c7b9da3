"""Linear layers for decoding one row on a CPU, where the speed is that of reading the weights from memory.

F.linear passes a float32 product of one row to a BLAS that reaches a quarter to a half of the memory bandwidth. oneDNN
is up to twice as fast, and a compiled step that fuses the sums into its own loops comes close to the bandwidth: 1.6 to
2.3 times the tokens per second. None of these has a gradient, so training keeps nn.Linear.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .huge_pages import in_huge_pages


def decoding_linear(x: Tensor, weight: Tensor) -> Tensor:
    """F.linear(x, weight) for inference: x (..., I), weight (O, I) -> (..., O)."""
    if x.device.type == "cpu" and not torch.is_grad_enabled():
        if torch.compiler.is_compiling():
            return fused_sum(x, weight) if x.numel() == x.shape[-1] else F.linear(x, weight)
        float32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if float32 and has_onednn_linear():
            return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return F.linear(x, weight)


def fused_sum(x: Tensor, weight: Tensor) -> Tensor:
    """The product of one row x (..., I) as a sum that a compiler fuses; accumulates in float32 in any dtype."""
    return (weight * x.float().unsqueeze(-2)).sum(-1)


def has_onednn_linear() -> bool:
    """True if this torch has oneDNN's linear operator, which has no public interface."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class DecodingLinear(nn.Module):
    """nn.Linear for inference, its matrix stored in `dtype`, to which the input is cast; the bias stays float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        stored = weight.detach() if weight.dtype == dtype else in_huge_pages(weight.detach().to(dtype))
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = decoding_linear(x.to(self.weight.dtype), self.weight)
        return y if self.bias is None else y + self.bias
