"""Makes labelled examples from Wikipedia: a short passage of an article, and the language that it is in."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from conf import cli
from data import InputError
from data.corpus.wikipedia import articles, licence
from data.labelled.making import SIDES, side_of, write_sides

PATH = {"kind": "path"}
LABELS = {"en": "English", "fr": "French", "es": "Spanish"}


@dataclass
class LanguagesConfig:
    """The keys of `python -m scripts.languages`."""

    run_dir: str = field(default="out/languages_data", metadata=PATH)  # the folder of train.jsonl and held_out.jsonl
    shortest: int = 3  # words in a passage; the fewer, the harder
    longest: int = 30  # words
    val_fraction: float = 0.1  # of the articles, held out by a hash of their title
    per_label: int = 2000  # maximum number of training examples of each language, one of an article
    held_out_per_label: int = 200
    datasets: str = field(default="datasets", metadata=PATH)
    debug: bool = False


def passage(text: str, *, shortest: int, longest: int, seed: str) -> str:
    """Returns consecutive words of a text: their number is between the bounds, it and their place are random."""
    words, generator = text.split(), random.Random(seed)
    n_words = min(generator.randint(shortest, longest), len(words))
    start = generator.randint(0, len(words) - n_words)
    return " ".join(words[start : start + n_words])


def main(cfg: LanguagesConfig, overrides: cli.Overrides) -> None:
    if not 1 <= cfg.shortest <= cfg.longest:
        raise InputError(f"shortest={cfg.shortest} must be between 1 and longest={cfg.longest}")
    sides: dict[str, list[dict[str, str]]] = {side: [] for side in SIDES}
    for language, label in LABELS.items():
        for article in articles(language, Path(cfg.datasets)):
            group = f"{language}: {article.title}"
            text = passage(article.text, shortest=cfg.shortest, longest=cfg.longest, seed=group)
            sides[side_of(group, cfg.val_fraction)].append({"text": text, "label": label, "group": group})
    limits = (cfg.per_label, cfg.held_out_per_label)
    fix = f"val_fraction={cfg.val_fraction} must be between 0 and 1"
    for line in write_sides(Path(cfg.run_dir), sides, limits, text="text", label="label", fix=fix):
        print(line)
    print(licence(*LABELS))


if __name__ == "__main__":
    cli.run(main, LanguagesConfig, name="languages")
