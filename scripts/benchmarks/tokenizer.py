"""Tokenizers: how fast BPE vocabularies are trained and text is encoded, against other libraries."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conf import cli
from data import InputError
from data.corpus.corpora import documents
from data.tokenizers import bpe
from data.tokenizers.encoder import Encoder, tiktoken_encoding
from data.tokenizers.pretokenize import PATTERNS, Pattern

from .measure import describe_rates, print_json, take_turns

OURS, HF, RUSTBPE, SENTENCEPIECE = "ours", "tokenizers", "rustbpe", "sentencepiece"
BATCH = 32  # documents per call of the encoder


@dataclass
class Config:
    """The keys of `python -m scripts.bench tokenizer`."""

    corpora: list[str] = field(default_factory=lambda: ["shakespeare:4096", "pystdlib:16384"])  # corpus:vocabulary
    patterns: list[str] = field(default_factory=lambda: list(PATTERNS))
    contenders: list[str] = field(default_factory=lambda: [OURS, HF, RUSTBPE, SENTENCEPIECE])
    repeats: int = 3
    workers: int = 0  # training processes of ours; 0: as many as there are CPUs
    datasets: str = field(default="datasets", metadata={"kind": "path"})
    debug: bool = False

    def validate(self) -> list[str]:
        found = []
        for corpus in self.corpora:
            size = corpus.rpartition(":")[2]
            if not size.isdecimal() or not 256 < int(size) <= bpe.MAX_VOCABULARY:
                found.append(f"corpora: {corpus!r} is not CORPUS:VOCABULARY, such as shakespeare:4096")
        for name, known in (("patterns", PATTERNS), ("contenders", (OURS, HF, RUSTBPE, SENTENCEPIECE))):
            if unknown := set(getattr(self, name)) - set(known):
                found.append(f"{name}: {', '.join(sorted(unknown))}: not one of {', '.join(known)}")
        for name, minimum in (("repeats", 1), ("workers", 0)):
            if getattr(self, name) < minimum:
                found.append(f"{name}={getattr(self, name)} must be at least {minimum}")
        return found


def trainers(cfg: Config, texts: list[str], vocab_size: int, pattern: str) -> dict[str, Callable[[], Any]]:
    """Functions that train a vocabulary on the texts. All but sentencepiece use the pattern."""

    def with_tokenizers() -> Any:
        hf = _package("tokenizers")
        byte_level = hf.pre_tokenizers.ByteLevel
        split: Any = byte_level(add_prefix_space=False)  # GPT-2's pattern is built in
        if pattern != "gpt2":
            parts = [hf.pre_tokenizers.Split(hf.Regex(PATTERNS[pattern]), "isolated")]
            split = hf.pre_tokenizers.Sequence([*parts, byte_level(add_prefix_space=False, use_regex=False)])
        tokenizer = hf.Tokenizer(hf.models.BPE())
        tokenizer.pre_tokenizer = split
        options = {"initial_alphabet": byte_level.alphabet(), "show_progress": False}
        tokenizer.train_from_iterator(texts, hf.trainers.BpeTrainer(vocab_size=vocab_size, **options))

    def with_rustbpe() -> Any:
        tokenizer = _package("rustbpe").Tokenizer()
        tokenizer.train_from_iterator(iter(texts), vocab_size, pattern=PATTERNS[pattern])

    def with_sentencepiece() -> Any:
        _package("sentencepiece").SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts for line in text.split("\n") if line),
            model_writer=io.BytesIO(),
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            byte_fallback=True,
            num_threads=os.cpu_count() or 1,
            minloglevel=2,
        )

    found: dict[str, Callable[[], Any]] = {
        OURS: lambda: bpe.train(texts, vocab_size=vocab_size, pattern=pattern, workers=cfg.workers),
        HF: with_tokenizers,
        RUSTBPE: with_rustbpe,
        SENTENCEPIECE: with_sentencepiece,
    }
    return {name: found[name] for name in cfg.contenders}


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f'{name} is not installed; pip install -e ".[bench]", or leave it out of contenders='
        ) from None


def encode(encoder: Encoder, texts: list[str]) -> list[np.ndarray]:
    batches = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
    return [ids for batch in batches for ids in encoder.encode_batch(batch)]


def encoders(texts: list[str], ranks: dict[bytes, int], pattern: str) -> dict[str, Callable[[], Any]]:
    """Functions that encode the texts: ours in one process with an empty cache, tiktoken on two threads."""
    cutter = Pattern(pattern)
    tiktoken = tiktoken_encoding(ranks, cutter)
    expected = tiktoken.encode_ordinary_batch(texts, num_threads=2)
    assert all(map(np.array_equal, encode(Encoder(ranks, cutter), texts), expected)), "not the ids of tiktoken"
    return {
        OURS: lambda: encode(Encoder(ranks, cutter), texts),
        "tiktoken": lambda: tiktoken.encode_ordinary_batch(texts, num_threads=2),
    }


def main(cfg: Config, overrides: cli.Overrides) -> None:
    results: list[dict[str, Any]] = []
    for corpus in cfg.corpora:
        name, _, size = corpus.rpartition(":")
        texts = [document.text for document in documents(name, cache=cfg.datasets)]
        n_bytes = sum(len(text.encode()) for text in texts)
        for pattern in cfg.patterns:
            result: dict[str, Any] = {"corpus": name, "bytes": n_bytes, "vocab_size": int(size), "pattern": pattern}
            print(f"{name} ({n_bytes / 1e6:.1f} MB), {size} tokens, pattern {pattern}")
            ranks = bpe.train(texts, vocab_size=int(size), pattern=pattern, workers=cfg.workers)
            for action, contenders in (
                ("training", trainers(cfg, texts, int(size), pattern)),
                ("encoding", encoders(texts, ranks, pattern)),
            ):
                times = take_turns(contenders, repeats=cfg.repeats)
                result[action] = rows = {
                    who: {"seconds": round(taken.median, 3)} | taken.rates(n_bytes / 1e6)
                    for who, taken in times.items()
                }
                for who, row in rows.items():
                    print(f"  {action}, MB/s  {describe_rates(who, row)}  {row['seconds']:.2f} s")
            results.append(result)
    print_json({"benchmark": "tokenizer", "results": results})
