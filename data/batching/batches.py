"""Batches: rows of tokens with the token after each, every batch a pure function of (seed, step)."""

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
from .packing import DocumentWindows
from .windows import Piece, StreamWindows, Windows

IGNORE = -100  # a target from which nothing is to be learned
ROWS_AT_ONCE = 512  # looked up together: many cost little more than one
KINDS: dict[str, Callable[..., Windows]] = {"stream": StreamWindows, "documents": DocumentWindows}


class Batch(NamedTuple):
    inputs: np.ndarray  # (B, T) int64
    targets: np.ndarray  # (B, T) int64: the token after each input, or IGNORE
    starts: np.ndarray | None = None  # (B, T) int64: where in the row each token's document begins, if it matters


@dataclass
class BatchConfig:
    """How a prepared corpus becomes training batches."""

    packing: str = "stream"  # stream: windows of the running text | documents: each begins a window, rests are packed
    document_mask: bool = False  # attention does not reach from one document into another
    mixture_weights: Any = (
        None  # of corpus=[a, b]: shares of the rows of the batches, such as [3, 1]; null: as one text
    )

    def validate_batches(self, corpus: Any) -> list[str]:
        """Everything that is wrong with the settings for this corpus, one line each."""
        found = mixture.validate(self.mixture_weights, corpus)
        if self.packing not in KINDS:
            found.append(f"packing={self.packing!r} is not one of {', '.join(KINDS)}")
        return found


class WindowBatches:
    """Training batches of a split: windows of `context` tokens, each exactly once an epoch.

    mode: what a window is, a key of KINDS. document_mask: the batches say where documents begin, so that attention can stay
    within them. weights: each part of the split gets its share of all rows, with epochs and an order of its own;
    None: the split is one. Raises InputError where the parts are others, or too short.
    """

    def __init__(
        self,
        split: Split,
        *,
        context: int,
        batch_size: int,
        seed: int,
        mode: str = "stream",
        document_mask: bool = False,
        weights: Sequence[float] | None = None,
    ) -> None:
        if weights is not None and len(weights) != len(split.parts):
            raise InputError(
                f"mixture_weights={list(weights)} has {len(weights)} numbers, but {split.directory} knows {len(split.parts)} "
                "parts; if it was prepared by an older version, delete it"
            )
        self.split, self.context, self.batch_size, self.document_mask = split, context, batch_size, document_mask
        self.weights = [1] if weights is None else mixture.whole_numbers(weights)
        parts = [(Part("the corpus", 0, split.n_tokens), seed)]
        if weights is not None:
            parts = [(part, int(keys(1, seed, number)[0])) for number, part in enumerate(split.parts)]
        self.parts = [KINDS[mode](split, part, context=context, seed=own_seed) for part, own_seed in parts]
        self.steps_in_block = max(1, ROWS_AT_ONCE // batch_size)
        self.pieces_of_block = functools.lru_cache(maxsize=2)(self._pieces_of_block)

    def epochs(self, step: int) -> dict[str, float]:
        """How often each part has been seen after `step` steps, by name."""
        rows = mixture.shares(step * self.batch_size, self.weights)
        return {part.name: count / len(part) for part, count in zip(self.parts, rows, strict=True)}

    def pieces(self, step: int) -> list[list[Piece]]:
        """What each row of the global batch of a step is made of."""
        block, place = divmod(step, self.steps_in_block)
        return self.pieces_of_block(block)[place * self.batch_size : (place + 1) * self.batch_size]

    def _pieces_of_block(self, block: int) -> list[list[Piece]]:
        """What each row is made of in `steps_in_block` steps, the block's."""
        count = self.steps_in_block * self.batch_size
        rows = range(block * count, (block + 1) * count)
        numbers, places = np.array([mixture.interleave(row, self.weights) for row in rows]).T
        found: list[list[Piece]] = [[]] * count
        for number, part in enumerate(self.parts):
            here = np.flatnonzero(numbers == number)
            epochs, windows = epoch_order(places[here], size=len(part), seed=part.seed)
            for row, pieces in zip(here.tolist(), part.pieces(epochs, windows), strict=True):
                found[row] = pieces
        return found

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """The rows of the global batch of a step (counted from 0): a function of (seed, step), whatever the ranks."""
        chosen = self.pieces(step)[rows]
        inputs = np.zeros((len(chosen), self.context), np.int64)
        targets = np.full_like(inputs, IGNORE)
        begins = np.zeros(inputs.shape, bool)
        for row, pieces in enumerate(chosen):
            at = 0
            for start, length in pieces:
                ids = self.split.tokens[start : start + length + 1]
                inputs[row, at : at + length], targets[row, at : at + length] = ids[:-1], ids[1:]
                begins[row, at] = True
                at += length
        if not self.document_mask:
            return Batch(inputs, targets)
        begins |= inputs == self.split.tokens[:1]  # the END before each document
        return Batch(inputs, targets, np.maximum.accumulate(np.where(begins, np.arange(self.context), 0), axis=1))

    def supervised_tokens(self, step: int) -> int:
        """Targets that are not IGNORE in the global batch."""
        return sum(length for pieces in self.pieces(step) for _, length in pieces)

    def describe(self, step: int) -> str:
        """Where the batch comes from, for messages about it."""
        starts = [start for pieces in self.pieces(step) for start, _ in pieces]
        shown = [f"{self.split.document_at(start + 1)} (token {start})" for start in starts[:8]]
        return f"windows of {self.context} tokens from {', '.join(shown)}{', ...' if len(starts) > 8 else ''}"

    def report(self) -> list[str]:
        """What the batches are made of, a line a part: how full windows are, and what is cut. Nothing of one stream."""
        if len(self.parts) == 1 and isinstance(self.parts[0], StreamWindows):
            return []
        total = sum(self.weights)
        each = [f", {weight / total:.1%} of the rows" if len(self.parts) > 1 else "" for weight in self.weights]
        return [part.describe() + share for part, share in zip(self.parts, each, strict=True)]


class WindowEvaluation:
    """The whole split once: windows side by side from the start, so that each token but the first is a target once."""

    def __init__(self, split: Split, *, context: int) -> None:
        if split.n_tokens < 2:
            raise InputError(f"{split.directory}: the {split.name} split is empty; add text")
        self.split, self.context = split, context
        self.n_bytes = split.n_bytes  # of the targets' text; an end token has none
        self.n_targets = split.n_tokens - 1

    def __len__(self) -> int:
        return -(-self.n_targets // self.context)

    def batch(self, start: int, stop: int) -> Batch:
        """Windows start..stop; beyond the last token inputs are 0 and targets IGNORE, so any range is a full batch."""
        inputs = np.zeros((stop - start, self.context), np.int64)
        targets = np.full_like(inputs, IGNORE)
        for row, window in enumerate(range(start, min(stop, len(self)))):
            ids = self.split.tokens[window * self.context : (window + 1) * self.context + 1]
            inputs[row, : len(ids) - 1], targets[row, : len(ids) - 1] = ids[:-1], ids[1:]
        return Batch(inputs, targets)
