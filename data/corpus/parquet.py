"""Parquet files: one document per row, in the column that text_field names. Needs pyarrow."""

from __future__ import annotations

from collections.abc import Iterator

from .. import InputError
from .chunks import ROWS, Chunk
from .walk import File

ROWS_PER_CHUNK = 256
BUFFER = 1 << 20  # bytes


def parquet_chunks(file: File, text_field: str) -> Iterator[Chunk]:
    """Yields the rows of a .parquet file, ROWS_PER_CHUNK at a time."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f'{file.place}: .parquet needs the package pyarrow; pip install -e ".[parquet]"') from None
    row = 1
    try:
        with parquet.ParquetFile(file.path, buffer_size=BUFFER, pre_buffer=False) as table:
            if text_field not in table.schema_arrow.names:
                names = ", ".join(table.schema_arrow.names)
                raise InputError(f"{file.place}: no column {text_field!r}; set text_field= to one of {names}")
            n_rows = max(1, table.metadata.num_rows)
            for batch in table.iter_batches(batch_size=ROWS_PER_CHUNK, columns=[text_field], use_threads=False):
                texts = batch.column(0).to_pylist()
                n_bytes = file.n_bytes * len(texts) // n_rows
                yield Chunk(
                    ROWS, file.place, file.name, file.explicit, n_bytes, line=row, whole=False, content=b"", rows=texts
                )
                row += len(texts)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file.place}: not a readable parquet file ({reason}); copy it again") from None
    except UnicodeDecodeError as error:
        last = row + ROWS_PER_CHUNK - 1
        raise InputError(
            f"{file.place}: rows {row} to {last} hold text that is not UTF-8 ({error}); convert it"
        ) from None
    except OSError as error:
        raise InputError(f"{file.place}: {error.strerror or error}; check the path and its permissions") from None
