"""scripts.faults: kills a run, tells which steps were lost, and compares its end with an uninterrupted run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from scripts import faults
from tests.programs import ok


@pytest.mark.slow
@pytest.mark.parametrize("replaced, done", [(None, 0), ("", 0), ('{"step": 3}\n', 3)])
def test_steps_lost_by_an_earlier_process_are_not_counted_again(tmp_path, monkeypatch, replaced, done):
    """A resumed run replaces its metrics; a kill may come before that, after it, or after the first step."""
    metrics = tmp_path / "killed" / "metrics.jsonl"
    metrics.parent.mkdir()
    metrics.write_text('{"step": 12}\n')
    (tmp_path / "new.jsonl").write_text(replaced or "")
    work = f"import os; os.replace({str(tmp_path / 'new.jsonl')!r}, {str(metrics)!r})" if replaced is not None else ""
    (tmp_path / "train.py").write_text(f"import time\nprint('5 parameters,', flush=True)\n{work}\ntime.sleep(60)\n")
    monkeypatch.setattr(faults, "TRAIN", tmp_path / "train.py")
    monkeypatch.setattr(faults, "USUAL_START", 2.0)
    draws = iter([0.05, 0.4])  # a kill at any moment: 0.4 * USUAL_START after the start
    monkeypatch.setattr(
        faults, "random", SimpleNamespace(Random=lambda seed: SimpleNamespace(random=lambda: next(draws)))
    )
    assert faults.attempt(faults.FaultsConfig(out=str(tmp_path)), 0) == (done, 0)


@pytest.mark.slow
def test_a_run_that_is_killed_repeatedly_ends_as_an_uninterrupted_one(tmp_path):
    out = ok("faults", "kills=5", f"out={tmp_path}")
    assert "5 kills" in out and "are the same, bit for bit" in out and "waiting for each save" in out
