"""The loop: exact numerics, exact resume, nothing that is not finite reaches the weights, one line a mistake."""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import train
from data.batching.batches import IGNORE
from model.checkpoints import reader, writer
from model.device import Compute
from model.distributed import parallel
from model.optimization.schedule import OptimizerConfig
from model.training import settings, skip_updates
from model.training.evaluate import evaluate
from model.training.settings import LoopConfig, resolve_compile
from tests.families import make
from tests.programs import NANO, finish, ok, run, start


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return reader.find(run_dir).weights()


def digest(run_dir: Path) -> str:
    return reader.sha256(reader.find(run_dir).directory / "model.safetensors")


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def base(poem, tmp_path):
    return [f"corpus={poem}", f"datasets={tmp_path / 'datasets'}", *NANO]


class UnequalMasks:
    """Rows whose numbers of targets differ widely, as labelled examples have."""

    batch_size, context, document_mask = 8, 32, False

    def batch(self, step, rows):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 96, (8, 33), generator=generator)
        targets = ids[:, 1:].clone()
        for row in range(8):
            targets[row, : 4 * row] = IGNORE
        return ids[rows, :-1].numpy(), targets[rows].numpy()

    def supervised_tokens(self, step):
        return sum(32 - 4 * row for row in range(8))

    def epochs(self, step):
        return {"random ids": step}

    def describe(self, step):
        return f"batch of step {step}"


class Poisoned(UnequalMasks):
    """The batches of some steps make the loss infinite."""

    def __init__(self, model, steps):
        self.model, self.steps, self.clean = model, steps, model.embed.weight.detach().clone()

    def batch(self, step, rows):
        with torch.no_grad():
            self.model.embed.weight.copy_(self.clean)
            if step in self.steps:
                self.model.embed.weight[0] = float("nan")
            else:
                self.clean.copy_(self.model.embed.weight)
        return super().batch(step, rows)


class NoTokenizer:
    def save(self, directory):
        (directory / "tokenizer.json").write_text("{}")


def fit(tmp_path, data_of=lambda model: UnequalMasks(), **settings):
    model = make("modern", n_layer=1)
    settings = {"steps": 6, "dtype": "float32"} | settings
    adamw = OptimizerConfig(name="adamw", learning_rate=1e-3, warmup_steps=2)
    cfg = train.LoopConfig(run_dir=str(tmp_path), batch_size=8, device="cpu", log_every=1, optimizer=adamw, **settings)
    compute = Compute.resolve("cpu", dtype=cfg.dtype)
    Path(tmp_path).mkdir(parents=True, exist_ok=True)
    train.fit(
        cfg, model, NoTokenizer(), data_of(model), None, world=parallel.World(), compute=compute, fingerprints={}
    )  # fmt: skip
    return model


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_micro_batches_change_nothing_though_masks_are_unequal(tmp_path, micro_batch):
    whole = fit(tmp_path / "whole")
    split = fit(tmp_path / "split", micro_batch=micro_batch)
    for one, two in zip(lines(tmp_path / "whole"), lines(tmp_path / "split"), strict=True):
        assert abs(one["train_loss"] - two["train_loss"]) < 1e-5
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(split.state_dict()[name], value, atol=2e-4, rtol=0, msg=name)


def test_logged_loss_is_the_mean_over_the_whole_batch(tmp_path):
    fit(tmp_path, steps=1, micro_batch=2)
    model, data = make("modern", n_layer=1), UnequalMasks()
    inputs, targets = (torch.from_numpy(a) for a in data.batch(0, slice(None)))
    expected = model(inputs, targets=targets).item() / data.supervised_tokens(0)
    assert abs(lines(tmp_path)[0]["train_loss"] - expected) < 1e-5


def test_an_update_that_is_not_finite_never_reaches_the_weights(tmp_path, capsys):
    model = fit(tmp_path, data_of=lambda model: Poisoned(model, {3}))
    model.embed.weight.data[0] = 0
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    said = capsys.readouterr().out
    assert "skipped 1 update(s)" in said and "step 4: batch of step 3" in said
    tensors, _ = reader.find(tmp_path).train_state()
    assert all(torch.isfinite(value).all() for value in tensors.values())


def test_many_bad_updates_in_a_row_end_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"4 updates in a row.*batch of step 5"):
        fit(tmp_path, data_of=lambda model: Poisoned(model, range(2, 99)), steps=30, nonfinite_limit=4)


