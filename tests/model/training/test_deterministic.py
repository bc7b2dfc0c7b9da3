"""`deterministic`: on in training where asked or free, said at the start, stored, and changeable on resume."""

from __future__ import annotations

import json

import pytest
import torch

from model.checkpoints import reader
from model.device import resolve_deterministic
from tests.programs import ok, run
from tests.toy_training import UnequalMasks, fit

NOTE = "may differ from this one in the last bits; deterministic=true would prevent that"


class Watching(UnequalMasks):
    """Notes for each batch whether deterministic algorithms are in use."""

    def __init__(self):
        self.seen = []

    def batch(self, step, rows):
        self.seen.append(torch.are_deterministic_algorithms_enabled())
        return super().batch(step, rows)


def resolved(run_dir) -> dict:
    return json.loads((reader.find(run_dir).directory / "train_state.json").read_text())["resolved"]


@pytest.mark.parametrize("setting, on", [("auto", True), (True, True), (False, False)])
def test_training_on_a_cpu_is_deterministic_unless_turned_off(tmp_path, capsys, setting, on):
    data = Watching()
    fit(tmp_path, lambda model: data, steps=2, deterministic=setting)
    assert data.seen == [on, on] and not torch.are_deterministic_algorithms_enabled()
    out = capsys.readouterr().out
    assert f"deterministic {str(on).lower()}" in out and (NOTE in out) == (not on)
    assert resolved(tmp_path)["deterministic"] is on


def test_auto_is_on_on_a_cpu_only():
    devices = {name: torch.device(name) for name in ("cpu", "cuda", "mps")}
    assert [resolve_deterministic("auto", device) for device in devices.values()] == [True, False, False]
    assert resolve_deterministic(True, devices["cuda"]) and not resolve_deterministic(False, devices["cpu"])


def test_a_resumed_run_keeps_the_setting_or_says_that_it_changed(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ok("train", *base, "deterministic=false")
    kept = ok("train", "run_dir=run", "resume=true", "steps=5")
    assert "deterministic false" in kept and "deterministic was" not in kept and NOTE in kept
    changed = ok("train", "run_dir=run", "resume=true", "steps=6", "deterministic=auto")
    assert "note: deterministic was false, is now true; results may differ in the last bits" in changed
    assert resolved(tmp_path / "run")["deterministic"] is True
    assert "deterministic: auto" in (tmp_path / "run" / "config.yaml").read_text()
    refused = run("train", *base[:-1], "run_dir=other", "deterministic=maybe")
    assert refused.status == 2 and "deterministic='maybe' is not one of false, true, auto" in refused.err
