"""Bulk sampling: tokens per second in batches against one prompt at a time, same model, number format and prompts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from model.bulk import Request, continue_batch
from model.config import ModelConfig
from model.device import Compute
from model.gpt import GPT
from model.language_model import LanguageModel
from model.sampling import SamplingConfig


class Numbers:
    """Stands in for a tokenizer where the weights are random and the text means nothing."""

    end_id = 0

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.special_tokens = vocab_size, {"<|endoftext|>": 0}

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(map(str, ids))

    def token_bytes(self, token: int) -> bytes:
        return f" {token}".encode()


def random_model(
    *, n_layer: int = 6, d_model: int = 384, context: int = 256, vocab_size: int = 4096, dtype: str = "float32"
) -> LanguageModel:
    """A model of nanoGPT's small size with random weights: its speed is that of a trained one."""
    torch.manual_seed(0)
    config = ModelConfig(
        n_layer=n_layer,
        n_head=max(1, d_model // 64),
        d_model=d_model,
        context=context,
        vocab_size=vocab_size,
        tied=True,
    )
    return LanguageModel(GPT(config).eval(), Numbers(vocab_size), Compute.resolve("cpu", dtype=dtype), Path())


def bulk(
    lm: LanguageModel,
    *,
    batch_sizes: Sequence[int] = (64,),
    max_new_tokens: int = 100,
    prompt_tokens: int = 20,
    singles: int = 2,
    repeats: int = 5,
) -> dict[str, Any]:
    """Takes turns: `singles` prompts one by one, then one batch of each size; `repeats` times.

    Returns the medians of the tokens per second and of their ratio, with the smallest and the largest.
    """
    request = Request(SamplingConfig(), max_new_tokens=max_new_tokens)
    prompts = torch.randint(1, lm.tokenizer.vocab_size, (max(batch_sizes), prompt_tokens)).tolist()

    def speed(start: int, count: int) -> float:
        """Tokens per second of `count` prompts in one batch."""
        began = time.perf_counter()
        rows = range(start, start + count)
        made = continue_batch(lm, prompts[start : start + count], [request] * count, indices=rows, rows=count)
        return sum(len(one.tokens) for one in made) / (time.perf_counter() - began)

    single: list[float] = []
    batched: dict[int, list[float]] = {size: [] for size in batch_sizes}
    for repeat in range(-1, repeats):  # the first round warms up
        one_by_one = statistics.mean(speed(number, 1) for number in range(singles))
        together = {size: speed(0, size) for size in batch_sizes}
        if repeat >= 0:
            single.append(one_by_one)
            for size in batch_sizes:
                batched[size].append(together[size])
    result: dict[str, Any] = {
        "parameters": sum(weight.numel() for weight in lm.model.parameters()),
        "single_tokens_per_second": spread(single),
    }
    for size, speeds in batched.items():
        result[f"batch_{size}_tokens_per_second"] = spread(speeds)
        result[f"batch_{size}_ratio"] = spread([fast / slow for fast, slow in zip(speeds, single, strict=True)])
    return result


def spread(figures: Sequence[float]) -> list[float]:
    """[smallest, median, largest]"""
    return [round(figure, 2) for figure in (min(figures), statistics.median(figures), max(figures))]
