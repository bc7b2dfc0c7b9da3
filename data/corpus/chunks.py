"""Chunks: parts of a file that hold whole documents, and the places where a long text may be cut."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MAX_DOCUMENT = 8 << 20  # bytes; a longer text is cut, after a paragraph if possible
TEXT, JSON_LINES, ROWS, BINARY = "text", "json lines", "rows", "binary"


@dataclass(frozen=True)
class Chunk:
    """A part of a file that holds whole documents.

    Its kind says how to find them: a TEXT is one document, or is divided by separator lines; JSON_LINES hold one per
    line; ROWS are a list of texts. A BINARY chunk has none.
    """

    kind: str
    path: str
    name: str  # the file's name in the corpus
    explicit: bool  # the user named this file; see File
    n_bytes: int  # on the disk
    line: int = 1  # line (or row) of the file at which the chunk starts
    whole: bool = True  # the chunk is the whole file
    content: bytes | None = None  # None: not read yet
    rows: list[Any] = field(default_factory=list)  # ROWS: str, or None for an empty cell
    reason: str = "binary"  # BINARY: what the file is, and what to do with it


def split_long(content: bytes) -> Iterator[bytes]:
    """Splits a text into documents of at most MAX_DOCUMENT bytes."""
    while cut := long_text_cut(content):
        yield content[:cut]
        content = content[cut:]
    yield content


def long_text_cut(content: bytes) -> int:
    """Position at which to cut a text that exceeds MAX_DOCUMENT bytes; 0 if it does not.

    That is after the last empty line within the limit, else after a line, else a space, else a character.
    """
    if len(content) <= MAX_DOCUMENT:
        return 0
    for border in (b"\n\n", b"\n\r\n", b"\n", b" "):
        if (start := content.rfind(border, MAX_DOCUMENT // 2, MAX_DOCUMENT)) >= 0:
            return start + len(border)
    cut = MAX_DOCUMENT
    while cut > MAX_DOCUMENT - 3 and content[cut] & 0xC0 == 0x80:  # at most 3 continuation bytes follow each other
        cut -= 1
    return cut


def separator_spans(content: bytes, separator: bytes) -> Iterator[tuple[int, int]]:
    """(start, stop) of each line that equals the separator, including the line end."""
    for match in re.finditer(re.escape(separator) + rb"(?:\r?\n|\Z)", content):  # several times faster than with ^
        if match.start() == 0 or content[match.start() - 1] == ord("\n"):
            yield match.span()
