"""Resuming a run: the same weights bit for bit, and a refusal if it would be another run."""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from model.checkpoints import reader, writer
from model.distributed.stop_signal import StopSignal
from tests.conftest import POEM
from tests.families import make
from tests.programs import NANO, finish, ok, run, start
from tests.toy_training import digest, lines, signal_in_step, weights


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resumed")
    (folder / "poem.txt").write_text("".join(f"{number}. {POEM}" for number in range(30)), encoding="utf-8")
    return [f"corpus={folder / 'poem.txt'}", f"datasets={folder / 'datasets'}", *NANO]


@pytest.fixture(scope="module")
def first(base, tmp_path_factory):
    """A run of four steps. Tests only read it."""
    run_dir = tmp_path_factory.mktemp("first") / "run"
    ok("train", *base, "model.dropout=0.2", "steps=4", "eval_every=2", f"run_dir={run_dir}")
    return run_dir


@pytest.fixture
def run_dir(first, tmp_path):
    """A copy of that run."""
    return shutil.copytree(first, tmp_path / "run")


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_three_steps_and_three_resumed_equal_six_bit_for_bit(base, tmp_path, monkeypatch, dtype, optimizer, compile):
    torch._dynamo.reset()
    options = [*base, f"dtype={dtype}", f"optimizer={optimizer}", "model.dropout=0.1", "steps=6", "eval_every=6"]
    options += [f"compile={str(compile).lower()}", "spike_deviations=9"]
    ok("train", *options, f"run_dir={tmp_path / 'straight'}")
    with monkeypatch.context() as patch:
        calls = iter(range(1, 99))
        patch.setattr(StopSignal, "agreed", lambda self: next(calls) == 3)
        out = ok("train", *options, f"run_dir={tmp_path / 'halved'}")
    assert "stopped after step 3 of 6" in out and "resume=true" in out
    assert reader.find(tmp_path / "halved").step == 3
    out = ok("train", f"run_dir={tmp_path / 'halved'}", "resume=true")
    assert "at step 3" in out
    assert digest(tmp_path / "halved") == digest(tmp_path / "straight")
    ends = [[line for line in lines(tmp_path / name) if line["step"] == 6] for name in ("straight", "halved")]
    for one, two in zip(*ends, strict=True):
        timing = {"elapsed_seconds", "tokens_per_second"}
        assert {k: v for k, v in one.items() if k not in timing} == {k: v for k, v in two.items() if k not in timing}


@pytest.mark.slow
def test_compiled_training_is_deterministic_and_resumes(base, tmp_path):
    options = [*base, "compile=true", "steps=6", "eval_every=3", "model.dropout=0.1"]
    for name in ("one", "two"):
        ended = finish(start("train.py", *options, f"run_dir={tmp_path / name}"), timeout=400)
        assert ended.status == 0, ended.err
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert set(weights(tmp_path / "one")) == set(make("modern", n_layer=1).state_dict())


