"""From logits to text: logits -> probabilities -> sample, and generate() as an iterator over new tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import InputError
from .cache import KVCache
from .device import Compute
from .gpt import GPT
from .seeds import hash_seed


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


@torch.no_grad()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    end_id: int | None = None,
    compute: Compute | None = None,
) -> Iterator[tuple[list[int | None], list[float]]]:
    """Continues each prompt; yields, per new token, the ids and their log-probabilities, a list entry a row.

    Row i draws from a generator seeded by (seed, i) alone. A row that produced end_id is finished: its further ids are
    None (0.0 for the log-probability), and the iteration ends when every row is. Log-probabilities are those of the
    distribution that was sampled. When a row reaches the model's context, the oldest half of its window is dropped and
    the rest read again, so a text may be longer than the context. compute says in which number format the model runs
    and its cache is kept; None: float32.
    """
    if not prompts or not all(prompts):
        raise InputError("an empty prompt has no last token to continue; start with the tokenizer's end_id")
    sampling = checked(sampling)
    compute = compute or Compute(model.embed.weight.device, torch.float32, compile=False)
    context = model.config.context
    generators = [torch.Generator().manual_seed(hash_seed(seed, row)) for row in range(len(prompts))]
    windows = [list(prompt)[-context:] for prompt in prompts]
    alive = [True] * len(windows)
    cache, logits = prefill(model, windows, max_new_tokens, compute)
    for n_made in range(max_new_tokens):
        probs = probabilities(logits, sampling)
        ids = sample(probs, generators)
        log_probs = probs.gather(-1, ids[:, None]).log().squeeze(-1).tolist()
        new_ids: list[int | None] = [token if alive[row] else None for row, token in enumerate(ids.tolist())]
        yield new_ids, [log_probs[row] if alive[row] else 0.0 for row in range(len(new_ids))]
        for row, token in enumerate(new_ids):
            if token is not None:
                windows[row].append(token)
                alive[row] = token != end_id
        if not any(alive) or n_made + 1 == max_new_tokens:
            return
        if (
            max(len(window) for window in windows) > context
        ):  # a window is full: keep its newer half and read that again
            windows = [window if len(window) <= context else window[-(context // 2 + 1) :] for window in windows]
            cache, logits = prefill(model, windows, max_new_tokens - n_made - 1, compute)
        else:
            cache.length.clamp_(max=cache.capacity - 1)  # finished rows are fed too, and must not outgrow the cache
            with compute.autocast():  # entered anew each time: what runs between two yields is the caller's
                logits = model(ids[:, None], cache)[:, -1]  # (B, V)


def prefill(model: GPT, texts: Sequence[Sequence[int]], room: int, compute: Compute) -> tuple[KVCache, Tensor]:
    """Reads all texts in one forward; a cache with room for more tokens, and the logits (B, V) after each text."""
    device = compute.device
    lengths = torch.tensor([len(text) for text in texts], device=device)
    longest = max(len(text) for text in texts)
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)  # padded on the right
    capacity = min(model.config.context, longest + room)
    cache = KVCache(model.config, len(texts), capacity=capacity, device=device, dtype=compute.dtype)
    with compute.autocast():
        h = model.hidden(ids, cache)
        cache.length.copy_(lengths)  # forget the padding; the next tokens overwrite it
        return cache, model.head(h[torch.arange(len(texts), device=device), lengths - 1])
