"""Multiple-choice questions: read from a labelled file, and how many a scorer gets right, by what it goes by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import InputError
from ..corpus.jsonl import json_lines
from .accuracy import group_interval, wilson_interval

FORM = '{"prompt": "2+2=", "options": ["3", "4"], "completion": "4"}'


@dataclass(frozen=True)
class Choice:
    """A prompt, what may follow it, and which of these does."""

    prompt: str
    options: tuple[str, ...]
    answer: int  # index of the right option
    group: str | None = None  # questions of one group are not independent
    place: str = "question"  # file:line, for messages


def read_choices(path: str | Path) -> list[Choice]:
    """Reads lines like FORM, with an optional "group"; other fields are ignored."""
    choices = []
    for number, record in json_lines(Path(path).expanduser()):
        place = f"{path}:{number}"
        for name in ("prompt", "options", "completion"):
            if name not in record:
                raise InputError(f"{place}: no field {name!r} (fields: {', '.join(record) or 'none'}); add it")
        for name in ("prompt", "completion", "group"):
            if not isinstance(record.get(name, ""), str):
                raise InputError(f"{place}: {name!r} is {record[name]!r}, not a string; put it in quotes")
        options, completion = record["options"], record["completion"]
        if not isinstance(options, list) or not all(isinstance(option, str) and option for option in options):
            raise InputError(f"{place}: 'options' is {options!r}, not a list of texts that are not empty")
        if len(options) < 2 or len(set(options)) < len(options):
            raise InputError(f"{place}: 'options' is {options!r}; give two or more, no two alike")
        if completion not in options:
            raise InputError(f"{place}: the completion {completion!r} is not one of the options {options!r}")
        answer = options.index(completion)
        choices.append(Choice(record["prompt"], tuple(options), answer, record.get("group"), place))
    if not choices:
        raise InputError(f"{path}: no questions; write one JSON object a line: {FORM}")
    return choices


def baseline(choices: Sequence[Choice]) -> tuple[str, float]:
    """How often one is right without reading the prompt: (how, share). By chance, or with the commonest answer."""
    chance = sum(1 / len(choice.options) for choice in choices) / len(choices)
    answer, most = Counter(choice.options[choice.answer] for choice in choices).most_common(1)[0]
    if most / len(choices) > chance:
        return f"always answering {answer!r}", most / len(choices)
    return "guessing", chance


def accuracies(
    choices: Sequence[Choice], measures: Mapping[str, Sequence[Sequence[float]]], *, seed: int = 1
) -> list[dict[str, Any]]:
    """Of each measure, which has a number for each option of each question, how often the largest is the right one's.

    Rows of `method`, `accuracy`, `low` and `high` (95 %, over questions, Wilson), and where there are groups
    `group_low` and `group_high` (95 %, over whole groups, bootstrap). The first of equals counts.
    """
    groups = [f"group {c.group}" if c.group is not None else f"question {i}" for i, c in enumerate(choices)]
    rows = []
    for method, scores in measures.items():
        right = np.array(
            [int(np.argmax(row)) == choice.answer for choice, row in zip(choices, scores, strict=True)], dtype=float
        )
        low, high = wilson_interval(int(right.sum()), len(right))
        row = {"method": method, "accuracy": float(right.mean()), "low": low, "high": high}
        if any(choice.group is not None for choice in choices):
            row["group_low"], row["group_high"] = group_interval(right, groups, seed=seed)
        rows.append(row)
    return rows
