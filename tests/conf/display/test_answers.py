"""The note on labels that a model would rather not write; the lines that compare two models."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from conf.display.answers import difference_lines, outside_note, results_table
from data.evaluation.comparison import Comparison

LABELS = ["good", "bad"]


@pytest.mark.parametrize(
    "outside, noted",
    [
        ([0.95], True),
        ([0.9], False),
        ([0.99, 0.1, 0.1], False),  # one text of three
        ([0.99, 0.1], False),
        ([0.1, 0.99, 0.99], True),
        ([], False),  # nothing was left to answer
    ],
)
def test_it_appears_if_most_texts_have_most_of_the_probability_outside_the_labels(outside, noted):
    note = outside_note(outside, LABELS)
    assert (note is not None) == noted
    assert note is None or ("for most of the" in note) == (len(outside) > 1)
    assert outside_note(outside, []) is None
    note = outside_note(outside, trained=True)
    assert (note is not None) == noted
    assert note is None or ("more fine-tuning" in note and "prompt_template" not in note)


def test_names_are_whole_on_a_narrow_terminal(monkeypatch, capsys):
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    row = {"name": "most common label", "accuracy": 1, "low": 0.839, "high": 1, "macro_f1": 1, "calibration_error": 0.2}
    results_table("20 examples", [row])
    out = capsys.readouterr().out
    assert all(part in out for part in ("most common label", "100.0%", "83.9% to 100.0%", "1.000", "0.200"))


def test_two_models_that_are_right_on_the_same_examples_differ_in_nothing_and_have_no_interval():
    def difference(a: list[int], b: list[int]) -> str:
        rows = [{"a": "before", "b": "tuned", **asdict(Comparison.of(np.array(a), np.array(b)))}]
        title, line = difference_lines(rows, "exact match")
        assert title.startswith("Difference in exact match")
        return line

    assert difference([0, 0, 0], [0, 0, 0]) == difference([1, 0, 1], [1, 0, 1])
    assert "points" not in difference([0, 0, 0], [0, 0, 0]) and "each of the 3 examples" in difference([1] * 3, [1] * 3)
    assert "points" in difference([0, 1, 0], [1, 0, 0])
