"""What the machine can do, asked once at start: device, number format, whether torch.compile works."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from . import InputError

STEPS_THAT_PAY = 10_000  # tokens after which a compiled step has earned its compilation back
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """Where and how to compute: resolved once, printed, saved with the run."""

    device: torch.device
    dtype: torch.dtype  # of matrix products; weights, optimizer state and reductions stay float32
    compile: bool
    narrow: bool = False  # the matrices are stored in dtype (see quantize.py), so there is nothing to cast on the way
    int8: bool = False  # or as 8-bit integers

    @staticmethod
    def resolve(
        device: str = "auto", *, dtype: str = "auto", compile: bool | str = False, local_rank: int = 0
    ) -> Compute:
        """Turns `auto` into facts. Raises InputError for what this machine does not have."""
        where = resolve_device(device, local_rank)
        if where.type == "cuda":  # read once, at the first matrix product; deterministic() needs it
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        return Compute(where, resolve_dtype(dtype, where), resolve_compile(compile, where))

    @staticmethod
    def for_decoding(
        device: str = "auto", *, dtype: str = "float32", compile: bool | str = False, steps: int = 0
    ) -> Compute:
        """As resolve, for a model that only reads and writes text: knows dtype=int8 too.

        compile=auto: where `steps`, the number of tokens to come one after another, earns the compilation back. A cold
        one takes 10-20 s and saves a millisecond or so a token.
        """
        where = resolve_device(device)
        if dtype == "int8" and where.type != "cpu":
            raise InputError(f"dtype=int8 has a fast kernel on CPUs only; on device={where} use dtype=bfloat16")
        if compile == "auto" and steps < STEPS_THAT_PAY:
            compile = False
        elif compile == "auto":
            compile = not missing_for_compile(where)
        if dtype == "int8":
            activations = torch.bfloat16 if cpu_has_bfloat16() else torch.float32
            return Compute(where, activations, resolve_compile(compile, where), narrow=True, int8=True)
        if dtype not in ("auto", *DTYPES):
            raise InputError(f"dtype={dtype!r} is not one of auto, {', '.join(DTYPES)}, int8")
        found = resolve_dtype(dtype, where)
        return Compute(where, found, resolve_compile(compile, where), narrow=found != torch.float32)

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context in which the model runs: torch.autocast where the weights are kept wider than dtype."""
        if self.dtype == torch.float32 or self.narrow:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def describe(self) -> dict[str, str | bool]:
        dtype = "int8" if self.int8 else str(self.dtype).removeprefix("torch.")
        return {"device": str(self.device), "dtype": dtype, "compile": self.compile}


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device={name!r} is not a device to train on; use auto, cpu, cuda, cuda:0 or mps")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"device={name}: this torch finds no CUDA device; use device=auto or device=cpu")
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise InputError(f"device={name}: this machine has {torch.cuda.device_count()} CUDA device(s)")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device=mps: this torch finds no Apple GPU; use device=auto or device=cpu")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 where hardware multiplies it, float16 on older GPUs, else float32; never float16 on CPUs."""
    if name != "auto":
        if name not in DTYPES:
            raise InputError(f"dtype={name!r} is not one of auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if has_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; else it is slower than float32, or not there."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and cpu_has_bfloat16()


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX); else it is slower than float32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def resolve_compile(wish: bool | str, device: torch.device) -> bool:
    """auto: on a GPU, where it always pays. On a CPU a cold compile costs 20-60 s, which short runs never earn back:
    who knows how long the run is decides (compiled_where_it_pays in settings.py).
    """
    if wish not in (True, False, "auto"):
        raise InputError(f"compile={wish!r} is not one of auto, true, false")
    wanted = device.type == "cuda" if wish == "auto" else bool(wish)
    if wanted and (missing := missing_for_compile(device)):
        if wish is True:
            raise InputError(f"compile=true needs {missing}; install it or set compile=false")
        return False
    return wanted


def keep_freed_memory() -> None:
    """Lets glibc's malloc keep what is freed. By default each large tensor is mapped afresh and faulted in by pages,
    which costs a training step on a CPU a third of its time. Does nothing under another C library.
    """
    trim_threshold, mmap_max = -1, -4  # names of mallopt's parameters in malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Without it two equal runs differ where they are compiled or on a GPU (atomic adds in gradients)."""
    before = torch.are_deterministic_algorithms_enabled()
    if not wanted:  # setting what is already so would import the compiler, which takes a second
        yield
        return
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def missing_for_compile(device: torch.device) -> str | None:
    """What torch.compile lacks here, if anything; it would fail only at the first step."""
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
