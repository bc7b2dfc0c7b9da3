"""Slots: the rows of one KV cache, lent to requests; what an ended row has read serves later prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...device import Compute
from ...gpt import GPT
from ..compiled import decode_step, make_cache

MIN_COPIED = 8  # a shared beginning of fewer tokens is read again


class Slots:
    """A KV cache of `count` rows, each of at most `capacity` tokens. The first `n_active` rows are decoded.

    The others are free, except one whose prompt may be in the course of being read. A free row keeps its tokens until
    it is needed, the longest unused first, so that a prompt with the same beginning need not read that again.
    """

    def __init__(self, model: GPT, compute: Compute, *, count: int, capacity: int) -> None:
        self.model = model
        self.compute = replace(compute, compile=False)  # compiled steps have a fixed number of rows
        self.cache = make_cache(model, count, capacity, self.compute)
        self.count, self.n_active = count, 0
        self.ids: list[list[int]] = [[] for _ in range(count)]  # the tokens that each row holds
        self.last_used = [0] * count
        self._time = 0

    def open(self, prompt: Sequence[int], *, reuse: bool = True) -> tuple[int, int]:
        """Chooses a free row for a prompt; returns its place, and the number of tokens that it holds already.

        Those are the longest beginning that the prompt shares with any row, active or free: a copy, or the row itself
        if the prompt continues most of it. At least the prompt's last token remains to be read.
        """
        shared = [common_prefix(ids, prompt) if reuse else 0 for ids in self.ids]
        source = max(range(self.count), key=shared.__getitem__)
        copied = min(shared[source], len(prompt) - 1)
        target = min(range(self.n_active, self.count), key=self.last_used.__getitem__)
        if copied < MIN_COPIED:
            copied = 0
        elif source >= self.n_active and 2 * copied >= len(self.ids[source]):
            target = source
        self.ids[target] = []  # in case that the copy fails
        self.cache.copy_tokens(source, target, count=copied)
        self.ids[target] = list(prompt[:copied])
        return target, copied

    def read(self, place: int, ids: Sequence[int]) -> Tensor:
        """Appends tokens to a row; returns the last layer's output (T, D) for them."""
        tokens = torch.tensor([ids], device=self.compute.device)
        with self.compute.autocast():
            h = self.model.hidden(tokens, self.cache.view_rows(1, first=place))
        self.ids[place] += ids
        return h[0]

    def logits(self, h: Tensor) -> Tensor:
        """h (T, D) -> logits (T, V) in float32."""
        with self.compute.autocast():
            return self.model.head(h).float()

    def activate(self, place: int) -> None:
        """Makes a row, whose prompt has been read, the last active one."""
        self._swap(place, self.n_active)
        self.n_active += 1

    def step(self, ids: Sequence[int]) -> Tensor:
        """Appends one token to each active row; returns the logits (A, V) in float32. Other rows cost nothing."""
        assert len(ids) == self.n_active
        tokens = torch.tensor(ids, device=self.compute.device)[:, None]
        logits = decode_step(self.model, self.cache.view_rows(self.n_active), tokens, self.compute)[:, 0]
        for row, token in zip(self.ids, ids, strict=False):
            row.append(token)
        return logits

    def release(self, place: int) -> None:
        """Frees an active row. The last active row takes its place."""
        self.n_active -= 1
        self._swap(place, self.n_active)
        self._time += 1
        self.last_used[self.n_active] = self._time

    def clear(self, place: int) -> None:
        """Forgets the tokens of a row."""
        self.cache.clear_row(place)
        self.ids[place] = []

    def _swap(self, a: int, b: int) -> None:
        if a != b:
            self.cache.swap_rows(a, b, longest=max(len(self.ids[a]), len(self.ids[b])))
            self.ids[a], self.ids[b] = self.ids[b], self.ids[a]
            self.last_used[a], self.last_used[b] = self.last_used[b], self.last_used[a]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of tokens with which both begin."""
    shortest = min(len(a), len(b))
    return next((n for n in range(shortest) if a[n] != b[n]), shortest)
