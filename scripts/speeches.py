"""Makes labelled examples from the plays: a speech, and the kind of play it is from (its folder)."""

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

    run_dir: str = field(default="out/speeches", metadata=PATH)  # where train.jsonl and held_out.jsonl go
    # the plays to hold out; null: one of each kind
    val_include: Any = field(default=None, metadata={"kind": "pattern", "list": True})
    words: int = 40  # speeches shorter than this say too little
    longest: int = 100  # words; of longer speeches the beginning is taken
    per_kind: int = 900  # at most so many of each kind for training
    held_out_per_kind: int = 60
    datasets: str = field(default="datasets", metadata=PATH)
    debug: bool = False


def beginning(speech: str, words: int) -> str:
    """The speech up to this many words, its line ends kept."""
    found = list(regex.finditer(r"\S+", speech))
    return speech if len(found) <= words else speech[: found[words - 1].end()]


def main(cfg: SpeechesConfig, overrides: cli.Overrides) -> None:
    made: dict[str, list[dict[str, str]]] = {"train": [], "held_out": []}
    for play in documents("shakespeare", cache=cfg.datasets):
        kind = play.name.split("/")[0]
        side = "held_out" if matches(play.name, cfg.val_include or HELD_OUT, default=False) else "train"
        for speech in speeches(play.text):
            if len(speech.split()) >= cfg.words:
                prompt = f"{beginning(speech, cfg.longest)}\n\nKind of play:"
                made[side].append({"prompt": prompt, "completion": f" {kind}", "group": play.name})
    folder = Path(cfg.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for side, limit in (("train", cfg.per_kind), ("held_out", cfg.held_out_per_kind)):
        if not made[side]:
            raise InputError(f"no {side} speeches of at least words={cfg.words} words; lower it or change val_include")
        # An arbitrary but fixed order decides which speeches stay where there are more than the limit.
        made[side].sort(key=lambda example: hashlib.sha256(example["prompt"].encode()).digest())
        taken: Counter[str] = Counter()
        kept = []
        for example in made[side]:
            taken[example["completion"]] += 1
            if taken[example["completion"]] <= limit:
                kept.append(example)
        path = folder / f"{side}.jsonl"
        path.write_text("".join(json.dumps(example, ensure_ascii=False) + "\n" for example in kept), encoding="utf-8")
        counts = Counter(example["completion"].strip() for example in kept)
        print(f"{path}: {len(kept)} speeches ({', '.join(f'{n} {kind}' for kind, n in sorted(counts.items()))})")


if __name__ == "__main__":
    cli.run(main, SpeechesConfig, name="speeches")
