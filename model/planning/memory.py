"""Memory: how much is free, the peak use, and recognizing out-of-memory errors."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

import torch

PROCESS = Path("/proc/self")  # exists on Linux only; elsewhere, CPU figures are unknown


def out_of_memory(error: BaseException) -> bool:
    """True if torch failed to allocate, on a GPU or (where the process has a limit) on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def release(device: torch.device) -> None:
    """Returns cached but unused memory to the GPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def available(device: torch.device) -> int | None:
    """Bytes that this process can still allocate, including torch's own cache on a GPU; None if unknown."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") if device.type == "cpu" else None
    return None


def peak(device: torch.device) -> int | None:
    """Peak bytes since reset_peak, of torch's tensors and cache on a GPU, of the process on a CPU; None if unknown."""
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
            (PROCESS / "clear_refs").write_text("5")  # proc(5): 5 resets the peak and nothing else
