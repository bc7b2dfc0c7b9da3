"""A save may fail at any point and its files be harmed later: there is an older step, or a refusal."""

from __future__ import annotations

import errno
import itertools
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model import InputError
from model.checkpoints import reader, writer
from model.checkpoints.background import Saver
from scripts import faults
from tests.families import make
from tests.programs import ok


class Two(writer.Peers):
    """Two ranks that save together, as threads of one process."""

    def __init__(self, rank: int, barrier: threading.Barrier, well: list[bool]) -> None:
        self.rank, self.writers, self.barrier, self.well = rank, 2, barrier, well

    def all_succeeded(self, succeeded: bool) -> bool:
        self.well[self.rank] = succeeded
        self.barrier.wait(10)
        together = all(self.well)
        self.barrier.wait(10)
        return together


def peers(writers: int) -> list[writer.Peers]:
    barrier, well = threading.Barrier(2), [True, True]
    return [writer.Peers()] if writers == 1 else [Two(rank, barrier, well) for rank in range(2)]


def save_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{}")


def save(run_dir: Path, step: int, *, writers: int = 1, best: bool = False) -> list[BaseException]:
    """Saves a step, each writer in a thread; their errors."""
    model = make("modern", n_layer=1, seed=step)
    errors: list[BaseException] = []

    def work(one: writer.Peers) -> None:
        new = writer.snapshot(
            step, model=model, save_tokenizer=save_tokenizer, tensors={"adamw.step.x": torch.ones(3)},
            state={"step": step}, manifest={}, peers=one,
        )  # fmt: skip
        try:
            writer.write(run_dir, new, best=best, keep_last=1, peers=one)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(one,)) for one in peers(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


class Disk:
    """Counts everything that a save asks of the disk, and lets the fail_at-th thing fail, once or from then on."""

    def __init__(self, patch: pytest.MonkeyPatch, *, fail_at: int, number: int, for_good: bool) -> None:
        self.count, self.fail_at, self.number, self.for_good = itertools.count(1), fail_at, number, for_good
        self.asked = 0
        for owner, names in (
            (writer, ("save_file",)),
            (writer.os, ("fsync", "open")),
            (Path, ("rename", "replace", "mkdir", "unlink", "write_text")),
        ):
            for name in names:
                patch.setattr(owner, name, self.guarded(getattr(owner, name)))

    def guarded(self, function):
        def call(*args, **kwargs):
            self.asked = next(self.count)
            if self.asked == self.fail_at or (self.for_good and self.asked > self.fail_at > 0):
                raise OSError(self.number, "failed on purpose")
            return function(*args, **kwargs)

        return call


@pytest.mark.parametrize(
    "writers, number, for_good",
    [(1, errno.ENOSPC, True), (1, errno.ENOSPC, False), (1, errno.EIO, False), (2, errno.EIO, False)],
)
def test_each_write_fsync_and_rename_may_fail(tmp_path, writers, number, for_good):
    base = tmp_path / "base"
    for step in (1, 2):
        assert not save(base, step)
    failed = 0
    for fail_at in range(1, 99):
        run_dir = tmp_path / f"run{fail_at}"
        shutil.copytree(base, run_dir)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, fail_at=fail_at, number=number, for_good=for_good)
            errors = save(run_dir, 3, writers=writers, best=True)
        found = reader.newest(run_dir, say=lambda line: None)
        assert found is not None and found.step in (2, 3), fail_at
        assert found.step == 3 or errors, "a save that failed must say so"
        found.load_into(make("modern", n_layer=1))
        assert reader.find(run_dir / "latest").step in (2, 3)
        assert not save(run_dir, 4, writers=writers)  # and the next one works
        assert reader.find(run_dir).step == 4 and not list(run_dir.glob(".tmp-step*"))
        failed += bool(errors)
        if disk.asked < fail_at:
            break
    assert failed >= fail_at - 3 > 20  # two are of no importance: what is left of an earlier save may stay


