"""Saving: after a failure at any point, or damage to any file, an older checkpoint opens or is refused by name."""

from __future__ import annotations

import errno
import itertools
import shutil
import threading
from pathlib import Path

import pytest
import torch

from model import InputError
from model.checkpoints import reader, writer
from model.checkpoints.background import Saver
from tests.families import make


class Two(writer.Peers):
    """Two ranks that save together, as threads of one process."""

    def __init__(self, rank: int, barrier: threading.Barrier, succeeded: list[bool]) -> None:
        self.rank, self.writers, self.barrier, self.succeeded = rank, 2, barrier, succeeded

    def all_succeeded(self, succeeded: bool) -> bool:
        self.succeeded[self.rank] = succeeded
        self.barrier.wait(10)
        together = all(self.succeeded)
        self.barrier.wait(10)
        return together


def peers(writers: int) -> list[writer.Peers]:
    barrier, succeeded = threading.Barrier(2), [True, True]
    return [writer.Peers()] if writers == 1 else [Two(rank, barrier, succeeded) for rank in range(2)]


def save_tokenizer(directory: Path) -> None:
    (directory / "tokenizer" / "tokenizer.json").write_text("{}")


def save(run_dir: Path, step: int, *, writers: int = 1, best: bool = False) -> list[BaseException]:
    """Saves a step with a thread per writer; returns their errors."""
    model = make("modern", n_layer=1, seed=step)
    errors: list[BaseException] = []

    def work(one: writer.Peers) -> None:
        new = writer.snapshot(
            step, model=model, save_files=[save_tokenizer], tensors={"adamw.step.embed.weight": torch.tensor(1.0)},
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
    """Counts the disk operations of a save, and makes the fail_at-th fail, once or from then on."""

    def __init__(self, patch: pytest.MonkeyPatch, *, fail_at: int, number: int, for_good: bool) -> None:
        self.count, self.fail_at, self.number, self.for_good = itertools.count(1), fail_at, number, for_good
        self.operations = 0
        for owner, names in (
            (writer, ("save_file",)),
            (writer.os, ("fsync", "open")),
            (Path, ("rename", "replace", "mkdir", "unlink", "write_text")),
        ):
            for name in names:
                patch.setattr(owner, name, self.guarded(getattr(owner, name)))

    def guarded(self, function):
        def call(*args, **kwargs):
            self.operations = next(self.count)
            if self.operations == self.fail_at or (self.for_good and self.operations > self.fail_at > 0):
                raise OSError(self.number, "failed on purpose")
            return function(*args, **kwargs)

        return call


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """fsync does nothing here, since no test cuts the power."""
    monkeypatch.setattr(writer.os, "fsync", lambda descriptor: None)


@pytest.mark.parametrize(
    "writers, number, for_good",
    [
        (1, errno.ENOSPC, True),
        (1, errno.EIO, False),
        pytest.param(2, errno.EIO, False, marks=pytest.mark.slow),
    ],
)
def test_any_write_fsync_or_rename_may_fail(tmp_path, writers, number, for_good):
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
        if disk.operations < fail_at:
            break
    assert failed >= fail_at - 3 > 20  # two operations only clean up after an earlier save


@pytest.mark.parametrize("writers", [1, 2])
def test_any_file_may_be_damaged(tmp_path, writers):
    for step in (1, 2):
        assert not save(tmp_path / "base", step, writers=writers, best=step == 1)
    newest = tmp_path / "base" / "step_00000002"
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    assert len(files) == (6 if writers == 1 else 9)
    intact = {name: value.clone() for name, value in reader.find(newest).weights().items()}
    for number, file in enumerate(files):
        content = (newest / file).read_bytes()
        places = {0, len(content) // 3, len(content) - 1}
        damaged = [content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :] for place in places]
        damaged += [b"", content[: len(content) // 2], content[:-1], content + b"\0"]
        for way, new in enumerate(damaged):
            run_dir = tmp_path / f"run-{number}-{way}"
            shutil.copytree(tmp_path / "base", run_dir)
            (run_dir / "step_00000002" / file).write_bytes(new)
            messages: list[str] = []
            found = reader.newest(run_dir, say=messages.append)
            assert found is not None
            if found.step == 2:  # white space in the manifest does not change its meaning
                assert file.name == "manifest.json"
                assert all(torch.equal(value, intact[name]) for name, value in found.weights().items())
                continue
            assert found.step == 1 and "step_00000002" in messages[0]
            with pytest.raises(InputError, match="step_00000002"):
                reader.find(run_dir / "step_00000002")


def slow_write(patch: pytest.MonkeyPatch) -> threading.Event:
    """Writing waits until the returned event is set."""
    released, original = threading.Event(), writer.save_file

    def save_file(tensors, path):
        assert released.wait(10)
        original(tensors, path)

    patch.setattr(writer, "save_file", save_file)
    return released


def snapshot(
    model, step: int, tensors: dict[str, torch.Tensor] | None = None, peers: writer.Peers | None = None
) -> writer.Snapshot:
    return writer.snapshot(
        step, model=model, save_files=[save_tokenizer], tensors=tensors or {}, state={}, manifest={},
        peers=peers or writer.Peers(),
    )  # fmt: skip


def test_training_continues_while_a_snapshot_is_written(tmp_path, monkeypatch):
    model = make("modern", n_layer=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with Saver(tmp_path, keep_last=9, background=True, peers=writer.Peers()) as saver:
        released = slow_write(monkeypatch)
        saver.save(snapshot(model, 1), best=2.5)
        for p in model.parameters():
            p.data.add_(1)
        assert not reader.steps(tmp_path) and saver.best_score is None
        released.set()
        assert saver.best_on_disk() == 2.5
        saver.save(snapshot(model, 2), best=None)
    assert [path.name for path in reader.steps(tmp_path)] == ["step_00000002", "step_00000001"]
    saved = reader.find(tmp_path / "best").weights()
    assert all(torch.equal(saved[name], value) for name, value in before.items())


@pytest.mark.parametrize("background", [False, True])
def test_a_step_with_nan_or_infinity_is_never_published(tmp_path, background):
    model, moment = make("modern", n_layer=1), torch.ones(128, 64)
    model.embed.weight.requires_grad_(False)

    def save(step: int) -> None:
        with Saver(tmp_path, keep_last=9, background=background, peers=writer.Peers()) as saver:
            saver.save(snapshot(model, step, {"adamw.exp_avg.embed.weight": moment}), best=1 / step)

    save(1)
    moment[5, 7] = float("inf")
    with pytest.raises(InputError, match=r"step 2 is not saved: .*NaN or infinity; .*learning_rate"):
        save(2)
    moment[5, 7] = 0
    save(3)
    model.embed.weight[100] = float("nan")  # of a padded id
    with pytest.raises(InputError, match="step 4 is not saved"):
        save(4)
    assert [path.name for path in reader.steps(tmp_path)] == ["step_00000003", "step_00000001"]
    assert reader.find(tmp_path / "best").step == reader.find(tmp_path).step == 3
    assert not list(tmp_path.glob(".tmp-step*"))


def test_nan_in_the_part_of_one_rank_stops_all_ranks(tmp_path):
    model = make("modern", n_layer=1)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    errors: list[str] = []

    def work(one: writer.Peers) -> None:
        try:
            with Saver(tmp_path, keep_last=1, background=True, peers=one) as saver:
                saver.save(snapshot(model, 1, peers=one), best=None)
        except InputError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=work, args=(one,)) for one in peers(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 2 and all("step 1 is not saved" in error for error in errors)
    assert not list(tmp_path.iterdir())


def test_a_bug_in_the_background_thread_is_raised(tmp_path):
    def broken(directory: Path) -> None:
        raise KeyError("a bug")

    new = writer.snapshot(
        1,
        model=make("modern", n_layer=1),
        save_files=[broken],
        tensors={},
        state={},
        manifest={},
        peers=writer.Peers(),
    )
    with pytest.raises(KeyError), Saver(tmp_path, keep_last=1, background=True, peers=writer.Peers()) as saver:
        saver.save(new, best=None)
