"""Multiple-choice questions: reads them from a labelled file, and computes the accuracy of scores for the options."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import InputError
from ..corpus.jsonl import json_lines
from ..evaluation.accuracy import group_interval, wilson_interval
from .fields import check_fields

FORM = '{"prompt": "2+2=", "options": ["3", "4"], "completion": "4"}'
FORMATS = f"questions are JSON Lines (.jsonl), each line like {FORM}"


@dataclass(frozen=True)
class Choice:
    """A question: a prompt and the options, one of which is right."""

    prompt: str
    options: tuple[str, ...]
    answer: int  # index of the right option
    group: str | None = None  # questions of one group are not independent
    place: str = "question"  # file:line, for messages


def read_choices(path: str | Path) -> list[Choice]:
    """Reads lines like FORM, with an optional "group"; ignores other fields. Raises InputError with file and line."""
    choices = []
    for number, record in json_lines(Path(path).expanduser(), formats=FORMATS):
        place = f"{path}:{number}"
        required = ("prompt", "options", "completion")
        check_fields(record, place, required=required, strings=("prompt", "completion", "group"))
        options, completion = record["options"], record["completion"]
        if not isinstance(options, list) or not all(isinstance(option, str) and option for option in options):
            raise InputError(f"{place}: 'options' is {json.dumps(options)}, not a list of non-empty strings")
        if len(options) < 2 or len(set(options)) < len(options):
            raise InputError(f"{place}: 'options' is {options!r}; give two or more, all different")
        if completion not in options:
            raise InputError(f"{place}: the completion {completion!r} is not one of the options {options!r}")
        answer = options.index(completion)
        choices.append(Choice(record["prompt"], tuple(options), answer, record.get("group"), place))
    if not choices:
        raise InputError(f"{path}: no questions; write one JSON object per line: {FORM}")
    return choices


def baseline(choices: Sequence[Choice]) -> tuple[str, float]:
    """Returns (method, accuracy) of the better way to answer without the prompt: guess, or the most common answer."""
    chance = sum(1 / len(choice.options) for choice in choices) / len(choices)
    answer, most = Counter(choice.options[choice.answer] for choice in choices).most_common(1)[0]
    if most / len(choices) > chance:
        return f"always answering {answer!r}", most / len(choices)
    return "guessing", chance


class Model(Protocol):
    """A language model, as far as it is needed here."""

    def choose_each(
        self, questions: Sequence[tuple[str, Sequence[str]]], *, method: str = "raw", neutral: str = ""
    ) -> list[list[Any]]:
        """Returns a score of each option: `log_probability`, `per_byte` and `pmi`."""


def with_shots(
    choices: Sequence[Choice], examples: Sequence[Choice], *, shots: int, separator: str = "\n\n", seed: int = 1
) -> list[Choice]:
    """Returns the questions with `shots` answered ones before each, drawn from `examples` by the seed.

    A question is never among those before it, nor another one with its prompt. Raises InputError for too few examples.
    """
    if not shots:
        return list(choices)
    found = []
    for number, choice in enumerate(choices):
        order = np.random.default_rng([seed, number]).permutation(len(examples)).tolist()
        drawn = [examples[i] for i in order if examples[i].prompt != choice.prompt][:shots]
        if len(drawn) < shots:
            raise InputError(f"{choice.place}: only {len(drawn)} questions with other prompts, but shots={shots}")
        solved = [f"{shot.prompt}{shot.options[shot.answer]}{separator}" for shot in drawn]
        found.append(replace(choice, prompt="".join([*solved, choice.prompt])))
    return found


def score_choices(model: Model, choices: Sequence[Choice], *, neutral: str = "") -> dict[str, list[list[float]]]:
    """Returns the measures by name, a score for each option of each question: see OptionScore."""
    scored = model.choose_each([(choice.prompt, choice.options) for choice in choices], neutral=neutral)
    columns = {"raw": "log_probability", "normalised": "per_byte", "pmi": "pmi"}
    measures = {name: [[getattr(o, column) for o in row] for row in scored] for name, column in columns.items()}
    return measures | {"without the prompt": [[o.log_probability - o.pmi for o in row] for row in scored]}


def right_answers(choices: Sequence[Choice], scores: Sequence[Sequence[float]]) -> np.ndarray:
    """Returns whether the option with the highest score is right, (n,) bool. Ties go to the first option."""
    return np.array([int(np.argmax(row)) == choice.answer for choice, row in zip(choices, scores, strict=True)])


def groups_of(choices: Sequence[Choice]) -> list[str]:
    return [f"group {c.group}" if c.group is not None else f"question {i}" for i, c in enumerate(choices)]


def accuracies(
    choices: Sequence[Choice], measures: Mapping[str, Sequence[Sequence[float]]], *, seed: int = 1
) -> list[dict[str, Any]]:
    """Returns the accuracy of each measure, which answers with the option that has the highest score.

    measures: by name, a score for each option of each question. Ties go to the first option. A row has `method`,
    `accuracy`, `low` and `high` (95 %, over questions, Wilson). If there are groups, it also has `group_low` and
    `group_high` (95 %, over whole groups, bootstrap).
    """
    rows = []
    for method, scores in measures.items():
        right = right_answers(choices, scores)
        low, high = wilson_interval(int(right.sum()), len(right))
        row = {"method": method, "accuracy": float(right.mean()), "low": low, "high": high}
        if any(choice.group is not None for choice in choices):
            row["group_low"], row["group_high"] = group_interval(right, groups_of(choices), seed=seed)
        rows.append(row)
    return rows
