"""Reading: a piece of a file -> its documents; what is no text is left out, mended or refused, and always counted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import InputError
from .formats import (
    BINARY,
    BYTE_ORDER_MARK,
    LARGEST_DOCUMENT,
    LINES,
    ROWS,
    SEPARATED,
    TEXT,
    Piece,
    in_documents,
    separator_lines,
)
from .jsonl import json_object, text_of

EXAMPLES = 50  # names that are kept of what was left out; all of it is counted
NOT_UTF8, MENDED, BROKEN = "not UTF-8: convert it with iconv", "not UTF-8, replaced by U+FFFD", "broken line"  # reasons
INVALID = ("auto", "skip", "replace", "refuse")


@dataclass(frozen=True)
class Document:
    name: str
    text: str


@dataclass(frozen=True)
class Reading:
    """How documents are read."""

    include: str | list[str] | None = None
    exclude: str | list[str] | None = None
    text_field: str = "text"
    separator: str | None = None
    invalid_utf8: str = "auto"

    def validate(self) -> list[str]:
        """What is wrong with it, under the names of the settings."""
        found = []
        if self.invalid_utf8 not in INVALID:
            found.append(f"invalid_utf8={self.invalid_utf8!r} is not one of {', '.join(INVALID)}")
        if self.separator is not None and (not self.separator or "\n" in self.separator):
            found.append(f"document_separator={self.separator!r} must be a line of text, without its end")
        return found


@dataclass
class LeftOut:
    """What was read but is not in the corpus as it was: how much of it, why, and some of the names."""

    counts: dict[str, list[int]] = field(default_factory=dict)  # reason -> [documents, bytes]
    examples: list[str] = field(default_factory=list)  # "name (reason)"
    broken: list[str] = field(default_factory=list)  # what is wrong with lines of JSON and where
    found: int = 0  # documents, before include and exclude

    def add(self, name: str, reason: str, n_bytes: int) -> None:
        count = self.counts.setdefault(reason, [0, 0])
        count[0] += 1
        count[1] += n_bytes
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{name} ({reason})")

    def merge(self, other: LeftOut, *, max_bad_lines: int) -> None:
        """Adds what came later; InputError once more than max_bad_lines are broken."""
        for reason, (documents, n_bytes) in other.counts.items():
            count = self.counts.setdefault(reason, [0, 0])
            count[0] += documents
            count[1] += n_bytes
        self.examples += other.examples[: EXAMPLES - len(self.examples)]
        self.found += other.found
        self.broken += other.broken
        if len(self.broken) > max_bad_lines:
            over = f" ({max_bad_lines} before it were left out, as max_bad_lines= allows)" if max_bad_lines else ""
            raise InputError(self.broken[max_bad_lines] + over)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """By reason: documents, bytes, some of the names."""
        return {
            reason: {
                "documents": documents,
                "bytes": n_bytes,
                "examples": [e.removesuffix(end) for e in self.examples if e.endswith(end := f" ({reason})")][:5],
            }
            for reason, (documents, n_bytes) in self.counts.items()
        }

    def __str__(self) -> str:
        """One line, or nothing."""
        documents = sum(count for count, _ in self.counts.values())
        if documents > 5:
            reasons = ", ".join(f"{count:,} {reason} ({size:,} bytes)" for reason, (count, size) in self.counts.items())
            return f"left out or mended: {reasons}; such as {', '.join(self.examples[:3])}"
        return f"left out {', '.join(self.examples)}" if documents else ""


def matches(name: str, patterns: str | list[str] | None, *, default: bool) -> bool:
    """Whether a document's name matches any of the patterns; `default` where there are none."""
    if not patterns:
        return default
    return _expression(patterns if isinstance(patterns, str) else tuple(patterns)).match(name) is not None


@lru_cache
def _expression(patterns: str | tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, [patterns] if isinstance(patterns, str) else patterns)))


def wanted(name: str, file: str, reading: Reading) -> bool:
    """Whether include and exclude leave a document; a pattern may mean its own name or its file's."""
    return any(matches(n, reading.include, default=True) for n in (name, file)) and not any(
        matches(n, reading.exclude, default=False) for n in (name, file)
    )


def documents_of(piece: Piece, reading: Reading, left_out: LeftOut) -> Iterator[Document]:
    """The documents of a piece that are not empty, in order; notes what is left out. InputError: what is refused."""
    for name, text in _texts(piece, reading, left_out):
        left_out.found += 1
        if not wanted(name, piece.name, reading):
            continue
        if text:
            yield Document(name, text)
        else:
            left_out.add(name, "empty", 0)


