"""Explained sampling: each new token's rank, its probability before and after every filter, and its alternatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .sampling import SamplingConfig, filtered


@dataclass
class FilterStep:
    """The effect of one filter on the distribution that a token was drawn from."""

    name: str  # constraints | penalties | temperature | top_k | top_p | min_p | typical_p
    before: float  # the drawn token's probability
    after: float
    removed: float  # total probability of the tokens that the filter excluded


@dataclass
class TokenDetails:
    """How one token was chosen."""

    alternatives: list[tuple[int, float]] = field(default_factory=list)  # the model's most probable ids, best first
    rank: int | None = None  # among all tokens by the model's own probability; 1: the most probable
    filters: list[FilterStep] = field(default_factory=list)  # in the order in which they apply


@dataclass(frozen=True)
class Inspector:
    """What to report about each new token: the top_logprobs most probable tokens; with explain, rank and filters."""

    top_logprobs: int = 0
    explain: bool = False

    def __call__(self, logits: Mapping[str, Tensor], ids: Tensor, sampling: SamplingConfig) -> list[TokenDetails]:
        """logits: (B, V) by stage, from "model" to the last before the temperature; ids: the drawn tokens (B,)."""
        details = [TokenDetails() for _ in ids]
        if self.top_logprobs:
            best = logits["model"].softmax(dim=-1).topk(min(self.top_logprobs, logits["model"].shape[-1]))
            for row, *pairs in zip(details, best.indices.tolist(), best.values.tolist(), strict=True):
                row.alternatives = list(zip(*pairs, strict=True))
        if self.explain:
            explain(details, logits, ids[:, None], sampling)
        return details


def explain(details: list[TokenDetails], logits: Mapping[str, Tensor], ids: Tensor, sampling: SamplingConfig) -> None:
    """Fills in rank and filters for the drawn ids (B, 1)."""
    (_, before), *stages = [(name, stage.softmax(dim=-1)) for name, stage in logits.items()]
    ranks = (before > before.gather(-1, ids)).sum(dim=-1) + 1
    for row, rank in zip(details, ranks.tolist(), strict=True):
        row.rank = rank
    for name, after in [*stages, *filtered([*logits.values()][-1], sampling)]:
        removed = before.masked_fill(after > 0, 0).sum(dim=-1, keepdim=True)
        table = torch.cat((before.gather(-1, ids), after.gather(-1, ids), removed), dim=-1)  # (B, 3)
        for row, figures in zip(details, table.tolist(), strict=True):
            row.filters.append(FilterStep(name, *figures))
        before = after