def test_float16_overflows_lower_the_scale_and_are_counted_apart(tmp_path, capsys):
    fit(tmp_path, dtype="float16", steps=2, data_of=lambda model: Poisoned(model, {0}))
    assert "skipped" not in capsys.readouterr().out
    tensors, _ = reader.find(tmp_path).train_state()
    assert tensors["loss_scale.scale"].item() == 2**15


def test_a_spike_is_no_overflow(tmp_path, monkeypatch):
    monkeypatch.setattr(skip_updates.SpikeDetector, "check", lambda self, norm, loss: torch.tensor(True))
    fit(tmp_path, dtype="float16", steps=2, spike_deviations=6.0)
    tensors, _ = reader.find(tmp_path).train_state()
    assert tensors["loss_scale.scale"].item() == 2**16


class Rows:
    n_bytes = 50

    def __init__(self, count):
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, 96, (count, 21), generator=generator)

    def __len__(self):
        return len(self.ids)

    def batch(self, begin, end):
        inputs = torch.zeros(end - begin, 20, dtype=torch.int64)
        targets = torch.full_like(inputs, IGNORE)
        part = self.ids[begin:end]
        inputs[: len(part)], targets[: len(part)] = part[:, :-1], part[:, 1:]
        return inputs.numpy(), targets.numpy()


def test_evaluation_does_not_depend_on_the_batch_and_leaves_the_model_as_it_was():
    model = make("gpt2", dropout=0.5).train()
    compute = Compute.resolve("cpu", dtype="float32")
    before = torch.get_rng_state()
    scores = [evaluate(model, Rows(7), compute=compute, batch_size=rows) for rows in (1, 3, 7, 16)]
    assert torch.equal(before, torch.get_rng_state()) and model.training
    assert {score.tokens for score in scores} == {140}
    assert max(score.loss for score in scores) - min(score.loss for score in scores) < 1e-6
    assert abs(scores[0].bits_per_byte - scores[0].loss * 140 / 0.6931471805599453 / 50) < 1e-9


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_three_and_three_steps_equal_six_bit_for_bit(base, tmp_path, monkeypatch, dtype, optimizer, compile):
    torch._dynamo.reset()
    options = [*base, f"dtype={dtype}", f"optimizer={optimizer}", "model.dropout=0.1", "steps=6", "eval_every=6"]
    options += [f"compile={str(compile).lower()}", "spike_deviations=9"]
    ok("train", *options, f"run_dir={tmp_path / 'straight'}")
    with monkeypatch.context() as patch:
        calls = iter(range(1, 99))
        patch.setattr(parallel.StopSignal, "agreed", lambda self: next(calls) == 3)
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


def test_a_long_run_on_a_cpu_is_compiled_and_a_short_one_is_not(monkeypatch):
    model, one = make("modern"), parallel.World()  # 3 layers, 64 wide, context 48: some 2e6 FLOPs a token
    resolved = Compute.resolve("cpu", compile="auto")
    monkeypatch.setattr(settings, "missing_for_compile", lambda device: None)

    def decide(world=one, **changes) -> bool:
        return resolve_compile(LoopConfig(**changes), model, resolved, world).compile

    assert not resolved.compile and not decide(steps=10_000)
    assert decide(steps=1_000_000) and not decide(steps=1_000_000, compile=False)
    assert not decide(steps=1_000_000, world=parallel.World(rank=0, size=2))
    assert decide(time_budget="20m") and not decide(time_budget="5m", steps=1_000_000)
    monkeypatch.setattr(settings, "missing_for_compile", lambda device: "a C++ compiler")
    assert not decide(steps=1_000_000)


def test_a_run_that_is_made_longer_is_not_warmed_up_again(base, tmp_path):
    options = [*base, "steps=20", "eval_every=1000", "log_every=1", f"run_dir={tmp_path / 'run'}"]
    ok("train", *options)
    assert "warmup 2," in ok("train", f"run_dir={tmp_path / 'run'}", "resume=true", "steps=200")
    rates = [line["learning_rate"] for line in lines(tmp_path / "run") if "learning_rate" in line]
    assert len(rates) == 200 and rates[2] == rates[20] == max(rates) > rates[1] > rates[0]


