"""Next words: seconds per prompt until the order of the most probable words is certified, on a GPU also on the CPU."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from conf import cli
from data import InputError
from data.corpus.corpora import documents, matches
from data.corpus.plays import HELD_OUT
from sample import LanguageModel, load

from .measure import print_json, take_turns


@dataclass
class Config:
    """The keys of `python -m scripts.bench next_word`."""

    checkpoint: str = field(default="out/quickstart/best", metadata={"kind": "path"})
    # the corpus that prompts are taken from
    corpus: Any = field(default="shakespeare", metadata={"kind": "path", "list": True})
    # names of its documents to use; null: all, of shakespeare the plays that the quickstart holds out
    val_include: Any = field(default=None, metadata={"kind": "pattern", "list": True})
    n_prompts: int = 50
    top: list[int] = field(default_factory=lambda: [10, 100])  # how many words must be in a certain order
    repeats: int = 3
    datasets: str = field(default="datasets", metadata={"kind": "path"})
    device: str = "auto"
    dtype: str = "float32"
    seed: int = 1
    debug: bool = False

    def validate(self) -> list[str]:
        names = ("n_prompts", "repeats")
        found = [f"{name}={getattr(self, name)} must be at least 1" for name in names if getattr(self, name) < 1]
        if not self.top or min(self.top) < 1:
            found.append(f"top={self.top} must be numbers of at least 1")
        return found


def draw_prompts(cfg: Config) -> list[str]:
    """Draws passages of 5 to 40 words, each ending in a whole word."""
    patterns = cfg.val_include or (HELD_OUT if cfg.corpus == "shakespeare" else None)
    found = documents(cfg.corpus, cache=cfg.datasets)
    texts = [d.text for d in found if not patterns or matches(d.name, patterns, default=True)]
    if not texts:
        raise InputError(f"val_include={cfg.val_include}: no document of corpus={cfg.corpus} has such a name")
    generator = random.Random(cfg.seed)
    prompts: list[str] = []
    while len(prompts) < cfg.n_prompts:
        text = generator.choice(texts)
        words = text[generator.randrange(max(1, len(text) - 400)) :][:400].split(" ")[1:-1]
        prompt = " ".join(words[: generator.randint(5, 40)])
        if prompt and prompt[-1].isalnum():
            prompts.append(prompt)
    return prompts


def time_search(lm: LanguageModel, prompts: list[str], repeats: int, **options: Any) -> dict[str, float]:
    """Quantiles over prompts of the seconds per prompt (median of the repeats), and the share that was certified."""
    seconds, certified = [], 0
    for prompt in prompts:
        times = take_turns({"": partial(lm.next_words, prompt, tolerance=0.0, **options)}, repeats=repeats)
        seconds.append(times[""].median)
        certified += times[""].results[0].stopped == "certified"
    seconds.sort()
    return {
        "median": statistics.median(seconds),
        "p95": seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))],
        "highest": seconds[-1],
        "certified": certified / len(prompts),
    }


def time_searches(lm: LanguageModel, prompts: list[str], cfg: Config) -> dict[str, dict[str, float]]:
    """time_search for each number of most probable words."""
    lm.next_words(prompts[0])  # builds the vocabulary's tables, once per process
    return {
        f"top {top}": time_search(lm, prompts, cfg.repeats, top=top, max_expansions=1 << (10 if top <= 10 else 16))
        for top in cfg.top
    }


def main(cfg: Config, overrides: cli.Overrides) -> None:
    lm = load(cfg.checkpoint, device=cfg.device, dtype=cfg.dtype)
    prompts, device = draw_prompts(cfg), lm.compute.device.type
    seconds = {device: time_searches(lm, prompts, cfg)}
    if device != "cpu":
        seconds["cpu"] = time_searches(load(cfg.checkpoint, device="cpu", dtype=cfg.dtype), prompts, cfg)
    print(f"{len(prompts)} prompts; seconds per prompt until the order is certified:")
    for where, rows in seconds.items():
        for name, row in rows.items():
            print(
                f"{where:<4} {name:<8} median {row['median']:.3f}, 95th percentile {row['p95']:.3f}, "
                f"highest {row['highest']:.3f}; {row['certified']:.0%} certified"
            )
    result: dict[str, Any] = {"benchmark": "next_word", "prompts": len(prompts), "device": device}
    result["seconds"] = seconds[device]
    if device != "cpu":
        result["cpu_seconds"] = seconds["cpu"]
        result["ratios"] = speed_ratios(seconds[device], seconds["cpu"])
        for name, ratio in result["ratios"].items():
            print(f"{name}: {ratio:.2f} times as fast as the CPU, {torch.get_num_threads()} threads")
    print_json(result)


def speed_ratios(ours: dict[str, dict[str, float]], others: dict[str, dict[str, float]]) -> dict[str, float]:
    """How many times as fast, by the medians; above 1: faster than the others."""
    return {name: round(others[name]["median"] / row["median"], 2) for name, row in ours.items()}
