"""Batches: rows of tokens and their next tokens. Every training batch is a pure function of (seed, step).

step -> row numbers -> part of the corpus (mixture.py) -> epoch and window (order.py)
     -> pieces of the token stream (packing.py) -> inputs, targets
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import InputError
from ..preparation.shards import Part, Split
from . import mixture
from .order import epoch_order, keys
from .packing import DocumentWindows, Piece, StreamWindows, Windows

IGNORE = -100  # a target without loss
ROWS_PER_BLOCK = 512  # rows whose windows are looked up together: hardly slower than looking up one
PACKINGS: dict[str, Callable[..., Windows]] = {"stream": StreamWindows, "documents": DocumentWindows}


class Batch(NamedTuple):
    inputs: np.ndarray  # (B, T) int64
    targets: np.ndarray  # (B, T) int64: the token after each input, or IGNORE
    doc_starts: np.ndarray | None = None  # (B, T) int64, with a document mask: index in the row of the document's start


@dataclass
class BatchConfig:
    """How a prepared corpus becomes training batches."""

    # stream: windows of the token stream | documents: each document starts a window, remainders are packed together
    packing: str = "stream"
    document_mask: bool = False  # attention stays within each document
    mixture_weights: Any = None  # with corpus=[a, b]: proportions of their rows, such as [3, 1]; null: no weighting

    def validate_batches(self, corpus: Any) -> list[str]:
        """Returns the errors in the settings for this corpus, one line each."""
        found = mixture.validate(self.mixture_weights, corpus)
        if self.packing not in PACKINGS:
            found.append(f"packing={self.packing!r} is not one of {', '.join(PACKINGS)}")
        return found


class WindowBatches:
    """Training batches of a split: windows of `context` tokens, each exactly once per epoch, in random order.

    packing: how windows are made, a key of PACKINGS. document_mask: batches also have doc_starts, so that attention
    can stay within documents. mixture_weights: each part of the split gets this proportion of all rows, with its own
    epochs and order; None: the split is a single part. Raises InputError if the parts do not match, or are too short.
    """

    def __init__(
        self,
        split: Split,
        *,
        context: int,
        batch_size: int,
        seed: int,
        packing: str = "stream",
        document_mask: bool = False,
        mixture_weights: Sequence[float] | None = None,
    ) -> None:
        if mixture_weights is not None and len(mixture_weights) != len(split.parts):
            given = f"mixture_weights={list(mixture_weights)} has {len(mixture_weights)} numbers"
            raise InputError(f"{given}, but {split.directory} has {len(split.parts)} parts; give one for each")
        self.split, self.context, self.batch_size, self.document_mask = split, context, batch_size, document_mask
        self.weights = [1] if mixture_weights is None else mixture.whole_numbers(mixture_weights)
        parts = [(Part("the corpus", 0, split.n_tokens), seed)]
        if mixture_weights is not None:
            parts = [(part, int(keys(1, seed, number)[0])) for number, part in enumerate(split.parts)]
        self.parts = [PACKINGS[packing](split, part, context=context, seed=own_seed) for part, own_seed in parts]
        self.steps_per_block = max(1, ROWS_PER_BLOCK // batch_size)
        self.block_pieces = functools.lru_cache(maxsize=2)(self._block_pieces)

    def epochs(self, step: int) -> dict[str, float]:
        """Returns the epochs completed after `step` steps, by part."""
        rows = mixture.rows_per_part(step * self.batch_size, self.weights)
        return {part.name: count / len(part) for part, count in zip(self.parts, rows, strict=True)}

    def pieces(self, step: int) -> list[list[Piece]]:
        """Returns the pieces of each row in the global batch of a step."""
        block, index = divmod(step, self.steps_per_block)
        return self.block_pieces(block)[index * self.batch_size : (index + 1) * self.batch_size]

    def _block_pieces(self, block: int) -> list[list[Piece]]:
        """Returns the pieces of each row in `steps_per_block` consecutive steps."""
        count = self.steps_per_block * self.batch_size
        rows = range(block * count, (block + 1) * count)
        part_of_row, row_in_part = np.array([mixture.interleave(row, self.weights) for row in rows]).T
        found: list[list[Piece]] = [[]] * count
        for number, part in enumerate(self.parts):
            here = np.flatnonzero(part_of_row == number)
            epochs, windows = epoch_order(row_in_part[here], size=len(part), seed=part.seed)
            for row, pieces in zip(here.tolist(), part.pieces(epochs, windows), strict=True):
                found[row] = pieces
        return found

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Returns these rows of the global batch of a step, counted from 0. A rank passes its own rows."""
        chosen = self.pieces(step)[rows]
        inputs, targets = _rows_of(chosen, self.split, self.context)
        if not self.document_mask:
            return Batch(inputs, targets)
        is_start = inputs == self.split.end_id  # a document's first input is the end token before it
        for row, pieces in enumerate(chosen):
            ends = np.cumsum([0, *(length for _, length in pieces)])
            is_start[row, ends[:-1]] = True
            is_start[row, ends[-1] :] = False  # padding belongs to the last document
        return Batch(inputs, targets, np.maximum.accumulate(np.where(is_start, np.arange(self.context), 0), axis=1))

    def supervised_tokens(self, step: int) -> int:
        """Returns the number of targets with loss in the global batch."""
        return sum(length for pieces in self.pieces(step) for _, length in pieces)

    def describe(self, step: int) -> str:
        """Returns where the batch comes from, for error messages."""
        positions = [position for pieces in self.pieces(step) for position, _ in pieces]
        shown = [f"{self.split.document_at(position + 1)} (token {position})" for position in positions[:8]]
        return f"windows of {self.context} tokens from {', '.join(shown)}{', ...' if len(positions) > 8 else ''}"

    def report(self) -> list[str]:
        """Returns a line for each part: how full its windows are and what is divided. Empty for a single stream."""
        if len(self.parts) == 1 and isinstance(self.parts[0], StreamWindows):
            return []
        total = sum(self.weights)
        shares = [f", {weight / total:.1%} of the rows" if len(self.parts) > 1 else "" for weight in self.weights]
        return [part.describe() + share for part, share in zip(self.parts, shares, strict=True)]


