"""Scores checkpoints: bits/byte on a corpus, or exact match on labelled examples."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from conf import cli
from data.batching.batches import WindowEvaluation
from data.curation.curate import CurateConfig
from data.evaluation.accuracy import group_interval, wilson_interval
from data.labelled.examples import Example, note_unknown
from data.labelled.formats import read_examples
from data.preparation.config import PrepareConfig
from data.preparation.prepare import prepare
from data.preparation.shards import open_split
from data.tokenizers.build import TokenizerConfig
from data.tokenizers.unknown import unknown_in
from model import InputError
from model.inference.sampling import NOT_FINITE, SamplingConfig
from model.training.evaluate import evaluate
from sample import LanguageModel, load

PATH = {"kind": "path"}
PATTERNS = {"kind": "pattern", "list": True}
TEXT = {"kind": "text"}
READS = {"needs": ("corpus",)}


@dataclass
class EvaluateConfig:
    """The keys of `python -m scripts.evaluate`."""

    checkpoint: str | None = field(default=None, metadata=PATH)
    versus: str | None = field(default=None, metadata=PATH)  # another checkpoint to compare with
    # a corpus: reports loss and bits/byte
    corpus: Any = field(default=None, metadata={"kind": "path", "list": True})
    include: Any = field(default=None, metadata=PATTERNS | READS)
    exclude: Any = field(default=None, metadata=PATTERNS | READS)
    text_field: str = field(default="text", metadata=TEXT | READS)
    # these three: as in scripts.prepare
    document_separator: str | None = field(default=None, metadata=TEXT | READS)
    invalid_utf8: str = field(default="auto", metadata=READS)
    max_bad_lines: int = field(default=0, metadata=READS)
    examples: str | None = field(default=None, metadata=PATH)  # labelled examples: reports the exact match
    datasets: str = field(default="datasets", metadata=PATH | READS)
    batch_size: int = 32
    device: str = "auto"
    dtype: str = "float32"
    seed: int = field(default=1, metadata={"needs": ("examples",)})  # of the confidence intervals
    json: str | None = field(default=None, metadata={"kind": "output"})
    debug: bool = False

    def validate(self) -> list[str]:
        found = [] if self.checkpoint else ["checkpoint is required: a run directory such as checkpoint=out/first"]
        if (self.corpus is None) == (self.examples is None):
            found.append("give either corpus= (bits/byte) or examples= (accuracy)")
        if not 1 <= self.batch_size <= 10**6:
            found.append(f"batch_size={self.batch_size} must be between 1 and 1,000,000")
        return found


def score_corpus(cfg: EvaluateConfig, lm: LanguageModel) -> dict[str, float | None]:
    """Returns the loss (nats/token) and bits/byte over the whole corpus, in windows of the model's context.

    bits_per_byte is None if the tokenizer does not know all characters.
    """
    corpus = PrepareConfig(
        corpus=cfg.corpus,
        include=cfg.include,
        exclude=cfg.exclude,
        text_field=cfg.text_field,
        document_separator=cfg.document_separator,
        invalid_utf8=cfg.invalid_utf8,
        max_bad_lines=cfg.max_bad_lines,
        val_fraction=0.0,
        datasets=cfg.datasets,
        tokenizer=TokenizerConfig(path=str(lm.directory / "tokenizer")),
        curate=CurateConfig(exact_duplicates=False, overlap=False),  # score every document
    )
    split = open_split(prepare(corpus), "train")
    # No window is wider than the text: with rotary positions, no tensor bounds the context in model.json.
    data = WindowEvaluation(split, context=min(lm.model.config.context, max(1, split.n_tokens - 1)))
    score = evaluate(lm.model, data, compute=lm.compute, batch_size=min(cfg.batch_size, len(data)))
    if not math.isfinite(score.loss):
        raise InputError(NOT_FINITE)
    return {
        "loss": score.loss,
        "bits_per_byte": score.bits_per_byte,
        "tokens": score.tokens,
        "bytes": split.n_bytes,
        "unknown_characters": sum(split.unknown.values()),
    }


def score_examples(cfg: EvaluateConfig, lm: LanguageModel, examples: list[Example]) -> dict[str, float | None]:
    """Returns the exact match of greedy completions, its 95 % interval over groups, and the share that ended."""
    longest = max(len(lm.tokenizer.encode(example.completion)) for example in examples)
    room = max(1, lm.model.config.context - longest)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].prompt))  # similar lengths need little padding
    correct, ended = np.zeros(len(examples)), np.zeros(len(examples))
    for start in range(0, len(order), cfg.batch_size):
        rows = order[start : start + cfg.batch_size]
        prompts = [lm.encode(examples[i].prompt)[-room:] for i in rows]  # leaves room for the longest completion
        answers = lm.generate(prompts, max_new_tokens=longest + 4, sampling=SamplingConfig(temperature=0))
        for i, answer in zip(rows, answers, strict=True):
            ended[i] = answer.ended == "end"
            correct[i] = ended[i] and answer.text == examples[i].completion
    groups = [f"group {e.group}" if e.group is not None else f"example {i}" for i, e in enumerate(examples)]
    if len(set(groups)) == len(groups):
        low, high = wilson_interval(int(correct.sum()), len(correct))
    else:
        low, high = group_interval(correct, groups, seed=cfg.seed)
    return {
        "accuracy": float(correct.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "stopped": float(ended.mean()),
        "examples": len(examples),
        "unknown_characters": unknown_in(
            (text for e in examples for text in (e.prompt, e.completion)), lm.tokenizer
        ).total(),
    }


def main(cfg: EvaluateConfig, overrides: cli.Overrides) -> None:
    examples = read_examples(cfg.examples) if cfg.examples is not None else []
    if examples:
        label, most = Counter(example.completion for example in examples).most_common(1)[0]
        print(f"{len(examples)} examples; always answering {label!r} is correct in {most / len(examples):.1%}")
    results = []
    for path in filter(None, (cfg.checkpoint, cfg.versus)):
        lm = load(path, device=cfg.device, dtype=cfg.dtype)
        if examples:
            result = score_examples(cfg, lm, examples)
            for line in note_unknown(examples, lm.tokenizer, str(cfg.examples)):
                print(f"note: {line}")
            groups = len({example.group for example in examples if example.group is not None})
            over = f"over {groups} groups" if groups else "over examples"
            print(
                f"{path}: exact match {result['accuracy']:.1%} (95 % interval {over} "
                f"{result['accuracy_low']:.1%} to {result['accuracy_high']:.1%}), "
                f"ended by itself in {result['stopped']:.1%}"
            )
        else:
            result = score_corpus(cfg, lm)
            bits = result["bits_per_byte"]
            print(
                f"{path}: {result['loss']:.4f} nats/token, "
                + ("no bits/byte (unknown characters)" if bits is None else f"{bits:.4f} bits/byte")
                + f" over {result['bytes']:,} bytes"
            )
        results.append({"checkpoint": path, **result})
    if cfg.json is not None:
        content = results if len(results) > 1 else results[0]
        Path(cfg.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main, EvaluateConfig, name="evaluate")
