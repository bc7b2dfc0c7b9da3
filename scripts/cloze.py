"""Makes multiple-choice questions from the held-out plays: which word ends a line of verse."""

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

LAST_WORD = regex.compile(r"(.*\S)( \p{Ll}{4,})[\p{P}]*")  # the line, and its last word with the space before it
ENDINGS = ("ing", "ness", "ed", "ly", "st", "th", "s", "er", "e", "y")  # words that end alike are often of one kind


@dataclass
class ClozeConfig:
    """The keys of `python -m scripts.cloze`."""

    outputs: str = field(default="out/cloze.jsonl", metadata={"kind": "output"})
    # the plays to ask about; null: the held-out one of each kind
    val_include: Any = field(default=None, metadata={"kind": "pattern", "list": True})
    choices: int = 4  # options a question: the true word and words of its frequency, length and ending
    before: int = 40  # words of the speech to show before the gap, whole lines; fewer at a speech's beginning
    least: int = 12  # questions with fewer words before the gap say too little
    per_play: int = 200  # at most so many questions a play
    datasets: str = field(default="datasets", metadata={"kind": "path"})
    debug: bool = False

    def validate(self) -> list[str]:
        found = [] if 2 <= self.choices <= 10 else [f"choices={self.choices} must be between 2 and 10"]
        return found + ([] if self.per_play >= 1 else [f"per_play={self.per_play} must be at least 1"])


def gaps(play: str, *, before: int, least: int) -> Iterator[tuple[str, str]]:
    """Yields (what a speech says up to a line's last word, that word with the space before it), for each such line."""
    for speech in speeches(play):
        lines = speech.split("  \n")
        for number, line in enumerate(lines):
            found = LAST_WORD.fullmatch(line)
            if found is None or not line[0].isupper() or not 5 <= len(line.split()) <= 11:  # most likely not verse
                continue
            start = number
            while start and len(" ".join(lines[start - 1 : number]).split()) <= before:
                start -= 1
            prompt = "  \n".join([*lines[start:number], found[1]])
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
    pool: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)  # by ending, rising in frequency
    for word in {word for found in questions.values() for _, word in found}:
        bisect.insort(pool[ending(word)], (counts[word.strip()], word))
    lines = []
    for name, found in questions.items():
        # An arbitrary but fixed order decides which questions stay where there are more than the limit.
        found.sort(key=lambda question: hashlib.sha256("".join(question).encode()).digest())
        made = [question for gap in found if (question := ask(*gap, pool=pool, counts=counts, choices=cfg.choices))]
        lines += [json.dumps({**question, "group": name}, ensure_ascii=False) for question in made[: cfg.per_play]]
    path = Path(cfg.outputs).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    print(f"{path}: {len(lines)} questions from {len(questions)} plays, {cfg.choices} options each")


def ask(
    prompt: str, word: str, *, pool: dict[str, list[tuple[int, str]]], counts: Counter[str], choices: int
) -> dict[str, Any] | None:
    """One question; None where too few other words end alike, are as long within two letters and about as frequent."""
    count, alike = counts[word.strip()], pool[ending(word)]
    low, high = bisect.bisect_left(alike, (count / 2, "")), bisect.bisect_left(alike, (2 * count + 1, ""))
    near = [other for _, other in alike[low:high] if abs(len(other) - len(word)) <= 2]
    others = [other for other in near if other != word and other not in prompt]
    if len(others) < choices - 1:
        return None
    draw = random.Random(prompt)  # the question's own, so that it does not depend on the others
    chosen = [word, *draw.sample(others, choices - 1)]
    draw.shuffle(chosen)
    return {"prompt": prompt, "options": chosen, "completion": word}


if __name__ == "__main__":
    cli.run(main, ClozeConfig, name="cloze")
