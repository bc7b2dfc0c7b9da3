"""Formats: a file -> pieces of it that hold whole documents, in bounded memory however large the file is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from .. import InputError
from .compressed import SUFFIXES, open_stream
from .jsonl import LONGEST_LINE
from .sources import File

PIECE = 1 << 20  # bytes that a piece of a large file has at least
LARGEST_DOCUMENT = 8 << 20  # bytes; a longer text is cut at a paragraph
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

TEXT, LINES, SEPARATED, ROWS, BINARY = "text", "lines", "separated", "rows", "binary"


@dataclass(frozen=True)
class Piece:
    """A part of a file that holds whole documents."""

    kind: (
        str  # text: one document; lines: of JSON; separated: by a separator's lines; rows: of a table; binary: no text
    )
    path: str
    name: str
    named: bool  # see File
    n_bytes: int  # read from the disk for it
    line: int = 1  # (or row) of the file where it begins
    whole: bool = True  # it is the whole file
    content: bytes | None = None  # None: whoever needs it reads it
    rows: list[Any] = field(default_factory=list)


def pieces(file: File, *, text_field: str, separator: str | None) -> Iterator[Piece]:
    """The pieces of a file, in order. Small files are left to be read by others; what is large, packed, in an archive
    or a table is read here, a piece at a time.
    """
    bare = file.name
    for suffix in SUFFIXES:
        bare = bare.removesuffix(suffix)
    kind = LINES if bare.endswith((".jsonl", ".ndjson")) else SEPARATED if separator else TEXT
    if bare.endswith(".parquet"):
        yield from _table(file, text_field)
    elif file.content is not None:
        yield Piece(kind, file.path, file.name, file.named, file.n_bytes, content=file.content)
    elif file.shared and bare == file.name and file.n_bytes <= LARGEST_DOCUMENT:
        yield Piece(kind, file.path, file.name, file.named, file.n_bytes)
    else:
        cuts: dict[str, Callable[[bytes], int]] = {
            TEXT: _after_paragraph,
            LINES: partial(_after_line, file.place),
            SEPARATED: partial(_after_separator, (separator or "").encode()),
        }
        yield from _stream(file, kind, cuts[kind])


def _stream(file: File, kind: str, cut: Callable[[bytes], int]) -> Iterator[Piece]:
    """Pieces of PIECE bytes or more that end where `cut` says that a document ends (0: not yet)."""
    line, done, whole = 1, 0, True
    with open_stream(Path(file.path), name=file.place if file.shared else file.name) as (stream, packed):
        for content, last in _runs(stream, cut):
            if line == 1 and kind != LINES and not file.named and b"\0" in content:
                yield Piece(BINARY, file.place, file.name, file.named, file.n_bytes, content=b"")
                return
            now, whole = packed.tell(), whole and last
            yield Piece(kind, file.place, file.name, file.named, now - done, line, whole, content)
            done, line = now, line + content.count(b"\n")


def _runs(stream: IO[bytes], cut: Callable[[bytes], int]) -> Iterator[tuple[bytes, bool]]:
    """(content, whether it is the last) of each run."""
    buffer = b""
    while chunk := stream.read(PIECE):
        buffer += chunk
        while place := cut(buffer):
            yield buffer[:place], False
            buffer = buffer[place:]
    yield buffer, True


def _after_line(place: str, content: bytes) -> int:
    if len(content) > LONGEST_LINE and b"\n" not in content:
        raise InputError(f"{place}: a line of more than {LONGEST_LINE >> 20} MB; is it JSON Lines, an object a line?")
    return content.rfind(b"\n") + 1


def _after_separator(separator: bytes, content: bytes) -> int:
    ends = [stop for _, stop in separator_lines(content, separator) if content.endswith(b"\n", 0, stop)]
    return ends[-1] if ends else _after_paragraph(content)


def _after_paragraph(content: bytes) -> int:
    """Where a text that is longer than a document may be is cut: after the last empty line within that length, else
    line, else space, else character.
    """
    if len(content) <= LARGEST_DOCUMENT:
        return 0
    for border in (b"\n\n", b"\n\r\n", b"\n", b" "):
        if (place := content.rfind(border, LARGEST_DOCUMENT // 2, LARGEST_DOCUMENT)) >= 0:
            return place + len(border)
    place = LARGEST_DOCUMENT
    while place > LARGEST_DOCUMENT - 3 and content[place] & 0xC0 == 0x80:  # UTF-8 has no more in a row
        place -= 1
    return place


def separator_lines(content: bytes, separator: bytes) -> Iterator[tuple[int, int]]:
    """Where the lines that are equal to the separator start and stop, line ends included."""
    for match in re.finditer(re.escape(separator) + rb"(?:\r?\n|\Z)", content):  # several times faster than with a ^
        if match.start() == 0 or content[match.start() - 1] == ord("\n"):
            yield match.span()


def in_documents(content: bytes) -> Iterator[bytes]:
    """A text, cut where it is longer than a document may be: what a stream of it would have been cut into."""
    while place := _after_paragraph(content):
        yield content[:place]
        content = content[place:]
    yield content


def _table(file: File, text_field: str) -> Iterator[Piece]:
    """The rows of a .parquet file, a few hundred at a time."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f'{file.place}: parquet needs the package pyarrow; pip install -e ".[parquet]"') from None
    try:
        with parquet.ParquetFile(file.path, buffer_size=PIECE, pre_buffer=False) as table:
            if text_field not in table.schema_arrow.names:
                names = ", ".join(table.schema_arrow.names)
                raise InputError(f"{file.place}: no column {text_field!r}; set text_field= to one of {names}")
            row, total = 1, max(1, table.metadata.num_rows)
            for batch in table.iter_batches(batch_size=256, columns=[text_field], use_threads=False):
                texts = batch.column(0).to_pylist()
                share = file.n_bytes * len(texts) // total
                yield Piece(ROWS, file.path, file.name, file.named, share, row, False, b"", texts)
                row += len(texts)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file.place}: not a readable parquet file ({reason}); copy it again") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file.place}: in rows {row} to {row + 255} there is text that is not UTF-8 ({error})"
        ) from None
    except OSError as error:
        raise InputError(f"{file.place}: {error.strerror or error}; check the path and its permissions") from None
