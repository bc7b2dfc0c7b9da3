"""Opens a GGUF file, llama.cpp's format: checks its whole header, then reads one tensor at a time as float32.

The layout (ggml's docs/gguf.md): magic, version, counts, metadata (key, type, value), tensor infos (name, shape, type,
offset), padding to the alignment, tensor data. The file may be damaged or hostile, so every count, length and offset
is compared with the size of the file before it is used.
"""

from __future__ import annotations

import mmap
import struct
import warnings
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import InputError

Shape = tuple[int, ...]

MOST_KEYS, MOST_TENSORS, MOST_ITEMS = 2**14, 2**18, 2**24  # 2**24: also the largest vocabulary of a ModelConfig
LONGEST_KEY, LONGEST_TENSOR_NAME = 2**16 - 1, 64  # bytes, from the specification
ALIGNMENTS = [2**power for power in range(3, 17)]

# Metadata types: number in the file -> struct's letter. Two more types have a length in front of their content.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
SMALLEST = {STRING: 8} | {number: struct.calcsize(letter) for number, letter in SCALARS.items()}  # bytes


@dataclass(frozen=True)
class TensorType:
    """How numbers are stored: `block` of them, neighbours in a row, in `size` bytes."""

    name: str
    block: int
    size: int
    dtype: torch.dtype | None = None  # None: whole numbers with a common scale, which the extra `gguf` unpacks


TYPES = {
    0: TensorType("F32", 1, 4, torch.float32),
    1: TensorType("F16", 1, 2, torch.float16),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    8: TensorType("Q8_0", 32, 34),
    14: TensorType("Q6_K", 256, 210),
    30: TensorType("BF16", 1, 2, torch.bfloat16),
}
# Only for the message that refuses them.
OTHER_TYPES = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8",
    25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
SUPPORTED = ", ".join(kind.name for kind in TYPES.values())


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies."""

    type: TensorType
    shape: Shape  # rows first, as in torch; the file has them the other way round
    start: int  # byte in the file
    n_bytes: int


class GgufFile:
    """A checked GGUF file. The constructor reads only the header.

    metadata: values by key, lists for arrays. shapes: of each tensor by name, as in torch. types: number of tensors
    of each type, such as Counter({"Q4_1": 210, "F32": 61}).
    Raises InputError if the file is no GGUF file, is damaged, or has something that is not supported.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise InputError(f"{path} is not a file" if path.exists() else f"there is no file {path}")
        try:
            with path.open("rb") as opened:
                self.stamp = stamp_of(path)
                if opened.read(4) != b"GGUF":
                    raise InputError(f"{path} is not a GGUF file: it does not begin with 'GGUF'")
                with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    header = Header(path, content)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
        self.metadata: dict[str, Any] = header.metadata
        self.entries: dict[str, Entry] = header.entries
        self.shapes: dict[str, Shape] = {name: entry.shape for name, entry in self.entries.items()}
        self.types: Counter[str] = Counter(entry.type.name for entry in self.entries.values())

    def tensor(self, name: str) -> Tensor:
        """Returns a tensor as float32, of its own memory.

        Raises InputError for NaN and infinity, if the file has changed, and if its type needs the extra `gguf` and
        that is not installed.
        """
        entry = self.entries[name]
        data = bytearray(entry.n_bytes)
        try:
            with self.path.open("rb") as opened:
                opened.seek(entry.start)
                complete = opened.readinto(data) == entry.n_bytes and stamp_of(self.path) == self.stamp
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror or error}") from None
        if not complete:
            raise InputError(f"{self.path} changed while it was read; run the command again")
        if entry.type.dtype is not None:
            tensor = torch.frombuffer(data, dtype=entry.type.dtype).view(entry.shape).float()
        else:
            tensor = dequantize(data, entry)
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{self.path}: tensor {name!r} holds NaN or infinity; download or export the file again")
        return tensor


