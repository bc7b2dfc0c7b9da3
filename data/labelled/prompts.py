"""A file of prompts, possibly millions, cut into batches. A few numbers per prompt stay in memory."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from .. import InputError
from ..corpus.compressed import SUFFIXES, without_suffix
from ..corpus.jsonl import check_first_line, json_object
from .fields import check_fields
from .formats import TABLES, records

FORMATS = "prompts can be JSON Lines (.jsonl), CSV (.csv), TSV (.tsv) or lines of text (.txt)"
MAX_ERRORS = 5  # wrong lines that are reported together


class Tokenizer(Protocol):
    def encode(self, text: str) -> list[int]: ...
    def unknown(self, text: str) -> Counter[str]: ...


class Request(Protocol):
    """The settings of one prompt, as far as batching needs them."""

    @property
    def group(self) -> Hashable:
        """Equal for prompts that may share a batch."""

    @property
    def max_new_tokens(self) -> int: ...

    @property
    def num_samples(self) -> int: ...


@dataclass(frozen=True)
class Prompt:
    """One row of a batch."""

    index: int  # of the prompt in the file, from 0; blank lines do not count
    sample: int  # of this prompt, from 0
    text: str
    fields: dict[str, Any]  # the other fields of its line


class PromptFile:
    """The prompts of a file and their batches: a pure function of the file, `read` and batch_size.

    A line is a JSON object, {"prompt": "...", ...}; in a .txt file it is the prompt itself. Blank lines do not count.
    A .csv or .tsv file has a column "prompt". text_fields: the names that the field with the prompt may have.
    read(fields) turns a line's other fields into a Request, or raises ValueError. reserved: names that these fields
    may not have. refuse_overflow: refuse prompts that do not fit the context together with their new tokens, of which
    the last is not read.

    A row is one sample of one prompt. Rows that may share a batch are sorted by (new tokens, prompt tokens), the
    longest first, so that running out of memory shows at once; then they are cut into batches of batch_size.

    The file is read once here. Raises InputError for the file, or for up to MAX_ERRORS of its lines.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        read: Callable[[dict[str, Any]], Request],
        tokenizer: Tokenizer,
        context: int,
        batch_size: int,
        text_fields: Sequence[str] = ("prompt",),
        reserved: Collection[str] = (),
        refuse_overflow: bool = False,
    ) -> None:
        self.path, self.plain = Path(path), Path(path).suffix.lower() == ".txt"
        self.read, self.tokenizer, self.text_fields, self.reserved = read, tokenizer, text_fields, reserved
        self.max_length = context if refuse_overflow else None
        self.unknown = Counter[str]()  # characters of the prompts that the tokenizer does not know
        self.unknown_line: int | None = None  # the first line that has some
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"prompts={path} is not a regular file; write the prompts to one")
        try:
            is_table = Path(without_suffix(self.path.name)).suffix in TABLES
            self._file: BinaryIO = as_json_lines(self.path) if is_table else self.path.open("rb")
            if self._file.read(4).startswith(tuple(SUFFIXES.values())):
                raise InputError(f"prompts={path} is compressed; decompress it")
            self._file.seek(0)
        except OSError as error:
            raise InputError(f"prompts={path}: {error.strerror}; check the path") from None
        self._state = self._stat()
        groups, limits, lengths, samples = self._survey()
        # Rows in the order of the file (one per sample), then in the order of the batches.
        prompt = np.repeat(np.arange(len(samples)), samples)
        sample = np.arange(len(prompt)) - np.repeat(np.cumsum(samples) - samples, samples)
        group, limit, length = groups[prompt], limits[prompt], np.minimum(lengths, context)[prompt]
        self.order = np.lexsort((sample, prompt, -length, -limit, group))  # sorts by the last key first
        self._prompt, self._sample = prompt[self.order], sample[self.order]
        sizes = np.bincount(group)  # rows per group
        ends = np.cumsum(sizes)
        starts = [np.arange(end - size, end, batch_size) for end, size in zip(ends, sizes, strict=True)]
        self._bounds = np.concatenate([*starts, ends[-1:]])
        # Full batches have one shape. A group smaller than a batch is padded to a power of two, so shapes are few.
        shapes = [min(batch_size, 1 << int(size - 1).bit_length()) for size in sizes]
        self._shapes = np.repeat(shapes, [len(start) for start in starts])

    def _survey(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Reads the file. Returns arrays (prompts,): group number, new tokens, prompt tokens, samples."""
        digest = hashlib.sha256()
        known: dict[Hashable, int] = {}  # groups, numbered as they appear
        errors: list[str] = []
        offsets, numbers, end = array("q"), array("q"), 0
        for line, raw in enumerate(self._file, start=1):
            digest.update(raw)
            end += len(raw)
            if not raw.strip():
                continue
            if not offsets and not errors and not self.plain:
                check_first_line(raw, self.path, formats=FORMATS)
            try:
                request, length = self._examine(raw, line)
            except InputError as error:
                errors += error.args
                if len(errors) >= MAX_ERRORS:
                    break
                continue
            offsets.append(end - len(raw))
            numbers.extend((known.setdefault(request.group, len(known)), request.max_new_tokens, length))
            numbers.append(request.num_samples)
        if errors:
            raise InputError(*errors)
        if not offsets:
            raise InputError(f'{self.path}: no prompts; write one JSON object per line: {{"prompt": "..."}}')
        self._offsets, self.sha256 = offsets, digest.hexdigest()
        groups, limits, lengths, samples = np.array(numbers).reshape(-1, 4).T
        return groups, limits, lengths, samples

    def _examine(self, raw: bytes, line: int) -> tuple[Request, int]:
        """Returns the request of a line, and the number of tokens in its prompt."""
        place = f"{self.path}:{line}"
        text, fields = self._parse(raw, place)
        try:
            request = self.read(fields)
        except ValueError as error:  # InputError of model/, which is another class than data's
            raise InputError(*(f"{place}: {message}" for message in error.args)) from None
        length = max(1, len(self.tokenizer.encode(text)))  # an empty prompt is the end token
        if self.max_length is not None and length + request.max_new_tokens - 1 > self.max_length:
            raise InputError(
                f"{place}: {length} tokens and max_new_tokens={request.max_new_tokens} exceed the context of "
                f"{self.max_length}; shorten one, or choose on_overflow=slide"
            )
        if unknown := self.tokenizer.unknown(text):
            self.unknown.update(unknown)
            self.unknown_line = self.unknown_line or line
        return request, length

    def _parse(self, raw: bytes, place: str) -> tuple[str, dict[str, Any]]:
        """Returns a line's prompt and its other fields."""
        try:
            line = raw.decode("utf-8").removeprefix("\ufeff")  # byte order mark
        except UnicodeDecodeError as error:
            raise InputError(f"{place}: not UTF-8 at byte {error.start} of the line; convert it (iconv)") from None
        if self.plain and "\0" in line:
            raise InputError(f"{place}: holds NUL characters, as UTF-16 does; convert it (iconv)")
        if self.plain:
            return line.removesuffix("\n").removesuffix("\r"), {}
        record = json_object(line, place)
        name = next((name for name in self.text_fields if record.get(name) is not None), self.text_fields[0])
        check_fields(record, place, required=(name,), strings=(name,))
        text = record.pop(name)
        if taken := [name for name, value in record.items() if name in self.reserved and value is not None]:
            raise InputError(f"{place}: field {taken[0]!r} has the name of a result field; give it another name")
        return text, record

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._shapes)

    @property
    def sizes(self) -> np.ndarray:
        """Number of rows in each batch, (batches,)."""
        return np.diff(self._bounds)

    def shape(self, number: int) -> int:
        """Returns the number of rows to pad a batch to, so that few shapes occur."""
        return int(self._shapes[number])

    def batch(self, number: int) -> list[Prompt]:
        """Returns the rows of a batch, read from the file again."""
        rows = slice(self._bounds[number], self._bounds[number + 1])
        if self._stat() != self._state:
            raise InputError(
                f"{self.path} changed while it was being read; run the command again with another outputs file"
            )
        found = []
        for index, sample in zip(self._prompt[rows].tolist(), self._sample[rows].tolist(), strict=True):
            self._file.seek(self._offsets[index])
            text, fields = self._parse(self._file.readline(), f"{self.path}")
            found.append(Prompt(index, sample, text, fields))
        return found

    def _stat(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


def as_json_lines(path: Path) -> BinaryIO:
    """Returns a temporary file with the rows of a table as JSON Lines, each on the line where the table has it."""
    file, line = tempfile.TemporaryFile(), 1
    for place, row in records(path):
        number = int(place.rpartition(":")[2])
        file.write(b"\n" * (number - line) + json.dumps(row).encode())
        line = number
    file.seek(0)
    return file