def wait_for_step(run_dir: Path, step: int, process) -> None:
    deadline = time.monotonic() + 120
    while not (run_dir / f"step_{step:08d}" / "manifest.json").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on_to_the_same_weights(base, tmp_path, number):
    options = [*base, "model.dropout=0.1", "steps=400", "save_every=20", "eval_every=400", "log_every=50"]
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


def test_evaluating_more_often_changes_no_weight(base, tmp_path):
    for name, often in (("rare", 6), ("often", 1)):
        ok("train", *base, "model.dropout=0.1", "steps=6", f"eval_every={often}", f"run_dir={tmp_path / name}")
    assert digest(tmp_path / "rare") == digest(tmp_path / "often")


def test_resume_refuses_what_would_make_it_another_run(base, tmp_path):
    run_dir = f"run_dir={tmp_path / 'run'}"
    ok("train", *base, "steps=4", run_dir)
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


def test_a_kill_before_best_was_moved_is_made_good(base, tmp_path):
    run_dir = tmp_path / "run"
    ok("train", *base, "steps=4", "eval_every=2", f"run_dir={run_dir}")
    assert reader.find(run_dir / "best").step == 4
    writer.point(run_dir, "best", "step_00000002")
    (run_dir / "loss.png").unlink()
    assert "is finished" in ok("train", f"run_dir={run_dir}", "resume=true")
    assert reader.find(run_dir / "best").step == 4 and (run_dir / "loss.png").exists()


def test_an_error_in_the_loop_is_the_one_that_is_told(tmp_path, monkeypatch):
    def no_room(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("conf.display.plots.plot_loss", no_room)
    with pytest.raises(ValueError, match="4 updates in a row"):
        fit(tmp_path, data_of=lambda model: Poisoned(model, range(2, 99)), steps=30, nonfinite_limit=4)


def test_only_a_restart_of_the_same_job_goes_on_by_itself(base, tmp_path, monkeypatch):
    options = [*base, "steps=4", f"run_dir={tmp_path / 'run'}"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    ok("train", *options)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert "is finished" in ok("train", *options)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "two")
    assert run("train", *options).status == 2


def test_a_run_of_before_a_setting_went_goes_on(base, tmp_path):
    run_dir = tmp_path / "run"
    ok("train", *base, "steps=2", f"run_dir={run_dir}")
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace("\nmodel:\n", "\nmodel:\n  zero_init: true\n"))
    assert "zero_init" in config.read_text()
    shape = tmp_path / "model.json"
    written = json.loads((run_dir / "step_00000002" / "model.json").read_text())
    shape.write_text(json.dumps(written | {"zero_init": True}))
    assert asdict(reader.read_config(shape)) == written
    more = ["workers=1", "verify=true", f"datasets={tmp_path / 'elsewhere'}"]  # none of these makes it another run
    assert "finished in" in ok("train", f"run_dir={run_dir}", "resume=true", "steps=4", *more)
    for step in reader.steps(run_dir):
        shutil.rmtree(step)
    assert f"note: {run_dir} holds no checkpoint" in ok("train", f"run_dir={run_dir}", "resume=true")


def test_others_may_read_what_they_may_read_of_a_run(base, tmp_path):
    ok("train", *base, "steps=2", f"run_dir={tmp_path / 'run'}")
    modes = {path.stat().st_mode for path in reader.find(tmp_path / "run").directory.iterdir() if path.is_file()}
    assert len(modes) == 1


@pytest.mark.parametrize("group", ["muon", "adamw"])  # which brings all settings of its own, defaults included
def test_resume_auto_starts_and_goes_on(base, tmp_path, group):
    options = [*base, "steps=4", f"run_dir={tmp_path / 'run'}", f"optimizer={group}", "resume=auto"]
    ok("train", *options)
    assert "is finished" in ok("train", *options)


def test_the_settings_that_a_run_goes_on_with_are_checked(base, tmp_path, monkeypatch):
    run_dir = f"run_dir={tmp_path / 'run'}"
    ok("train", *base, "batch_size=10", "steps=2", run_dir)  # the default batch_size would divide among four
    monkeypatch.setenv("WORLD_SIZE", "4")
    refused = run("train", run_dir, "resume=true", "steps=4", "parallel=ddp")
    assert refused.status == 2 and "batch_size=10 is not divisible by the 4 processes" in refused.err
    monkeypatch.delenv("WORLD_SIZE")
    refused = run("train", run_dir, "resume=true", "steps=4", "micro_batch=4")
    assert refused.status == 2 and "micro_batch=4 does not divide the 10" in refused.err


