"""Runs a benchmark by its name: a small table against its targets, and one line of JSON last."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence

from conf import cli

BENCHMARKS = {
    "decode": "tokens per second of one text, against transformers' and nanoGPT's generate with the same weights",
    "next_word": "how fast the order of the next words is certified, and whether random samples agree",
    "prepare": "a corpus of 2 GB: MB/s and peak memory of its preparation",
    "tokens": "how many tokens the default preset needs to the loss of a well-tuned GPT-2 with AdamW",
    "tokenizer": "how fast vocabularies are learned and text is encoded, beside other programs",
    "bulk": "many prompts in batches, against one after the other",
    "train": "time to a loss, tokens per second and use of a GPU in training, against nanoGPT",
    "curate": "exact and near copies planted among many documents: how many are found, and how fast",
}


def as_settings(arguments: Sequence[str]) -> Iterator[str]:
    """`--against PATH` and `--against=PATH` mean `against=PATH`; everything else stays as it is."""
    words = iter(arguments)
    for word in words:
        if word.startswith("--") and word not in ("--help", "--multirun"):
            word = word.removeprefix("--")
            word = word if "=" in word else f"{word}={next(words, '')}"
        yield word


def main(arguments: list[str]) -> None:
    """`NAME key=value ...`; each benchmark is a module of scripts.benchmarks with a `main` and its `Config`."""
    name = arguments[0] if arguments else "--help"
    if name in BENCHMARKS:
        module = importlib.import_module(f"scripts.benchmarks.{name}")
        cli.run(module.main, module.Config, name=f"bench_{name}", argv=list(as_settings(arguments[1:])))
    print("usage: python -m scripts.bench NAME [KEY=VALUE ...] [--help]\n")
    for known, what in BENCHMARKS.items():
        print(f"  {known:<10} {what}")
    if name not in ("-h", "--help"):
        print(f"error: there is no benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
