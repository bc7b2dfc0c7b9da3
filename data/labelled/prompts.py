"""A file of prompts, be it millions, cut into batches; of each prompt no more than some numbers stay in memory."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import InputError
from ..corpus.jsonl import json_object

PROBLEMS = 5  # so many wrong lines are told at once


class Tokenizer(Protocol):
    """What is needed of one."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


class Request(Protocol):
    """What a prompt's own fields ask for, as far as it decides which prompts may share a batch."""

    @property
    def group(self) -> Hashable:
        """Equal for those that may."""

    @property
    def max_new_tokens(self) -> int: ...

    @property
    def num_samples(self) -> int: ...


@dataclass(frozen=True)
class Prompt:
    """One row of a batch."""

    index: int  # among the prompts of the file, from 0; blank lines do not count
    sample: int  # among the samples of this prompt, from 0
    text: str
    fields: dict[str, Any]  # what its line holds beside the text


class PromptFile:
    """The prompts of a file and the batches that they make: a pure function of the file, `read` and batch_size.

    A line is a JSON object, {"prompt": "...", ...}; in a .txt file it is the prompt itself. Blank lines do not count.
    read(fields) turns a line's other fields, which are not to be named as in `reserved`, into a Request or raises an
    InputError. refuse_beyond: a prompt that cannot be continued to its end within the context is wrong.

    Rows that may share a batch are sorted by (most new tokens, tokens of the prompt, place in the file), the longest
    first, so that what does not fit into memory fails at once, and cut into batches of batch_size.

    The file is read once here. Raises InputError for what is wrong with it, or with up to PROBLEMS of its lines.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        read: Callable[[dict[str, Any]], Request],
        tokenizer: Tokenizer,
        context: int,
        batch_size: int,
        reserved: Collection[str] = (),
        refuse_beyond: bool = False,
    ) -> None:
        self.path, self.plain = Path(path), Path(path).suffix == ".txt"
        self.read, self.tokenizer, self.reserved = read, tokenizer, reserved
        self.longest = context if refuse_beyond else None
        self.unknown: int | None = None  # the first line that the tokenizer cannot spell
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"prompts={path} is no file that can be read twice; write the prompts to one")
        try:
            self._file = self.path.open("rb")
        except OSError as error:
            raise InputError(f"prompts={path}: {error.strerror}; check the path") from None
        self._state = self._stat()
        groups, limits, lengths, samples = self._survey()
        # From prompts to rows, one a sample, in the order of the file; then in the order of the batches.
        prompt = np.repeat(np.arange(len(samples)), samples)
        sample = np.arange(len(prompt)) - np.repeat(np.cumsum(samples) - samples, samples)
        group, limit, length = groups[prompt], limits[prompt], np.minimum(lengths, context)[prompt]
        self.order = np.lexsort((sample, prompt, -length, -limit, group))  # the last key counts most
        self._prompt, self._sample = prompt[self.order], sample[self.order]
        sizes = np.bincount(group)  # rows of each group
        ends = np.cumsum(sizes)
        starts = [np.arange(end - size, end, batch_size) for end, size in zip(ends, sizes, strict=True)]
        self._bounds = np.concatenate([*starts, ends[-1:]])
        # Full batches have one shape. A group that does not fill one makes a smaller batch, of one of few shapes.
        shapes = [min(batch_size, 1 << int(size - 1).bit_length()) for size in sizes]
        self._shapes = np.repeat(shapes, [len(start) for start in starts])

    def _survey(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Reads all of the file: of each prompt its group's number, its new tokens, its own tokens, its samples."""
        digest = hashlib.sha256()
        known: dict[Hashable, int] = {}  # groups, numbered as they appear
        problems: list[str] = []
        offsets, numbers, end = array("q"), array("q"), 0
        for line, raw in enumerate(self._file, start=1):
            digest.update(raw)
            end += len(raw)
            if not raw.strip():
                continue
            try:
                request, length = self._examine(raw, line)
            except InputError as error:
                problems += error.args
                if len(problems) >= PROBLEMS:
                    break
                continue
            offsets.append(end - len(raw))
            numbers.extend((known.setdefault(request.group, len(known)), request.max_new_tokens, length))
            numbers.append(request.num_samples)
        if problems:
            raise InputError(*problems)
        if not offsets:
            raise InputError(f'{self.path}: no prompts; write one JSON object a line: {{"prompt": "..."}}')
        self._offsets, self.sha256 = offsets, digest.hexdigest()
        groups, limits, lengths, samples = np.array(numbers).reshape(-1, 4).T
        return groups, limits, lengths, samples

    def _examine(self, raw: bytes, line: int) -> tuple[Request, int]:
        """What a line asks for, and the tokens of its prompt."""
        place = f"{self.path}:{line}"
        text, fields = self._parse(raw, place)
        try:
            request = self.read(fields)
        except ValueError as error:  # an InputError of model's is not one of data's
            raise InputError(*(f"{place}: {problem}" for problem in error.args)) from None
        ids = self.tokenizer.encode(text)
        length = max(1, len(ids))  # an empty prompt is the end token
        if self.longest is not None and length + request.max_new_tokens > self.longest:
            raise InputError(
                f"{place}: {length} tokens and max_new_tokens={request.max_new_tokens} exceed the context of "
                f"{self.longest}; shorten one, or choose on_overflow=slide"
            )
        if self.unknown is None and self.tokenizer.decode(ids) != text:
            self.unknown = line
        return request, length

    def _parse(self, raw: bytes, place: str) -> tuple[str, dict[str, Any]]:
        """A line's prompt and its other fields."""
        try:
            line = raw.decode("utf-8").removeprefix("\ufeff")  # as some editors begin a file
        except UnicodeDecodeError as error:
            raise InputError(f"{place}: not UTF-8 at byte {error.start} of the line; convert it (iconv)") from None
        if self.plain:
            return line.removesuffix("\n").removesuffix("\r"), {}
        record = json_object(line, place)
        if "prompt" not in record:
            raise InputError(f"{place}: no field 'prompt' (fields: {', '.join(record) or 'none'}); add it")
        text = record.pop("prompt")
        if not isinstance(text, str):
            raise InputError(f"{place}: 'prompt' is {text!r}, not a string; put it in quotes")
        if taken := [name for name in record if name in self.reserved]:
            raise InputError(f"{place}: the result has a field {taken[0]!r} too; give this one another name")
        return text, record

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._shapes)

    @property
    def sizes(self) -> np.ndarray:
        """The rows of each batch (batches,)."""
        return np.diff(self._bounds)

    def shape(self, number: int) -> int:
        """The rows to which a batch is to be padded, so that few shapes occur."""
        return int(self._shapes[number])

    def batch(self, number: int) -> list[Prompt]:
        """The rows of a batch, read from the file again."""
        rows = slice(self._bounds[number], self._bounds[number + 1])
        if self._stat() != self._state:
            raise InputError(f"{self.path} was changed while it was being read; start again, with other outputs")
        found = []
        for index, sample in zip(self._prompt[rows].tolist(), self._sample[rows].tolist(), strict=True):
            self._file.seek(self._offsets[index])
            text, fields = self._parse(self._file.readline(), f"{self.path}")
            found.append(Prompt(index, sample, text, fields))
        return found

    def _stat(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns
