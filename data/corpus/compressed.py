"""Files as streams of bytes: plain, .gz or .zst, with every read error as one line."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .. import InputError

SUFFIXES = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}  # the first bytes of a compressed file
BUFFER = 1 << 20  # bytes
ZSTD_READ = 1 << 14  # bytes; small, since they may decompress to a thousand times as many
MAX_ZSTD_WINDOW = 1 << 27  # bytes of history that a .zst file may require; the zstd program has the same limit


def without_suffix(name: str) -> str:
    """Returns the name of the decompressed file in lower case."""
    stem, suffix = os.path.splitext(name.lower())
    return stem if suffix in SUFFIXES else name.lower()


def compression(name: str, start: bytes) -> str:
    """Returns the suffix of SUFFIXES that the first bytes of a file tell, or else its name; "" for a plain file."""
    named = os.path.splitext(name.lower())[1]
    return next((s for s, magic in SUFFIXES.items() if start.startswith(magic)), named if named in SUFFIXES else "")


@contextmanager
def open_stream(path: Path, *, place: str | None = None) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Opens (the decompressed stream, the file itself, whose position tells how much of it was read).

    place: the name in error messages. Raises InputError if the file cannot be read, also while the body reads.
    """
    place = place or str(path)
    try:
        with path.open("rb") as file:
            if file.seekable():
                file.seek(0)  # /dev/fd/N shares its position with whoever read it before
            suffix = compression(path.name, file.peek(4))
            if suffix == ".gz":
                with gzip.GzipFile(fileobj=file, mode="rb") as decompressed:
                    yield decompressed, file  # type: ignore[misc]
            elif suffix == ".zst":
                yield io.BufferedReader(_ZstdStream(file, place), BUFFER), file
            else:
                yield file, file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{place}: damaged gzip data ({error}); compress or copy the file again") from None
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(path):
            raise
        raise InputError(f"{place}: {error.strerror or error}; check the path and its permissions") from None


class _ZstdStream(io.RawIOBase):
    """A .zst file as a stream. zstandard's own stream ends silently where a file was truncated."""

    def __init__(self, file: IO[bytes], place: str) -> None:
        try:
            import zstandard
        except ImportError:
            raise InputError(
                f'{place}: .zst files need the package zstandard; pip install -e ".[zstd]", or decompress the file'
            ) from None
        self.file, self.place = file, place
        self.new_frame = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW).decompressobj
        self.zstd_error = zstandard.ZstdError
        self.frame: Any = None
        self.compressed, self.ready = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            self.compressed = self.compressed or self.file.read(ZSTD_READ)
            if not self.compressed:
                if self.frame is not None:
                    raise self._damaged("it is truncated")
                return 0
            try:
                self.frame = self.frame or self.new_frame()
                self.ready, self.compressed = self.frame.decompress(self.compressed), b""
                if self.frame.eof:
                    self.compressed, self.frame = self.frame.unused_data, None
            except self.zstd_error as error:
                raise self._damaged(error) from None
        length = min(len(buffer), len(self.ready))
        buffer[:length], self.ready = self.ready[:length], self.ready[length:]
        return length

    def _damaged(self, reason: object) -> InputError:
        return InputError(f"{self.place}: damaged zstd data ({reason}); compress or copy the file again")
