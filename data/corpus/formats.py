"""Formats: divides a file into chunks of whole documents, in bounded memory however large the file is.

A new format that holds one text per record (a table, an archive) is a function like parquet.parquet_chunks and a line
in TABLES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from .. import InputError
from .chunks import BINARY, JSON_LINES, MAX_DOCUMENT, SEPARATED, TEXT, Chunk, long_text_cut, separator_spans
from .compressed import open_stream, without_suffix
from .detect import UTF_16, head_of, is_json_lines, not_text
from .jsonl import MAX_LINE
from .parquet import parquet_chunks
from .reading import ReadOptions
from .walk import File

CHUNK = 1 << 20  # bytes of a large file that are read at a time
TABLES: dict[str, Callable[[File, str], Iterator[Chunk]]] = {".parquet": parquet_chunks}  # ending -> (file, text_field)
TABLE_SIGNATURES = {b"PAR1": ".parquet"}  # the first bytes of a table -> its ending


def chunks_of(file: File, options: ReadOptions) -> Iterator[Chunk]:
    """Yields the chunks of a file, in order.

    A small plain file becomes one chunk without content, which a worker process reads later. Files that are large,
    compressed, tables or parts of an archive are read here, one chunk at a time.
    """
    separator = (options.separator or "").encode()
    kind = SEPARATED if separator else TEXT
    if file.content is not None:
        yield Chunk(kind, file.path, file.name, file.explicit, file.n_bytes, content=file.content)
        return
    bare = without_suffix(file.name)
    head, compressed = head_of(file)
    ending = next((ending for signature, ending in TABLE_SIGNATURES.items() if head.startswith(signature)), "")
    if ending := ending or next(filter(bare.endswith, TABLES), ""):
        if compressed:
            raise InputError(f"{file.place} is compressed; decompress it ({ending} files are compressed already)")
        yield from TABLES[ending](file, options.text_field)
        return
    if found := not_text(head):
        yield _not_read(file, *found, options.invalid_utf8)
        return
    if is_json_lines(file, head):
        kind = JSON_LINES
    if file.n_bytes <= MAX_DOCUMENT and not file.is_stdin and not compressed:
        yield Chunk(kind, file.path, file.name, file.explicit, file.n_bytes)
        return
    find_cut: dict[str, Callable[[bytes], int]] = {
        TEXT: long_text_cut,
        JSON_LINES: partial(_last_line_end, file.place),
        SEPARATED: partial(_last_separator_end, separator),
    }
    yield from _stream_chunks(file, kind, find_cut[kind])


def _not_read(file: File, what: str, advice: str, invalid_utf8: str) -> Chunk:
    """Returns a chunk without documents for a file that is not text. Raises InputError if the user named it."""
    refused = file.explicit
    if what == UTF_16 and invalid_utf8 in ("skip", "refuse"):
        refused = invalid_utf8 == "refuse"
    if refused:
        raise InputError(f"{file.place} is {what}; {advice}")
    reason = f"{what}: {advice}"
    return Chunk(BINARY, file.place, file.name, file.explicit, file.n_bytes, content=b"", reason=reason)


def _stream_chunks(file: File, kind: str, find_cut: Callable[[bytes], int]) -> Iterator[Chunk]:
    line, n_read, whole = 1, 0, True
    with open_stream(Path(file.path), place=file.place) as (stream, on_disk):
        for content, last in _split_stream(stream, find_cut):
            if line == 1 and kind != JSON_LINES and not file.explicit and b"\0" in content:
                yield Chunk(BINARY, file.place, file.name, file.explicit, file.n_bytes, content=b"")
                return
            position, whole = on_disk.tell(), whole and last
            yield Chunk(kind, file.place, file.name, file.explicit, position - n_read, line, whole, content)
            n_read, line = position, line + content.count(b"\n")


def _split_stream(stream: IO[bytes], find_cut: Callable[[bytes], int]) -> Iterator[tuple[bytes, bool]]:
    """Yields (content, whether it is the last), cut at the positions that find_cut returns (0: read on first)."""
    buffer = b""
    while data := stream.read(CHUNK):
        buffer += data
        while cut := find_cut(buffer):
            yield buffer[:cut], False
            buffer = buffer[cut:]
    yield buffer, True


def _last_line_end(place: str, content: bytes) -> int:
    if len(content) > MAX_LINE and b"\n" not in content:
        raise InputError(f"{place}: a line of more than {MAX_LINE >> 20} MB; JSON Lines must have one object per line")
    return content.rfind(b"\n") + 1


def _last_separator_end(separator: bytes, content: bytes) -> int:
    ends = [stop for _, stop in separator_spans(content, separator) if content.endswith(b"\n", 0, stop)]
    return ends[-1] if ends else long_text_cut(content)
