"""Memory: how much there is, how much was in use at most, and whether an error says that it ran out."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

PROCESS = Path("/proc/self")  # Linux alone has it; elsewhere the CPU's figures are unknown
HUGE_PAGE, CACHE_LINE = 1 << 21, 64  # bytes


def out_of_memory(error: BaseException) -> bool:
    """Whether torch could not allocate, on a GPU or (where a limit is set on the process) on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def release(device: torch.device) -> None:
    """Gives what is cached but unused back to the GPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def available(device: torch.device) -> int | None:
    """Bytes that this process may still take, None where unknown. On a GPU those that its own cache holds count."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") if device.type == "cpu" else None
    return None


def peak(device: torch.device) -> int | None:
    """Bytes in use at most since reset_peak: of the GPU by this process's tensors and their cache, of the whole process
    on a CPU. None where unknown.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if device.type == "cpu":
        with contextlib.suppress(OSError, ValueError, IndexError):
            status = (PROCESS / "status").read_text()
            return 1024 * int(status.split("VmHWM:")[1].split()[0])
    return None


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with contextlib.suppress(OSError):
            (PROCESS / "clear_refs").write_text("5")  # proc(5): resets the peak alone


def in_huge_pages(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of CPU tensors, side by side in pages of 2 MiB where the system has such, else in its ordinary ones.

    What decoding reads for each token exceeds what the processor remembers of 4 KiB pages, and it never prefetches
    beyond the end of a page: huge ones are read about a tenth faster.
    """
    starts, room = [], HUGE_PAGE  # of which up to a whole page is skipped: a mapping begins at any 4 KiB
    for tensor in tensors:
        starts.append(room)
        room += -(-tensor.nbytes // CACHE_LINE) * CACHE_LINE
    mapping = mmap.mmap(-1, room, **({"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(mapping, dtype=torch.uint8)  # keeps the mapping for as long as any of its views lives
    skipped = HUGE_PAGE - memory.data_ptr() % HUGE_PAGE
    copies = []
    for tensor, start in zip(tensors, starts, strict=True):
        place = memory[start - HUGE_PAGE + skipped :][: tensor.nbytes]
        copies.append(place.view(tensor.dtype).view(tensor.shape).copy_(tensor))
    return copies


@torch.no_grad()
def move_to_huge_pages(module: nn.Module) -> None:
    """Moves a module's parameters and buffers on the CPU there, in place."""
    own = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.device.type == "cpu"]
    for tensor, copy in zip(own, in_huge_pages(own), strict=True):
        tensor.data = copy
