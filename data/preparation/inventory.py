"""The inventory: the records of the scan about each document, in temporary files; finds copies."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..curation.curate import CurateConfig
from ..curation.duplicates import SIGNATURE, duplicates
from ..curation.removals import Removals
from .splitting import HASH, NAMES, Splitting, Totals

# A document's row: the first 16 bytes of the sha256 of its text, bytes of its text, bytes of its name, flags.
ROW = struct.Struct("<16sIIB")
FIELDS = np.dtype([("digest", "u1", 16), ("bytes", "<u4"), ("name", "<u4"), ("flags", "u1")])
CANDIDATE = 1  # flag: in the validation split if whole documents are held out
REMOVED = 2  # flag: dropped by a rule, or as a copy
MAX_NAMES = 50  # validation documents that the report names


class Inventory:
    """Rows, names and signatures of all documents. They are memory-mapped once finish() was called."""

    def __init__(self, folder: Path) -> None:
        self.files = {name: _unnamed_file(folder) for name in ("rows", "names", "signatures")}
        self.counts: list[int] = []  # documents in each block
        self._map(np.empty(0, FIELDS), np.empty(0, np.uint8))

    def _map(self, rows: np.ndarray, names: np.ndarray) -> None:
        self.rows, self.names = rows, names
        self.name_ends = np.cumsum(rows["name"], dtype=np.int64)

    def close(self) -> None:
        self._map(np.empty(0, FIELDS), np.empty(0, np.uint8))  # a mapped file would keep its disk space
        for file in self.files.values():
            file.close()

    def add(self, *, rows: bytes, names: bytes, signatures: bytes) -> None:
        """Adds a block's documents: a ROW and a name for each; a signature for each that is not removed, or none."""
        self.counts.append(len(rows) // ROW.size)
        for name, content in (("rows", rows), ("names", names), ("signatures", signatures)):
            self.files[name].write(content)

    def finish(self) -> None:
        """Makes the rows readable; call it after the last add()."""
        self._map(_mapped(self.files["rows"], FIELDS), _mapped(self.files["names"], "u1"))

    @property
    def documents(self) -> int:
        return sum(self.counts)

    def block_rows(self, number: int, start: int) -> bytes:
        """Returns the rows of a block, whose first document has index `start`."""
        return self.rows[start : start + self.counts[number]].tobytes()

    def name(self, index: int) -> str:
        start = self.name_ends[index - 1] if index else 0
        return self.names[start : self.name_ends[index]].tobytes().decode(errors="surrogateescape")

    def remaining(self) -> np.ndarray:
        """Returns the indices of the documents that are not removed, int64."""
        return np.flatnonzero(self.rows["flags"] & REMOVED == 0)

    def totals(self) -> Totals:
        """Returns the sizes of the documents that are not removed."""
        remaining = self.remaining()
        candidates = remaining[self.rows["flags"][remaining] & CANDIDATE > 0]
        return Totals(
            documents=len(remaining),
            n_bytes=self._bytes(remaining),
            candidates=len(candidates),
            candidate_bytes=self._bytes(candidates),
            example=self.name(int(remaining[0])) if len(remaining) else "",
            candidate_names=[self.name(index) for index in candidates[:MAX_NAMES].tolist()],
        )

    def _bytes(self, indices: np.ndarray) -> int:
        return int(self.rows["bytes"][indices].sum(dtype=np.int64))

    def remove_copies(self, splitting: Splitting, config: CurateConfig, removals: Removals) -> None:
        """Finds all copies, records them, and marks as removed those that the rules remove."""
        remaining, rows = self.remaining(), self.rows
        whole_documents = splitting.kind in (NAMES, HASH)  # else each document is in one split, or each in both
        is_val = (rows["flags"][remaining] & CANDIDATE > 0) & whole_documents
        signatures = _mapped(self.files["signatures"], "u1").reshape(-1, SIGNATURE) if config.near_duplicates else None
        found = duplicates(rows["digest"][remaining], signatures, is_val, config)
        for position, copy in sorted(found.items()):
            index, original = int(remaining[position]), int(remaining[copy.original])
            removals.add_copy(copy, self.name(index), n_bytes=int(rows["bytes"][index]), original=self.name(original))
            rows["flags"][index] |= REMOVED * copy.removed


def unpack_rows(rows: bytes) -> Iterator[tuple[bytes, bool, bool]]:
    """Yields (16 bytes of the digest, is a validation candidate, is removed) for each document."""
    for digest, _, _, flags in ROW.iter_unpack(rows):
        yield digest, bool(flags & CANDIDATE), bool(flags & REMOVED)


def _mapped(file: IO[bytes], dtype: Any) -> np.ndarray:
    file.flush()
    return np.asarray(np.memmap(file, dtype, mode="r+")) if file.seek(0, 2) else np.empty(0, dtype)


def _unnamed_file(folder: Path) -> IO[bytes]:
    """Opens a temporary file that disappears with the process: in `folder` if possible, since it can become large."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)
    except OSError:
        return tempfile.TemporaryFile()
