"""Measuring a few steps: it changes nothing, and a dry run prints what it finds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import train
from model.checkpoints import reader
from model.device import Compute
from model.planning import memory
from model.planning.budget import Costs, StepBudget
from model.training.measure import copied_bytes, measure, saved_bytes
from model.training.settings import LoopConfig
from sample import load
from tests.families import make
from tests.programs import ok, run, snapshot

CPU = Compute.resolve("cpu", dtype="float32")


def briefly(*args, **kwargs):
    """measure(), for a shorter time."""
    return measure(*args, **kwargs, seconds=0.1)


def one_step(*args, **kwargs):
    """measure(), for one timed step, which says what a run of about 100 steps in six seconds would cost."""
    measured = measure(*args, **kwargs, steps=1, seconds=0.0)
    return replace(measured, costs=Costs(step=0.05, plotting=0.0))


def test_a_dry_run_prints_every_estimate_and_leaves_nothing(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "measure", briefly)
    before = snapshot(tmp_path)
    out = ok("train", *base, "dry_run=true")
    for name in ("parameters", "FLOPs", "epochs", "speed", "time", "peak memory", "disk", "loss", "unigram", "bigram"):
        assert name in out, out
    assert "no forecast" in out and snapshot(tmp_path) == before
    ok("train", *base)
    out = ok("train", *base, "dry_run=true", "steps=9")
    assert "tokens of the same data" in out and "no forecast" not in out
    refused = run("train", *base, "dry_run=true", "resume=true")
    assert refused.status == 2 and "leave out resume" in refused.err


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_measuring_first_changes_no_weight(base, tmp_path, monkeypatch, optimizer):
    """A run with a time budget measures first; then it does exactly what a run with as many steps does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "measure", one_step)
    options = [*base[:-2], f"optimizer={optimizer}", "optimizer.warmup_steps=2", "model.dropout=0.1", "eval_every=60"]
    ok("train", *options, "log_every=1000", "run_dir=timed", "time_budget=6s")
    steps = reader.find(tmp_path / "timed").step
    assert 5 < steps < 120
    ok("train", *options, "log_every=1000", "run_dir=counted", f"steps={steps}")
    one, two = (reader.find(tmp_path / name).weights() for name in ("timed", "counted"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert "is finished" in ok("train", "run_dir=timed", "resume=true")
    # A number of steps instead of the time extends the run.
    ok("train", "run_dir=timed", "resume=true", f"steps={steps + 2}")
    assert reader.find(tmp_path / "timed").step == steps + 2


def test_peak_memory_is_measured():
    before = memory.peak(CPU.device)
    if before is None:
        pytest.skip("this system does not tell")
    memory.reset_peak(CPU.device)
    held = torch.ones(64 * 2**20)  # 256 MiB
    assert memory.peak(CPU.device) - before > 0 or memory.peak(CPU.device) > held.numel() * 4
    assert math.isfinite(memory.available(CPU.device))


def test_a_dry_run_of_fine_tuning_leaves_nothing(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "measure", briefly)
    lines = [
        f'{{"prompt": "{number} to your", "completion": "{("body", "heart")[number % 2]}"}}\n' for number in range(20)
    ]
    (tmp_path / "labels.jsonl").write_text("".join(lines))
    monkeypatch.setattr("data.labelled.rows.WIDTH", 8)  # so that rows can be shorter than the context
    before = snapshot(tmp_path)
    out = ok("finetune", f"checkpoint={trained}", "examples=labels.jsonl", "steps=3", "batch_size=4", "dry_run=true")
    assert "tok/s" in out and "peak memory" in out and "no forecast" in out and snapshot(tmp_path) == before
    tokens = next(line for line in out.splitlines() if "per step" in line)
    assert int(tokens.split()[1]) < 4 * load(trained).model.config.context, tokens  # the examples are shorter than that


@pytest.mark.parametrize(
    "settings, copied",
    [
        ({"save_every": 5}, True),
        ({"eval_every": 5}, True),  # a better evaluation saves
        ({}, False),  # nothing is trained after the one save
        ({"save_every": 5, "save_in_background": False}, False),
        ({"save_every": 5, "device": "cuda"}, False),  # the copy is in the host's memory
    ],
)
def test_the_copy_for_a_background_save_counts_towards_peak_memory(settings, copied):
    device = torch.device(settings.pop("device", "cpu"))
    cfg = LoopConfig(steps=10, **settings)
    model = make("modern")
    budget = StepBudget(cfg.optimizer, steps=10, eval_every=cfg.eval_every, save_every=cfg.save_every)
    found = copied_bytes(cfg, model, budget, Compute(device, torch.float32, False))
    assert found == (saved_bytes(cfg, model) if copied else 0)
