"""Token shards: the files of one split of a prepared corpus, written block by block and memory-mapped to read."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import InputError
from ..files import sha256_of

FORMAT = 2
SHARD_TOKENS = 100_000_000  # maximum in one file
DTYPES = {"uint16": "<u2", "uint32": "<u4"}


@dataclass(frozen=True)
class Part:
    """The tokens [start, stop) of a split, which come from one source of the corpus. The parts cover the split."""

    name: str
    start: int
    stop: int


class SplitWriter:
    """Writes one split: an end token, then each document followed by an end token, cut into shards.

    SPLIT_documents.int64 has three int64 for each document: the position of its first token, the bytes of its text,
    and the end of its name in SPLIT_names.utf8.
    """

    def __init__(self, folder: Path, split: str, *, dtype: str, end_id: int) -> None:
        self.folder, self.split, self.dtype = folder, split, np.dtype(DTYPES[dtype])
        self.tokens = self.n_bytes = self.documents = self.name_bytes = 0
        self.shards: list[dict[str, Any]] = []
        self.files: dict[str, dict[str, Any]] = {}
        self.parts: list[Part] = []
        self.table = (folder / f"{split}_documents.int64").open("wb")
        self.names = (folder / f"{split}_names.utf8").open("wb")
        self._append(np.array([end_id], self.dtype).tobytes())

    def begin_part(self, name: str) -> None:
        """Starts the part of a source: all documents added until the next call belong to it."""
        start = self.tokens if self.parts else 0
        self._end_part()
        self.parts.append(Part(name, start, start))

    def _end_part(self) -> None:
        if self.parts:
            self.parts[-1] = Part(self.parts[-1].name, self.parts[-1].start, self.tokens)

    def add(
        self, ids: bytes | bytearray, *, tokens: Sequence[int], n_bytes: Sequence[int], names: Sequence[bytes]
    ) -> None:
        """Adds documents.

        ids: of all documents with their end tokens, as bytes in the shards' dtype. tokens, n_bytes, names: for each
        document, the number of its ids, the bytes of its text, and its name.
        """
        rows = np.empty((len(tokens), 3), "<i8")
        rows[:, 0] = self.tokens + np.cumsum(tokens) - tokens
        rows[:, 1] = n_bytes
        rows[:, 2] = self.name_bytes + np.cumsum([len(name) for name in names])
        self.table.write(rows.tobytes())
        self.names.write(b"".join(names))
        self._append(ids)
        self.n_bytes += sum(n_bytes)
        self.documents += len(tokens)
        self.name_bytes = int(rows[-1, 2])

    def _append(self, ids: bytes | bytearray) -> None:
        remaining, size = memoryview(ids), self.dtype.itemsize
        while remaining:
            if not self.shards or self.shards[-1]["tokens"] == SHARD_TOKENS:
                self._close_shard()
                name = f"{self.split}_{len(self.shards):05d}.bin"
                self.shards.append({"file": name, "tokens": 0})
                self.file, self.digest = (self.folder / name).open("wb"), hashlib.sha256()
            piece = remaining[: (SHARD_TOKENS - self.shards[-1]["tokens"]) * size]
            self.file.write(piece)
            self.digest.update(piece)
            self.shards[-1]["tokens"] += len(piece) // size
            self.tokens += len(piece) // size
            remaining = remaining[len(piece) :]

    def _close_shard(self) -> None:
        if self.shards:
            self.file.close()
            self.files[self.shards[-1]["file"]] = _file_entry(Path(self.file.name), self.digest.hexdigest())

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        for file in (self.file, self.table, self.names):
            with suppress(OSError):  # on a full disk, write() has already failed
                file.close()

    def close(self) -> dict[str, Any]:
        """Finishes the files and returns the split's entry for index.json."""
        self._close_shard()
        self._end_part()
        self.table.close()
        self.names.close()
        for file in (self.table, self.names):
            path = Path(file.name)
            self.files[path.name] = _file_entry(path, sha256_of(path))
        figures = {"tokens": self.tokens, "bytes": self.n_bytes, "documents": self.documents, "shards": self.shards}
        return figures | {"parts": [asdict(part) for part in self.parts], "files": self.files}


