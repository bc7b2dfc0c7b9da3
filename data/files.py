"""File system helpers: locks that end with their process, folders that appear complete or not at all, sha256."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from . import InputError


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def lock(path: Path, *, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds an exclusive lock, which the system releases if the process dies.

    Calls on_wait once if another process holds the lock.
    """
    with path.open("w") as file:
        if not _try_lock(file):
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def remove_leftovers(folder: Path) -> None:
    """Removes each .tmp-NAME in a folder whose .lock-NAME nobody holds: the process that made it was killed."""
    for leftover in folder.glob(".tmp-*"):
        with (folder / leftover.name.replace(".tmp-", ".lock-", 1)).open("w") as file:
            if _try_lock(file):
                shutil.rmtree(leftover, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file that appears complete or not at all. Creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".tmp-{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def publish(temporary: Path, target: Path) -> None:
    """Renames a finished folder to its final name after flushing everything in it to the disk."""
    if target.exists():  # callers publish only where the target is missing or damaged
        shutil.rmtree(target)
    _rename(temporary, target)


@contextmanager
def new_path(target: Path) -> Iterator[Path]:
    """Yields a path beside `target` for a folder or file; renames it to `target` if the body succeeds.

    Otherwise nothing is left. Raises InputError if the target exists, before or after the body, unless it is an empty
    folder.
    """
    _check_is_new(target)
    temporary = target.with_name(f".tmp-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)  # of a process that was killed
        yield temporary
        _check_is_new(target)
        _rename(temporary, target)
    finally:
        _remove(temporary)


def _check_is_new(target: Path) -> None:
    if not target.name:  # the folder that the shell is in, or /
        raise InputError(f"{target} cannot be replaced; name a new folder or file in it")
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise InputError(f"{target} exists already; choose another name, or remove it")


def _rename(temporary: Path, target: Path) -> None:
    for path in [*temporary.rglob("*"), temporary]:
        _fsync(path)
    os.rename(temporary, target)  # fails if the target is a folder with something in it
    _fsync(target.parent)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
