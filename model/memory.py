"""Memory: how much there is, how much was in use at most, and whether an error says that it ran out."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

import torch

PROCESS = Path("/proc/self")  # Linux alone has it; elsewhere the CPU's figures are unknown


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
