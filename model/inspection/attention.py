"""The attention weights of every head, as a forward pass computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .. import InputError
from ..attention import explicit_attention
from ..gpt import GPT


class AttentionWeights(TorchFunctionMode):
    """While it is active, keeps the weights (B, H, T, S) of each call of torch's fused attention, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            q, k, _ = args
            k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (B, H, S, E): those of a group are the same
            # Attention is a weighted mean of the values. If these are the unit vectors, it is the weights themselves.
            units = torch.eye(k.shape[2], dtype=q.dtype, device=q.device).expand(*k.shape[:2], -1, -1)  # (B, H, S, S)
            self.layers.append(explicit_attention(q, k, units, kwargs.get("attn_mask")))
        return func(*args, **kwargs)


@torch.no_grad()
def attention_weights(model: GPT, ids: Tensor) -> Tensor:
    """ids (B, T) -> weights (L, B, H, T, T): how much of each value (last axis) a query reads. Rows sum to 1.

    Raises InputError unless the model computes in float32, where it uses torch's fused kernel.
    """
    with AttentionWeights() as seen:
        model.hidden(ids)
    if len(seen.layers) != model.config.n_layer:
        raise InputError("attention weights can be read in float32 only; load the model with dtype=float32")
    return torch.stack(seen.layers)
