"""Decoder: a model and its cache, fed token by token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .cache import KVCache
from .device import Compute
from .gpt import GPT


class Decoder:
    """Reads texts, then continues each of its rows; gives the logits of the next token.

    Room is made once: a row may hold `capacity` tokens, at most the model's context. `length` (B,) counts those that a
    row holds; the caller may set it back, which takes tokens back.
    """

    def __init__(self, model: GPT, *, rows: int, capacity: int, compute: Compute) -> None:
        self.model, self.compute = model, compute
        self.capacity = min(capacity, model.config.context)
        self.cache = KVCache(model.config, rows, capacity=self.capacity, device=compute.device, dtype=compute.dtype)

    @property
    def length(self) -> Tensor:
        return self.cache.length

    @torch.no_grad()
    def read(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Forgets all, reads a text into each row; the logits (B, V) after each text."""
        device = self.compute.device
        lengths = torch.tensor([len(text) for text in texts], device=device)
        longest = max(len(text) for text in texts)
        ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)  # padded
        self.cache.length.zero_()
        with self.compute.autocast():
            h = self.model.hidden(ids, self.cache)
            self.cache.length.copy_(lengths)  # forget the padding; the next tokens overwrite it
            return self.model.head(h[torch.arange(len(texts), device=device), lengths - 1])

    @torch.no_grad()
    def step(self, ids: Tensor) -> Tensor:
        """One more token in each row: ids (B,) -> logits (B, V). A row that is full loses its last token first."""
        self.cache.length.clamp_(max=self.capacity - 1)
        return self.extend(ids[:, None])[:, 0]

    @torch.no_grad()
    def extend(self, ids: Tensor) -> Tensor:
        """Several more tokens in each row: ids (B, T) -> the logits after each, (B, T, V)."""
        with self.compute.autocast():  # entered anew each time: what runs between two calls is the caller's
            return self.model(ids, self.cache)
