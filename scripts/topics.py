"""Makes labelled examples from Wikipedia: the text of an article, without its title, and the article's topic."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import regex

from conf import cli
from data import InputError
from data.corpus.wikipedia import CORPORA, NO_TOPIC, Article, articles, licence
from data.labelled.making import SIDES, beginning, side_of, write_sides

PATH = {"kind": "path"}
FUNCTION_WORDS = frozenset("the and for from with des les aux une sur par del los las por con".split())
BLANK = "___"  # in place of a title


@dataclass
class TopicsConfig:
    """The keys of `python -m scripts.topics`."""

    run_dir: str = field(default="out/topics_data", metadata=PATH)  # the folder of train.jsonl and held_out.jsonl
    language: str = "en"  # en | fr | es
    longest: int = 100  # words; longer texts are cut
    val_fraction: float = 0.1  # of the articles, held out by a hash of their title
    per_label: int = 1000  # maximum number of training examples of each topic
    held_out_per_label: int = 100
    datasets: str = field(default="datasets", metadata=PATH)
    debug: bool = False


def without_title(article: Article) -> str:
    """Returns the text with BLANK for the title and for each of its words of three letters or more.

    Case does not matter, and a plural or possessive ending belongs to the word. Function words stay, and so do the
    words in parentheses that tell articles of one name apart.
    """
    name = article.title.partition(" (")[0]
    words = [word for word in regex.findall(r"[\p{L}\p{M}\p{N}]{3,}", name) if word.lower() not in FUNCTION_WORDS]
    part = rf"(?<!\w)(?:{'|'.join(map(regex.escape, [name, *words]))})(?:['’]?s|es)?(?!\w)"
    return regex.sub(rf"{part}(?:[\s-]+{part})*", BLANK, article.text, flags=regex.IGNORECASE)


def main(cfg: TopicsConfig, overrides: cli.Overrides) -> None:
    if cfg.language not in CORPORA.values():
        raise InputError(f"language={cfg.language} must be one of {', '.join(CORPORA.values())}")
    sides: dict[str, list[dict[str, str]]] = {side: [] for side in SIDES}
    for article in articles(cfg.language, Path(cfg.datasets)):
        if article.topic != NO_TOPIC:
            text = beginning(without_title(article), cfg.longest)
            row = {"text": text, "label": article.topic, "group": article.title}
            sides[side_of(article.title, cfg.val_fraction)].append(row)
    limits = (cfg.per_label, cfg.held_out_per_label)
    fix = f"val_fraction={cfg.val_fraction} must be between 0 and 1"
    for line in write_sides(Path(cfg.run_dir), sides, limits, text="text", label="label", fix=fix):
        print(line)
    print(licence(cfg.language))


if __name__ == "__main__":
    cli.run(main, TopicsConfig, name="topics")
