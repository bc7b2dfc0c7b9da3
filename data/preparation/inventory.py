"""The inventory: what the scan notes of each document, on the disk; which of them are copies, and what is left."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..curation.curate import CurateConfig
from ..curation.duplicates import SIGNATURE, duplicates
from ..curation.removals import Ledger
from .splitting import HASH, NAMES, Seen, Splitting

# Of each document: 16 bytes of its text's sha256, bytes of its text and of its name, its state.
ROW = struct.Struct("<16sIIB")
FIELDS = np.dtype([("digest", "u1", 16), ("bytes", "<u4"), ("name", "<u4"), ("state", "u1")])
CHOSEN = 1  # bit of the state: for validation, if whole documents are
GONE = 2  # dropped by a rule, or a copy that is removed
VAL_NAMES = 50  # how many the report shows


class Inventory:
    """Rows, names and signatures of the documents in files without a name, mapped into memory once all are there."""

    def __init__(self, folder: Path) -> None:
        self.files = {name: _without_a_name(folder) for name in ("rows", "names", "signatures")}
        self.counts: list[int] = []  # of documents in each block
        self._map(np.empty(0, FIELDS), np.empty(0, np.uint8))

    def _map(self, rows: np.ndarray, names: np.ndarray) -> None:
        self.rows, self.names = rows, names
        self.name_ends = np.cumsum(rows["name"], dtype=np.int64)

    def close(self) -> None:
        self._map(np.empty(0, FIELDS), np.empty(0, np.uint8))  # what is mapped keeps a disk busy
        for file in self.files.values():
            file.close()

    def add(self, *, rows: bytes, names: bytes, signatures: bytes) -> None:
        """A block's documents: a ROW and a name for each, a signature for each that is not gone, or none at all."""
        self.counts.append(len(rows) // ROW.size)
        for name, content in (("rows", rows), ("names", names), ("signatures", signatures)):
            self.files[name].write(content)

    def finish(self) -> None:
        """All are there."""
        self._map(_mapped(self.files["rows"], FIELDS), _mapped(self.files["names"], "u1"))

    def of_block(self, number: int, start: int) -> bytes:
        """The rows of a block whose first document is number `start`."""
        return self.rows[start : start + self.counts[number]].tobytes()

    def name(self, place: int) -> str:
        start = self.name_ends[place - 1] if place else 0
        return self.names[start : self.name_ends[place]].tobytes().decode(errors="surrogateescape")

    def remaining(self) -> np.ndarray:
        """int64: the places of the documents that are not gone."""
        return np.flatnonzero(self.rows["state"] & GONE == 0)

    def seen(self) -> Seen:
        """What the corpus holds of documents that are not gone."""
        places = self.remaining()
        chosen = places[self.rows["state"][places] & CHOSEN > 0]
        return Seen(
            documents=len(places),
            n_bytes=self._bytes(places),
            val_documents=len(chosen),
            val_bytes=self._bytes(chosen),
            example=self.name(int(places[0])) if len(places) else "",
            val_names=[self.name(place) for place in chosen[:VAL_NAMES].tolist()],
        )

    def _bytes(self, places: np.ndarray) -> int:
        return int(self.rows["bytes"][places].sum(dtype=np.int64))

    def remove_copies(self, splitting: Splitting, config: CurateConfig, ledger: Ledger) -> None:
        """Marks the copies as gone that the rules remove; all that were found are noted in the ledger."""
        places, rows = self.remaining(), self.rows
        whole = splitting.kind in (NAMES, HASH)  # else each document is on one side, or all on both
        is_val = (rows["state"][places] & CHOSEN > 0) & whole
        signatures = _mapped(self.files["signatures"], "u1").reshape(-1, SIGNATURE) if config.near_duplicates else None
        found = duplicates(rows["digest"][places], signatures, is_val, config)
        for position, copy in sorted(found.items()):
            place, of = int(places[position]), int(places[copy.of])
            ledger.copy(copy, self.name(place), n_bytes=int(rows["bytes"][place]), of=self.name(of))
            rows["state"][place] |= GONE * copy.removed


def states(rows: bytes) -> Iterator[tuple[bytes, bool, bool]]:
    """(16 bytes of the digest, whether it is chosen for validation, whether it is gone) of each document."""
    for digest, _, _, state in ROW.iter_unpack(rows):
        yield digest, bool(state & CHOSEN), bool(state & GONE)


def _mapped(file: IO[bytes], dtype: Any) -> np.ndarray:
    file.flush()
    return np.asarray(np.memmap(file, dtype, mode="r+")) if file.seek(0, 2) else np.empty(0, dtype)


def _without_a_name(folder: Path) -> IO[bytes]:
    """A file that vanishes with the process: in `folder` if one can write there, for it may become large."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)
    except OSError:
        return tempfile.TemporaryFile()
