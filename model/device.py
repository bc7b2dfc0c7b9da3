"""Device, dtype and compilation, resolved once at start from what the machine can do."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from . import InputError

MIN_TOKENS_TO_COMPILE = 10_000  # a cold compilation takes 10-20 s and saves about a millisecond per token
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """Where and how to compute. Printed at start and saved with the run."""

    device: torch.device
    dtype: torch.dtype  # of matrix products; in training, weights, optimizer state and reductions stay float32
    compile: bool
    cast_weights: bool = False  # the matrices are stored in dtype (inference/quantize.py), so autocast is not needed
    int8: bool = False  # the matrices are stored as 8-bit integers

    @staticmethod
    def resolve(
        device: str = "auto", *, dtype: str = "auto", compile: bool | str = False, local_rank: int = 0
    ) -> Compute:
        """Replaces every `auto`. Raises InputError for anything that this machine lacks."""
        where = resolve_device(device, local_rank)
        if where.type == "cuda":  # deterministic() needs it; cuBLAS reads it at the first matrix product
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        return Compute(where, resolve_dtype(dtype, where), resolve_compile(compile, where))

    @staticmethod
    def for_decoding(
        device: str = "auto", *, dtype: str = "float32", compile: bool | str = False, steps: int = 0
    ) -> Compute:
        """As resolve, for inference, where dtype=int8 is allowed too. steps: the number of tokens, for compile=auto."""
        where, int8 = resolve_device(device), dtype == "int8"
        if int8 and where.type != "cpu":
            raise InputError(f"dtype=int8 has a fast kernel on CPUs only; on device={where} use dtype=bfloat16")
        if compile == "auto":
            compile = steps >= MIN_TOKENS_TO_COMPILE and not missing_for_compile(where)
        found = resolve_dtype("auto" if int8 else dtype, where)
        return Compute(where, found, resolve_compile(compile, where), int8 or found != torch.float32, int8)

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context in which to run the model: torch.autocast if the weights are stored in a wider dtype."""
        if self.dtype == torch.float32 or self.cast_weights:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def describe(self) -> dict[str, str | bool]:
        dtype = "int8" if self.int8 else str(self.dtype).removeprefix("torch.")
        return {"device": str(self.device), "dtype": dtype, "compile": self.compile}


def working_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype of matrix products with this tensor: that of autocast where it is on, else the tensor's own."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device={name!r} is not supported; use auto, cpu, cuda, cuda:0 or mps")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"device={name}: torch finds no CUDA device; use device=auto or device=cpu")
        index = local_rank if device.index is None else device.index
        if index >= (count := torch.cuda.device_count()):
            raise InputError(f"device={name}: cuda:{index} is not one of {count} CUDA device(s); use fewer processes")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device=mps: torch finds no Apple GPU; use device=auto or device=cpu")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 where the hardware multiplies it, float16 on older GPUs, else float32."""
    if name != "auto":
        if name not in DTYPES:
            raise InputError(f"dtype={name!r} is not one of auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if has_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """True if the device multiplies bfloat16 in hardware; otherwise it is slower than float32, or unavailable."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def resolve_compile(setting: bool | str, device: torch.device) -> bool:
    """auto: compile on a GPU, where it always pays; on a CPU, training/settings.py decides."""
    if setting not in (True, False, "auto"):
        raise InputError(f"compile={json.dumps(setting)} is not one of auto, true, false")
    enabled = device.type == "cuda" if setting == "auto" else bool(setting)
    if enabled and (missing := missing_for_compile(device)):
        if setting is True:
            raise InputError(f"compile=true needs {missing}; install it or set compile=false")
        return False
    return enabled


def resolve_deterministic(setting: bool | str, device: torch.device) -> bool:
    """auto: deterministic algorithms on a CPU, where they are free, but not on a GPU, where they cost 6 to 8 %."""
    return device.type == "cpu" if setting == "auto" else bool(setting)


def keep_freed_memory() -> None:
    """Lets glibc's malloc keep large freed tensors mapped, which makes training on a CPU about 1.12 times as fast."""
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


@contextlib.contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Uses deterministic algorithms in the body, so that equal runs have equal results, also on a GPU or compiled."""
    before = torch.are_deterministic_algorithms_enabled()
    if not enabled:  # calling torch with the present setting would import the compiler, which takes a second
        yield
        return
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def missing_for_compile(device: torch.device) -> str | None:
    """Returns what torch.compile lacks on this machine, or None. It would otherwise fail at the first step."""
    compilers = ("g++", "clang++") if device.type == "cpu" else ("gcc", "clang", "cc")
    if not any(shutil.which(name) for name in compilers):
        return "a C++ compiler (Debian: apt install g++)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "Python.h (Debian: apt install python3-dev)"
    if device.type == "cuda" and not importlib.util.find_spec("triton"):
        return "triton (pip install triton)"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (7, 0):
        return "a GPU of compute capability 7.0 or newer"
    return None
