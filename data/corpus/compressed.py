"""Files as streams of bytes: plain, .gz and .zst, with each mistake told in one line."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .. import InputError

SUFFIXES = (".gz", ".zst")
CHUNK = 1 << 20
LARGEST_WINDOW = 1 << 27  # bytes that a .zst may make its reader keep; what the zstd program allows by itself


@contextmanager
def open_stream(path: Path, *, name: str | None = None) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """(the unpacked bytes of a file, the file itself, which tells how much of it was read).

    `name` is what to call it, and tells how it is packed. InputError for whatever keeps it from being read, also while
    the body reads.
    """
    place = name or str(path)
    try:
        with path.open("rb") as file:
            if file.seekable():
                file.seek(0)  # /dev/fd/N may go on where it was left
            if place.endswith(".gz"):
                with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                    yield unpacked, file  # type: ignore[misc]
            elif place.endswith(".zst"):
                yield io.BufferedReader(_Unpacked(file, place), CHUNK), file
            else:
                yield file, file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{place}: damaged gzip data ({error}); pack or copy the file again") from None
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(path):
            raise
        raise InputError(f"{place}: {error.strerror or error}; check the path and its permissions") from None


class _Unpacked(io.RawIOBase):
    """A .zst as a stream. (zstandard's own stream ends without a word where a file was cut short.)"""

    def __init__(self, file: IO[bytes], place: str) -> None:
        try:
            import zstandard
        except ImportError:
            raise InputError(
                f'{place}: zstd needs the package zstandard; pip install -e ".[zstd]", or unpack it first'
            ) from None
        self.file, self.place = file, place
        self.new_frame = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj
        self.error = zstandard.ZstdError
        self.frame: Any = None
        self.packed, self.ready = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            self.packed = self.packed or self.file.read(
                CHUNK >> 6
            )  # little, for it may unpack to a thousand times as much
            if not self.packed:
                if self.frame is not None:
                    raise self._damaged("it ends too early")
                return 0
            try:
                self.frame = self.frame or self.new_frame()
                self.ready, self.packed = self.frame.decompress(self.packed), b""
                if self.frame.eof:
                    self.packed, self.frame = self.frame.unused_data, None
            except self.error as error:
                raise self._damaged(error) from None
        length = min(len(buffer), len(self.ready))
        buffer[:length], self.ready = self.ready[:length], self.ready[length:]
        return length

    def _damaged(self, reason: object) -> InputError:
        return InputError(f"{self.place}: damaged zstd data ({reason}); pack or copy the file again")
