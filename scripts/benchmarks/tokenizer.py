"""Tokenizers: how fast vocabularies are learned and text is encoded, beside other programs with the same pattern."""

from __future__ import annotations

import importlib
import io
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from conf import cli
from data import InputError
from data.corpus.corpora import documents
from data.tokenizers import bpe
from data.tokenizers.encoder import Encoder, tiktoken_encoding
from data.tokenizers.pretokenize import PATTERNS, Pattern

from .measure import Target, print_json, take_turns

OURS, HF, RUSTBPE, SENTENCEPIECE = "nextword", "tokenizers", "rustbpe", "sentencepiece"
WANTED = {"gpt2": 1 / 0.8, "gpt4": 1.0}  # times as fast as HF's tokenizers
ENCODING = 1.2  # times as fast as tiktoken with two threads
ONE_LETTER = 0.34  # of the speed with prose, with a megabyte of one letter
TOGETHER = 32  # documents that are encoded in one call


@dataclass
class Config:
    """The keys of `python -m scripts.bench tokenizer`."""

    corpora: list[str] = field(default_factory=lambda: ["shakespeare:4096", "pystdlib:16384"])  # corpus:vocabulary
    patterns: list[str] = field(default_factory=lambda: list(PATTERNS))
    contenders: list[str] = field(default_factory=lambda: [OURS, HF, RUSTBPE, SENTENCEPIECE])
    oracle: int = 1000  # small random corpora on which the merges are compared with those of the definition
    repeats: int = 3
    workers: int = 0  # processes of ours; 0: as many as there are CPUs
    max_documents: int | None = None  # of each corpus
    datasets: str = field(default="datasets", metadata={"kind": "path"})
    debug: bool = False

    def validate(self) -> list[str]:
        found = []
        for corpus in self.corpora:
            size = corpus.rpartition(":")[2]
            if not size.isdecimal() or not 256 < int(size) <= bpe.MAX_VOCABULARY:
                found.append(f"corpora: {corpus!r} is not CORPUS:VOCABULARY, such as shakespeare:4096")
        for name, known in (("patterns", PATTERNS), ("contenders", (OURS, HF, RUSTBPE, SENTENCEPIECE))):
            unknown = set(getattr(self, name)) - set(known)
            if unknown:
                found.append(f"{name}: {', '.join(sorted(unknown))}: not one of {', '.join(known)}")
        if OURS not in self.contenders:
            found.append(f"contenders must have {OURS}")
        if not self.patterns:
            found.append(f"patterns must have one at least of {', '.join(PATTERNS)}")
        for name, least in (("oracle", 0), ("repeats", 1), ("workers", 0)):
            if getattr(self, name) < least:
                found.append(f"{name}={getattr(self, name)} must be at least {least}")
        return found


def by_definition(pieces: Counter[str], *, vocab_size: int, min_frequency: int = 1) -> list[bytes]:
    """Slow byte pair encoding: after each merge all pairs of all words are counted anew.

    pieces: of a text, each with the number of its occurrences. The trainer's tests hold it against this too.
    """
    words = [([bytes([byte]) for byte in piece.encode()], count) for piece, count in pieces.items()]
    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < vocab_size:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for parts, count in words:
            for pair in pairwise(parts):
                pairs[pair] += count
        if max(pairs.values(), default=0) < min_frequency:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], tokens.index(pair[0]), tokens.index(pair[1])))
        if left + right not in tokens:
            tokens.append(left + right)
        for parts, _ in words:
            place = 0
            while place < len(parts) - 1:
                if parts[place] == left and parts[place + 1] == right:
                    parts[place : place + 2] = [left + right]
                place += 1
    return tokens


def equal_merges(n_corpora: int, patterns: list[str]) -> int:
    """On how many small random corpora the trainer learns the tokens of the definition, in its order."""
    source = random.Random(1)
    alphabets = ["a", "ab", "ab ", "abc  \n", "aé日😀 '", "the quick s'll 12!\r\n\x1c"]
    equal = 0
    for number in range(n_corpora):
        alphabet = source.choice(alphabets)
        texts = ["".join(source.choices(alphabet, k=source.randrange(60))) for _ in range(source.randrange(4))]
        pattern, vocab_size = patterns[number % len(patterns)], 256 + source.randrange(40)
        learned = list(bpe.train(texts, vocab_size=vocab_size, pattern=pattern, workers=1))
        pieces = Counter(piece for text in texts for piece in Pattern(pattern).pretokens(text))
        equal += learned == by_definition(pieces, vocab_size=vocab_size)
    return equal


