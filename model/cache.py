"""KVCache: the keys and values of the tokens seen so far. It belongs to the caller, never to the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .config import ModelConfig


class KVCache:
    """Room for `capacity` tokens in each of `batch` rows; how many are filled may differ from row to row.

    `length` is an int64 tensor (B,) on the device, so that decoding depends on data and not on Python numbers: shapes
    never change, nothing recompiles. A ragged batch is prefilled padded on the right, after which the caller sets
    `length` to the true lengths: what lies beyond a row's length is invisible and is overwritten by the row's next
    tokens. Setting `length` back takes tokens back.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        *,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (batch, config.kv_heads, capacity, config.head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.length = torch.zeros(batch, dtype=torch.int64, device=device)
        self.ids = torch.zeros(batch, capacity, dtype=torch.int64, device=device)  # kept for an n-gram prior alone
        self.capacity = capacity
        self._rows = torch.arange(batch, device=device)[:, None]  # (B, 1)
        self._slots = self.slots = torch.arange(capacity, device=device)  # slots (S,): those that are looked at

    def look(self, count: int) -> None:
        """Lets attention look at the first `count` slots only, all that hold a token or are to: S, for this step."""
        if len(self.slots) != count:
            self.slots = self._slots[:count]

    def begin(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Takes `count` new tokens a row: their positions (B, T) and the mask (B, 1, T, S) of what each may see.

        None instead of a mask: each sees all up to itself, which attention does faster.
        """
        self._positions = self.length[:, None] + torch.arange(count, device=self.length.device)
        if self.length.device.type == "cpu" and not torch.compiler.is_compiling():
            longest = int(self.length.max())  # which on a GPU would wait for it, and in a graph would cut it in two
            self.look(longest + count)
            if longest == 0 or (count == 1 and len(self.length) == 1):
                return self._positions, None
        mask = self.slots <= self._positions[:, :, None]  # (B, T, S)
        return self._positions, mask[:, None]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k, v (B, K, T, E) at the positions of `begin`; the keys and values (B, K, S, E) to look at."""
        keys, values = self.keys[layer], self.values[layer]
        if len(keys) == 1:
            keys.index_copy_(2, self._positions[0], k.to(keys.dtype))
            values.index_copy_(2, self._positions[0], v.to(values.dtype))
        else:  # (B, 1) and (B, T) index together, which makes the target (B, T, K, E)
            keys[self._rows, :, self._positions] = k.transpose(1, 2).to(keys.dtype)
            values[self._rows, :, self._positions] = v.transpose(1, 2).to(values.dtype)
        return keys[:, :, : len(self.slots)], values[:, :, : len(self.slots)]

    def recent(self, ids: Tensor, count: int) -> Tensor:
        """Stores ids (B, T) at the positions of `begin`; as model/ngram.py's `recent`, with what came before them."""
        self.ids[self._rows, self._positions] = ids
        where = self._positions[:, :, None] - torch.arange(count, device=ids.device)  # (B, T, count)
        return torch.where(where < 0, -1, self.ids[self._rows[:, :, None], where.clamp(min=0)])

    def end(self, count: int) -> None:
        """Counts the tokens of `begin` as seen."""
        self.length += count

    def first(self, count: int) -> KVCache:
        """The first `count` rows as a cache of their own, in the same memory."""
        part = object.__new__(KVCache)
        part.__dict__ |= self.__dict__ | {"length": self.length[:count], "_rows": self._rows[:count]}
        part.ids = self.ids[:count]
        part.keys, part.values = [k[:count] for k in self.keys], [v[:count] for v in self.values]
        return part

    def spread(self, sources: Sequence[int]) -> None:
        """Makes row i a copy of row sources[i], for each i."""
        rows = torch.tensor(sources, device=self.length.device)
        longest = int(self.length[: max(sources) + 1].max())
        for tensor in (*self.keys, *self.values):
            tensor[:, :, :longest] = tensor[rows, :, :longest]
        self.ids[:, :longest] = self.ids[rows, :longest]
        self.length.copy_(self.length[rows])
