"""scripts.check_device: what each line and the exit status say, and the whole rehearsal on a CPU."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch

from conf import cli
from model import InputError
from scripts import check_device
from scripts.check_device import FULL, TOY, Place, first_difference
from tests.programs import capture, finish, run, start
from train import TrainConfig


@pytest.fixture
def place(tmp_path):
    return Place(torch.device("cpu"), tmp_path, seconds=60)


def fail(place):
    return check_device.FAILED, "two figures differ"


def refuse(place):
    raise InputError("no such file")


def crash(place):
    raise KeyError("loss")


def test_each_check_has_its_line_and_any_failure_decides_the_status(monkeypatch):
    checks = {"good": lambda place: (check_device.PASSED, "1.0"), "none": lambda place: (check_device.SKIPPED, "why")}
    monkeypatch.setattr(check_device, "CHECKS", checks)
    ended = run("check_device", "device=cpu")
    assert ended.status == 0 and ended.out.splitlines()[-1] == "1 passed, 0 failed, 1 skipped"
    checks |= {"wrong": fail, "refused": refuse, "crashed": crash}
    monkeypatch.setattr(check_device, "CHECKS", dict(reversed(checks.items())))
    ended = run("check_device", "device=cpu")
    assert ended.status == 1 and ended.out.splitlines()[-1] == "1 passed, 3 failed, 1 skipped"
    for line in ("FAIL wrong           two figures", "FAIL refused         no such", "FAIL crashed         KeyError"):
        assert line in ended.out
    ended = run("check_device", "device=cpu", "seconds=0.000001")
    assert ended.status == 0 and ended.out.count("SKIP") == 5 and "set seconds=" in ended.out
    refused = run("check_device", "device=cpu", "only=[speed]")
    assert refused.status == 2 and "only=['speed'] is not among crashed" in refused.err


def test_greedy_texts_may_part_only_where_the_two_best_are_equal():
    close, far = [[0.4, 0.3], [0.300001, 0.3]], [[0.4, 0.3], [0.31, 0.3]]
    assert first_difference([1, 2], [1, 2], far) == (True, "the same 2 greedy tokens")
    assert first_difference([1, 2], [1, 3], close)[0] and not first_difference([1, 2], [1, 3], far)[0]
    assert not first_difference([1], [1, 3], far)[0]


@pytest.mark.parametrize("sizes", [FULL, TOY])
def test_the_runs_are_commands_of_train_py(place, sizes):
    place.sizes = sizes
    command = place.train_command("plain", "deterministic=true")
    ended = capture(lambda: cli.run(lambda cfg, overrides: None, TrainConfig, name="train", argv=command[2:]))
    assert ended.status == 0, ended.err


@pytest.mark.slow
def test_a_program_that_fails_or_takes_too_long_is_an_error(place):
    command = place.train_command("plain", "model.n_head=3")
    with pytest.raises(InputError, match=r"train.py .*ended with status 2: error: model"):
        place.run(command)
    place.end = time.monotonic() + 0.2
    with pytest.raises(InputError, match="no end within the 1 seconds"):
        place.run([command[0], "-c", "import time; time.sleep(9)"])


def test_losses_that_differ_fail(place, monkeypatch):
    losses = {"plain": [2.0, 1.0], "fsdp": [2.0, 1.0]}
    place.plain = place.folder / "plain"  # in place of a run
    monkeypatch.setattr(place, "run", lambda command: "")
    monkeypatch.setattr(place, "losses", losses.__getitem__)
    assert check_device.check_several(place)[0] == check_device.PASSED
    losses["fsdp"] = [2.0, 1.01]
    assert check_device.check_several(place) == (
        "FAIL",
        "gloo, largest difference of a loss from one process: fsdp 1.0e-02",
    )


def test_full_checks_do_more():
    assert all(getattr(FULL, f.name) > getattr(TOY, f.name) for f in dataclasses.fields(FULL) if f.type == "int")


@pytest.mark.slow
def test_the_rehearsal_passes():
    ended = finish(start("-m", "scripts.check_device", "device=cpu", "seconds=600"), timeout=600)
    assert ended.status == 0 and "8 passed, 0 failed, 0 skipped" in ended.out, ended.out
