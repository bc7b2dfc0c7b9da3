"""Runs as measurements: trained once, then read; errors of train.py in one line."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

import pytest

from conf.cli import InputError
from conf.run import runs
from tests.programs import NANO, run


def in_this_process(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
    ended = run("train", *command[2:])
    return subprocess.CompletedProcess(command, ended.status, ended.out, ended.err)


def test_a_run_is_trained_once_and_its_last_evaluation_returned(poem, tmp_path, monkeypatch):
    assert runs.TRAIN.is_file()
    monkeypatch.setattr(runs.subprocess, "run", in_this_process)
    settings = [f"corpus={poem}", f"datasets={tmp_path / 'datasets'}", *NANO]
    first = runs.train_once(tmp_path / "run", [*settings, "steps=4"])
    assert first["step"] == 4 and first["tokens"] == 4 * 4 * 32 and first["val_loss"] > 0
    [run_dir] = tmp_path.glob("run-*")
    assert run_dir.name == f"run-{runs.defaults_hash()}"  # other defaults make another run
    metrics = (run_dir / "metrics.jsonl").read_text()
    assert runs.train_once(tmp_path / "run", [*settings, "steps=4"]) == first == json.loads(metrics.splitlines()[-1])
    assert (run_dir / "metrics.jsonl").read_text() == metrics
    with pytest.raises(InputError, match=r"model.n_layer=0 must be"):
        runs.train_once(tmp_path / "other", [*settings, "model.n_layer=0"])


def test_the_table_of_a_sweep_has_what_differs_and_the_best_run_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    jobs = []
    for name, typed, evaluations in (
        ("low", {"seed": 1, "rate": 0.1}, [(2.0, 0.6), (1.0, 0.5)]),
        ("high", {"seed": 1, "rate": 0.2}, [(3.0, 0.4), (4.0, 0.7)]),
        ("failed", {"seed": 1, "rate": 0.3}, []),
    ):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "metrics.jsonl").open("w") as file:
            for step, (loss, accuracy) in enumerate(evaluations, start=1):
                file.write(json.dumps({"step": step, "val_loss": loss, "accuracy": accuracy}) + "\n")
        jobs.append((name, typed))

    def table(select: str) -> list[list[str]]:
        runs.show_sweep([(SimpleNamespace(run_dir=name, select=select), typed) for name, typed in jobs])
        return [line.split() for line in capsys.readouterr().out.splitlines()[1:]]

    columns, *rows = table("loss")
    assert columns == ["run_dir", "rate", "best", "step", "validation", "loss", "accuracy"]
    assert rows == [
        ["low", "0.1", "2", "1.0000", "0.5000"],
        ["high", "0.2", "1", "3.0000", "0.4000"],
        ["failed", "0.3"],
    ]
    assert [row[0] for row in table("accuracy")[1:]] == ["high", "low", "failed"]