@pytest.mark.parametrize("writers", [1, 2])
def test_each_file_may_be_damaged(tmp_path, writers):
    for step in (1, 2):
        assert not save(tmp_path / "base", step, writers=writers, best=step == 1)
    newest = tmp_path / "base" / "step_00000002"
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    assert len(files) == (6 if writers == 1 else 9)
    whole = {name: value.clone() for name, value in reader.find(newest).weights().items()}
    for number, file in enumerate(files):
        content = (newest / file).read_bytes()
        places = {0, len(content) // 3, len(content) - 1}
        harmed = [content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :] for place in places]
        harmed += [b"", content[: len(content) // 2], content[:-1], content + b"\0"]
        for way, new in enumerate(harmed):
            run_dir = tmp_path / f"run-{number}-{way}"
            shutil.copytree(tmp_path / "base", run_dir)
            (run_dir / "step_00000002" / file).write_bytes(new)
            said: list[str] = []
            found = reader.newest(run_dir, say=said.append)
            assert found is not None
            if found.step == 2:  # only what means the same: white space in the manifest
                assert file.name == "manifest.json"
                assert all(torch.equal(value, whole[name]) for name, value in found.weights().items())
                continue
            assert found.step == 1 and "step_00000002" in said[0]
            with pytest.raises(InputError, match="step_00000002"):
                reader.find(run_dir / "step_00000002")


def slow_write(patch: pytest.MonkeyPatch) -> threading.Event:
    """Writing waits until the event is set."""
    go_on, sound = threading.Event(), writer.save_file

    def save_file(tensors, path):
        assert go_on.wait(10)
        sound(tensors, path)

    patch.setattr(writer, "save_file", save_file)
    return go_on


def snapshot(model, step: int) -> writer.Snapshot:
    return writer.snapshot(
        step, model=model, save_tokenizer=save_tokenizer, tensors={}, state={}, manifest={}, peers=writer.Peers()
    )


def test_training_goes_on_while_a_step_is_written_and_the_step_is_that_of_the_copy(tmp_path, monkeypatch):
    model = make("modern", n_layer=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with Saver(tmp_path, keep_last=9, background=True, peers=writer.Peers()) as saver:
        go_on = slow_write(monkeypatch)
        saver.save(snapshot(model, 1), best=2.5)
        for p in model.parameters():
            p.data.add_(1)
        assert not reader.steps(tmp_path) and saver.best_val_loss is None
        go_on.set()
        assert saver.best_on_disk() == 2.5
        saver.save(snapshot(model, 2), best=None)
    assert [path.name for path in reader.steps(tmp_path)] == ["step_00000002", "step_00000001"]
    saved = reader.find(tmp_path / "best").weights()
    assert all(torch.equal(saved[name], value) for name, value in before.items())


def test_an_error_of_the_program_in_the_thread_is_no_full_disk(tmp_path):
    def broken(directory: Path) -> None:
        raise KeyError("a bug")

    new = writer.snapshot(
        1,
        model=make("modern", n_layer=1),
        save_tokenizer=broken,
        tensors={},
        state={},
        manifest={},
        peers=writer.Peers(),
    )
    with pytest.raises(KeyError), Saver(tmp_path, keep_last=1, background=True, peers=writer.Peers()) as saver:
        saver.save(new, best=None)


@pytest.mark.parametrize("figures, done", [("", 0), ("cut", 0), ("cut and own", 3)])
def test_steps_that_an_earlier_process_lost_are_not_counted_again(tmp_path, monkeypatch, figures, done):
    """A run says its size, then cuts the figures back to the step that it goes on from; a kill may come in between."""
    metrics = tmp_path / "killed" / "metrics.jsonl"
    metrics.parent.mkdir()
    metrics.write_text('{"step": 12}\n')
    (tmp_path / "new.jsonl").write_text('{"step": 3}\n' if "own" in figures else "")
    work = f"import os; os.replace({str(tmp_path / 'new.jsonl')!r}, {str(metrics)!r})" if figures else ""
    (tmp_path / "train.py").write_text(f"import time\nprint('5 parameters,', flush=True)\n{work}\ntime.sleep(60)\n")
    monkeypatch.setattr(faults, "TRAIN", tmp_path / "train.py")
    draws = iter([0.05, 0.4])  # at any moment; a while after the start
    monkeypatch.setattr(
        faults, "random", SimpleNamespace(Random=lambda seed: SimpleNamespace(random=lambda: next(draws)))
    )
    assert faults.attempt(faults.FaultsConfig(out=str(tmp_path)), 0) == (done, 0)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path):
    out = ok("faults", "kills=5", f"out={tmp_path}")
    assert "5 kills" in out and "are the same, bit for bit" in out and "waiting for each save" in out
