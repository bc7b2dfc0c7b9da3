"""KVCache: the keys and values of the tokens seen so far. It belongs to the caller, never to the model."""

from __future__ import annotations

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
        self.capacity = capacity
        self._rows = torch.arange(batch, device=device)[:, None]  # (B, 1)
        self._slots = torch.arange(capacity, device=device)  # (S,)

    def begin(self, count: int) -> tuple[Tensor, Tensor]:
        """Takes `count` new tokens a row: their positions (B, T) and the mask (B, 1, T, S) of what each may see."""
        self._positions = self.length[:, None] + torch.arange(count, device=self.length.device)
        mask = self._slots <= self._positions[:, :, None]  # (B, T, S)
        return self._positions, mask[:, None]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k, v (B, K, T, E) at the positions of `begin`; all keys and values (B, K, S, E) of the layer."""
        keys, values = self.keys[layer], self.values[layer]
        # (B, 1) and (B, T) index together, which makes the target (B, T, K, E).
        keys[self._rows, :, self._positions] = k.transpose(1, 2).to(keys.dtype)
        values[self._rows, :, self._positions] = v.transpose(1, 2).to(values.dtype)
        return keys.to(k.dtype), values.to(v.dtype)

    def end(self, count: int) -> None:
        """Counts the tokens of `begin` as seen."""
        self.length += count
