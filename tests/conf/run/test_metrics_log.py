"""The log of a run: metrics, sampled texts, baselines, wandb's own file read back, the summary at the end."""

from __future__ import annotations

import errno
import json
import struct
import time
from pathlib import Path

import pytest

from conf.display import plots
from conf.run import metrics_log
from conf.run.stopwatch import Stopwatch
from model.checkpoints import reader
from model.training.evaluate import EvalResult
from tests.programs import ok


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def here(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    return base[:-2]


def test_a_stopwatch_counts_nothing_twice(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    watch = Stopwatch()
    with watch("outer"):
        clock[0] += 2
        with watch("inner"):
            clock[0] += 3
        clock[0] += 1
        with watch("inner"):
            clock[0] += 1
    clock[0] += 3
    assert watch.seconds == {"outer": 3, "inner": 4} and watch.total == 10
    assert watch.shares() == {"inner": 0.4, "outer": 0.3}
    assert watch.mean("inner") == 2 and watch.mean("never") is None


@pytest.mark.slow
def test_the_summary_has_time_speed_and_the_next_command(here):
    out = ok("train", *here, "steps=6", "log_every=2", "run_dir=run")
    for part in (
        "finished in",
        "tokens",
        "tok/s in the training steps, ",
        "share of the time: training",
        "loading",
        "saving",
        "run/best",
    ):
        assert part in out, out
    assert "python sample.py checkpoint=run prompt=" in out and "peak memory" in out
    assert "MFU" not in out  # the peak of a CPU is not known
    again = ok("train", "run_dir=run", "resume=true", "steps=10")
    assert " in all: " in again and "in the training steps since the resume" in again, again


def test_sampling_during_training_changes_no_weight(here, tmp_path):
    options = [*here, "steps=6", "model.dropout=0.1"]
    ok("train", *options, "run_dir=silent")
    out = ok("train", *options, "run_dir=talking", "sample_every=2", "sample_prompt=Listen to")
    one, two = (reader.find(tmp_path / name).directory / "model.safetensors" for name in ("silent", "talking"))
    assert reader.sha256(one) == reader.sha256(two)
    told = [line for line in lines(tmp_path / "talking") if "sample" in line]
    assert [line["step"] for line in told] == [2, 4, 6] and {line["prompt"] for line in told} == {"Listen to"}
    assert "step 4: sample: Listen to" in out


@pytest.mark.usefixtures("real_plots")
def test_baselines_are_written_and_plotted(here, tmp_path):
    ok("train", *here, "steps=4", "log_every=1", "run_dir=run")
    found = json.loads((tmp_path / "run" / "references.json").read_text())
    assert found["uniform"] > found["unigram"] > found["bigram"] > 0
    with_lines = (tmp_path / "run" / "loss.png").read_bytes()
    (tmp_path / "run" / "references.json").write_text('{"uniform": "damaged')
    plots.plot_loss(tmp_path / "run" / "metrics.jsonl", tmp_path / "without.png", title="run")
    assert with_lines != (tmp_path / "without.png").read_bytes()


def wandb_records(run_dir: Path) -> list:
    """Everything in the file that an offline run leaves for `wandb sync`: LevelDB's log format, a record a message."""
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    for _ in range(200):  # wandb writes on after finish()
        data, place, whole, records = path.read_bytes(), 7, b"", []
        while place + 7 <= len(data):
            if (left := 32768 - place % 32768) < 7:  # no room for a header: the block is padded
                place += left
                continue
            _, length, kind = struct.unpack("<IHB", data[place : place + 7])
            whole += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4) and place <= len(data):  # a whole record, or the last part of one
                records.append(Record.FromString(whole))
                whole = b""
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.05)
    raise AssertionError(f"{path} ends after {len(records)} records")


@pytest.mark.slow
def test_wandb_offline_has_config_metrics_and_a_table_of_texts(here, tmp_path):
    options = ["steps=4", "log_every=1", "eval_every=2", "sample_every=2", "sample_prompt=Listen"]
    ok("train", *here, *options, "run_dir=run", "wandb.mode=offline", "wandb.project=poems")
    records = wandb_records(tmp_path / "run")
    config = {item.key: item.value_json for record in records for item in record.run.config.update}
    assert json.loads(config["steps"]) == 4 and json.loads(config["model"])["n_layer"] == 1
    assert any(record.run.project == "poems" for record in records)
    history: dict[str, list] = {}
    for record in records:
        for item in record.history.item:
            history.setdefault(item.key or ".".join(item.nested_key), []).append(json.loads(item.value_json))
    logged = [line for line in lines(tmp_path / "run") if "train_loss" in line]
    assert history["train_loss"] == [line["train_loss"] for line in logged]
    assert len(history["val_loss"]) == 2 and len(history["learning_rate"]) == len(history["grad_norm"]) == 4
    [path] = history["samples.path"]
    [file] = (tmp_path / "run" / "wandb").glob(f"offline-run-*/files/{path}")
    content = json.loads(file.read_text())
    assert content["columns"] == ["step", "prompt", "text"]
    assert [row[:2] for row in content["data"]] == [[2, "Listen"], [4, "Listen"]]


def test_a_resumed_run_stays_one_wandb_run(here, tmp_path):
    ok("train", *here, "steps=2", "run_dir=run", "wandb.mode=offline")
    ok("train", "run_dir=run", "resume=true", "steps=4")
    folders = [path.name for path in (tmp_path / "run" / "wandb").glob("offline-run-*")]
    run_id = (tmp_path / "run" / metrics_log.WANDB_ID).read_text()
    assert len(folders) == 2 and all(f"-{run_id}" in name for name in folders)  # "-1" if both began in one second
    ok("train", *here, "steps=2", "run_dir=other", "wandb.mode=offline")
    assert (tmp_path / "other" / metrics_log.WANDB_ID).read_text() != run_id


def log(run_dir: Path, start: int = 0) -> metrics_log.MetricsLog:
    settings = {"select": "loss", "wandb": {"mode": "disabled"}}
    return metrics_log.MetricsLog(run_dir, steps=9, start=start, elapsed_seconds=0.0, settings=settings, enabled=True)


@pytest.mark.parametrize("damage", [b"", b'{"step": 3', b"\xff\xfe\n", b"3\n"])
def test_a_resumed_run_cuts_its_metrics_back_to_its_step(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes('{"step": 1, "sample": "é"}\n{"step": 2}\n'.encode() + damage + b'{"step": 3}\n{"st')
    log(tmp_path, start=2).file.close()
    assert path.read_text() == '{"step": 1, "sample": "é"}\n{"step": 2}\n'


class Disk:
    """A file on a disk that has room for so many bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, content):
        if not self.room:
            raise OSError(errno.ENOSPC, "full")
        written = self.file.write(content[: self.room])
        self.room -= written
        return written

    def close(self):
        self.file.close()


def test_metrics_wait_for_room_on_a_full_disk(tmp_path):
    with log(tmp_path) as told:
        disk = told.file = Disk(told.file, 100)
        for step in range(1, 9):
            disk.room += 10_000 * (step == 6)
            told.log_evaluation(step, 10 * step, EvalResult(3.0, 2.0, 9), best=False)
            if step == 5:
                assert (tmp_path / "metrics.jsonl").stat().st_size == 100
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 9))
