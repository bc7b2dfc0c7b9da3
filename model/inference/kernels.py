"""Linear layers for decoding one row on a CPU, where the speed is that of reading the weights from memory.

On AMD's CPUs, F.linear passes a float32 product of one row to a BLAS that reaches a quarter to a half of the memory
bandwidth; oneDNN is up to twice as fast. On Intel's, the BLAS is the faster one, and for bfloat16 so is torch.mv: 1.29
and 1.24 times the tokens per second at 135M parameters. A compiled step that fuses the sums into its own loops comes
close to the bandwidth: 1.6 to 2.3 times the tokens per second. None of these has a gradient, and training
keeps nn.Linear.
"""

from __future__ import annotations

import contextlib
import mmap
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HUGE_PAGE = 1 << 21  # bytes


def decoding_linear(x: Tensor, weight: Tensor) -> Tensor:
    """F.linear(x, weight) for inference: x (..., I), weight (O, I) -> (..., O)."""
    if x.device.type == "cpu" and not torch.is_grad_enabled():
        one_row = x.numel() == x.shape[-1]
        if torch.compiler.is_compiling():
            return fused_sum(x, weight) if one_row else F.linear(x, weight)
        if one_row and is_intel():
            return row_product(x, weight) if x.dtype == weight.dtype == torch.bfloat16 else F.linear(x, weight)
        float32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if float32 and has_onednn_linear():
            return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return F.linear(x, weight)


def fused_sum(x: Tensor, weight: Tensor) -> Tensor:
    """The product of one row x (..., I) as a sum that a compiler fuses; accumulates in float32 in any dtype."""
    return (weight * x.float().unsqueeze(-2)).sum(-1)


def row_product(x: Tensor, weight: Tensor) -> Tensor:
    """The product of one row x (..., I) as that of a matrix and a vector."""
    return torch.mv(weight, x.flatten()).view(*x.shape[:-1], -1)


@cache
def is_intel() -> bool:
    """True on a CPU made by Intel, on Linux. A timing would choose as well, but differently from run to run."""
    cpus = Path("/proc/cpuinfo")
    return cpus.exists() and "GenuineIntel" in cpus.read_text()


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


def in_huge_pages(tensor: Tensor) -> Tensor:
    """A copy in pages of 2 MiB; the tensor itself if it is small, not on a CPU, or the system has none.

    Pages of 4 KiB cost time for address translation. Huge pages are worth 1.2 times the tokens per second at 124M
    parameters in bfloat16, compiled, where the kernel grants them only on request (Linux' default).
    """
    if tensor.nbytes < HUGE_PAGE or tensor.device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return tensor
    memory = mmap.mmap(-1, tensor.nbytes + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without them: ordinary pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    buffer = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the mapping alive
    start = -buffer.data_ptr() % HUGE_PAGE
    return buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
