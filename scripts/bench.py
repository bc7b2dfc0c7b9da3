"""Runs a benchmark by name. Each prints a small table, and a line of JSON last."""

from __future__ import annotations

import importlib
import sys

from conf import cli

BENCHMARKS = {
    "train": "training: tokens per second, MFU and memory, against nanoGPT at the same shape",
    "tokens": "tokens that the default preset needs to reach the loss of a tuned GPT-2 with AdamW",
    "decode": "decoding: tokens per second on a CPU or GPU, against transformers and nanoGPT with the same weights",
    "bulk": "decoding many prompts in batches, against one at a time",
    "engine": "many clients of the server's engine, against one; the wait for the first token",
    "contention": "training and decoding on a CPU beside a busy process, of equal and of lower priority",
    "finetune": "steps of fine-tuning with the output head on targets only, against the head on all tokens",
    "pretrained": "a pretrained model: decoding against transformers and llama.cpp, and seconds to next words",
    "next_word": "seconds until the order of the next words is certified; on a GPU, also against the CPU",
    "tokenizer": "training vocabularies and encoding text, against other libraries",
    "prepare": "preparing a corpus of 2 GB: MB/s and peak memory",
    "curate": "planted exact and near duplicates: how many are found, and how fast",
}


def main(arguments: list[str]) -> None:
    """Runs `NAME KEY=VALUE ...`. Each benchmark is a module of scripts.benchmarks with a `main` and a `Config`."""
    name = arguments[0] if arguments else "--help"
    if name in BENCHMARKS:
        module = importlib.import_module(f"scripts.benchmarks.{name}")
        cli.run(module.main, module.Config, name=f"bench_{name}", argv=arguments[1:])
    print("usage: python -m scripts.bench NAME [KEY=VALUE ...] [--help]\n")
    for known, what in BENCHMARKS.items():
        print(f"  {known:<10} {what}")
    if name not in ("-h", "--help"):
        print(f"error: there is no benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