def test_the_same_command_twice_goes_on_from_a_checkpoint_of_another_run(base, tmp_path):
    ok("train", *base, "model.dropout=0.2", "steps=2", f"run_dir={tmp_path / 'first'}")
    same = [*base, f"checkpoint={tmp_path / 'first'}", "steps=3", f"run_dir={tmp_path / 'second'}", "resume=auto"]
    ok("train", *same)
    assert "is finished" in ok("train", *same)
    assert reader.find(tmp_path / "second").config.dropout == 0.2
    refused = run("train", *same[:-2], f"run_dir={tmp_path / 'third'}", "tokenizer.pattern=gpt4")
    assert refused.status == 2 and "tokenizer.pattern='gpt4'" in refused.err


def test_a_manifest_tells_the_validation_loss_of_its_own_step_only(base, tmp_path):
    ok("train", *base, "steps=4", "eval_every=2", "save_every=1", "keep_last=9", f"run_dir={tmp_path / 'run'}")
    known = {path.name: "val_loss" in reader.verify(path).manifest for path in reader.steps(tmp_path / "run")}
    assert known == {f"step_{step:08d}": step % 2 == 0 for step in range(1, 5)}


def test_resume_refuses_a_changed_corpus(base, poem, tmp_path):
    run_dir = f"run_dir={tmp_path / 'run'}"
    ok("train", *base, "steps=2", run_dir)
    poem.write_text(poem.read_text().replace("3. Listen", "3. listen"), encoding="utf-8")
    refused = run("train", run_dir, "resume=true", "steps=4")
    assert refused.status == 2 and "data fingerprint" in refused.err


def test_training_goes_on_from_a_checkpoint_with_its_model_and_tokenizer(base, tmp_path):
    ok("train", *base, "steps=4", f"run_dir={tmp_path / 'first'}")
    common = [base[0], base[1], "device=cpu", "batch_size=4", "steps=2", f"checkpoint={tmp_path / 'first'}"]
    ok("train", *common, f"run_dir={tmp_path / 'second'}", "optimizer.learning_rate=1e-9", "model.dropout=0.1")
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    hidden = "blocks.0.mlp.up.weight"
    torch.testing.assert_close(first[hidden], second[hidden], atol=1e-4, rtol=0)
    refused = run("train", *common, f"run_dir={tmp_path / 'third'}", "model.n_layer=3")
    assert refused.status == 2 and "model.n_layer=3" in refused.err and "1" in refused.err
    refused = run("train", *common, f"run_dir={tmp_path / 'third'}", "tokenizer=byte")
    assert refused.status == 2 and "byte" in refused.err and "char" in refused.err


def test_wandb_offline_writes_its_run(base, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    ok("train", *base, "steps=2", f"run_dir={tmp_path / 'run'}", "wandb.mode=offline", "wandb.project=poems")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_metrics_hold_what_programs_read(base, tmp_path):
    ok("train", *base, "steps=5", "eval_every=5", "log_every=2", f"run_dir={tmp_path / 'run'}")
    found = lines(tmp_path / "run")
    trained = [line for line in found if "train_loss" in line]
    assert [line["step"] for line in trained] == [1, 2, 4, 5]
    assert [line["tokens"] for line in trained] == [128 * step for step in (1, 2, 4, 5)]
    assert {"elapsed_seconds", "learning_rate", "grad_norm"} <= trained[-1].keys() and "tokens_per_second" in trained[
        -1
    ]
    assert found[-1].keys() == {"step", "tokens", "elapsed_seconds", "val_loss", "val_bits_per_byte"}
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert found[-1]["val_loss"] == reader.find(tmp_path / "run" / "best").manifest["val_loss"]


@pytest.mark.slow
def test_compiled_training_is_deterministic_and_resumes(base, tmp_path):
    options = [*base, "compile=true", "steps=6", "eval_every=3", "model.dropout=0.1"]
    for name in ("one", "two"):
        ended = finish(start("train.py", *options, f"run_dir={tmp_path / name}"), timeout=400)
        assert ended.status == 0, ended.err
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert set(weights(tmp_path / "one")) == set(make("modern", n_layer=1).state_dict())
