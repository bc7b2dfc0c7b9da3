"""Bulk sampling: tokens per second in batches, against one prompt at a time with the same model and dtype."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from conf import cli
from model.config import ModelConfig
from model.device import DTYPES, Compute, keep_freed_memory
from model.gpt import GPT
from model.inference.sampling import SamplingConfig
from model.language_model import LanguageModel
from sample import load

from .measure import describe_rates, print_json, take_turns

SINGLE = "one at a time"


@dataclass
class Config:
    """The keys of `python -m scripts.bench bulk`."""

    # null: random weights, 6 layers, 384 wide, 10.7M parameters
    checkpoint: str | None = field(default=None, metadata={"kind": "path"})
    dtype: str = "float32"
    batch_sizes: list[int] = field(default_factory=lambda: [16, 64, 128])
    prompt_tokens: int = 20
    max_new_tokens: int = 100
    singles: int = 3  # prompts that are continued one at a time in each repeat
    temperature: float = 1.0
    top_p: float | None = None
    repeats: int = 5
    threads: int = 0  # 0: as many as there are CPUs
    debug: bool = False

    def validate(self) -> list[str]:
        found = [] if self.dtype in DTYPES else [f"dtype={self.dtype!r} is not one of {', '.join(DTYPES)}"]
        for name in ("prompt_tokens", "max_new_tokens", "singles", "repeats"):
            if getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)} must be at least 1")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            found.append(f"batch_sizes={self.batch_sizes} must be numbers of at least 1")
        return found


class NumberTokenizer:
    """A tokenizer for random weights: writes each id as a number."""

    start_id: int | None = None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.special_tokens = vocab_size, {"<|endoftext|>": vocab_size}
        self.end_id = vocab_size  # an id that the model cannot sample, so no text ends early

    def encode(self, text: str, *, continued: bool = False) -> list[int]:
        return [int(number) for number in text.split()]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(f" {number}" for number in ids)

    def token_bytes(self, token: int) -> bytes:
        return f" {token}".encode()

    def unknown(self, text: str) -> Counter[str]:
        return Counter()


def random_model(dtype: str) -> LanguageModel:
    """The default architecture at the size of nanoGPT's character model; the weights do not matter for speed."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=128, n_layer=6, n_head=6, d_model=384, context=256)).eval()
    return LanguageModel(model, NumberTokenizer(128), Compute.resolve("cpu", dtype=dtype), Path())


def contender(lm: LanguageModel, prompts: list[list[int]], cfg: Config, rows: int) -> Callable[[], int]:
    """Returns a function that continues all prompts in batches of `rows`, and returns the number of new tokens."""

    sampling = SamplingConfig(temperature=cfg.temperature, top_p=cfg.top_p)

    def run() -> int:
        new_tokens = 0
        for start in range(0, len(prompts), rows):
            batch = prompts[start : start + rows]
            indices = range(start, start + len(batch))
            results = lm.generate(batch, max_new_tokens=cfg.max_new_tokens, sampling=sampling, indices=indices)
            new_tokens += sum(len(result.tokens) for result in results)
        return new_tokens

    return run


def main(cfg: Config, overrides: cli.Overrides) -> None:
    keep_freed_memory()
    torch.set_num_threads(cfg.threads or os.cpu_count() or 1)
    lm = random_model(cfg.dtype) if cfg.checkpoint is None else load(cfg.checkpoint, device="cpu", dtype=cfg.dtype)
    generator = torch.Generator().manual_seed(1)
    shape = (max(*cfg.batch_sizes, cfg.singles), cfg.prompt_tokens)
    prompts = torch.randint(1, lm.model.config.vocab_size, shape, generator=generator).tolist()
    contenders = {SINGLE: contender(lm, prompts[: cfg.singles], cfg, 1)}
    contenders |= {f"batch of {size}": contender(lm, prompts[:size], cfg, size) for size in cfg.batch_sizes}
    tokens = {name: run() for name, run in contenders.items()}  # also warms up; all repeats make the same tokens
    times = take_turns(contenders, repeats=cfg.repeats)
    rows: dict[str, Any] = {name: times[name].rates(tokens[name]) for name in contenders}
    parameters = sum(weight.numel() for weight in lm.model.parameters())
    print(f"{parameters / 1e6:.1f}M parameters, {cfg.dtype}, {torch.get_num_threads()} threads; new tokens/s:")
    ratios = {}
    for name, row in rows.items():
        ratios[name] = round(row["per_second"] / rows[SINGLE]["per_second"], 2)
        print(f"{describe_rates(name, row)}  {ratios[name]:.2f}x")
    print_json({"benchmark": "bulk", "parameters": parameters, "dtype": cfg.dtype, "speeds": rows, "ratios": ratios})
