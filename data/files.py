"""What the file system can promise: locks that end with their process, folders that appear whole, sha256."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def lock(path: Path, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """An exclusive lock that ends with the process that holds it, however it ends; `waiting` is called if another
    process has it.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sweep(folder: Path) -> None:
    """Removes each .tmp-NAME in a folder whose .lock-NAME nobody holds: its process was killed."""
    for left in folder.glob(".tmp-*"):
        with (folder / left.name.replace(".tmp-", ".lock-", 1)).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(left, ignore_errors=True)


def publish(temporary: Path, target: Path) -> None:
    """Makes a finished folder appear under its name: all on the disk first, then one rename."""
    for path in [*temporary.rglob("*"), temporary]:
        _fsync(path)
    if target.exists():  # incomplete or damaged, or we would not be here
        shutil.rmtree(target)
    os.rename(temporary, target)
    _fsync(target.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
