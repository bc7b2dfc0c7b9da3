"""Which format a file has, by its name and its first bytes: one rule for named files, folders and standard input."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from pathlib import Path

from .. import InputError
from .compressed import compression, open_stream, without_suffix
from .jsonl import MAX_LINE, json_object
from .walk import File

HEAD = 4096  # bytes
N_LINES = 3  # that tell whether a file is JSON Lines
JSON_LINES_ENDINGS = (".jsonl", ".ndjson")
UTF_16 = "UTF-16"

SIGNATURES = {  # the first bytes: what the file is, what to do
    b"%PDF-": ("a PDF", "export it as text"),
    b"PK\x03\x04": ("a zip archive or an office document", "export it as text"),
    b"{\\rtf": ("an RTF document", "export it as text"),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("an old office document", "export it as text"),
    b"BZh91AY&SY": ("a bzip2 file", "decompress it"),
    b"\xfd7zXZ\0": ("an xz file", "decompress it"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it"),
}


def head_of(file: File) -> tuple[bytes, bool]:
    """Returns (the first bytes of a file, decompressed; whether it is compressed)."""
    if not file.is_stdin:
        with suppress(OSError), open(file.path, "rb", buffering=0) as plain:  # several times faster than open_stream
            head = plain.read(HEAD)
            if not compression(file.path, head):
                return head, False
    with open_stream(Path(file.path), place=file.place) as (stream, on_disk):
        return stream.read(HEAD), stream is not on_disk


def not_text(head: bytes) -> tuple[str, str] | None:
    """Returns (what a file is, what to do with it) if it is certainly not text in UTF-8."""
    for signature, found in SIGNATURES.items():
        if head.startswith(signature):
            return found
    if head.startswith(b"ustar", 257):
        return "a tar archive", "unpack it"
    if encoding := _utf_16(head):
        return UTF_16, f"convert it with iconv -f {encoding} -t UTF-8"
    return None


def _utf_16(head: bytes) -> str:
    """Returns the encoding of a text in UTF-16, with or without a byte order mark; "" for anything else."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    for encoding, high_bytes in (("UTF-16LE", head[1::2]), ("UTF-16BE", head[0::2])):
        # Letters of all alphabets are below U+2000, and spaces and line ends below U+0100.
        if len(head) % 2 == 0 and 0 in high_bytes and sum(byte < 0x20 for byte in high_bytes) > 0.9 * len(high_bytes):
            text = head.decode(encoding, errors="replace")
            if sum(char.isprintable() or char.isspace() for char in text) > 0.95 * len(text):
                return encoding
    return ""


def is_json_lines(file: File, head: bytes) -> bool:
    """True if the name says so, or if two of the first N_LINES lines that are not blank are JSON objects."""
    if without_suffix(file.name).endswith(JSON_LINES_ENDINGS):
        return True
    if b"{" not in head:
        return False
    with open_stream(Path(file.path), place=file.place) as (stream, _):
        lines = (line for line in iter(lambda: stream.readline(MAX_LINE), b"") if line.strip())
        return sum(map(_is_object, islice(lines, N_LINES))) >= 2


def _is_object(line: bytes) -> bool:
    if not line.lstrip(b" \t\xef\xbb\xbf").startswith(b"{"):
        return False
    try:
        json_object(line.decode(errors="replace").removeprefix("\ufeff"), "")
        return True
    except InputError:
        return False