def trainers(cfg: Config, texts: list[str], vocab_size: int, pattern: str) -> dict[str, Callable[[], Any]]:
    """Each trains vocab_size tokens on the texts; those that know a pattern, with this one."""

    def with_tokenizers() -> Any:
        hf = _package("tokenizers")
        level = hf.pre_tokenizers.ByteLevel
        cut: Any = level(add_prefix_space=False)  # GPT-2's own, a program; other patterns are regular expressions
        if pattern != "gpt2":
            parts = [hf.pre_tokenizers.Split(hf.Regex(PATTERNS[pattern]), "isolated")]
            cut = hf.pre_tokenizers.Sequence([*parts, level(add_prefix_space=False, use_regex=False)])
        tokenizer = hf.Tokenizer(hf.models.BPE())
        tokenizer.pre_tokenizer = cut
        options = {"initial_alphabet": level.alphabet(), "show_progress": False}
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


def encoding(texts: list[str], ranks: dict[bytes, int], pattern: str, repeats: int) -> dict[str, float]:
    """Megabytes a second: tiktoken's batches on two threads, ours in one process; and ours on a megabyte of one letter.

    "ours" begins with an empty table, as each process does; "later" is its second half, as in the midst of a larger
    corpus.
    """
    known = Pattern(pattern)
    tiktoken = tiktoken_encoding(ranks, known)
    half, letter = texts[::2], ["a" * 1_000_000]
    expected = tiktoken.encode_ordinary_batch(texts, num_threads=2)
    assert all(map(np.array_equal, in_groups(Encoder(ranks, known), texts), expected)), "not the ids of tiktoken"
    contenders: dict[str, Callable[[], Any]] = {
        "tiktoken": lambda: tiktoken.encode_ordinary_batch(texts, num_threads=2),
        "half": lambda: in_groups(Encoder(ranks, known), half),
        "ours": lambda: in_groups(Encoder(ranks, known), half + texts[1::2]),
        "letter": lambda: Encoder(ranks, known).encode_batch(letter),
    }
    times = take_turns(contenders, repeats=repeats)
    seconds = {name: times[name].median for name in times}
    seconds["later"] = max(seconds["ours"] - seconds.pop("half"), 1e-9)
    sizes = {name: sum(len(text.encode()) for text in texts) for name in ("tiktoken", "ours")}
    sizes |= {"later": sum(len(text.encode()) for text in texts[1::2]), "letter": len(letter[0])}
    return {name: round(size / 1e6 / seconds[name], 2) for name, size in sizes.items()}


def in_groups(encoder: Encoder, texts: list[str]) -> list[np.ndarray]:
    groups = (texts[start : start + TOGETHER] for start in range(0, len(texts), TOGETHER))
    return [ids for group in groups for ids in encoder.encode_batch(group)]


def main(cfg: Config, overrides: cli.Overrides) -> None:
    targets: list[Target] = []
    results: list[dict[str, Any]] = []
    if cfg.oracle:
        equal = equal_merges(cfg.oracle, cfg.patterns)
        print(f"merges equal to those of the definition on {equal:,} of {cfg.oracle:,} random corpora")
        targets.append(Target("merges equal to those of the definition", equal / cfg.oracle, 1.0))
    for corpus in cfg.corpora:
        name, _, size = corpus.rpartition(":")
        texts = [document.text for document in documents(name, cache=cfg.datasets)][: cfg.max_documents]
        n_bytes = sum(len(text.encode()) for text in texts)
        for pattern in cfg.patterns:
            times = take_turns(trainers(cfg, texts, int(size), pattern), repeats=cfg.repeats)
            seconds = {who: round(times[who].median, 3) for who in times}
            disturbed = {who: times[who].disturbed for who in times}
            print(f"{name}, {n_bytes / 1e6:.1f} MB, {size} tokens, {pattern}: seconds to learn")
            for who, median in seconds.items():
                print(f"  {who:<14} {median:8.2f}   {disturbed[who]} of {cfg.repeats} disturbed")
            ranks = bpe.train(texts, vocab_size=int(size), pattern=pattern, workers=cfg.workers)
            speeds = encoding(texts, ranks, pattern, cfg.repeats)
            print(
                f"  MB/s to encode: tiktoken, two threads {speeds['tiktoken']:.1f}; ours, one process "
                f"{speeds['ours']:.1f} (its second half {speeds['later']:.1f}), one letter {speeds['letter']:.1f}"
            )
            where = f"{name}, {pattern}"
            if HF in seconds:
                targets.append(Target(f"{where}: learning, against HF", seconds[HF] / seconds[OURS], WANTED[pattern]))
            speed = speeds["ours"] / speeds["tiktoken"]
            targets.append(Target(f"{where}: encoding, against tiktoken", speed, ENCODING))
            speed = speeds["letter"] / speeds["ours"]
            targets.append(Target(f"{where}: one letter, against prose", speed, ONE_LETTER))
            about = {"corpus": name, "bytes": n_bytes, "vocab_size": int(size), "pattern": pattern}
            results.append(about | {"seconds": seconds, "disturbed": disturbed, "megabytes_per_second": speeds})
    print(*targets, sep="\n")
    reached = {target.name: [round(target.value, 3), target.wanted] for target in targets}
    print_json({"benchmark": "tokenizer", "results": results, "targets": reached})
