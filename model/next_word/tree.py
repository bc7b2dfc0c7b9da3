"""A tree of continuations: logits after many token paths that share a prompt and each other's beginnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..cache import KVCache
from ..device import Compute
from ..gpt import GPT


class Predictor(Protocol):
    """Gives the logits after token paths. Node 0 is the prompt; each expansion numbers its new nodes consecutively."""

    depth: int  # the length of the longest path that fits the context

    def root(self) -> Tensor:
        """Returns the logits (V,) after the prompt."""

    def expand(self, parents: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Adds a node for each (parent node, token) and returns the logits (n, V) after the new nodes."""


class TreeCache(KVCache):
    """A cache of one row that holds a prompt, then all nodes of a tree. A node sees the prompt, its ancestors, itself.

    So a batch of nodes is one forward pass with one mask, and nothing is copied or computed twice. The mask's width
    replaces the `length` of a KVCache.
    """

    def set_mask(self, positions: Tensor, mask: Tensor) -> None:
        """Sets the positions (n,) of the next tokens and the slots (n, S) that each may see; makes room for them.

        The tokens take the last n of the S slots.
        """
        self._next = positions, mask
        if mask.shape[1] > self.capacity:
            more = max(mask.shape[1] - self.capacity, self.capacity)  # doubling keeps the total copying linear
            self.keys, self.values = (
                [torch.cat((old, old.new_zeros(*old.shape[:2], more, old.shape[3])), dim=2) for old in table]
                for table in (self.keys, self.values)
            )
            self.capacity += more

    def begin(self, count: int) -> tuple[Tensor, Tensor]:
        positions, mask = self._next
        self._used = mask.shape[1]
        return positions[None], mask[None, None]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        used, count = self._used, k.shape[2]
        keys, values = self.keys[layer][:, :, :used], self.values[layer][:, :, :used]
        keys[:, :, used - count :] = k
        values[:, :, used - count :] = v
        return keys.to(k.dtype), values.to(v.dtype)

    def end(self, count: int) -> None:
        pass  # the next mask says how many slots are in use


class TreePredictor:
    """A GPT as a Predictor."""

    def __init__(self, model: GPT, prompt: Sequence[int], *, compute: Compute) -> None:
        if not 0 < len(prompt) <= model.config.context:
            raise ValueError(f"a prompt of {len(prompt)} tokens does not fit a context of {model.config.context}")
        self.model, self.compute, self.prompt = model, compute, list(prompt)
        self.depth = model.config.context - len(prompt)
        self.cache = TreeCache(model.config, 1, capacity=len(prompt) + 256, device=compute.device, dtype=compute.dtype)
        self.paths: list[list[int]] = [[]]  # for each node the cache slots of its ancestors and its own

    @torch.no_grad()
    def root(self) -> Tensor:
        positions = torch.arange(len(self.prompt), device=self.compute.device)
        return self._forward(self.prompt, positions, positions <= positions[:, None], last=1)[0]

    @torch.no_grad()
    def expand(self, parents: Sequence[int], tokens: Sequence[int]) -> Tensor:
        size, n = len(self.prompt), len(tokens)
        first = size + len(self.paths) - 1  # the slot of the first new node
        paths = [[*self.paths[parent], first + row] for row, parent in enumerate(parents)]
        self.paths += paths
        mask = torch.zeros(n, first + n, dtype=torch.bool)
        mask[:, :size] = True
        rows = [row for row, path in enumerate(paths) for _ in path]
        mask[rows, [slot for path in paths for slot in path]] = True
        positions = torch.tensor([size + len(path) - 1 for path in paths])
        return self._forward(tokens, positions.to(self.compute.device), mask.to(self.compute.device), last=n)

    def _forward(self, tokens: Sequence[int], positions: Tensor, mask: Tensor, *, last: int) -> Tensor:
        """Reads tokens and returns the logits (last, V) after the last ones, in float32."""
        ids = torch.tensor([list(tokens)], device=self.compute.device)  # (1, n)
        self.cache.set_mask(positions, mask)
        with self.compute.autocast():
            h = self.model.hidden(ids, self.cache)[0]
            return self.model.head(h[-last:]).float()
