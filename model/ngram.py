"""What counting already knows: n-gram log-probabilities that the network's logits start from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def recent(ids: Tensor, count: int, *, starts: Tensor | None = None) -> Tensor:
    """ids (B, T) -> of each position the last `count` tokens (B, T, count), newest first; -1 where there is none.

    starts (B, T): where in the row the document of each token begins; there is none before that.
    """
    history = F.pad(ids, (count - 1, 0), value=-1).unfold(1, count, 1).flip(-1)
    if starts is None:
        return history
    places = torch.arange(ids.shape[1], device=ids.device)[:, None] - torch.arange(count, device=ids.device)
    return history.where(places >= starts[..., None], -1)


class NGramPrior(nn.Module):
    """A table of log-probabilities, a row for each context (see data/ngrams.py); part of a checkpoint, never trained.

    Logits that have it added begin close to the n-gram model: where the network says nothing, softmax gives its
    probabilities, and what the network learns is how to improve on them.
    """

    keys: Tensor
    table: Tensor

    def __init__(self, *, length: int, contexts: int, vocab_size: int) -> None:
        super().__init__()
        self.length, self.vocab_size = length, vocab_size
        self.register_buffer("keys", torch.ones(contexts, dtype=torch.int64))
        self.register_buffer("table", torch.zeros(contexts, vocab_size, dtype=torch.float16))

    @torch.no_grad()
    def fill(self, keys: Tensor, table: Tensor) -> None:
        """Takes in what was counted; keys rise."""
        self.keys.copy_(keys)
        self.table.copy_(table)

    def rows(self, history: Tensor) -> Tensor:
        """The row of the longest context that is known; history (..., length) as `recent` gives it -> (...)."""
        key = torch.ones_like(history[..., 0])
        row = torch.zeros_like(key)
        for token in history.unbind(-1):
            key = torch.where(token < 0, 0, key * self.vocab_size + token)  # 0 is no context's number
            place = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
            row = torch.where(self.keys[place] == key, place, row)
        return row

    def forward(self, rows: Tensor) -> Tensor:
        """rows (...) -> log-probabilities (..., V), float32."""
        return self.table[rows].float()
