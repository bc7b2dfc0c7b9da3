"""The KV cache: keys and values of the tokens read so far, in memory allocated once and owned by the caller."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from .config import ModelConfig


class KVCache:
    """Keys and values (B, K, capacity, E) of each layer, and the number of tokens each row holds.

    `length` is an int64 tensor (B,) on the device, so that shapes stay fixed and no step recompiles. Rows may differ in
    length. To prefill a ragged batch, pad it on the right and then set `length` to the true lengths: slots beyond a
    row's length are masked and overwritten later. Lowering `length` drops the newest tokens.
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
        self.capacity = capacity
        self._rows = torch.arange(batch, device=device)[:, None]  # (B, 1)
        self._all_slots = self.slots = torch.arange(capacity, device=device)  # slots (S,) are attended to

    def set_window(self, size: int) -> None:
        """Limits attention to the first `size` slots, which must include those of the next tokens."""
        if len(self.slots) != size:
            self.slots = self._all_slots[:size]

    def begin(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Returns the positions (B, T) of `count` new tokens per row, and the attention mask (B, 1, T, S).

        The mask is None where plain causal attention is equivalent, which is faster.
        """
        self._positions = self.length[:, None] + torch.arange(count, device=self.length.device)
        # Reading the length would synchronize with a GPU, and would split a compiled graph.
        if self.length.device.type == "cpu" and not torch.compiler.is_compiling():
            longest = int(self.length.max())
            self.set_window(longest + count)
            if longest == 0 or (count == 1 and len(self.length) == 1):
                return self._positions, None
        mask = self.slots <= self._positions[:, :, None]  # (B, T, S)
        return self._positions, mask[:, None]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k, v (B, K, T, E) at the positions of `begin`; returns all attended keys and values (B, K, S, E)."""
        keys, values = self.keys[layer], self.values[layer]
        if len(keys) == 1:
            keys.index_copy_(2, self._positions[0], k.to(keys.dtype))
            values.index_copy_(2, self._positions[0], v.to(values.dtype))
        else:  # indexing (B, 1) with (B, T) around a slice gives (B, T, K, E)
            keys[self._rows, :, self._positions] = k.transpose(1, 2).to(keys.dtype)
            values[self._rows, :, self._positions] = v.transpose(1, 2).to(values.dtype)
        return keys[:, :, : len(self.slots)], values[:, :, : len(self.slots)]

    def end(self, count: int) -> None:
        """Advances `length` past the tokens of `begin`, after all layers have stored them."""
        self.length += count

    def view_rows(self, count: int, *, first: int = 0) -> KVCache:
        """Returns `count` rows from row `first` on as a cache that shares this one's memory."""
        view, rows = copy.copy(self), slice(first, first + count)
        view.length, view._rows = self.length[rows], self._rows[:count]
        view.keys, view.values = [k[rows] for k in self.keys], [v[rows] for v in self.values]
        return view

    def gather_rows(self, sources: Sequence[int]) -> None:
        """Copies row sources[i] to row i, for each i."""
        rows = torch.tensor(sources, device=self.length.device)
        longest = int(self.length[: max(sources) + 1].max())
        for tensor in (*self.keys, *self.values):
            tensor[:, :, :longest] = tensor[rows, :, :longest]
        self.length.copy_(self.length[rows])

    def copy_tokens(self, source: int, target: int, *, count: int) -> None:
        """Replaces the tokens of row `target` by the first `count` tokens of row `source`."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :count] = tensor[source, :, :count]
        self.length[target] = count

    def swap_rows(self, a: int, b: int, *, longest: int) -> None:
        """Exchanges two rows of at most `longest` tokens."""
        for tensor in (*self.keys, *self.values):
            tensor[[a, b], :, :longest] = tensor[[b, a], :, :longest]
        self.length[[a, b]] = self.length[[b, a]]

    def clear_row(self, row: int) -> None:
        """Empties a row and its memory. NaN values must not stay: attention gives them weight 0, and 0 NaN is NaN."""
        for tensor in (*self.keys, *self.values):
            tensor[row].zero_()
        self.length[row] = 0
