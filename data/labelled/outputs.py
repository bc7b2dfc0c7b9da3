"""The results file of prompts=FILE: survives a kill at any moment, and appears when complete, in the prompts' order.

answers.jsonl.about.json    the settings that the results depend on: written first and kept; its lock allows writing
answers.jsonl.partial       finished batches: a line with length and checksum, then one line per result
answers.jsonl               all results in the order of the prompts; appears by a rename at the end
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import InputError

FSYNC_SECONDS = 1.0  # a power failure loses results since the last fsync; a killed process loses one batch


class Outputs:
    """The results of batches 0, 1, 2, ...: add() saves one batch, publish() writes all of them in order.

    about: the settings that the results depend on. Raises InputError if the file was started with other settings.
    sizes (batches,): rows of each batch. order (rows,): index of each row, counted through the batches, in the
    published file. Use it as a context manager. On entry, `finished` is True if the file was published; else `done`
    batches with `rows` results are saved already.
    """

    def __init__(self, path: str | Path, *, about: dict[str, Any], sizes: np.ndarray, order: np.ndarray) -> None:
        self.path = Path(path)
        self.partial, self.description = (Path(f"{path}.{ending}") for ending in ("partial", "about.json"))
        self.about, self.sizes, self.order = about, sizes, order
        self.done, self.finished = 0, False
        self.rows = 0
        self._starts, self._lengths = np.zeros((2, len(order)), np.int64)  # of each result in the partial file
        self._synced = time.monotonic()

    def __enter__(self) -> Outputs:
        if self.path.exists() and not self.description.exists():
            raise InputError(f"outputs={self.path} exists, and another program made it; choose another file")
        with contextlib.ExitStack() as stack:
            self._lock = stack.enter_context(self.description.open("a+", encoding="utf-8"))
            self._claim()
            self.finished = self.path.exists()
            if self.finished:
                self.partial.unlink(missing_ok=True)  # exists if publish() was killed after its rename
            else:
                self._file = stack.enter_context(self.partial.open("a+b"))
                self._recover()
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def _claim(self) -> None:
        """Locks the results, and checks or writes the settings that they depend on."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"outputs={self.path} is being written by another process; choose another file") from None
        self._lock.seek(0)
        try:
            started = json.loads(self._lock.read())
        except ValueError:
            started = None
        if not isinstance(started, dict):
            if self.partial.exists() or self.path.exists():
                raise InputError(
                    f"{self.description} is damaged; remove it and {self.partial}, or choose other outputs"
                )
            self._lock.truncate(0)
            self._lock.write(json.dumps(self.about, ensure_ascii=False, indent=1) + "\n")
            self._lock.flush()
            os.fsync(self._lock.fileno())
            return
        current = json.loads(json.dumps(self.about))  # tuples become lists
        changed = [name for name in {**started, **current} if started.get(name) != current.get(name)]
        if changed:
            changes = ", ".join(
                f"{name}={json.dumps(started.get(name))} (now {json.dumps(current.get(name))})" for name in changed
            )
            raise InputError(
                f"outputs={self.path} was started with {changes}; use these settings, or choose another file"
            )

    def _recover(self) -> None:
        """Finds the complete batches and cuts off what a kill left after them."""
        kept = self._file.seek(0)
        for size in self.sizes:
            head = self._file.readline()
            length = head.partition(b" ")[0]
            content = self._file.read(int(length)) if length.isdigit() else b""
            if head != header(content) or content.count(b"\n") != size:
                break
            kept = self._file.tell()
            self._record(content.splitlines(keepends=True), kept)
        self._file.truncate(kept)

    def add(self, results: Sequence[dict[str, Any]]) -> None:
        """Saves the results of the next batch, one per row."""
        lines = [json.dumps(result, ensure_ascii=False).encode() + b"\n" for result in results]
        content = b"".join(lines)
        self._file.write(header(content) + content)
        self._file.flush()  # into the kernel: from here on it survives this process
        if time.monotonic() - self._synced > FSYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()
        self._record(lines, self._file.tell())

    def _record(self, lines: list[bytes], end: int) -> None:
        """Records where the next batch's lines are in the partial file; the last one ends at byte `end`."""
        indices = self.order[self.rows : self.rows + len(lines)]
        lengths = np.array([len(line) for line in lines])
        self._lengths[indices] = lengths
        self._starts[indices] = end - np.cumsum(lengths[::-1])[::-1]
        self.rows += len(lines)
        self.done += 1

    def publish(self) -> None:
        """Writes all results in the prompts' order under their final name."""
        temporary = self.path.with_name(f".tmp-{self.path.name}")
        with temporary.open("wb") as target:
            for start, length in zip(self._starts, self._lengths, strict=True):
                target.write(os.pread(self._file.fileno(), length, start))
            target.flush()
            os.fsync(target.fileno())
        os.replace(temporary, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.partial.unlink()
        self.finished = True


def header(content: bytes) -> bytes:
    """Returns the line before a batch, which shows whether the batch is complete."""
    return f"{len(content)} {zlib.crc32(content)}\n".encode()
