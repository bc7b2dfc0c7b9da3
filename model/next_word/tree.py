"""A tree of continuations: the logits behind many token paths that share a prompt and one another's beginnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..cache import KVCache
from ..device import Compute
from ..gpt import GPT


class Predictor(Protocol):
    """Gives the logits behind paths of tokens. Node 0 is the prompt itself; each expansion adds the next numbers."""

    depth: int  # the longest path that can be asked for

    def root(self) -> Tensor:
        """The logits (V,) behind the prompt."""
        ...

    def expand(self, parents: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Adds a node for each pair of a node and a token behind it; the logits (n, V) behind the new nodes."""
        ...


class TreeCache(KVCache):
    """One row that holds a prompt and, behind it, all nodes of a tree; a node sees the prompt, its ancestors, itself.

    So a batch of nodes is one forward with one mask, and nothing is copied or computed twice. What a KVCache counts in
    `length` follows here from the mask.
    """

    def place(self, positions: Tensor, mask: Tensor) -> None:
        """Says of the tokens to come at which positions (n,) they stand and which slots (n, S) each may see.

        Their own slots are the last n of the S. Makes room for them.
        """
        self._tree = positions, mask
        if mask.shape[1] > self.capacity:
            more = max(mask.shape[1] - self.capacity, self.capacity)  # so that all copying together is linear
            self.keys, self.values = (
                [torch.cat((old, old.new_zeros(*old.shape[:2], more, old.shape[3])), dim=2) for old in table]
                for table in (self.keys, self.values)
            )
            self.capacity += more

    def begin(self, count: int) -> tuple[Tensor, Tensor]:
        positions, mask = self._tree
        self._used = mask.shape[1]
        return positions[None], mask[None, None]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        used, count = self._used, k.shape[2]
        keys, values = self.keys[layer][:, :, :used], self.values[layer][:, :, :used]
        keys[:, :, used - count :] = k
        values[:, :, used - count :] = v
        return keys.to(k.dtype), values.to(v.dtype)

    def end(self, count: int) -> None:
        pass  # how much is used follows from the mask


class TreePredictor:
    """The Predictor that a GPT is."""

    def __init__(self, model: GPT, prompt: Sequence[int], *, compute: Compute) -> None:
        if not 0 < len(prompt) <= model.config.context:
            raise ValueError(f"a prompt of {len(prompt)} tokens, with a context of {model.config.context}")
        self.model, self.compute, self.prompt = model, compute, list(prompt)
        self.depth = model.config.context - len(prompt)
        self.cache = TreeCache(model.config, 1, capacity=len(prompt) + 256, device=compute.device, dtype=compute.dtype)
        self.paths: list[list[int]] = [[]]  # of each node: the slots of its ancestors and its own

    @torch.no_grad()
    def root(self) -> Tensor:
        size = len(self.prompt)
        where = torch.arange(size, device=self.compute.device)
        return self._forward(self.prompt, where, where <= where[:, None], last=1)[0]

    @torch.no_grad()
    def expand(self, parents: Sequence[int], tokens: Sequence[int]) -> Tensor:
        size, n, first = len(self.prompt), len(tokens), len(self.prompt) + len(self.paths) - 1
        paths = [[*self.paths[parent], first + row] for row, parent in enumerate(parents)]
        self.paths += paths
        mask = torch.zeros(n, first + n, dtype=torch.bool)
        mask[:, :size] = True
        rows = [row for row, path in enumerate(paths) for _ in path]
        mask[rows, [slot for path in paths for slot in path]] = True
        positions = torch.tensor([size + len(path) - 1 for path in paths])
        return self._forward(tokens, positions.to(self.compute.device), mask.to(self.compute.device), last=n)

    def _forward(self, tokens: Sequence[int], positions: Tensor, mask: Tensor, *, last: int) -> Tensor:
        """Reads tokens; the logits behind the last ones, in float32."""
        ids = torch.tensor([list(tokens)], device=self.compute.device)
        self.cache.place(positions, mask)
        with self.compute.autocast():
            h = self.model.hidden(ids, self.cache)[0]
            return self.model.head(h[-last:]).float()
