"""scripts.check_device: what each line and the exit status say, and the whole rehearsal on a CPU."""

from __future__ import annotations

import dataclasses
import importlib
import json
import time

import pytest
import torch

import model
from conf import cli
from conf.cli import InputError
from data.corpus.corpora import documents
from model import gpt, loss
from scripts import check_device, check_numerics
from scripts.check_device import CHECKS, FAILED, FULL, PASSED, SKIPPED, TOY, Check, Place, Result
from scripts.check_numerics import NumericsConfig, first_difference
from tests.programs import capture, finish, run, start
from train import TrainConfig

CPU = torch.device("cpu")


@pytest.fixture
def place(tmp_path):
    return Place(CPU, tmp_path, seconds=60)


def fail(place):
    return Result(FAILED, "two figures differ", {"loss": 2.5})


def refuse(place):
    raise model.InputError("no such file")


def crash(place):
    raise KeyError("loss")


def test_each_check_has_its_line_and_any_failure_decides_the_status(monkeypatch):
    checks = {
        "good": Check(lambda place: Result(PASSED, "1.0", {"tokens_per_second": 5}), 0),
        "none": Check(lambda place: Result(SKIPPED, "why"), 0),
    }
    monkeypatch.setattr(check_device, "CHECKS", checks)
    ended = run("check_device", "device=cpu")
    *_, counts, line = ended.out.splitlines()
    assert ended.status == 0 and counts == "1 passed, 0 failed, 1 skipped"
    found = json.loads(line)
    assert found["passed"] == 1 and found["checks"]["none"]["figure"] == "why"
    assert found["checks"]["good"]["status"] == "PASS" and found["checks"]["good"]["tokens_per_second"] == 5
    checks |= {"wrong": Check(fail, 0), "refused": Check(refuse, 0), "crashed": Check(crash, 0)}
    monkeypatch.setattr(check_device, "CHECKS", dict(reversed(checks.items())))
    ended = run("check_device", "device=cpu")
    *_, counts, line = ended.out.splitlines()
    assert ended.status == 1 and counts == "1 passed, 3 failed, 1 skipped"
    assert json.loads(line)["checks"]["wrong"]["loss"] == 2.5
    for text in (
        "FAIL wrong               two figures",
        "FAIL refused             no such",
        "crashed             KeyErr",
    ):
        assert text in ended.out
    ended = run("check_device", "device=cpu", "seconds=0.000001")
    assert ended.status == 0 and ended.out.count("SKIP ") == 5 and "set seconds=" in ended.out
    refused = run("check_device", "device=cpu", "only=[speed]")
    assert refused.status == 2 and "only=['speed'] is not among crashed" in refused.err


