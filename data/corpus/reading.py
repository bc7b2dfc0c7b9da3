"""Reading: a chunk of a file -> its selected documents. Counts what is skipped, and handles bytes outside UTF-8."""

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
from .chunks import BINARY, JSON_LINES, MAX_DOCUMENT, ROWS, Chunk, separator_spans, split_long
from .jsonl import json_object, text_of

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_EXAMPLES = 50  # names of skipped documents that are kept; all of them are counted
EMPTY, NOT_TEXT, BAD_LINE = "empty", "binary", "broken line"  # reasons
NOT_UTF8, REPLACED = "not UTF-8: convert it with iconv", "not UTF-8, replaced by U+FFFD"
Patterns = str | list[str] | None
POLICIES = ("auto", "skip", "replace", "refuse")


@dataclass(frozen=True)
class Document:
    name: str
    text: str


@dataclass(frozen=True)
class ReadOptions:
    """How documents are read; PrepareConfig explains each setting."""

    include: Patterns = None
    exclude: Patterns = None
    text_field: str = "text"
    separator: str | None = None
    invalid_utf8: str = "auto"

    def validate(self) -> list[str]:
        """Returns what is wrong with the settings, one line each."""
        found = []
        if self.invalid_utf8 not in POLICIES:
            found.append(f"invalid_utf8={self.invalid_utf8!r} is not one of {', '.join(POLICIES)}")
        if self.separator is not None and (not self.separator or "\n" in self.separator):
            found.append(f"document_separator={self.separator!r} must be one line of text, without the line end")
        return found


@dataclass
class Skipped:
    """Counts the documents that were skipped, or whose text was repaired, with some of their names."""

    counts: dict[str, list[int]] = field(default_factory=dict)  # reason -> [documents, bytes]
    examples: list[str] = field(default_factory=list)  # "name (reason)"
    bad_lines: list[str] = field(default_factory=list)  # an error message for each broken line of JSON
    n_found: int = 0  # documents, before include and exclude
    n_separators: int = 0  # lines that equal document_separator
    n_filtered: int = 0  # documents, files and folders that include and exclude left out

    def add(self, name: str, reason: str, n_bytes: int) -> None:
        documents, size = self.counts.get(reason, [0, 0])
        self.counts[reason] = [documents + 1, size + n_bytes]
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(f"{name} ({reason})")

    def merge(self, later: Skipped, *, max_bad_lines: int) -> None:
        """Adds the counts of a later part of the corpus. Raises InputError at bad line number max_bad_lines + 1."""
        for reason, (documents, n_bytes) in later.counts.items():
            before = self.counts.get(reason, [0, 0])
            self.counts[reason] = [before[0] + documents, before[1] + n_bytes]
        self.examples += later.examples[: MAX_EXAMPLES - len(self.examples)]
        self.n_found += later.n_found
        self.n_separators += later.n_separators
        self.n_filtered += later.n_filtered
        self.bad_lines += later.bad_lines
        if len(self.bad_lines) > max_bad_lines:
            limit = f" ({max_bad_lines} before it skipped, as max_bad_lines={max_bad_lines} allows)"
            raise InputError(self.bad_lines[max_bad_lines] + (limit if max_bad_lines else ""))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Returns documents, bytes and some names for each reason."""
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
            return f"skipped or repaired: {reasons}; for example {', '.join(self.examples[:3])}"
        return f"skipped or repaired: {', '.join(self.examples)}" if documents else ""


def matches(name: str, patterns: Patterns, *, default: bool) -> bool:
    """True if a name matches any of the patterns; `default` if there are none."""
    return _compiled(tuple(_as_list(patterns))).match(name) is not None if patterns else default


@lru_cache
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)))


def is_selected(name: str, file: str, options: ReadOptions) -> bool:
    """True if include and exclude keep a document. A pattern may match its own name or its file's."""
    return any(matches(n, options.include, default=True) for n in (name, file)) and not any(
        matches(n, options.exclude, default=False) for n in (name, file)
    )


def may_be_selected(file: str, *, include: Patterns) -> bool:
    """True if include may keep documents of a file, which is opened only then.

    A colon says that a pattern is meant for documents within files, as in "*.jsonl:1*"; the part before it must match
    the name of the file.
    """
    files = [pattern.rpartition(":")[0] for pattern in _as_list(include) if ":" in pattern]
    return matches(file, include, default=True) or matches(file, files, default=False)


def is_excluded_folder(folder: str, *, exclude: Patterns) -> bool:
    """True if a pattern of exclude matches everything in a folder, whose name ends with a slash."""
    return matches(folder, [pattern for pattern in _as_list(exclude) if pattern.endswith("*")], default=False)


def _as_list(patterns: Patterns) -> list[str]:
    return [patterns] if isinstance(patterns, str) else patterns or []


