"""Explained sampling: each new token's rank, its probability before and after every filter, and its alternatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .sampling import SamplingConfig, filtered


@dataclass
class FilterStep:
    """The effect of one filter on the distribution that a token was drawn from."""

    name: str  # constraints | penalties | temperature | top_k | top_p | min_p | typical_p
    before: float  # the drawn token's probability
    after: float
    removed: float  # total probability of the tokens that the filter excluded


def most_probable(probs: Tensor, count: int) -> list[list[tuple[int, float]]]:
    """probs (B, V) -> for each row, the `count` most probable ids and their probabilities, best first."""
    best = probs.topk(min(count, probs.shape[-1]))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [list(zip(ids, probs, strict=True)) for ids, probs in pairs]


def explained(
    logits: Mapping[str, Tensor], ids: Tensor, sampling: SamplingConfig
) -> tuple[list[int], list[list[FilterStep]]]:
    """For each row, the drawn token's rank by the model's own probability (1: the most probable), and every filter.

    logits: (B, V) by stage, from "model" to the last before the temperature. ids: the drawn tokens (B,).
    """
    ids = ids[:, None]
    (_, before), *stages = [(name, stage.softmax(dim=-1)) for name, stage in logits.items()]
    ranks = (before > before.gather(-1, ids)).sum(dim=-1) + 1
    filters: list[list[FilterStep]] = [[] for _ in ids]
    for name, after in [*stages, *filtered([*logits.values()][-1], sampling)]:
        removed = before.masked_fill(after > 0, 0).sum(dim=-1)
        columns = (before.gather(-1, ids)[:, 0], after.gather(-1, ids)[:, 0], removed)
        for row, *figures in zip(filters, *(column.tolist() for column in columns), strict=True):
            row.append(FilterStep(name, *figures))
        before = after
    return ranks.tolist(), filters
