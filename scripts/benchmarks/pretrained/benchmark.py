"""A pretrained model: decoding against transformers and llama.cpp with the same weights, and seconds to next words."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from conf import cli
from model.device import DTYPES
from model.inference.decode import Decoder
from model.language_model import LanguageModel
from sample import load

from ..measure import describe_rates, print_json, take_turns
from .peers import Run, llama_cpp_peers, transformers_peers

PROMPTS = (
    "Listen to your", "The capital of France is", "Once upon a time", "The sun rises in the", "She opened the",
    "Water boils at a", "My favourite food is", "The president of the United", "He was born in", "In order to",
    "Please pass me the", "Photosynthesis is the process by", "The cat sat on the", "I have never", "To be or not to",
    "The largest planet is", "for i in range(10):\n    print", "Dear Sir or", "Two plus two equals", "Thank you very",
)  # fmt: skip
CONTENDERS = ("float32", "bfloat16", "bfloat16 compiled", "int8", "int8 compiled")
RATIOS = (("bfloat16 compiled", "transformers bfloat16"), ("int8 compiled", "llama.cpp Q8_0"))


@dataclass
class Config:
    """The keys of `python -m scripts.bench pretrained`."""

    checkpoint: str = field(default="out/smollm2", metadata={"kind": "path"})
    gguf: str | None = field(default=None, metadata={"kind": "path"})  # a file for llama.cpp to decode as well
    contenders: list[str] = field(default_factory=lambda: list(CONTENDERS))
    peers: bool = True  # compare with transformers and llama.cpp, where they are installed
    prompt: str = "Listen to your heart, and"
    tokens: int = 100  # new ones, chosen greedily
    repeats: int = 5
    n_prompts: int = len(PROMPTS)  # for next words; 0: none
    next_word_dtypes: list[str] = field(default_factory=lambda: ["float32", "bfloat16", "int8"])
    top: int = 10
    max_expansions: int = 4096  # tokens to read for one prompt before its order counts as not proven
    threads: int = 0  # 0: torch's default
    debug: bool = False

    def validate(self) -> list[str]:
        dtypes = [*DTYPES, "int8"]
        found = [f"{name}={getattr(self, name)} must be at least 1" for name in ("tokens", "repeats", "top")
                 if getattr(self, name) < 1]  # fmt: skip
        if unknown := [name for name in self.contenders if name not in CONTENDERS]:
            found.append(f"contenders={unknown} are not among {', '.join(CONTENDERS)}")
        if unknown := [name for name in self.next_word_dtypes if name not in dtypes]:
            found.append(f"next_word_dtypes={unknown} are not among {', '.join(dtypes)}")
        if not 0 <= self.n_prompts <= len(PROMPTS):
            found.append(f"n_prompts={self.n_prompts} must be in 0..{len(PROMPTS)}")
        return found


def ours(cfg: Config, name: str) -> tuple[Run, int]:
    """This project's decoder in one of CONTENDERS, and the bytes of its weights and cache."""
    dtype, _, compiled = name.partition(" ")
    lm = load(cfg.checkpoint, device="cpu", dtype=dtype, compile=bool(compiled))
    ids = lm.encode(cfg.prompt)
    start = time.perf_counter()
    decoder = Decoder(lm.model, rows=1, capacity=len(ids) + cfg.tokens, compute=lm.compute)
    if compiled:
        print(f"{name}: compiled in {time.perf_counter() - start:.0f} s, which are not counted")

    def run() -> list[int]:
        logits, new = decoder.prefill([ids]), []
        for _ in range(cfg.tokens - 1):
            new.append(logits.argmax(-1))
            logits = decoder.step(new[-1])
        return torch.stack([*new, logits.argmax(-1)]).flatten().tolist()

    stored = [*lm.model.state_dict().values(), *decoder.cache.keys, *decoder.cache.values]
    return run, sum(tensor.nbytes for tensor in stored)


def agreement(text: list[int], other: list[int]) -> str:
    """ "equal", or the first token at which two greedy texts differ."""
    place = next((n for n, (a, b) in enumerate(zip(text, other, strict=True)) if a != b), None)
    return "equal" if place is None else f"differs from token {place}"


def time_next_words(cfg: Config, lm: LanguageModel) -> dict[str, Any]:
    """Seconds per prompt until the order of the top words is proven."""
    seconds, read, unproven = [], [], 0
    lm.next_words(PROMPTS[0], top=1)  # builds the vocabulary's tables, once per process
    for prompt in PROMPTS[: cfg.n_prompts]:
        ask = partial(lm.next_words, prompt, top=cfg.top, tolerance=0.0, max_expansions=cfg.max_expansions)
        times = take_turns({"": ask}, repeats=1)[""]
        seconds.append(times.median)
        read.append(times.results[0].evaluated)
        unproven += times.results[0].stopped != "certified"
    return {
        "median": round(statistics.median(seconds), 3), "highest": round(max(seconds), 3),
        "median_tokens_read": statistics.median(read), "prompts": len(seconds), "not_proven": unproven,
    }  # fmt: skip


def decoding(cfg: Config) -> dict[str, Any]:
    """Compares the texts, then the speeds."""
    contenders: dict[str, Run] = {}
    stored: dict[str, int] = {}
    for name in cfg.contenders:
        contenders[name], stored[name] = ours(cfg, name)
    if cfg.peers:
        ids = load(cfg.checkpoint, device="cpu").encode(cfg.prompt)
        theirs = transformers_peers(cfg.checkpoint, ids, cfg.tokens)
        for name, run, size in (*theirs, *llama_cpp_peers(cfg.checkpoint, ids, cfg.tokens, gguf=cfg.gguf)):
            contenders[name], stored[name] = run, size
    texts = {name: run() for name, run in contenders.items()}
    first = next(iter(texts))
    texts_found = {name: agreement(texts[first], text) for name, text in texts.items()}
    times = take_turns(contenders, repeats=cfg.repeats)
    rows: dict[str, Any] = {name: taken.rates(cfg.tokens) for name, taken in times.items()}
    print(f"tokens/s, {cfg.tokens} new tokens, {cfg.repeats} repeats, {torch.get_num_threads()} threads:")
    for name, row in rows.items():
        print(f"{describe_rates(name, row)}  {stored[name] / 1e6:.0f} MB  text {texts_found[name]}")
    ratios = {
        f"{a} / {b}": round(rows[a]["per_second"] / rows[b]["per_second"], 2)
        for a, b in RATIOS if a in rows and b in rows
    }  # fmt: skip
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}x")
    return {"tokens_per_second": rows, "bytes": stored, "texts": texts_found, "ratios": ratios}


@torch.no_grad()
def main(cfg: Config, overrides: cli.Overrides) -> None:
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    result = decoding(cfg) if cfg.contenders else {}
    words = {}
    for dtype in cfg.next_word_dtypes if cfg.n_prompts else []:
        words[dtype] = row = time_next_words(cfg, load(cfg.checkpoint, device="cpu", dtype=dtype))
        print(
            f"next words, {dtype}: median {row['median']} s a prompt, highest {row['highest']} s, "
            f"{row['not_proven']} of {row['prompts']} not proven after {cfg.max_expansions:,} tokens"
        )
    print_json({"benchmark": "pretrained", "tokens": cfg.tokens, "threads": torch.get_num_threads()} | result
               | {"next_words": words})  # fmt: skip