class Tokens:
    """The tokens of all shards as one read-only sequence with len() and slices. A slice may cross shards."""

    def __init__(self, shards: list[np.ndarray]) -> None:
        self.shards = shards
        self.starts = np.cumsum([0, *(shard.size for shard in shards)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, window: slice) -> np.ndarray:
        start, stop, stride = window.indices(len(self))
        if stride != 1:
            raise ValueError(f"token slices have no stride, but got {stride}")
        pieces = []
        shard = bisect_right(self.starts, start) - 1
        while start < stop:
            piece = self.shards[shard][start - self.starts[shard] : stop - self.starts[shard]]
            pieces.append(piece)
            start, shard = start + piece.size, shard + 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else self.shards[0][:0]


class Split:
    """One split, memory-mapped: `tokens` (end, document, end, document, end, ...), their `parts` by source, `end_id`,
    and the positions, sizes and names of the documents. `unknown` counts the characters that the tokenizer does not
    know.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        tokens: Tokens,
        *,
        n_bytes: int,
        fingerprint: str,
        parts: Sequence[Part] = (),
        unknown: Mapping[str, int] | None = None,
    ) -> None:
        self.unknown = unknown or {}
        self.directory, self.name, self.fingerprint = directory, name, fingerprint
        self.tokens, self.n_tokens, self.n_bytes = tokens, len(tokens), n_bytes
        self.parts = list(parts) or [Part("", 0, self.n_tokens)]

    @property
    def end_id(self) -> int:
        """The id of the end token, with which every split starts."""
        return int(self.tokens[:1][0])

    @cached_property
    def _documents(self) -> np.ndarray:
        """int64 (documents, 3); see SplitWriter."""
        return _mapped(self.directory / f"{self.name}_documents.int64", "<i8").reshape(-1, 3)

    @property
    def document_offsets(self) -> np.ndarray:
        """int64 (documents,): position of each document's first token."""
        return self._documents[:, 0]

    @property
    def document_bytes(self) -> np.ndarray:
        """int64 (documents,): size of each document's text."""
        return self._documents[:, 1]

    @cached_property
    def _names(self) -> np.ndarray:
        return _mapped(self.directory / f"{self.name}_names.utf8", "u1")

    def document_name(self, index: int) -> str:
        start, stop = (int(self._documents[i, 2]) if i >= 0 else 0 for i in (index - 1, index))
        return self._names[start:stop].tobytes().decode(errors="surrogateescape")

    @property
    def document_names(self) -> list[str]:
        """All names, in memory."""
        return [self.document_name(index) for index in range(len(self._documents))]

    def document_at(self, position: int) -> str:
        """Returns the name of the document that contains this token position. Its end token belongs to it."""
        return self.document_name(max(0, int(np.searchsorted(self.document_offsets, position, side="right")) - 1))


def open_split(directory: str | Path, split: str, *, verify: bool = False) -> Split:
    """Opens a split of a prepared corpus. Raises InputError if its files do not match its index.json.

    File sizes are always checked; verify=True also compares every sha256.
    """
    directory = Path(directory)
    again = "delete the folder and prepare the corpus again"
    try:
        index = json.loads((directory / "index.json").read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise InputError(f"{directory}: format {index['format']!r}, not {FORMAT}; prepare the corpus again")
        dtype = np.dtype(DTYPES[index["dtype"]])
        if split not in index["splits"]:
            has = ", ".join(index["splits"])
            raise InputError(f"{directory} has no {split} split, only {has}; prepare it with val_fraction above 0")
        figures = index["splits"][split]
        if "unknown_characters" not in figures:
            raise InputError(f"{directory}: prepared by an older version; {again}")
        for name, file in figures["files"].items():
            path = directory / name
            if (found := path.stat().st_size) != file["bytes"]:
                raise InputError(f"{path}: {found} bytes, but index.json says {file['bytes']}; {again}")
            if verify and sha256_of(path) != file["sha256"]:
                raise InputError(f"{path}: its sha256 differs from index.json; {again}")
        opened = Split(
            directory,
            split,
            Tokens([_mapped(directory / shard["file"], dtype) for shard in figures["shards"]]),
            n_bytes=figures["bytes"],
            fingerprint=index["fingerprint"],
            parts=[Part(**part) for part in figures["parts"]],
            unknown=figures["unknown_characters"],
        )
        if opened.n_tokens != figures["tokens"]:
            raise InputError(f"{directory}: {opened.n_tokens} tokens, but index.json says {figures['tokens']}; {again}")
        return opened
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; {directory} is not a complete prepared corpus") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{directory / 'index.json'} is damaged ({error!r}); {again}") from None


def _file_entry(path: Path, digest: str) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": digest}


def _mapped(path: Path, dtype: Any) -> np.ndarray:
    return np.asarray(np.memmap(path, dtype=dtype, mode="r")) if path.stat().st_size else np.empty(0, dtype)