def _texts(piece: Piece, reading: Reading, left_out: LeftOut) -> Iterator[tuple[str, str]]:
    """(name, text) of each document."""
    if piece.kind == ROWS:
        yield from _rows(piece, left_out)
        return
    if piece.kind == BINARY or (piece.kind == TEXT and not wanted(piece.name, piece.name, reading)):
        if piece.kind == BINARY:
            left_out.add(piece.name, "binary", piece.n_bytes)
        left_out.found += piece.kind != BINARY
        return
    content = _content(piece)
    if piece.line == 1:
        content = content.removeprefix(BYTE_ORDER_MARK)
    if piece.kind == LINES:
        yield from _json(content, piece, reading, left_out)
        return
    if not piece.named and b"\0" in content:
        left_out.add(piece.name, "binary", len(content))
        return
    documents = _separated(content, piece, reading) if piece.kind == SEPARATED else _cut(content, piece.name, piece)
    for name, line, document in documents:
        text = _decoded(document, name, line, piece, reading, left_out)
        if text is not None:
            yield name, text


def _content(piece: Piece) -> bytes:
    if piece.content is not None:
        return piece.content
    try:
        return Path(piece.path).read_bytes()
    except OSError as error:
        raise InputError(f"{piece.path}: {error.strerror or error}; check the path and its permissions") from None


def _cut(content: bytes, name: str, piece: Piece, line: int | None = None) -> Iterator[tuple[str, int, bytes]]:
    """(name, line, content) of the documents of a text. Where it is not a whole file's, the name ends in the line."""
    line = piece.line if line is None else line
    alone = piece.whole and piece.kind == TEXT and len(content) <= LARGEST_DOCUMENT
    for document in in_documents(content):
        yield name if alone else f"{name}:{line}", line, document
        line += document.count(b"\n")


def _separated(content: bytes, piece: Piece, reading: Reading) -> Iterator[tuple[str, int, bytes]]:
    line, start = piece.line, 0
    separator = (reading.separator or "").encode()
    for stop, after in [*separator_lines(content, separator), (len(content), len(content))]:
        if stop > start:
            yield from _cut(content[start:stop], piece.name, piece, line)
        line, start = line + content.count(b"\n", start, after), after


def _json(content: bytes, piece: Piece, reading: Reading, left_out: LeftOut) -> Iterator[tuple[str, str]]:
    # Not splitlines(): JSON strings may hold U+2028 and other characters that Python takes for line ends.
    for number, raw in enumerate(content.split(b"\n"), start=piece.line):
        if not raw.strip():
            continue
        line = _decoded(raw, f"{piece.name}:{number}", number, piece, reading, left_out)
        if line is None:
            continue
        try:
            text = json.loads(line)[reading.text_field]
            n_bytes = len(text.encode())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            try:
                place = f"{piece.path}:{number}"
                text = text_of(json_object(line, place), reading.text_field, place)
                n_bytes = len(text.encode())
            except InputError as error:
                left_out.add(f"{piece.name}:{number}", BROKEN, len(raw))
                left_out.broken.append(str(error))
                continue
        yield from _of_record(f"{piece.name}:{number}", text, n_bytes)


def _rows(piece: Piece, left_out: LeftOut) -> Iterator[tuple[str, str]]:
    for number, text in enumerate(piece.rows, start=piece.line):
        if isinstance(text, str):
            yield from _of_record(f"{piece.name}:{number}", text, len(text.encode()))
        elif text is None:
            left_out.add(f"{piece.name}:{number}", "empty", 0)
        else:
            raise InputError(f"{piece.path}: row {number} is no text but {type(text).__name__}; set text_field=")


def _of_record(name: str, text: str, n_bytes: int) -> Iterator[tuple[str, str]]:
    if n_bytes <= LARGEST_DOCUMENT:
        yield name, text
    else:
        for part, content in enumerate(in_documents(text.encode()), start=1):
            yield f"{name}/{part}", content.decode()


def _decoded(content: bytes, name: str, line: int, piece: Piece, reading: Reading, left_out: LeftOut) -> str | None:
    """The text of a document, or nothing if it is left out."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        policy = reading.invalid_utf8
        if policy == "auto":
            policy = "refuse" if piece.named else "skip"
        if policy == "refuse":
            line += content.count(b"\n", 0, error.start)
            raise InputError(
                f"{piece.path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; convert it (iconv), or set "
                "invalid_utf8= to skip or replace"
            ) from None
    if policy == "skip":
        left_out.add(name, NOT_UTF8, len(content))
        return None
    left_out.add(name, MENDED, len(content))
    return content.decode(errors="replace")
