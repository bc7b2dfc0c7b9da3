"""From logits to probabilities to a sample: temperature, the filters, the draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import InputError


@dataclass(frozen=True)
class SamplingConfig:
    """How to choose the next token. The filters apply in the order temperature, top_k, top_p."""

    temperature: float = 1.0  # 0: always the most probable token
    top_k: int | None = None  # keep the k most probable tokens
    top_p: float | None = None  # keep the fewest tokens whose probabilities reach p (Holtzman et al. 2020)

    def problems(self) -> list[str]:
        found = []
        if not self.temperature >= 0:
            found.append(f"temperature={self.temperature} must be 0 (greedy) or above")
        if self.top_k is not None and self.top_k < 1:
            found.append(f"top_k={self.top_k} must be at least 1 (null: no limit)")
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            found.append(f"top_p={self.top_p} must be between 0 and 1 (null: no limit)")
        return found


def checked(sampling: SamplingConfig | None) -> SamplingConfig:
    """The settings, or the defaults. Raises InputError for what is wrong with them."""
    sampling = sampling or SamplingConfig()
    if problems := sampling.problems():
        raise InputError(*problems)
    return sampling


def probabilities(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """logits (..., V) -> the probabilities (..., V) that sampling draws from, in float32; they sum to 1.

    top_k keeps exactly k tokens, ties broken towards the smaller id; top_p keeps at least one.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
    # Subtracting the maximum first keeps tiny temperatures finite.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / sampling.temperature
    result = torch.softmax(scaled, dim=-1)
    if sampling.top_k is None and sampling.top_p is None:
        return result
    ordered, ids = result.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        ordered[..., sampling.top_k :] = 0
        ordered /= ordered.sum(dim=-1, keepdim=True)
    if sampling.top_p is not None:
        before = ordered.cumsum(dim=-1) - ordered  # the mass that more probable tokens already hold
        before[..., 0] = -1  # the most probable token always stays, even with top_p=0
        ordered[before >= sampling.top_p] = 0
        ordered /= ordered.sum(dim=-1, keepdim=True)
    return torch.zeros_like(result).scatter_(-1, ids, ordered)


def sample(probs: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draws one id from each row of probs (B, V), row i with its own generator; returns (B,).

    Where every E_i is exponential noise, the argmax of p_i / E_i is i with probability p_i: a race that each token
    wins as often as it should. A row with its own generator does not depend on its neighbours.
    """
    noise = torch.stack([torch.empty(probs.shape[-1]).exponential_(generator=g) for g in generators])
    return (probs / noise.to(probs.device).clamp_min(1e-30)).argmax(dim=-1)  # noise may be exactly 0