def test_on_a_gpu_a_check_that_needs_longer_than_what_is_left_or_more_gpus_is_skipped(place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    place.on_gpu, place.end = True, time.monotonic() + 30
    result = check_device.outcome(Check(fail, 40), place)
    assert result.status == SKIPPED and "about 40 s" in result.figure
    assert check_device.outcome(Check(fail, 20), place).status == FAILED
    assert check_device.outcome(Check(fail, 20, gpus=2), place)[:2] == (SKIPPED, "it needs 2 GPUs")


@pytest.mark.parametrize("gpus", [1, 2])
def test_all_checks_fit_the_time_and_speeds_come_after_what_is_correct(gpus):
    seconds = [check.seconds for check in CHECKS.values() if check.gpus <= gpus]
    assert sum(seconds) < check_device.usual_seconds(gpus) and seconds[-1] == max(seconds)
    assert CHECKS["several"].gpus == 2 and all(check.seconds > 0 for check in CHECKS.values())
    speeds = [name.startswith(("train", "bench")) for name in CHECKS]
    assert speeds == sorted(speeds)


def test_the_loss_in_chunks_is_compared_with_the_plain_form(monkeypatch):
    monkeypatch.setattr(check_numerics, "missing_for_compile", lambda device: "a compiler")
    monkeypatch.setitem(check_numerics.LOSS_SIZES, "cpu", (300, 16, 1001))
    for sizes, size in ((loss.LARGE_LOGITS, 1), (loss.CHUNK_TOKENS, 64)):
        monkeypatch.setitem(sizes, "cpu", size)
    found = check_numerics.check_loss(CPU)
    assert found["passed"] and 0 < found["relative_errors"]["chunked"]["gradient"] < 0.02
    right = check_numerics.head_loss

    def wrong(h, weight, targets, **how):
        return right(h * 1.03, weight, targets, **how)

    monkeypatch.setattr(check_numerics, "head_loss", wrong)
    assert not check_numerics.check_loss(CPU)["passed"]


def test_the_document_mask_is_compared_with_the_dense_one(monkeypatch):
    monkeypatch.setattr(check_numerics, "missing_for_compile", lambda device: "a compiler")
    found = check_numerics.check_document_mask(CPU)
    assert found["passed"] and found["kernel"] == "dense" and found["without_mask"] > 0.1
    assert set(found["relative_errors"]) == {"4 of 4 key/value heads", "2 of 4 key/value heads"}
    right = gpt.document_mask

    def forgetful(table, T, *, dtype, head_dim):
        positions, mask = right(table, T, dtype=dtype, head_dim=head_dim)
        return positions, mask if dtype == torch.float32 else None

    monkeypatch.setattr(gpt, "document_mask", forgetful)
    assert not check_numerics.check_document_mask(CPU)["passed"]


def test_packed_rows_are_of_many_documents_of_one_and_of_a_few():
    many, one, few = check_numerics.packed_rows(120)
    assert [len(set(row)) for row in (one, few)] == [1, pytest.approx(5, abs=3)] and len(set(many)) > 15
    for row in (many, one, few):
        assert all(row[start] == start for start in row) and list(row) == sorted(row)


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


PROGRAMS = {"check_numerics": NumericsConfig} | {
    f"bench {name}": importlib.import_module(f"scripts.benchmarks.{name}").Config
    for name in ("train", "decode", "next_word")
}


@pytest.mark.parametrize("sizes", [FULL, TOY])
@pytest.mark.parametrize("name", [name for name in CHECKS if name not in ("resume", "float16", "several")])
def test_the_other_programs_take_the_settings_that_they_get(place, sizes, name, monkeypatch):
    def module(program, *settings):
        name, argv = program.replace(" ", "_"), [f"device={place.device}", *settings]
        ended = capture(lambda: cli.run(lambda cfg, overrides: None, PROGRAMS[program], name=name, argv=argv))
        assert ended.status == 0, ended.err
        raise InputError("composed")

    place.sizes, place.on_gpu, place.trained = sizes, sizes is FULL, place.folder / "plain"
    monkeypatch.setattr(place, "module", module)
    with pytest.raises(InputError, match="composed"):
        CHECKS[name].run(place)


def test_a_variant_is_compared_with_the_default(place, monkeypatch):
    speed = {"default": 200.0, "modern": 150.0}

    def module(program, *settings):
        variant = next(word for word in settings if word.startswith("variants="))[10:-1]
        row = {"per_second": speed[variant], "mfu": 0.4, "causal_mfu": 0.3, "peak_memory": 2**31}
        return {"peak_flops": 1e15, "shapes": {"toy": {"contenders": {"row": row}}}}

    monkeypatch.setattr(place, "module", module)
    assert CHECKS["train"].run(place).figure == "toy 200 tokens/s, MFU 40.0%, causal 30.0%, 2.0 GiB"
    result = CHECKS["train_modern"].run(place)
    assert result.status == PASSED and result.numbers["ratio_to_default"] == 0.75


def test_a_run_to_compare_with_that_fails_is_not_trained_again(place, monkeypatch):
    calls = []

    def fails(command):
        calls.append(command)
        raise InputError("out of memory")

    monkeypatch.setattr(place, "run", fails)
    for _ in range(2):
        with pytest.raises(InputError, match="the run to compare with failed: out of memory"):
            _ = place.plain
    assert len(calls) == 1


def test_the_pages_are_documents_of_which_several_fit_into_a_row(place):
    sizes = [len(document.text) for document in documents(str(place.text))]
    assert len(sizes) > 50 and sum(sizes) / len(sizes) < 2000


@pytest.mark.parametrize(
    "settings, part", [({}, "loss, document_mask"), ({"check": "all"}, "loss"), ({"check": "decoding"}, "checkpoint=")]
)
def test_a_check_of_numbers_says_what_it_needs(settings, part):
    [problem] = NumericsConfig(**settings).validate()
    assert part in problem


@pytest.mark.slow
def test_a_program_that_fails_or_takes_too_long_is_an_error(place):
    command = place.train_command("plain", "model.n_head=3")
    with pytest.raises(InputError, match=r"train.py .*ended with status 2: error: model"):
        place.run(command)
    place.end = time.monotonic() + 0.2
    with pytest.raises(InputError, match="was not finished after 1 seconds; raise seconds="):
        place.run([command[0], "-c", "import time; time.sleep(9)"])


def test_losses_that_differ_fail(place, monkeypatch):
    losses = {"plain": [2.0, 1.0], "fsdp": [2.0, 1.0]}
    place.trained = place.folder / "plain"  # in place of a run
    monkeypatch.setattr(place, "run", lambda command: "")
    monkeypatch.setattr(place, "losses", losses.__getitem__)
    assert check_device.check_several(place).status == PASSED
    losses["fsdp"] = [2.0, 1.01]
    result = check_device.check_several(place)
    assert result[:2] == (FAILED, "gloo, largest difference of a loss from one process: fsdp 1.0e-02")


def test_full_checks_do_more():
    assert all(getattr(FULL, f.name) > getattr(TOY, f.name) for f in dataclasses.fields(FULL) if f.type == "int")


@pytest.mark.slow
def test_the_rehearsal_passes():
    ended = finish(start("-m", "scripts.check_device", "device=cpu", "seconds=600"), timeout=600)
    assert ended.status == 0 and "14 passed, 0 failed, 0 skipped" in ended.out, ended.out
