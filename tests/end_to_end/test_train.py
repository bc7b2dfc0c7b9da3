"""The training loop: exact numerics, no non-finite update, and what a run leaves on disk."""

from __future__ import annotations

import pytest
import torch

import train
from model.checkpoints import reader
from model.distributed.parallel import World
from model.training import skip_updates
from tests.families import make
from tests.programs import NANO, ok
from tests.toy_training import Poisoned, UnequalMasks, digest, embedding, fit, lines


@pytest.fixture
def base(poem, tmp_path):
    return [f"corpus={poem}", f"datasets={tmp_path / 'datasets'}", *NANO]


def test_micro_batches_change_nothing_with_unequal_masks(tmp_path):
    whole = fit(tmp_path / "whole")
    for micro_batch in (1, 2, 4):
        split = fit(tmp_path / f"split-{micro_batch}", micro_batch=micro_batch)
        for one, two in zip(lines(tmp_path / "whole"), lines(tmp_path / f"split-{micro_batch}"), strict=True):
            assert abs(one["train_loss"] - two["train_loss"]) < 1e-5
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(split.state_dict()[name], value, atol=2e-4, rtol=0, msg=name)


def test_logged_loss_is_the_mean_over_the_whole_batch(tmp_path):
    fit(tmp_path, steps=1, micro_batch=2)
    model, data = make("modern", n_layer=1), UnequalMasks()
    inputs, targets = (torch.from_numpy(a) for a in data.batch(0, slice(None)))
    expected = model(inputs, targets=targets).item() / data.supervised_tokens(0)
    assert abs(lines(tmp_path)[0]["train_loss"] - expected) < 1e-5


def test_a_non_finite_update_never_reaches_the_weights(tmp_path, capsys):
    model = fit(tmp_path, data_of=lambda model: Poisoned(model, {3}))
    embedding(model).data[0] = 0
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    said = capsys.readouterr().out
    assert "skipped 1 update(s)" in said and "step 4: batch of step 3" in said
    tensors, _ = reader.find(tmp_path).train_state()
    assert all(torch.isfinite(value).all() for value in tensors.values())


@pytest.mark.parametrize(
    "size, local_size, expected", [(1, 1, "python"), (8, 8, "--nproc_per_node=8 "), (16, 8, "resubmit the same job")]
)
def test_a_stopped_run_says_how_to_resume_it_on_one_machine_or_several(monkeypatch, size, local_size, expected):
    monkeypatch.setenv("WORLD_SIZE", str(size))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_size))
    said = train.how_to_resume(train.TrainConfig(run_dir="out/run"), World.from_environment())
    assert expected in said and "resume=true" in said and (size == 1) != ("torchrun" in said or "job" in said)


def test_many_consecutive_bad_updates_abort_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"4 updates in a row.*batch of step 5"):
        fit(tmp_path, data_of=lambda model: Poisoned(model, range(2, 99)), steps=30, nonfinite_limit=4)


def test_a_float16_overflow_lowers_the_loss_scale_without_a_warning(tmp_path, capsys):
    fit(tmp_path, dtype="float16", steps=2, data_of=lambda model: Poisoned(model, {0}))
    assert "skipped" not in capsys.readouterr().out
    tensors, _ = reader.find(tmp_path).train_state()
    assert tensors["loss_scale.scale"].item() == 2**15


def test_a_spike_does_not_lower_the_loss_scale(tmp_path, monkeypatch):
    monkeypatch.setattr(skip_updates.SpikeDetector, "check", lambda self, norm, loss: torch.tensor(True))
    fit(tmp_path, dtype="float16", steps=2, spike_deviations=6.0)
    tensors, _ = reader.find(tmp_path).train_state()
    assert tensors["loss_scale.scale"].item() == 2**16


def test_evaluating_more_often_changes_no_weight(base, tmp_path):
    for name, often in (("rare", 6), ("often", 1)):
        ok("train", *base, "model.dropout=0.1", "steps=6", f"eval_every={often}", f"run_dir={tmp_path / name}")
    assert digest(tmp_path / "rare") == digest(tmp_path / "often")


@pytest.mark.usefixtures("real_plots")
def test_an_error_in_the_loop_is_not_hidden_by_one_at_its_end(tmp_path, monkeypatch):
    def no_room(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("conf.display.plots.plot_loss", no_room)
    with pytest.raises(ValueError, match="4 updates in a row"):
        fit(tmp_path, data_of=lambda model: Poisoned(model, range(2, 99)), steps=30, nonfinite_limit=4)


def test_all_files_of_a_checkpoint_have_the_same_permissions(base, tmp_path):
    ok("train", *base, "steps=2", f"run_dir={tmp_path / 'run'}")
    modes = {path.stat().st_mode for path in reader.find(tmp_path / "run").directory.iterdir() if path.is_file()}
    assert len(modes) == 1


def test_a_manifest_has_the_validation_loss_of_its_own_step_only(base, tmp_path):
    ok("train", *base, "steps=4", "eval_every=2", "save_every=1", "keep_last=9", f"run_dir={tmp_path / 'run'}")
    known = {path.name: "val_loss" in reader.verify(path).manifest for path in reader.steps(tmp_path / "run")}
    assert known == {f"step_{step:08d}": step % 2 == 0 for step in range(1, 5)}


def test_wandb_offline_writes_its_run(base, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    ok("train", *base, "steps=2", f"run_dir={tmp_path / 'run'}", "wandb.mode=offline", "wandb.project=poems")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.usefixtures("real_plots")
def test_metrics_have_the_documented_fields(base, tmp_path):
    ok("train", *base, "steps=5", "eval_every=5", "log_every=2", f"run_dir={tmp_path / 'run'}")
    found = lines(tmp_path / "run")
    trained = [line for line in found if "train_loss" in line]
    assert [line["step"] for line in trained] == [1, 2, 4, 5]
    assert [line["tokens"] for line in trained] == [128 * step for step in (1, 2, 4, 5)]
    assert {"elapsed_seconds", "learning_rate", "grad_norm", "tokens_per_second"} <= trained[-1].keys()
    assert found[-1].keys() == {"step", "tokens", "elapsed_seconds", "val_loss", "val_bits_per_byte"}
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert found[-1]["val_loss"] == reader.find(tmp_path / "run" / "best").manifest["val_loss"]
