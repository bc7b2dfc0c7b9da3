"""Preparation that fails, is killed or finds damage: a folder is published complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data import InputError
from data.corpus import corpora
from data.files import lock
from data.preparation import pipeline
from data.preparation import prepare as preparation
from data.preparation.pipeline import Pipeline
from data.preparation.prepare import prepare
from data.preparation.shards import open_split
from data.tokenizers import build
from tests import programs
from tests.preparing import config, folder_of, published, quiet, read, run


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("Listen to your heart. " * 20)
    (secret := tmp_path / "notes" / "secret.txt").write_text("Listen to your gut. " * 20)
    secret.chmod(0)
    command = [
        sys.executable,
        "-m",
        "scripts.prepare",
        f"corpus={tmp_path / 'notes'}",
        f"datasets={tmp_path / 'datasets'}",
    ]
    if os.geteuid() == 0:  # root can read everything, unless it gives up these capabilities
        if not shutil.which("setpriv"):
            pytest.skip("root reads every file")
        none = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={none}", f"--inh-caps={none}", *command]
    ended = subprocess.run(command, cwd=programs.ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ended.returncode == 2 and ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert "secret.txt: Permission denied" in ended.stderr and published(tmp_path) == []


@pytest.mark.parametrize("module, name", [(preparation, "report"), (preparation, "publish"), (pipeline, "SplitWriter")])
def test_an_interrupted_preparation_leaves_nothing_and_the_next_succeeds(notes, tmp_path, monkeypatch, module, name):
    def fail(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert published(tmp_path) == []
    directory = run(tmp_path)
    assert published(tmp_path) == [directory.name] and len(read(directory, "train")) > 50


def _die_at_change(cfg, number):
    """Prepares a corpus, but ends like kill -9 just before the process changes the datasets folder this many times."""
    changes = 0

    def on_event(event, arguments):
        nonlocal changes
        if event in ("open", "os.mkdir", "os.rename", "os.rmdir") and str(arguments[0]).startswith(cfg.datasets):
            changes += 1
            if changes == number:
                os._exit(9)

    sys.addaudithook(on_event)
    prepare(cfg, say=quiet)


def _prepare_and_report(cfg, queue):
    lines: list[str] = []
    prepare(cfg, say=lines.append)
    queue.put(any("encoding" in line for line in lines))


def test_a_kill_between_any_two_writes_leaves_a_complete_corpus_or_none(notes, tmp_path):
    complete = folder_of(run(tmp_path, datasets=str(tmp_path / "other")))
    context = multiprocessing.get_context("fork")
    numbers, left_behind = itertools.count(1, 4), 0
    for number in numbers:
        process = context.Process(target=_die_at_change, args=(config(tmp_path), number))
        process.start()
        process.join()
        assert process.exitcode == 9 or number > 40
        left_behind += (tmp_path / "datasets" / ".tmp-notes").exists()
        for path in (tmp_path / "datasets").glob("notes-*"):
            assert folder_of(path) == complete
            shutil.rmtree(path)
        if process.exitcode == 0:
            break
    assert left_behind > 5
    directory = run(tmp_path)
    assert published(tmp_path) == [directory.name] and folder_of(directory) == complete


def test_processes_that_start_together_prepare_once(notes, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_prepare_and_report, args=(config(tmp_path), queue)) for _ in range(3)]
    for process in processes:
        process.start()
    assert sorted(queue.get(timeout=60) for _ in processes) == [False, False, True]
    for process in processes:
        process.join()


def test_a_document_that_changes_during_the_preparation_is_noticed(notes, tmp_path, monkeypatch):
    original = build.build

    def change_then_build(*arguments, **_):
        (notes / "007.txt").write_text("rewritten")
        return original(*arguments)

    monkeypatch.setattr(pipeline.tokenizers, "build", change_then_build)
    with pytest.raises(InputError, match=r"007\.txt.* changed"):
        run(tmp_path)
    assert published(tmp_path) == []


@pytest.mark.parametrize("change", ["more", "fewer", "shorter"])
def test_files_added_or_removed_during_the_preparation_are_noticed(tmp_path, monkeypatch, change):
    monkeypatch.setattr(corpora, "MAX_CHUNKS", 10)
    notes = tmp_path / "notes"
    notes.mkdir()
    for n in range(30):
        (notes / f"{n:02}.jsonl").write_text(f'{{"text": "{n} a"}}\n{{"text": "{n} b"}}\n')
    original = build.build

    def change_then_build(*arguments, **_):
        if change == "more":
            for n in range(30, 45):
                (notes / f"{n}.jsonl").write_text('{"text": "new"}\n')
        elif change == "fewer":
            for n in range(20, 30):
                (notes / f"{n}.jsonl").unlink()
        else:
            (notes / "29.jsonl").write_text('{"text": "29 a"}\n')
        return original(*arguments)

    monkeypatch.setattr(pipeline.tokenizers, "build", change_then_build)
    with pytest.raises(InputError, match="changed|grew" if change == "more" else "disappeared"):
        run(tmp_path)
    assert published(tmp_path) == []


def test_damage_is_found_and_repaired_by_preparing_again(notes, tmp_path):
    directory = run(tmp_path)
    shard = directory / "train_00000.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    open_split(directory, "train")
    with pytest.raises(InputError, match=r"train_00000\.bin: its sha256"):
        open_split(directory, "train", verify=True)
    shard.write_bytes(content[:-2])
    with pytest.raises(InputError, match=r"train_00000\.bin: \d+ bytes, but"):
        open_split(directory, "train")
    assert run(tmp_path) == directory and shard.read_bytes() == content
    for damage in ("{", "[]", '{"format": 1}', '{"format": 99}'):
        (directory / "index.json").write_text(damage)
        with pytest.raises(InputError, match=r"index\.json|format"):
            open_split(directory, "train")
    run(tmp_path)
    shard.unlink()
    with pytest.raises(InputError, match=r"train_00000\.bin"):
        open_split(directory, "train")
    with pytest.raises(InputError, match="not a complete prepared corpus"):
        open_split(tmp_path / "nowhere", "train")


def test_verify_finds_damage_that_keeps_the_file_size(notes, tmp_path):
    directory = run(tmp_path)
    for name in ("train_00000.bin", "train_names.utf8", "val_documents.int64"):
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        said: list[str] = []
        prepare(config(tmp_path), say=said.append)
        assert "already prepared" in said[-1]
        prepare(config(tmp_path, verify=True), say=said.append)
        assert any(f"{name}: its sha256 differs from index.json; preparing it again" in line for line in said)
        assert (directory / name).read_bytes() == content


def test_a_full_disk_is_one_line_and_leaves_nothing(notes, tmp_path, monkeypatch):
    real = Path.open

    class Full:
        """A file on a disk with room for 100 bytes."""

        def __init__(self, file):
            self.file, self.name, self.room = file, file.name, 100

        def write(self, content):
            self.room -= len(content)
            if self.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(content)

        def close(self):
            self.file.close()

    def full(path, mode="r", *arguments, **keywords):
        file = real(path, mode, *arguments, **keywords)
        return Full(file) if mode == "wb" and path.name == "train_00000.bin" else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(InputError, match="No space left on device") as caught:
            run(tmp_path)
    assert "\n" not in str(caught.value) and published(tmp_path) == []
    directory = run(tmp_path)
    assert published(tmp_path) == [directory.name]


def test_ctrl_c_is_one_line_and_leaves_nothing(notes, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    said: list[str] = []
    monkeypatch.setattr(Pipeline, "encode", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(tmp_path, workers=2), say=said.append)
    assert said[-1].startswith("interrupted: nothing of notes was kept") and published(tmp_path) == []


def test_leftovers_of_other_corpora_are_removed(notes, tmp_path):
    left, used = (tmp_path / "datasets" / f".tmp-{name}" for name in ("left", "used"))
    for folder in (left, used):
        folder.mkdir(parents=True)
        (folder / "train_00000.bin").write_bytes(b"x")
    with lock(tmp_path / "datasets" / ".lock-used"):
        run(tmp_path)
    assert used.is_dir() and not left.exists()


def test_sigint_ends_all_processes_with_one_line(notes, tmp_path):
    for i in range(200):
        (notes / f"large-{i}.txt").write_text(f"{i} " + "some words to encode " * 3000)
    command = ["-m", "scripts.prepare", f"corpus={notes}", f"datasets={tmp_path / 'datasets'}", "workers=2"]
    process = programs.start(*command, PYTHONUNBUFFERED="1")
    process.stdout.readline()  # it has started
    process.send_signal(signal.SIGINT)
    ended = programs.finish(process)
    assert ended.status == 130 and ended.err == ""
    assert ended.out.splitlines()[-1].startswith("interrupted: nothing of notes was kept")
    assert published(tmp_path) == []


def test_a_small_disk_is_one_line_and_leaves_nothing(notes, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a disk can be mounted only by root: " + mounted.stderr.decode().strip())
    try:
        (notes / "large.txt").write_text("some words " * 20_000)
        for workers in (1, 2):
            with pytest.raises(InputError, match="No space left on device") as caught:
                run(tmp_path, datasets=str(disk), workers=workers)
            assert "\n" not in str(caught.value) and "datasets=" in str(caught.value)
            assert [path.name for path in disk.iterdir()] == [".lock-notes"]
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_complete_corpus_or_none(notes, tmp_path):
    text = "some words to encode " * 200
    for i in range(3000):  # long enough to be killed at different moments
        (notes / f"large-{i}.txt").write_text(f"{i} {text}")
    command = ["-m", "scripts.prepare", f"corpus={notes}", f"datasets={tmp_path / 'datasets'}"]
    command += ["tokenizer=byte", "workers=2"]
    began = time.monotonic()
    ended = programs.finish(programs.start(*command))
    longest = time.monotonic() - began
    assert ended.status == 0, ended.err
    complete = folder_of(Path(ended.out.split()[-1]))
    draw = random.Random(0)
    for _ in range(50):
        if draw.random() < 0.7:  # else continue with the leftovers
            shutil.rmtree(tmp_path / "datasets", ignore_errors=True)
        process = programs.start(*command)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.2, 1.1) * longest)
        process.kill()
        process.communicate()
        for path in (tmp_path / "datasets").glob("*"):
            assert path.name.startswith(".") or folder_of(path) == complete
    ended = programs.finish(programs.start(*command))
    assert ended.status == 0, ended.err
    assert folder_of(Path(ended.out.split()[-1])) == complete and len(published(tmp_path)) == 1
