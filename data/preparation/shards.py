"""Token shards on disk: one split of a prepared corpus, written block by block, read memory-mapped."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import InputError
from ..files import sha256_of

FORMAT = 2
SHARD_TOKENS = 100_000_000  # the most tokens in one file
DTYPES = {"uint16": "<u2", "uint32": "<u4"}


@dataclass(frozen=True)
class Part:
    """What one source of a corpus gave to a split: the tokens from start to before stop; the parts fill the split."""

    name: str
    start: int
    stop: int


class SplitWriter:
    """Writes one split: END, then each document followed by END, cut into shards; beside them where documents begin.

    SPLIT_documents.int64 holds three int64 for each document: its first token, the bytes of its text, where its name
    ends in SPLIT_names.utf8.
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
        """What is added from here on is of this source."""
        start = self.tokens if self.parts else 0
        self._end_part()
        self.parts.append(Part(name, start, start))

    def _end_part(self) -> None:
        if self.parts:
            self.parts[-1] = Part(self.parts[-1].name, self.parts[-1].start, self.tokens)

    def add(
        self, ids: bytes | bytearray, *, tokens: Sequence[int], n_bytes: Sequence[int], names: Sequence[bytes]
    ) -> None:
        """Adds documents: the ids of all of them in the shards' own bytes, the END after each included; how many ids
        and bytes of text each has, and its name.
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
        rest, size = memoryview(ids), self.dtype.itemsize
        while rest:
            if not self.shards or self.shards[-1]["tokens"] == SHARD_TOKENS:
                self._close_shard()
                name = f"{self.split}_{len(self.shards):05d}.bin"
                self.shards.append({"file": name, "tokens": 0})
                self.file, self.digest = (self.folder / name).open("wb"), hashlib.sha256()
            piece = rest[: (SHARD_TOKENS - self.shards[-1]["tokens"]) * size]
            self.file.write(piece)
            self.digest.update(piece)
            self.shards[-1]["tokens"] += len(piece) // size
            self.tokens += len(piece) // size
            rest = rest[len(piece) :]

    def _close_shard(self) -> None:
        if self.shards:
            self.file.close()
            self.files[self.shards[-1]["file"]] = _described(Path(self.file.name), self.digest.hexdigest())

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        for file in (self.file, self.table, self.names):
            with suppress(OSError):  # what does not fit on the disk was an error before
                file.close()

    def close(self) -> dict[str, Any]:
        """The split's part of the index."""
        self._close_shard()
        self._end_part()
        self.table.close()
        self.names.close()
        for file in (self.table, self.names):
            path = Path(file.name)
            self.files[path.name] = _described(path, sha256_of(path))
        figures = {"tokens": self.tokens, "bytes": self.n_bytes, "documents": self.documents, "shards": self.shards}
        return figures | {"parts": [asdict(part) for part in self.parts], "files": self.files}


class Tokens:
    """The tokens of all shards as one read-only sequence: len() and slices, which may cross shards."""

    def __init__(self, shards: list[np.ndarray]) -> None:
        self.shards = shards
        self.starts = np.cumsum([0, *(shard.size for shard in shards)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, window: slice) -> np.ndarray:
        start, stop, stride = window.indices(len(self))
        if stride != 1:
            raise ValueError(f"tokens are read in slices without a stride, not {stride}")
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
    """One split: `tokens` (END, document, END, document, END...), `parts` of them by source, and the bytes of the
    documents' text.
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
    ) -> None:
        self.directory, self.name, self.fingerprint = directory, name, fingerprint
        self.tokens, self.n_tokens, self.n_bytes = tokens, len(tokens), n_bytes
        self.parts = list(parts) or [Part("", 0, self.n_tokens)]

    @cached_property
    def _documents(self) -> np.ndarray:
        """(documents, 3), memory-mapped; see SplitWriter."""
        return _mapped(self.directory / f"{self.name}_documents.int64", "<i8").reshape(-1, 3)

    @property
    def document_offsets(self) -> np.ndarray:
        """int64 (documents,): position of each document's first token."""
        return self._documents[:, 0]

    @property
    def document_bytes(self) -> np.ndarray:
        """int64 (documents,): of each document's text."""
        return self._documents[:, 1]

    @cached_property
    def _names(self) -> np.ndarray:
        return _mapped(self.directory / f"{self.name}_names.utf8", "u1")

    def document_name(self, index: int) -> str:
        start, stop = (int(self._documents[i, 2]) if i >= 0 else 0 for i in (index - 1, index))
        return self._names[start:stop].tobytes().decode(errors="surrogateescape")

    @property
    def document_names(self) -> list[str]:
        """All of them, in memory."""
        return [self.document_name(index) for index in range(len(self._documents))]

    def document_at(self, position: int) -> str:
        """The name of the document that the token at this position belongs to; the END after it is part of it."""
        return self.document_name(max(0, int(np.searchsorted(self.document_offsets, position, side="right")) - 1))


def open_split(directory: str | Path, split: str, *, verify: bool = False) -> Split:
    """Opens a split of a prepared corpus; InputError if its files are not what its index says.

    Sizes are always checked; verify=True reads every byte and compares sha256 too.
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
            raise InputError(f"{directory} has no {split} split (only {has}); prepare it with val_fraction above 0")
        figures = index["splits"][split]
        for name, file in figures["files"].items():
            path = directory / name
            if (found := path.stat().st_size) != file["bytes"]:
                raise InputError(f"{path}: {found} bytes, not {file['bytes']} as its index says; {again}")
            if verify and sha256_of(path) != file["sha256"]:
                raise InputError(f"{path}: its content is not what its index says; {again}")
        opened = Split(
            directory,
            split,
            Tokens([_mapped(directory / shard["file"], dtype) for shard in figures["shards"]]),
            n_bytes=figures["bytes"],
            fingerprint=index["fingerprint"],
            parts=[Part(**part) for part in figures["parts"]],
        )
        if opened.n_tokens != figures["tokens"]:
            raise InputError(f"{directory}: {opened.n_tokens} tokens, not {figures['tokens']} as indexed; {again}")
        return opened
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; {directory} is no complete prepared corpus") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{directory / 'index.json'} is damaged ({error!r}); {again}") from None


def _described(path: Path, digest: str) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": digest}


def _mapped(path: Path, dtype: Any) -> np.ndarray:
    return np.asarray(np.memmap(path, dtype=dtype, mode="r")) if path.stat().st_size else np.empty(0, dtype)
