"""Makes multiple-choice questions from held-out plays: which word ends a line of verse."""

from __future__ import annotations

import bisect
import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex

from conf import cli
from data import InputError
from data.corpus.corpora import documents, matches
from data.corpus.plays import HELD_OUT, speeches

LAST_WORD = regex.compile(r"(.*\S)( \p{Ll}{4,})[\p{P}]*")  # line up to the last word; that word with its space
ENDINGS = (
    "ing",
    "ness",
    "ed",
    "ly",
    "st",
    "th",
    "s",
    "er",
    "e",
    "y",
)  # often tell the part of speech


@dataclass
class ClozeConfig:
    """The keys of `python -m scripts.cloze`."""

    outputs: str = field(default="out/cloze.jsonl", metadata={"kind": "output"})
    # names of the plays to ask about; null: those that the quickstart holds out
    val_include: Any = field(default=None, metadata={"kind": "pattern", "list": True})
    choices: int = 4  # options per question: the right word, and others of similar frequency, length and ending
    before: int = 40  # words to show before the gap, in whole lines; fewer at the start of a speech
    least: int = 12  # lines with fewer words before the gap are left out
    per_play: int = 200  # maximum number of questions per play
    datasets: str = field(default="datasets", metadata={"kind": "path"})
    debug: bool = False

    def validate(self) -> list[str]:
        found = [] if 2 <= self.choices <= 10 else [f"choices={self.choices} must be between 2 and 10"]
        return found + ([] if self.per_play >= 1 else [f"per_play={self.per_play} must be at least 1"])


def gaps(play: str, *, before: int, least: int) -> Iterator[tuple[str, str]]:
    """Yields (prompt, last word with the space before it) for each line of verse that is long enough."""
    for speech in speeches(play):
        lines = speech.split("  \n")
        for number, line in enumerate(lines):
            found = LAST_WORD.fullmatch(line)
            if found is None or not line[0].isupper() or not 5 <= len(line.split()) <= 11:  # probably not verse
                continue
            first = number  # of the lines before the gap that are shown
            while first and len(" ".join(lines[first - 1 : number]).split()) <= before:
                first -= 1
            prompt = "  \n".join([*lines[first:number], found[1]])
            if len(prompt.split()) >= least:
                yield prompt, found[2]


def ending(word: str) -> str:
    return next((end for end in ENDINGS if word.endswith(end)), "")


def main(cfg: ClozeConfig, overrides: cli.Overrides) -> None:
    counts: Counter[str] = Counter()
    questions: dict[str, list[tuple[str, str]]] = {}
    for play in documents("shakespeare", cache=cfg.datasets):
        counts.update(regex.findall(r"\p{L}+", play.text))
        if matches(play.name, cfg.val_include or HELD_OUT, default=False):
            questions[play.name] = list(gaps(play.text, before=cfg.before, least=cfg.least))
    if not any(questions.values()):
        raise InputError(f"no lines to ask about with least={cfg.least}; lower it or change val_include")
    pool: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)  # by ending, sorted by frequency
    for word in {word for found in questions.values() for _, word in found}:
        bisect.insort(pool[ending(word)], (counts[word.strip()], word))
    lines = []
    for name, found in questions.items():
        # A fixed random order decides which questions are kept if there are too many.
        found.sort(key=lambda question: hashlib.sha256("".join(question).encode()).digest())
        asked = [question for gap in found if (question := ask(*gap, pool=pool, counts=counts, choices=cfg.choices))]
        lines += [json.dumps({**question, "group": name}, ensure_ascii=False) for question in asked[: cfg.per_play]]
    path = Path(cfg.outputs).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    print(f"{path}: {len(lines)} questions from {len(questions)} plays, {cfg.choices} options each")


def ask(
    prompt: str, word: str, *, pool: dict[str, list[tuple[int, str]]], counts: Counter[str], choices: int
) -> dict[str, Any] | None:
    """Returns a question; None if too few other words have the same ending and a similar length and frequency."""
    count, rhymes = counts[word.strip()], pool[ending(word)]
    low, high = bisect.bisect_left(rhymes, (count / 2, "")), bisect.bisect_left(rhymes, (2 * count + 1, ""))
    similar = [other for _, other in rhymes[low:high] if abs(len(other) - len(word)) <= 2]
    others = [other for other in similar if other != word and other not in prompt]
    if len(others) < choices - 1:
        return None
    draw = random.Random(prompt)  # seeded by the prompt, so that no question depends on the others
    options = [word, *draw.sample(others, choices - 1)]
    draw.shuffle(options)
    return {"prompt": prompt, "options": options, "completion": word}


if __name__ == "__main__":
    cli.run(main, ClozeConfig, name="cloze")
