"""Runs as measurements: trained once, then read; errors of train.py in one line."""

from __future__ import annotations

import json
import subprocess

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