class WindowEvaluation:
    """A whole split once: windows from the start, so each token except the first is a target once.

    stride: the distance between windows, by default `context`, which makes them adjacent. Windows that overlap score
    only the tokens that the one before did not reach, each after at least context - stride tokens of its window.
    """

    def __init__(self, split: Split, *, context: int, stride: int | None = None) -> None:
        if split.n_tokens < 2:
            raise InputError(f"{split.directory}: the {split.name} split is empty; add text")
        self.split, self.context, self.stride = split, context, stride or context
        # Of the targets' text; an end token has none. None if the tokenizer cannot give the text back.
        self.n_bytes = None if split.unknown else split.n_bytes
        self.n_targets = split.n_tokens - 1

    def __len__(self) -> int:
        return 1 + max(0, -(-(self.n_targets - self.context) // self.stride))

    def batch(self, start: int, stop: int) -> Batch:
        """Returns windows [start, stop). Past the last token, inputs are 0 and targets IGNORE."""
        positions = range(start * self.stride, stop * self.stride, self.stride)
        rows = [[(position, max(0, min(self.context, self.n_targets - position)))] for position in positions]
        inputs, targets = _rows_of(rows, self.split, self.context)
        targets[max(0, 1 - start) :, : self.context - self.stride] = IGNORE  # the window before has scored them
        return Batch(inputs, targets)


def _rows_of(rows: Sequence[Sequence[Piece]], split: Split, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the inputs and targets (len(rows), context) of the pieces of each row, padded with 0 and IGNORE."""
    inputs = np.zeros((len(rows), context), np.int64)
    targets = np.full_like(inputs, IGNORE)
    for row, pieces in enumerate(rows):
        at = 0
        for position, length in pieces:
            ids = split.tokens[position : position + length + 1]
            inputs[row, at : at + length], targets[row, at : at + length] = ids[:-1], ids[1:]
            at += length
    return inputs, targets
