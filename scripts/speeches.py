"""Makes labelled examples from the plays: a speech, and the kind of play that it comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conf import cli
from data.corpus.corpora import documents, matches
from data.corpus.plays import HELD_OUT, speeches
from data.labelled.making import SIDES, beginning, write_sides

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


def main(cfg: SpeechesConfig, overrides: cli.Overrides) -> None:
    examples: dict[str, list[dict[str, str]]] = {side: [] for side in SIDES}
    for play in documents("shakespeare", cache=cfg.datasets):
        kind = play.name.split("/")[0]  # the folder
        side = "held_out" if matches(play.name, cfg.val_include or HELD_OUT, default=False) else "train"
        for speech in speeches(play.text):
            if len(speech.split()) >= cfg.words:
                prompt = f"{beginning(speech, cfg.longest)}\n\nKind of play:"
                examples[side].append({"prompt": prompt, "completion": f" {kind}", "group": play.name})
    limits = (cfg.per_kind, cfg.held_out_per_kind)
    fix = f"lower words={cfg.words} or change val_include"
    for line in write_sides(Path(cfg.run_dir), examples, limits, text="prompt", label="completion", fix=fix):
        print(line)


if __name__ == "__main__":
    cli.run(main, SpeechesConfig, name="speeches")
