"""generate(): continues prompts, an iterator over new tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from . import InputError
from .decode import Decoder
from .device import Compute
from .gpt import GPT
from .sampling import SamplingConfig, checked, probabilities, sample
from .seeds import hash_seed


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
    decoder = Decoder(model, rows=len(windows), capacity=max(map(len, windows)) + max_new_tokens, compute=compute)
    logits = decoder.read(windows)
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
            logits = decoder.read(windows)
        else:
            logits = decoder.step(ids)
