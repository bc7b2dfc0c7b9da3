"""The logit lens: which next token the residual stream would predict after each block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..gpt import GPT


@dataclass(frozen=True)
class Lens:
    """The predictions after the embedding (layer 0) and after each block (layers 1 to L), at each position."""

    ids: Tensor  # (L + 1, T, k) most probable next tokens, best first
    probabilities: Tensor  # (L + 1, T, k)
    divergence: Tensor  # (L + 1, T) nats: Kullback-Leibler divergence of the model's prediction from the layer's


@torch.no_grad()
def residual_stream(model: GPT, ids: Tensor) -> list[Tensor]:
    """ids (B, T) -> the residual stream (B, T, D) after the embedding and after each block: L + 1 tensors."""
    found: list[Tensor] = []
    handles = [model.blocks[0].register_forward_pre_hook(lambda _, args: found.append(args[0]))]
    handles += [block.register_forward_hook(lambda _, __, result: found.append(result)) for block in model.blocks]
    try:
        model.hidden(ids)
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def log_probabilities_by_layer(model: GPT, ids: Tensor) -> Iterator[Tensor]:
    """ids (B, T) -> log-probabilities (B, T, V) of the next token by layer, the last one first.

    Every residual goes through the final norm and the head, which only the last one was trained for (nostalgebraist
    2020, "interpreting GPT: the logit lens"). The last one gives the model's own prediction.
    """
    for x in reversed(residual_stream(model, ids)):
        yield model.head(model.norm(x)).float().log_softmax(-1)


@torch.no_grad()
def logit_lens(model: GPT, ids: Tensor, *, top: int = 5) -> Lens:
    """ids (T,) -> the `top` most probable next tokens of every layer and position."""
    layers, divergences = [], []
    last: Tensor | None = None
    for log_p in log_probabilities_by_layer(model, ids[None]):
        last = log_p[0] if last is None else last  # (T, V)
        divergences.append((last.exp() * (last - log_p[0])).sum(-1))
        layers.append(log_p[0].topk(min(top, log_p.shape[-1])))
    return Lens(
        torch.stack([layer.indices for layer in reversed(layers)]),
        torch.stack([layer.values.exp() for layer in reversed(layers)]),
        torch.stack(divergences[::-1]).clamp(min=0),
    )
