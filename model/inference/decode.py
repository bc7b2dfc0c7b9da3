"""Decoder: a model with its KV cache. Prefill reads the prompts, then each step appends one token per row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..device import Compute
from ..gpt import GPT
from .compiled import WINDOW_STEP, compiled_step, decode_step, make_cache


class Decoder:
    """Feeds tokens to a model, and returns the logits of the next token in float32.

    The cache is allocated once: a row holds at most `capacity` tokens, and never more than the model's context.
    Lowering cache.length (B,) drops the newest ones. With compute.compile, the first decoder of each shape compiles a
    step.
    """

    def __init__(self, model: GPT, *, rows: int, capacity: int, compute: Compute) -> None:
        self.model, self.compute = model, compute
        self.capacity = min(capacity, model.config.context)
        # With several rows on a CPU, oneDNN's matrix products are faster than fused loops.
        self.compiled = compute.compile and (rows == 1 or compute.device.type == "cuda")
        # A power of two, so that few shapes are ever compiled.
        slots = max(2 * WINDOW_STEP, 1 << (self.capacity - 1).bit_length()) if self.compiled else self.capacity
        self.cache = make_cache(model, rows, slots, compute)
        self._step = compiled_step(model, rows, slots, compute) if self.compiled else decode_step

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Empties the cache and reads a prompt into each row; returns the logits (B, V) after each prompt.

        Equal prompts, and a prefix that all prompts share, are computed once.
        """
        unique = list(dict.fromkeys(map(tuple, prompts)))
        shared = shared_prefix_length(unique) if len(unique) > 1 else 0
        cache = self.cache.view_rows(len(unique))
        cache.length.zero_()
        with self.compute.autocast():
            if shared:
                self.model.hidden(self._padded([unique[0][:shared]]), cache.view_rows(1))
                cache.gather_rows([0] * len(unique))
            h = self.model.hidden(self._padded([prompt[shared:] for prompt in unique]), cache)  # (U, T, D)
            lengths = torch.tensor([len(prompt) for prompt in unique], device=self.compute.device)
            cache.length.copy_(lengths)  # drops the padding; the next tokens overwrite it
            logits = self.model.head(h[torch.arange(len(unique), device=lengths.device), lengths - shared - 1]).float()
        sources = [unique.index(tuple(prompt)) for prompt in prompts]
        if len(unique) < len(prompts):
            self.cache.gather_rows(sources)
            logits = logits[sources]
        return logits

    @torch.no_grad()
    def step(self, ids: Tensor) -> Tensor:
        """Appends one token per row: ids (B,) -> logits (B, V). In a full row it replaces the newest token."""
        self.cache.length.clamp_(max=self.capacity - 1)
        on_cpu = self.compute.device.type == "cpu"
        if self.compiled and on_cpu:  # a single row
            self.cache.set_window((int(self.cache.length) // WINDOW_STEP + 1) * WINDOW_STEP)
        logits = self._step(self.model, self.cache, ids[:, None].contiguous(), self.compute)[:, 0]
        return logits if on_cpu or not self.compiled else logits.clone()  # a CUDA graph reuses this memory

    @torch.no_grad()
    def extend(self, ids: Tensor) -> Tensor:
        """Appends several tokens per row: ids (B, T) -> the logits after each, (B, T, V)."""
        return decode_step(self.model, self.cache, ids, self.compute)

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keeps only these rows, renumbered in this order. Not for a compiled decoder, whose shapes are fixed."""
        others = [0] * (len(self.cache.length) - len(rows))
        self.cache.gather_rows([*rows, *others])
        self.cache = self.cache.view_rows(len(rows))

    def _padded(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        longest = max(map(len, prompts))
        rows = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
        return torch.tensor(rows, device=self.compute.device)


def shared_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """The number of tokens that all prompts start with. Excludes each prompt's last token, whose logits are needed."""
    shortest = min(map(len, prompts)) - 1
    return next((n for n in range(shortest) if len({prompt[n] for prompt in prompts}) > 1), shortest)