def stamp_of(path: Path) -> tuple[int, int]:
    """Returns what changes when a file is replaced or written to: its size and the time of its last change."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def dequantize(data: bytearray, entry: Entry) -> Tensor:
    """Returns the numbers of blocks, each a whole number times the scale of its block (plus its minimum)."""
    try:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize as unpack
    except ImportError:
        raise InputError(
            f"a tensor of type {entry.type.name} needs the extra gguf: pip install -e '.[gguf]'; F32, F16 and BF16 "
            "files need none"
        ) from None
    *rows, columns = entry.shape
    blocks = torch.frombuffer(data, dtype=torch.uint8).view(*rows, columns // entry.type.block * entry.type.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of infinite scales, which the caller refuses
        return torch.from_numpy(unpack(blocks.numpy(), GGMLQuantizationType[entry.type.name]))


class Header:
    """Parses a header from front to back. `position` is the next byte to read."""

    def __init__(self, path: Path, content: mmap.mmap | bytes) -> None:
        self.path, self.content, self.size, self.position = path, content, len(content), 4  # behind the magic
        version = self.number("I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            what = "big-endian" if swapped in (2, 3) else f"of GGUF version {version}"
            raise InputError(f"{path} is {what}; little-endian files of version 2 and 3 are supported")
        n_tensors = self.count("tensors", MOST_TENSORS, 8 + 4 + 8 + 4 + 8)
        n_keys = self.count("metadata keys", MOST_KEYS, 8 + 4 + 1)
        self.metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self.string("a metadata key", LONGEST_KEY)
            if key in self.metadata:
                raise self.damaged(f"metadata key {key!r} appears twice")
            self.metadata[key] = self.value(key)
        if self.metadata.get("split.count", 1) != 1:
            raise InputError(f"{path} is one part of a model in several files; join them: llama-gguf-split --merge")
        self.entries = self.tensor_entries(n_tensors)

    def damaged(self, what: str) -> InputError:
        return InputError(
            f"{self.path} is damaged: {what} (near byte {self.position} of {self.size}); download or export it again"
        )

    def take(self, n_bytes: int, what: str) -> int:
        """Returns the position, and moves it on by n_bytes that the file must still have."""
        start = self.position
        if n_bytes > self.size - start:
            raise self.damaged(f"{what} needs {n_bytes} bytes and the file has {self.size - start} left")
        self.position = start + n_bytes
        return start

    def number(self, letter: str) -> Any:
        return struct.unpack_from("<" + letter, self.content, self.take(struct.calcsize(letter), "a number"))[0]

    def count(self, what: str, most: int, smallest: int) -> int:
        """Reads a number of things, each of at least `smallest` bytes."""
        count = self.number("Q")
        if count > most or count * smallest > self.size - self.position:
            raise self.damaged(f"{count} {what} are more than fit the file, or more than {most}")
        return count

    def string(self, what: str, longest: int) -> str:
        length = self.number("Q")
        if length > longest:
            raise self.damaged(f"{what} of {length} bytes is longer than {longest}")
        start = self.take(length, what)
        try:
            return self.content[start : self.position].decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"{what} is not UTF-8") from None

    def value(self, key: str) -> Any:
        """Reads the type and the value of a metadata key."""
        kind = self.number("I")
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string(f"the value of {key!r}", self.size)
        if kind != ARRAY:
            raise self.damaged(f"metadata key {key!r} has the unknown type {kind}")
        kind = self.number("I")
        if kind not in SMALLEST:
            what = "is an array of arrays" if kind == ARRAY else f"is an array of the unknown type {kind}"
            raise self.damaged(f"metadata key {key!r} {what}, which is not supported")
        count = self.count(f"items of {key!r}", MOST_ITEMS, SMALLEST[kind])
        if kind == STRING:
            return [self.string(f"an item of {key!r}", self.size) for _ in range(count)]
        start = self.take(count * SMALLEST[kind], key)
        return list(struct.unpack_from(f"<{count}{SCALARS[kind]}", self.content, start))

    def tensor_entries(self, n_tensors: int) -> dict[str, Entry]:
        """Reads the tensor infos, and checks where the data lie."""
        found = {}
        for _ in range(n_tensors):
            name = self.string("a tensor's name", LONGEST_TENSOR_NAME)
            if name in found:
                raise self.damaged(f"tensor {name!r} appears twice")
            found[name] = self.tensor_info(name)
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment not in ALIGNMENTS:  # 32.0 would be in it too
            raise self.damaged(f"general.alignment={alignment!r} is not a power of 2 from 8 to 65536")
        data_start = end = -(-self.position // alignment) * alignment
        entries = {}
        for name, (kind, shape, offset) in sorted(found.items(), key=lambda item: item[1][2]):
            start, n_bytes = data_start + offset, prod(shape) // kind.block * kind.size
            if offset % alignment:
                raise self.damaged(f"tensor {name!r} at offset {offset} is not aligned to {alignment} bytes")
            if start < end:
                raise self.damaged(f"tensor {name!r} at offset {offset} overlaps the tensor before it")
            end = start + n_bytes
            if end > self.size:
                raise self.damaged(f"tensor {name!r} ends at byte {end}, behind the end of the file")
            entries[name] = Entry(kind, shape, start, n_bytes)
        return {name: entries[name] for name in found}

    def tensor_info(self, name: str) -> tuple[TensorType, Shape, int]:
        """Reads type, shape and offset of a tensor."""
        n_dims = self.number("I")
        if not 1 <= n_dims <= 4:
            raise self.damaged(f"tensor {name!r} has {n_dims} dimensions, and 1 to 4 are possible")
        shape = tuple(self.number("Q") for _ in range(n_dims))[::-1]
        number = self.number("I")
        if number not in TYPES:
            other = OTHER_TYPES.get(number, f"number {number}")
            raise InputError(f"{self.path}: tensor {name!r} is of type {other}; take a file of {SUPPORTED}")
        kind, offset = TYPES[number], self.number("Q")
        if min(shape) < 1:
            raise self.damaged(f"tensor {name!r} has the shape {shape}")
        if shape[-1] % kind.block:
            raise self.damaged(f"tensor {name!r}: {shape[-1]} columns are no multiple of {kind.name}'s {kind.block}")
        return kind, shape, offset
