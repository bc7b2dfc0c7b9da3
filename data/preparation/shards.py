"""Token shards: the files of one split of a prepared corpus, written block by block and memory-mapped to read."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

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

    def __init__(self, folder: Path, split: str, *, sources: list[str], dtype: str, end_id: int) -> None:
        self.folder, self.split, self.sources, self.dtype = folder, split, sources, np.dtype(DTYPES[dtype])
        self.tokens = self.n_bytes = self.documents = self.name_bytes = 0
        self.part_starts = [0]  # of the sources that were reached
        self.shards: list[IO[bytes]] = []
        self.table, self.names = (self._open(name) for name in ("documents.int64", "names.utf8"))
        self._append(np.array([end_id], self.dtype).tobytes())

    def _open(self, name: str) -> IO[bytes]:
        return (self.folder / f"{self.split}_{name}").open("wb")

    def add(self, ids: bytes | bytearray, documents: Sequence[tuple[int, int, bytes]], *, source: int) -> None:
        """Adds documents of the source with this index; sources come in order.

        ids: of all documents with their end tokens, in the shards' dtype. documents: number of ids, bytes of text and
        name of each.
        """
        self._begin_parts(source + 1)
        tokens, n_bytes, names = zip(*documents, strict=True)
        rows = np.empty((len(documents), 3), "<i8")
        rows[:, 0] = self.tokens + np.cumsum(tokens) - tokens
        rows[:, 1] = n_bytes
        rows[:, 2] = self.name_bytes + np.cumsum([len(name) for name in names])
        self.table.write(rows.tobytes())
        self.names.write(b"".join(names))
        self._append(ids)
        self.n_bytes += sum(n_bytes)
        self.documents += len(documents)
        self.name_bytes = int(rows[-1, 2])

    def _begin_parts(self, until: int) -> None:
        self.part_starts += [self.tokens] * (until - len(self.part_starts))

    def _append(self, ids: bytes | bytearray) -> None:
        remaining, size = memoryview(ids), self.dtype.itemsize
        while remaining:
            if self.tokens == SHARD_TOKENS * len(self.shards):
                self.shards.append(self._open(f"{len(self.shards):05d}.bin"))
            piece = remaining[: (SHARD_TOKENS * len(self.shards) - self.tokens) * size]
            self.shards[-1].write(piece)
            self.tokens += len(piece) // size
            remaining = remaining[len(piece) :]

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        for file in (*self.shards, self.table, self.names):
            with suppress(OSError):  # on a full disk, write() has already failed
                file.close()

    def close(self) -> dict[str, Any]:
        """Finishes the files and returns the split's entry for index.json."""
        self._begin_parts(len(self.sources))
        files: dict[str, dict[str, Any]] = {}
        for file in (*self.shards, self.table, self.names):
            file.close()
            path = Path(file.name)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        names = [Path(file.name).name for file in self.shards]
        parts = zip(self.sources, self.part_starts, [*self.part_starts[1:], self.tokens], strict=True)
        return {
            "tokens": self.tokens,
            "bytes": self.n_bytes,
            "documents": self.documents,
            "shards": [{"file": name, "tokens": files[name]["bytes"] // self.dtype.itemsize} for name in names],
            "parts": [asdict(Part(*part)) for part in parts],
            "files": files,
        }


class Tokens:
    """The tokens of all shards as one read-only sequence with len() and slices. A slice may cross shards."""

    def __init__(self, shards: list[np.ndarray]) -> None:
        self.shards = shards
        self.starts = np.cumsum([0, *(shard.size for shard in shards)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, window: slice) -> np.ndarray:
        start, stop, stride = window.indices(len(self))
        assert stride == 1, stride
        pieces = []
        shard = bisect_right(self.starts, start) - 1
        while start < stop:
            piece = self.shards[shard][start - self.starts[shard] : stop - self.starts[shard]]
            pieces.append(piece)
            start, shard = start + piece.size, shard + 1
        if len(pieces) == 1:
            return pieces[0]  # a view: nothing is copied
        return np.concatenate(pieces) if pieces else self.shards[0][:0]


@dataclass(frozen=True)
class Split:
    """One split, memory-mapped: its tokens (end, document, end, document, end, ...) and its documents."""

    directory: Path
    name: str
    tokens: Tokens
    n_bytes: int  # of its text
    fingerprint: str  # of the prepared corpus
    parts: list[Part] = field(default_factory=list)  # by source
    unknown: Mapping[str, int] = field(default_factory=dict)  # counts of characters that the tokenizer does not know

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def end_id(self) -> int:
        """The id of the end token, with which every split starts."""
        return int(self.tokens[:1][0])

    @cached_property
    def documents(self) -> np.ndarray:
        """int64 (documents, 3): first token, bytes of text, end of the name; see SplitWriter."""
        return _mapped(self.directory / f"{self.name}_documents.int64", "<i8").reshape(-1, 3)

    @property
    def document_offsets(self) -> np.ndarray:
        """int64 (documents,): position of each document's first token."""
        return self.documents[:, 0]

    @cached_property
    def _names(self) -> np.ndarray:
        return _mapped(self.directory / f"{self.name}_names.utf8", "u1")

    def document_name(self, index: int) -> str:
        start = self.documents[index - 1, 2] if index else 0
        return self._names[start : self.documents[index, 2]].tobytes().decode(errors="surrogateescape")

    @property
    def document_names(self) -> list[str]:
        return [self.document_name(index) for index in range(len(self.documents))]

    def beginnings(self, count: int, tokens: int) -> list[list[int]]:
        """Returns the first tokens of up to `count` documents, spread evenly over the split."""
        starts = self.document_offsets
        ends = [*starts[1:], self.n_tokens]
        chosen = dict.fromkeys(i * len(starts) // count for i in range(count)) if len(starts) else {}
        found = [self.tokens[int(starts[i]) : min(int(ends[i]), int(starts[i]) + tokens)].tolist() for i in chosen]
        return [ids for ids in found if ids]

    def document_at(self, position: int) -> str:
        """Returns the name of the document that contains this token position. Its end token belongs to it."""
        return self.document_name(max(0, int(np.searchsorted(self.document_offsets, position, side="right")) - 1))


def find_prepared(datasets: str | Path, fingerprint: str) -> Path | None:
    """Returns the folder of a prepared corpus, whose name ends in the first 12 characters of its fingerprint."""
    return next((path.parent for path in Path(datasets).glob(f"*-{fingerprint[:12]}/index.json")), None)


def open_split(directory: str | Path, split: str, *, verify: bool = False) -> Split:
    """Opens a split of a prepared corpus. Raises InputError if its files do not match its index.json.

    File sizes are always checked; verify=True also compares every sha256.
    """
    directory = Path(directory)
    again = "delete the folder and prepare the corpus again"
    try:
        index = json.loads((directory / "index.json").read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise InputError(f"{directory}: format {index['format']!r}, not {FORMAT}; {again}")
        if split not in index["splits"]:
            has = ", ".join(index["splits"])
            raise InputError(f"{directory} has no {split} split, only {has}; prepare it with val_fraction above 0")
        figures = index["splits"][split]
        for name, file in figures["files"].items():
            path = directory / name
            if (found := path.stat().st_size) != file["bytes"]:
                raise InputError(f"{path}: {found} bytes, but index.json says {file['bytes']}; {again}")
            if verify and sha256_of(path) != file["sha256"]:
                raise InputError(f"{path}: its sha256 differs from index.json; {again}")
        dtype = DTYPES[index["dtype"]]
        tokens = Tokens([_mapped(directory / shard["file"], dtype) for shard in figures["shards"]])
        parts = [Part(**part) for part in figures["parts"]]
        unknown = figures["unknown_characters"]
        return Split(directory, split, tokens, figures["bytes"], index["fingerprint"], parts, unknown)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; {directory} is not a complete prepared corpus") from None
    except (ValueError, KeyError, TypeError) as error:
        place = directory / "index.json"
        raise InputError(f"{place} is damaged, or of an older version ({error!r}); {again}") from None


def _mapped(path: Path, dtype: Any) -> np.ndarray:
    return np.asarray(np.memmap(path, dtype=dtype, mode="r")) if path.stat().st_size else np.empty(0, dtype)
