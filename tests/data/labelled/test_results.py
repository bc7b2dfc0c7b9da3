"""What comparison.json says of a model's answers."""

from __future__ import annotations

import numpy as np
import pytest

from conf.display.answers import show_results
from data.labelled.answers import Answers
from data.labelled.results import compare


def overconfident(n: int) -> Answers:
    truth = np.arange(n) % 2
    chosen = np.where(np.arange(n) % 4 == 0, 1 - truth, truth)  # three of four are right
    scores = np.where(np.eye(2)[chosen] > 0, -0.001, -8.0)
    return Answers(chosen == truth, [f"{i}" for i in range(n)], ("a", "b"), scores, truth)


@pytest.mark.parametrize("n, names", [(99, ["as trained"]), (100, ["as trained", "with temperature"])])
def test_a_temperature_is_tested_only_if_each_half_can_fit_one(n, names, capsys):
    content = compare({"fine-tuned": overconfident(n)}, seed=1)
    assert list(content["calibration"]) == names and content["temperature"] > 2
    errors = [found["error"] for found in content["calibration"].values()]
    assert errors[-1] < 0.15 if len(names) == 2 else errors == [pytest.approx(0.25, abs=0.01)]
    show_results(content)
    out = capsys.readouterr().out
    assert ("too few examples" in out) == (len(names) == 1)
    assert "Difference in accuracy" not in out  # there is nothing to compare with
