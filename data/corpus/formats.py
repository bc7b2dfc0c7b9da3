"""Formats: divides a file into chunks of whole documents, in bounded memory however large the file is.

A new format with one text per record (a table, an archive) is a function like parquet_chunks and a line in TABLES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from .. import InputError
from .chunks import BINARY, JSON_LINES, MAX_DOCUMENT, ROWS, TEXT, Chunk, long_text_cut, separator_spans
from .compressed import open_stream, without_suffix
from .detect import UTF_16, head_of, is_json_lines, not_text
from .jsonl import MAX_LINE
from .reading import ReadOptions
from .walk import File

CHUNK = 1 << 20  # bytes of a large file that are read at a time
ROWS_PER_CHUNK = 256


def parquet_chunks(file: File, text_field: str) -> Iterator[Chunk]:
    """Yields the rows of a .parquet file, ROWS_PER_CHUNK at a time. Needs the package pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f'{file.place}: .parquet needs the package pyarrow; pip install -e ".[parquet]"') from None
    row = 1
    try:
        with parquet.ParquetFile(file.path, buffer_size=CHUNK, pre_buffer=False) as table:
            if text_field not in table.schema_arrow.names:
                names = ", ".join(table.schema_arrow.names)
                raise InputError(f"{file.place}: no column {text_field!r}; set text_field= to one of {names}")
            n_rows = max(1, table.metadata.num_rows)
            for batch in table.iter_batches(batch_size=ROWS_PER_CHUNK, columns=[text_field], use_threads=False):
                texts = batch.column(0).to_pylist()
                n_bytes = file.n_bytes * len(texts) // n_rows
                yield Chunk(ROWS, file.place, file.name, file.explicit, n_bytes, row, whole=False, rows=texts)
                row += len(texts)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file.place}: not a readable parquet file ({reason}); copy it again") from None
    except UnicodeDecodeError as error:
        rows = f"rows {row} to {row + ROWS_PER_CHUNK - 1}"
        raise InputError(f"{file.place}: {rows} hold text that is not UTF-8 ({error}); convert it") from None
    except OSError as error:
        raise InputError(f"{file.place}: {error.strerror or error}; check the path and its permissions") from None


TABLES: dict[str, Callable[[File, str], Iterator[Chunk]]] = {".parquet": parquet_chunks}  # ending -> (file, text_field)
TABLE_SIGNATURES = {b"PAR1": ".parquet"}  # the first bytes of a table -> its ending


def chunks_of(file: File, options: ReadOptions) -> Iterator[Chunk]:
    """Yields the chunks of a file, in order.

    A small plain file becomes one chunk without content, which a worker process reads later. Files that are large,
    compressed, tables or parts of an archive are read here, one chunk at a time.
    """
    if file.content is not None:
        yield Chunk(TEXT, file.path, file.name, file.explicit, file.n_bytes, content=file.content)
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
        what, advice = found
        policy = options.invalid_utf8 if what == UTF_16 else ""
        if policy == "refuse" or (file.explicit and policy != "skip"):
            raise InputError(f"{file.place} is {what}; {advice}")
        yield Chunk(BINARY, file.place, file.name, file.explicit, file.n_bytes, reason=f"{what}: {advice}")
        return
    kind = JSON_LINES if is_json_lines(file, head) else TEXT
    if file.n_bytes <= MAX_DOCUMENT and not file.is_stdin and not compressed:
        yield Chunk(kind, file.path, file.name, file.explicit, file.n_bytes)
        return
    find_cut = long_text_cut
    if kind == JSON_LINES:
        find_cut = partial(_last_line_end, file.place)
    elif options.separator:
        find_cut = partial(_last_separator_end, options.separator.encode())
    yield from _stream_chunks(file, kind, find_cut)


def _stream_chunks(file: File, kind: str, find_cut: Callable[[bytes], int]) -> Iterator[Chunk]:
    line, n_read, whole = 1, 0, True
    with open_stream(Path(file.path), place=file.place) as (stream, on_disk):
        for content, last in _split_stream(stream, find_cut):
            if line == 1 and kind != JSON_LINES and not file.explicit and b"\0" in content:
                yield Chunk(BINARY, file.place, file.name, file.explicit, file.n_bytes)
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
