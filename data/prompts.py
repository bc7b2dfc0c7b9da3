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

from . import InputError
from .corpora import json_object

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
    InputError. Rows that may share a batch are sorted by (most new tokens, tokens of the prompt, place in the file),
    the longest first, so that what does not fit into memory fails at once, and cut into batches of batch_size.

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
    ) -> None:
        self.path, self.plain = Path(path), Path(path).suffix == ".txt"
        self._reserved = reserved
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"prompts={path} is no file that can be read twice; write the prompts to one")
        try:
            self._file = self.path.open("rb")
        except OSError as error:
            raise InputError(f"prompts={path}: {error.strerror}; check the path") from None
        self._state = self._stat()
        self.unknown: int | None = None  # the first line that the tokenizer cannot spell
        digest = hashlib.sha256()
        self._offsets = array("q")  # where each prompt's line begins
        groups, max_new_tokens, samples, lengths = (array("q") for _ in range(4))
        known: dict[Hashable, int] = {}  # groups, numbered as they appear
        problems: list[str] = []
        offset = 0
        for line, raw in enumerate(self._file, start=1):
            digest.update(raw)
            offset, start = offset + len(raw), offset
            if raw.strip():
                try:
                    text, fields = self._parse(raw, f"{path}:{line}")
                    request = _placed(read, fields, f"{path}:{line}")
                except InputError as error:
                    problems += error.args
                    if len(problems) >= PROBLEMS:
                        break
                    continue
                self._offsets.append(start)
                groups.append(known.setdefault(request.group, len(known)))
                max_new_tokens.append(request.max_new_tokens)
                samples.append(request.num_samples)
                ids = tokenizer.encode(text)
                lengths.append(max(1, len(ids)))  # an empty prompt is the end token
                if self.unknown is None and tokenizer.decode(ids) != text:
                    self.unknown = line
        if problems:
            raise InputError(*problems)
        if not lengths:
            raise InputError(f'{path}: no prompts; write one JSON object a line: {{"prompt": "..."}}')
        self.sha256 = digest.hexdigest()
        self.n_prompts = len(lengths)
        # From prompts to rows, one a sample, in the order of the batches.
        prompt = np.repeat(np.arange(self.n_prompts), samples)
        sample = np.arange(len(prompt)) - np.repeat(np.cumsum(samples) - samples, samples)
        length = np.minimum(lengths, context)  # a longer prompt counts by its end
        group = np.asarray(groups)[prompt]
        keys = (sample, prompt, -length[prompt], -np.asarray(max_new_tokens)[prompt], group)
        self.order = np.lexsort(keys)  # (rows,): which row of (prompt, sample) comes first, second, ...; last key first
        self._prompt, self._sample = prompt[self.order], sample[self.order]
        sizes = np.bincount(group)  # rows of each group, which lie together now
        ends = np.cumsum(sizes)
        starts = [np.arange(end - size, end, batch_size) for end, size in zip(ends, sizes, strict=True)]
        self._bounds = np.concatenate([*starts, ends[-1:]])
        # A small group makes a small batch, of one of few shapes.
        shapes = [min(batch_size, 1 << int(size - 1).bit_length()) for size in sizes]
        self._shapes = np.repeat(shapes, [len(start) for start in starts])

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
        if taken := [name for name in record if name in self._reserved]:
            raise InputError(f"{place}: the result has a field {taken[0]!r} too; give this one another name")
        return text, record

    def _stat(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


def _placed(read: Callable[[dict[str, Any]], Request], fields: dict[str, Any], place: str) -> Request:
    try:
        return read(fields)
    except ValueError as error:  # model's InputError is not data's
        raise InputError(*(f"{place}: {problem}" for problem in error.args)) from None