def documents_of(chunk: Chunk, options: ReadOptions, skipped: Skipped) -> Iterator[Document]:
    """Yields the selected documents of a chunk that are not empty, in order, and counts the skipped ones.

    Raises InputError for a document that the options refuse.
    """
    for name, text in _texts(chunk, options, skipped):
        skipped.n_found += 1
        if not is_selected(name, chunk.name, options):
            skipped.n_filtered += 1
            continue
        if text:
            yield Document(name, text)
        else:
            skipped.add(name, EMPTY, 0)


def _texts(chunk: Chunk, options: ReadOptions, skipped: Skipped) -> Iterator[tuple[str, str]]:
    """Yields (name, text) of each document."""
    if chunk.kind == ROWS:
        yield from _row_texts(chunk, options)
        return
    if chunk.kind == BINARY:
        skipped.add(chunk.name, chunk.reason, chunk.n_bytes)
        return
    content = chunk.content
    if content is None:
        try:
            content = Path(chunk.path).read_bytes()
        except OSError as error:
            raise InputError(f"{chunk.path}: {error.strerror or error}; check the path and its permissions") from None
    if chunk.line == 1:
        content = content.removeprefix(BYTE_ORDER_MARK)
    if chunk.kind == JSON_LINES:
        yield from _json_texts(content, chunk, options, skipped)
    elif not chunk.explicit and b"\0" in content:
        skipped.add(chunk.name, NOT_TEXT, len(content))
    else:
        for name, line, document in _split_text(content, chunk, options, skipped):
            text = _decode(document, name, line, chunk, options, skipped)
            if text is not None:
                yield name, text


def _split_text(
    content: bytes, chunk: Chunk, options: ReadOptions, skipped: Skipped
) -> Iterator[tuple[str, int, bytes]]:
    """Yields (name, line, content) of each document in a text. A part of a file has its line in its name."""
    spans = list(separator_spans(content, options.separator.encode())) if options.separator else []
    skipped.n_separators += len(spans)
    whole_file = not options.separator and chunk.whole and len(content) <= MAX_DOCUMENT
    start, line = 0, chunk.line
    for stop, next_start in [*spans, (len(content), len(content))]:
        if stop > start or whole_file:
            for document in split_long(content[start:stop]):
                yield chunk.name if whole_file else f"{chunk.name}:{line}", line, document
                line += document.count(b"\n")
        line, start = line + content.count(b"\n", stop, next_start), next_start


def _json_texts(content: bytes, chunk: Chunk, options: ReadOptions, skipped: Skipped) -> Iterator[tuple[str, str]]:
    # Not splitlines(): JSON strings may contain U+2028 and other characters that Python takes for line ends.
    for number, raw in enumerate(content.split(b"\n"), start=chunk.line):
        if not raw.strip():
            continue
        name = f"{chunk.name}:{number}"
        line = _decode(raw, name, number, chunk, options, skipped)
        if line is None:
            continue
        try:
            text = json.loads(line)[options.text_field]
            n_bytes = len(text.encode())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            try:  # again, slowly, for the error message
                place = f"{chunk.path}:{number}"
                text = text_of(json_object(line, place), options.text_field, place)
                n_bytes = len(text.encode())
            except InputError as error:
                if is_selected(name, chunk.name, options):
                    skipped.add(name, BAD_LINE, len(raw))
                    skipped.bad_lines.append(str(error))
                continue
        yield from _record_texts(name, text, n_bytes)


def _row_texts(chunk: Chunk, options: ReadOptions) -> Iterator[tuple[str, str]]:
    for number, text in enumerate(chunk.rows, start=chunk.line):
        name = f"{chunk.name}:{number}"
        if isinstance(text, str):
            yield from _record_texts(name, text, len(text.encode()))
        elif text is None:
            yield name, ""
        elif is_selected(name, chunk.name, options):
            kind = type(text).__name__
            raise InputError(f"{chunk.path}: row {number} is not text but {kind}; set text_field= to a column of text")


def _record_texts(name: str, text: str, n_bytes: int) -> Iterator[tuple[str, str]]:
    """Yields the text of one record, split if it is too long."""
    if n_bytes <= MAX_DOCUMENT:
        yield name, text
    else:
        for part, content in enumerate(split_long(text.encode()), start=1):
            yield f"{name}/{part}", content.decode()


def _decode(content: bytes, name: str, line: int, chunk: Chunk, options: ReadOptions, skipped: Skipped) -> str | None:
    """Returns the text of a document, or None if it is skipped."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        if not is_selected(name, chunk.name, options):
            return None
        policy = options.invalid_utf8
        if policy == "refuse" or (policy == "auto" and chunk.explicit):
            line += content.count(b"\n", 0, error.start)
            raise InputError(
                f"{chunk.path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; convert it (iconv), or set "
                "invalid_utf8= to skip or replace"
            ) from None
    skipped.add(name, REPLACED if policy == "replace" else NOT_UTF8, len(content))
    return content.decode(errors="replace") if policy == "replace" else None
