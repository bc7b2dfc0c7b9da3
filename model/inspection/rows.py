"""What attention and lens found, as plain lists and dictionaries for JSON: the program and the server write these."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..gpt import GPT
from .attention import attention_weights
from .lens import logit_lens

TextOf = Callable[[int], str]  # a token's text; what stands for bytes that are no text is up to whoever shows it


def token_rows(ids: Iterable[int], text_of: TextOf) -> list[dict[str, Any]]:
    return [{"id": token, "text": text_of(token)} for token in ids]


def attention_rows(model: GPT, ids: list[int]) -> list[Any]:
    """The weights as [layer][head][query][key], to five digits after the point."""
    weights = attention_weights(model, torch.tensor([ids], device=model.embed.weight.device))[:, 0]  # (L, H, T, T)
    return weights.cpu().double().round(decimals=5).tolist()


def lens_rows(model: GPT, ids: list[int], *, top: int, text_of: TextOf) -> dict[str, Any]:
    """The `top` next tokens as [layer][position], and the names of the layers, the embedding first."""
    lens = logit_lens(model, torch.tensor(ids, device=model.embed.weight.device), top=top)
    layers: list[list[dict[str, Any]]] = []
    for divergences, ids_of_layer, ps_of_layer in zip(lens.divergence, lens.ids, lens.probabilities, strict=True):
        cells: list[dict[str, Any]] = []
        for divergence, best, ps in zip(divergences.tolist(), ids_of_layer.tolist(), ps_of_layer.tolist(), strict=True):
            rows = [token | {"probability": p} for token, p in zip(token_rows(best, text_of), ps, strict=True)]
            cells.append({"divergence": divergence, "tokens": rows})
        layers.append(cells)
    return {"names": ["embedding", *(f"block {n}" for n in range(len(layers) - 1))], "layers": layers}