KILLED_IN_STEP_5 = """
import train
from conf import cli
from tests.toy_training import signal_in_step

signal_in_step(5, 9)
cli.run(train.main, train.TrainConfig, name="train")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_resumes_to_the_same_weights(base, tmp_path, monkeypatch, number):
    killed = tmp_path / "killed"
    options = [*base, "model.dropout=0.1", "steps=10", "save_every=2", "save_in_background=false", "log_every=1"]
    ok("train", *options, f"run_dir={tmp_path / 'straight'}")
    if number == signal.SIGTERM:
        with monkeypatch.context() as patch:
            patch.setattr(StopSignal, "agreed", StopSignal.agreed)
            signal_in_step(5, number)
            assert f"run_dir={killed} resume=true" in ok("train", *options, f"run_dir={killed}")
    else:
        assert finish(start("-c", KILLED_IN_STEP_5, *options, f"run_dir={killed}")).status == -number
    assert reader.find(killed).step == (5 if number == signal.SIGTERM else 4)
    assert "resuming" in ok("train", f"run_dir={killed}", "resume=true")
    assert digest(killed) == digest(tmp_path / "straight")
    assert [line["step"] for line in lines(killed) if "train_loss" in line] == list(range(1, 11))


def test_the_answer_to_ctrl_c_replaces_the_bar_on_a_terminal(monkeypatch, capfd):
    for terminal, message in ((True, "\r\x1b[Kstopping after"), (False, "stopping after")):
        monkeypatch.setattr("os.isatty", lambda descriptor, terminal=terminal: terminal)
        with StopSignal() as stop:
            stop.handle(signal.SIGINT, None)
        assert capfd.readouterr().err.startswith(message)


KILLED = ["model.dropout=0.1", "steps=400", "save_every=20", "eval_every=400", "log_every=50"]


def wait_for_step(run_dir: Path, step: int, process) -> None:
    deadline = time.monotonic() + 120
    while not (run_dir / f"step_{step:08d}" / "manifest.json").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_killed_at_any_moment_resumes_to_the_same_weights(base, tmp_path, number):
    options = [*base, *KILLED]
    ok("train", *options, f"run_dir={tmp_path / 'straight'}")
    process = start("train.py", *options, f"run_dir={tmp_path / 'killed'}")
    wait_for_step(tmp_path / "killed", 20, process)
    process.send_signal(number)
    ended = finish(process)
    if number == signal.SIGTERM:
        assert ended.status == 0, ended.err
        assert f"python train.py run_dir={tmp_path / 'killed'} resume=true" in ended.out
    assert reader.find(tmp_path / "killed").step < 400
    ok("train", f"run_dir={tmp_path / 'killed'}", "resume=true")
    assert digest(tmp_path / "killed") == digest(tmp_path / "straight")
    steps = [line["step"] for line in lines(tmp_path / "killed") if "train_loss" in line]
    assert steps == sorted(set(steps))


def test_an_extended_run_does_not_warm_up_again_and_notes_its_new_schedule(base, tmp_path):
    options = [*base, "steps=20", "eval_every=1000", "log_every=1", "weight_average=ema", f"run_dir={tmp_path / 'run'}"]
    assert "note: ema_decay=0.99 averages about the last 100 steps" in ok("train", *options)
    out = ok("train", f"run_dir={tmp_path / 'run'}", "resume=true", "steps=50")
    assert "warmup 2," in out and "continues at 100% of its peak instead of 0%" in out
    rates = [line["learning_rate"] for line in lines(tmp_path / "run") if "learning_rate" in line]
    assert len(rates) == 50 and rates[2] == rates[20] == max(rates) > rates[1] > rates[0]


def test_resume_refuses_changed_settings(base, run_dir, tmp_path):
    run_dir = f"run_dir={run_dir}"
    refused = run("train", *base, "steps=4", run_dir)
    assert refused.status == 2 and "resume=true" in refused.err
    refused = run("train", run_dir, "resume=true", "optimizer.learning_rate=0.5", "seed=7", "steps=6")
    assert refused.status == 2
    assert "0.5" in refused.err and "0.02" in refused.err and "seed=7" in refused.err
    assert "is finished" in ok("train", run_dir, "resume=true")
    assert "at step 4" in ok("train", *base, run_dir, "steps=6", "resume=true", "log_every=1")
    assert reader.find(tmp_path / "run").step == 6
    refused = run("train", *base, f"run_dir={tmp_path / 'other'}", "resume=true")
    assert refused.status == 2 and "no run to resume" in refused.err


def test_resume_refuses_a_changed_corpus(base, run_dir):
    corpus = Path(base[0].removeprefix("corpus="))
    text = corpus.read_text(encoding="utf-8")
    corpus.write_text(text.replace("3. Listen", "3. listen"), encoding="utf-8")
    refused = run("train", f"run_dir={run_dir}", "resume=true", "steps=6")
    corpus.write_text(text, encoding="utf-8")
    assert refused.status == 2 and "data fingerprint" in refused.err


def test_the_settings_of_a_resumed_run_are_validated(base, tmp_path, monkeypatch):
    run_dir = f"run_dir={tmp_path / 'run'}"
    ok("train", *base, "batch_size=10", "steps=1", run_dir)  # the default batch_size would divide among four
    monkeypatch.setenv("WORLD_SIZE", "4")
    refused = run("train", run_dir, "resume=true", "steps=4", "parallel=ddp")
    assert refused.status == 2 and "batch_size=10 is not divisible by the 4 processes" in refused.err
    monkeypatch.delenv("WORLD_SIZE")
    refused = run("train", run_dir, "resume=true", "steps=4", "micro_batch=4")
    assert refused.status == 2 and "micro_batch=4 does not divide the 10" in refused.err


@pytest.mark.parametrize("group", ["muon", "adamw"])  # which brings all settings of its own, defaults included
def test_resume_auto_starts_and_resumes(base, tmp_path, group):
    options = [*base, "steps=4", f"run_dir={tmp_path / 'run'}", f"optimizer={group}", "resume=auto"]
    ok("train", *options)
    assert "is finished" in ok("train", *options)


def test_only_a_restart_of_the_same_job_resumes_automatically(base, tmp_path, monkeypatch):
    options = [*base, "steps=4", f"run_dir={tmp_path / 'run'}"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    ok("train", *options)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert "is finished" in ok("train", *options)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "two")
    assert run("train", *options).status == 2


def test_a_resume_repairs_best_after_a_kill(run_dir):
    assert reader.find(run_dir / "best").step == 4
    writer.write_pointer(run_dir, "best", "step_00000002")
    (run_dir / "loss.png").unlink()
    assert "is finished" in ok("train", f"run_dir={run_dir}", "resume=true")
    assert reader.find(run_dir / "best").step == 4 and (run_dir / "loss.png").exists()


def test_a_run_with_a_removed_setting_resumes(run_dir, tmp_path):
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace("\nmodel:\n", "\nmodel:\n  zero_init: true\n"))
    assert "zero_init" in config.read_text()
    shape = tmp_path / "model.json"
    written = json.loads((run_dir / "step_00000004" / "model.json").read_text())
    shape.write_text(json.dumps(written | {"zero_init": True}))
    assert asdict(reader.read_config(shape)) == written
    more = ["workers=1", "verify=true", f"datasets={tmp_path / 'elsewhere'}"]  # none of these makes it another run
    assert "finished in" in ok("train", f"run_dir={run_dir}", "resume=true", "steps=6", *more)
    for step in reader.steps(run_dir):
        shutil.rmtree(step)
    assert f"note: {run_dir} holds no checkpoint" in ok("train", f"run_dir={run_dir}", "resume=true")


def test_a_run_of_an_older_version_resumes(base, tmp_path, monkeypatch):
    """Its train_state.json has other names for two fields; the run had a time budget."""
    monkeypatch.setattr("model.planning.budget.REPLAN_THRESHOLD", 1e9)  # no new plan, though there is time for more
    run_dir = tmp_path / "run"
    ok("train", *base, "steps=6", "save_every=3", "eval_every=3", "keep_last=9", f"run_dir={run_dir}")
    shutil.rmtree(run_dir / "step_00000006")
    step = run_dir / "step_00000003"
    state = json.loads((step / "train_state.json").read_text())
    for name in ("decay_restart", "time_budget"):
        del state[name]
    state |= {"steps": 8, "bend": [2, 0.5], "budget": "5m"}
    (step / "train_state.json").write_text(json.dumps(state))
    manifest = json.loads((step / "manifest.json").read_text())
    manifest["files"]["train_state.json"] = writer.flush_and_describe(step / "train_state.json")
    (step / "manifest.json").write_text(json.dumps(manifest))
    config = run_dir / "config.yaml"
    settings = (
        config.read_text().replace("time_budget: null", "budget: 5m").replace("log_every: 10\n", "log_every: 1\n")
    )
    config.write_text(settings)
    assert "budget: 5m" in settings and "time_budget" not in settings
    assert "at step 3" in ok("train", f"run_dir={run_dir}", "resume=true")
    rates = {line["step"]: line["learning_rate"] for line in lines(run_dir) if "learning_rate" in line}
    peak = 0.02
    # The saved plan holds: 8 steps, and a straight line from 0.5 at step 2 to 0 at step 8.
    assert [rates[step] / peak for step in range(4, 9)] == pytest.approx([0.5 * (8 - step) / 6 for step in range(3, 8)])


def test_training_from_a_checkpoint_uses_its_model_and_tokenizer(base, first, tmp_path):
    common = [base[0], base[1], "device=cpu", "batch_size=4", "steps=2", f"checkpoint={first}"]
    ok("train", *common, f"run_dir={tmp_path / 'second'}", "optimizer.learning_rate=1e-9", "model.dropout=0.1")
    hidden = "blocks.0.mlp.up.weight"
    torch.testing.assert_close(weights(first)[hidden], weights(tmp_path / "second")[hidden], atol=1e-4, rtol=0)
    refused = run("train", *common, f"run_dir={tmp_path / 'third'}", "model.n_layer=3")
    assert refused.status == 2 and "model.n_layer=3" in refused.err and "1" in refused.err
    refused = run("train", *common, f"run_dir={tmp_path / 'third'}", "tokenizer=byte")
    assert refused.status == 2 and "byte" in refused.err and "char" in refused.err


def test_the_same_command_twice_resumes_a_run_started_from_a_checkpoint(base, first, tmp_path):
    same = [*base, f"checkpoint={first}", "steps=3", f"run_dir={tmp_path / 'second'}", "resume=auto"]
    ok("train", *same)
    assert "is finished" in ok("train", *same)
    assert reader.find(tmp_path / "second").config.dropout == 0.2
    refused = run("train", *same[:-2], f"run_dir={tmp_path / 'third'}", "tokenizer.pattern=gpt4")
    assert refused.status == 2 and "tokenizer.pattern=gpt4" in refused.err
