"""Preparation that fails, is killed or finds damage: a folder is published whole or not at all."""

from __future__ import annotations

import contextlib
import errno
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
from data.preparation import prepare as preparation
from data.preparation.prepare import open_split, prepare
from data.tokenizers import build
from tests import programs
from tests.preparing import config, folder_of, published, quiet, read, run


def test_a_file_that_may_not_be_read_is_named(tmp_path):
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
    if os.geteuid() == 0:  # who may read all, unless that is taken from him
        if not shutil.which("setpriv"):
            pytest.skip("root reads every file")
        none = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={none}", f"--inh-caps={none}", *command]
    ended = subprocess.run(command, cwd=programs.ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ended.returncode == 2 and ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert "secret.txt: Permission denied" in ended.stderr and published(tmp_path) == []


@pytest.mark.parametrize("name", ["report", "publish", "SplitWriter"])
def test_a_failed_preparation_leaves_nothing_and_the_next_succeeds(notes, tmp_path, monkeypatch, name):
    def fail(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparation, name, fail)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert published(tmp_path) == []
    directory = run(tmp_path)
    assert published(tmp_path) == [directory.name] and len(read(directory, "train")) > 50


def _die_in_the_middle(cfg):
    preparation.publish = lambda *_: os._exit(9)
    prepare(cfg, say=quiet)


def _prepare_and_report(cfg, queue):
    lines: list[str] = []
    prepare(cfg, say=lines.append)
    queue.put(any("encoding" in line for line in lines))


def test_what_a_killed_process_left_is_cleared_and_never_taken_for_a_corpus(notes, tmp_path):
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_die_in_the_middle, args=(config(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == 9 and published(tmp_path) == [".tmp-notes"]
    directory = run(tmp_path)
    assert published(tmp_path) == [directory.name] and len(read(directory, "train")) > 50


def test_processes_that_start_together_prepare_once(notes, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_prepare_and_report, args=(config(tmp_path), queue)) for _ in range(3)]
    for process in processes:
        process.start()
    assert sorted(queue.get(timeout=60) for _ in processes) == [False, False, True]
    for process in processes:
        process.join()


def test_a_document_that_changes_meanwhile_is_noticed(notes, tmp_path, monkeypatch):
    original = build.build

    def change_then_build(*arguments, **_):
        (notes / "007.txt").write_text("rewritten")
        return original(*arguments)

    monkeypatch.setattr(preparation.tokenizers, "build", change_then_build)
    with pytest.raises(InputError, match=r"007\.txt.* changed"):
        run(tmp_path)
    assert published(tmp_path) == []


@pytest.mark.parametrize("change", ["more", "fewer", "shorter"])
def test_files_that_come_or_go_meanwhile_are_noticed(tmp_path, monkeypatch, change):
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

    monkeypatch.setattr(preparation.tokenizers, "build", change_then_build)
    with pytest.raises(InputError, match={"more": "changed|grew", "fewer": "vanished", "shorter": "vanished"}[change]):
        run(tmp_path)
    assert published(tmp_path) == []


def test_damage_is_found_and_repaired_by_preparing(notes, tmp_path):
    directory = run(tmp_path)
    shard = directory / "train_00000.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    open_split(directory, "train")
    with pytest.raises(InputError, match=r"train_00000\.bin: its content"):
        open_split(directory, "train", verify=True)
    shard.write_bytes(content[:-2])
    with pytest.raises(InputError, match=r"train_00000\.bin: \d+ bytes, not"):
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
    with pytest.raises(InputError, match="no complete prepared corpus"):
        open_split(tmp_path / "nowhere", "train")


def test_verify_finds_what_sizes_do_not_and_names_it(notes, tmp_path):
    directory = run(tmp_path)
    for name in ("train_00000.bin", "train_names.utf8", "val_documents.int64"):
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        said: list[str] = []
        prepare(config(tmp_path), say=said.append)
        assert "already prepared" in said[-1]
        prepare(config(tmp_path, verify=True), say=said.append)
        assert any(f"{name}: its content is not what its index says; preparing it again" in line for line in said)
        assert (directory / name).read_bytes() == content


def test_a_full_disk_is_one_line_and_leaves_nothing(notes, tmp_path, monkeypatch):
    real = Path.open

    class Full:
        """A file on a disk that has room for 100 bytes."""

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
    monkeypatch.setattr(preparation.Preparation, "encode", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(tmp_path, workers=2), say=said.append)
    assert said[-1].startswith("interrupted: nothing of notes was kept") and published(tmp_path) == []


def test_what_killed_preparations_of_other_corpora_left_is_swept(notes, tmp_path):
    left, used = (tmp_path / "datasets" / f".tmp-{name}" for name in ("left", "used"))
    for folder in (left, used):
        folder.mkdir(parents=True)
        (folder / "train_00000.bin").write_bytes(b"x")
    with lock(tmp_path / "datasets" / ".lock-used"):
        run(tmp_path)
    assert used.is_dir() and not left.exists()


def test_sigint_ends_all_processes_with_one_line(notes, tmp_path):
    for i in range(2000):
        (notes / f"large-{i}.txt").write_text(f"{i} " + "some words to encode " * 300)
    command = ["-m", "scripts.prepare", f"corpus={notes}", f"datasets={tmp_path / 'datasets'}", "workers=2"]
    process = programs.start(*command, PYTHONUNBUFFERED="1")
    process.stdout.readline()  # by then it is at work
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


def killed_preparations(tmp_path, kills: int) -> None:
    """Kills preparations at random moments: there is never half a corpus, and the next one succeeds."""
    command = ["-m", "scripts.prepare", f"corpus={tmp_path / 'notes'}", f"datasets={tmp_path / 'datasets'}"]
    command += ["tokenizer=byte", "workers=2"]
    began = time.monotonic()
    ended = programs.finish(programs.start(*command))
    longest = time.monotonic() - began
    assert ended.status == 0, ended.err
    whole = folder_of(Path(ended.out.split()[-1]))
    draw = random.Random(0)
    for _ in range(kills):
        if draw.random() < 0.7:  # else go on with what is left
            shutil.rmtree(tmp_path / "datasets", ignore_errors=True)
        process = programs.start(*command)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.2, 1.1) * longest)
        process.kill()
        process.communicate()
        for path in (tmp_path / "datasets").glob("*"):
            assert path.name.startswith(".") or folder_of(path) == whole
    ended = programs.finish(programs.start(*command))
    assert ended.status == 0, ended.err
    assert folder_of(Path(ended.out.split()[-1])) == whole and len(published(tmp_path)) == 1


def test_a_kill_at_any_moment_leaves_a_whole_corpus_or_none(notes, tmp_path):
    killed_preparations(tmp_path, 4)


@pytest.mark.slow
def test_fifty_kills_at_any_moment_leave_a_whole_corpus_or_none(notes, tmp_path):
    text = "some words to encode " * 200
    for i in range(3000):  # so that the moments differ
        (notes / f"large-{i}.txt").write_text(f"{i} {text}")
    killed_preparations(tmp_path, 50)
