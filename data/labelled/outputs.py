"""A file of results that grows batch by batch, outlives a kill at any moment and appears whole, in its input's order.

answers.jsonl.about.json    what the results depend on: written first, stays; whoever holds its lock may write
answers.jsonl.partial       the finished batches: each a line with its length and checksum, then a line a result
answers.jsonl               all results in the order of the prompts: appears by a rename at the end
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

FSYNC_SECONDS = 1.0  # a power failure costs what came after the last fsync; a killed process costs one batch


class Outputs:
    """The results of batches 0, 1, 2, ...: add() keeps each at once, publish() puts all of them in order.

    about: what the results depend on; those begun with another are refused (InputError). sizes: the rows of each
    batch. order (rows,): where each row, counted through the batches, belongs in the published file.
    A context manager. Inside it `finished` says that all is published; else `done` batches or `rows` results are kept.
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
            raise InputError(f"outputs={self.path} is there already, made by something else; choose another file")
        with contextlib.ExitStack() as stack:
            self._lock = stack.enter_context(self.description.open("a+", encoding="utf-8"))
            self._claim()
            self.finished = self.path.exists()
            if self.finished:
                self.partial.unlink(missing_ok=True)  # killed between the rename and this
            else:
                self._file = stack.enter_context(self.partial.open("a+b"))
                self._recover()
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def _claim(self) -> None:
        """Locks the results and sees that they depend on what they were begun with."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"outputs={self.path} is being written by another process; choose another file") from None
        self._lock.seek(0)
        try:
            begun = json.loads(self._lock.read())
        except ValueError:
            begun = None
        if not isinstance(begun, dict):
            if self.partial.exists() or self.path.exists():
                raise InputError(
                    f"{self.description} is damaged; remove it and {self.partial}, or choose other outputs"
                )
            self._lock.truncate(0)
            self._lock.write(json.dumps(self.about, ensure_ascii=False, indent=1) + "\n")
            self._lock.flush()
            os.fsync(self._lock.fileno())
            return
        current = json.loads(json.dumps(self.about))  # tuples as lists
        unlike = [name for name in {**begun, **current} if begun.get(name) != current.get(name)]
        if unlike:
            changes = ", ".join(f"{name}={begun.get(name)} (now {current.get(name)})" for name in unlike)
            raise InputError(
                f"outputs={self.path} was begun with {changes}; repeat that command or choose another file"
            )

    def _recover(self) -> None:
        """Finds the batches that are whole, and cuts off what a kill left behind them."""
        kept = self._file.seek(0)
        for size in self.sizes:
            head = self._file.readline()
            length = head.partition(b" ")[0]
            content = self._file.read(int(length)) if length.isdigit() else b""
            if head != header(content) or content.count(b"\n") != size:
                break
            kept = self._file.tell()
            self._note(content.splitlines(keepends=True), kept)
        self._file.truncate(kept)

    def add(self, results: Sequence[dict[str, Any]]) -> None:
        """Keeps the results of the next batch, one a row."""
        lines = [json.dumps(result, ensure_ascii=False).encode() + b"\n" for result in results]
        content = b"".join(lines)
        self._file.write(header(content) + content)
        self._file.flush()  # now it is the kernel's, and safe from what may happen to this process
        if time.monotonic() - self._synced > FSYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()
        self._note(lines, self._file.tell())

    def _note(self, lines: list[bytes], end: int) -> None:
        """The next batch is kept: its lines end at byte `end` of the partial file."""
        places = self.order[self.rows : self.rows + len(lines)]
        lengths = np.array([len(line) for line in lines])
        self._lengths[places] = lengths
        self._starts[places] = end - np.cumsum(lengths[::-1])[::-1]
        self.rows += len(lines)
        self.done += 1

    def publish(self) -> None:
        """Writes all results in their final order under their final name."""
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
    """The line before a batch, by which a whole one is known."""
    return f"{len(content)} {zlib.crc32(content)}\n".encode()
