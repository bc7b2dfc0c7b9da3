"""The inventory: the records of the scan about each document, in temporary files; finds copies."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..curation.curate import CurateConfig
from ..curation.duplicates import SIGNATURE, duplicates
from ..curation.removals import Removals
from .splitting import HASH, NAMES, Splitting, Totals

# digest: the first 16 bytes of the sha256 of the text. bytes: of the text. name: bytes of the name. candidate: in the
# validation split if whole documents are held out. removed: by a rule, or as a copy.
ROW = np.dtype([("digest", "V16"), ("bytes", "<u4"), ("name", "<u4"), ("candidate", "?"), ("removed", "?")])
MAX_NAMES = 50  # validation documents that the report names


class Inventory:
    """Rows, names and signatures of all documents; rows and names can be read once finish() was called."""

    def __init__(self, folder: Path) -> None:
        self._files = [_unnamed_file(folder) for _ in range(3)]
        self.counts: list[int] = []  # documents in each block
        self.rows, self.names = np.empty(0, ROW), np.empty(0, np.uint8)

    def close(self) -> None:
        self.rows, self.names = np.empty(0, ROW), np.empty(0, np.uint8)  # a mapped file would keep its disk space
        for file in self._files:
            file.close()

    def add(self, rows: np.ndarray, names: bytes, signatures: bytes) -> None:
        """Adds a block's documents: a ROW and a name for each; a signature for each that is not removed, or none."""
        self.counts.append(len(rows))
        for file, content in zip(self._files, (rows.tobytes(), names, signatures), strict=True):
            file.write(content)

    def finish(self) -> None:
        """Makes rows and names readable; call it after the last add()."""
        self.rows, self.names = _mapped(self._files[0], ROW), _mapped(self._files[1], np.uint8)
        self.name_ends = np.cumsum(self.rows["name"], dtype=np.int64)

    @property
    def documents(self) -> int:
        return sum(self.counts)

    def name(self, index: int) -> str:
        start = self.name_ends[index - 1] if index else 0
        return self.names[start : self.name_ends[index]].tobytes().decode(errors="surrogateescape")

    def totals(self) -> Totals:
        """Returns the sizes of the documents that are not removed."""
        remaining = np.flatnonzero(~self.rows["removed"])
        candidates = remaining[self.rows["candidate"][remaining]]
        n_bytes, candidate_bytes = (int(self.rows["bytes"][chosen].sum()) for chosen in (remaining, candidates))
        example = self.name(int(remaining[0])) if len(remaining) else ""
        names = [self.name(index) for index in candidates[:MAX_NAMES].tolist()]
        return Totals(len(remaining), n_bytes, len(candidates), candidate_bytes, example, names)

    def remove_copies(self, splitting: Splitting, config: CurateConfig, removals: Removals) -> None:
        """Finds all copies, records them, and marks as removed those that the rules remove."""
        rows = self.rows
        remaining = np.flatnonzero(~rows["removed"])
        whole_documents = splitting.kind in (NAMES, HASH)  # else each document is in one split, or each in both
        is_val = rows["candidate"][remaining] & whole_documents
        digests = np.frombuffer(rows["digest"][remaining], np.uint8).reshape(-1, 16)
        signatures = None
        if config.near_duplicates:
            signatures = _mapped(self._files[2], np.uint8).reshape(-1, SIGNATURE)
        for position, copy in sorted(duplicates(digests, signatures, is_val, config).items()):
            index, original = int(remaining[position]), int(remaining[copy.original])
            removals.add_copy(copy, self.name(index), n_bytes=int(rows["bytes"][index]), original=self.name(original))
            rows["removed"][index] |= copy.removed


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
