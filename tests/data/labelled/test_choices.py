"""Multiple-choice questions: reading, error messages with the line, accuracies and their intervals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data import InputError
from data.evaluation.accuracy import group_interval, wilson_interval
from data.labelled.choices import Choice, accuracies, baseline, read_choices, with_shots

GOOD = {"prompt": "2+2=", "options": ["3", "4"], "completion": "4"}


def written(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def test_questions_are_read_as_written(tmp_path):
    path = written(
        tmp_path / "q.jsonl",
        {**GOOD, "group": None},
        {**GOOD, "prompt": "", "completion": "3", "group": "g", "note": 1},
    )
    first, second = read_choices(path)
    assert first == Choice("2+2=", ("3", "4"), 1, None, f"{path}:1")
    assert (second.prompt, second.answer, second.group, second.place) == ("", 0, "g", f"{path}:2")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prompt": None}, "'prompt' is null"),
        ({"completion": "5"}, "the completion '5' is not one of the options"),
        ({"options": "34"}, """'options' is "34", not a list of non-empty strings"""),
        ({"options": ["4", ""]}, "not a list of non-empty strings"),
        ({"options": ["4", 3]}, "not a list of non-empty strings"),
        ({"options": ["4"]}, "give two or more"),
        ({"options": ["4", "4"]}, "all different"),
        ({"group": 7}, "'group' is 7, not a string"),
    ],
)
def test_errors_name_the_line(tmp_path, change, message):
    path = written(tmp_path / "q.jsonl", GOOD, {**GOOD, **change})
    with pytest.raises(InputError) as caught:
        read_choices(path)
    assert f"{path}:2: " in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_field_and_an_empty_file_are_named(tmp_path):
    with pytest.raises(InputError, match=r"q.jsonl:1: no field 'options' \(fields: prompt\)"):
        read_choices(written(tmp_path / "q.jsonl", {"prompt": "x"}))
    with pytest.raises(InputError, match="no questions; write one JSON object per line"):
        read_choices(written(tmp_path / "q.jsonl"))


def test_accuracy_counts_the_highest_score_and_the_first_of_ties():
    choices = [Choice("", ("a", "b"), 0), Choice("", ("a", "b"), 1), Choice("", ("a", "b", "c"), 2)]
    [raw, flat] = accuracies(choices, {"raw": [[2, 1], [-2, -1], [3, 4, 0]], "flat": [[1, 1], [1, 1], [1, 1, 1]]})
    assert raw["accuracy"] == pytest.approx(2 / 3) and flat["accuracy"] == pytest.approx(1 / 3)
    assert (raw["low"], raw["high"]) == wilson_interval(2, 3) and "group_low" not in raw
    grouped = [Choice("", ("a", "b"), 0, "x"), Choice("", ("a", "b"), 0, "x"), Choice("", ("a", "b"), 1, "y")]
    [row] = accuracies(grouped, {"raw": [[1, 0]] * 3})
    assert (row["group_low"], row["group_high"]) == (0, 1)  # two groups, one all right and one all wrong


def test_the_baseline_is_chance_or_the_most_common_answer():
    fixed = [Choice("", (" yes", " no"), int(i == 0)) for i in range(10)]
    assert baseline(fixed) == ("always answering ' yes'", 0.9)
    varied = [Choice("", (f"{i}", f"{-i}"), 0) for i in range(1, 9)]
    assert baseline(varied) == ("guessing", 0.5)


def test_shots_are_other_questions_with_their_right_answers():
    pool = [Choice(f"{i}+1=", (f"{i}", f"{i + 1}"), 1) for i in range(6)]
    found = with_shots(pool, pool, shots=2, seed=3)
    solved = {choice.prompt: f"{choice.prompt}{choice.options[1]}" for choice in pool}
    for question, choice in zip(found, pool, strict=True):
        *before, last = question.prompt.split("\n\n")
        assert last == choice.prompt and question.options == choice.options and question.answer == 1
        assert len(set(before)) == 2 and set(before) <= set(solved.values()) - {solved[choice.prompt]}
    assert found == with_shots(pool, pool, shots=2, seed=3) != with_shots(pool, pool, shots=2, seed=4)
    assert with_shots(pool, [], shots=0) == pool
    with pytest.raises(InputError, match="shots=6"):
        with_shots(pool, pool, shots=6)


def test_wilson_intervals_cover_95_percent():
    generator = np.random.default_rng(0)
    for share, total in ((0.5, 40), (0.9, 60), (0.25, 1200)):
        drawn = generator.binomial(total, share, size=4000)
        covered = [low <= share <= high for low, high in (wilson_interval(int(n), total) for n in drawn)]
        assert 0.93 < np.mean(covered) < 0.98, (share, total)
    assert wilson_interval(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-3))
    assert wilson_interval(10, 10)[1] == 1.0


def test_dependent_answers_widen_the_interval():
    right = np.repeat(np.arange(20) % 2, 50).astype(float)
    low, high = group_interval(right, [f"{i // 50}" for i in range(1000)], seed=1)
    narrow = wilson_interval(500, 1000)
    assert high - low > 3 * (narrow[1] - narrow[0])
    assert (low, high) == group_interval(right, [f"{i // 50}" for i in range(1000)], seed=1)


def test_a_file_of_another_format_is_answered_with_the_format_that_is_read(tmp_path):
    (tmp_path / "notes.md").write_text("# Notes\n")
    with pytest.raises(InputError, match=r"notes\.md is not a JSON Lines file; questions are JSON Lines \(\.jsonl\)"):
        read_choices(tmp_path / "notes.md")
