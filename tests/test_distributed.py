"""Two processes over gloo equal one, sample for sample and loss for loss."""

from __future__ import annotations

import json
import shlex
import signal
import time
from pathlib import Path

import pytest

from model import checkpoint

from .programs import NANO, finish, ok, start

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def losses(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["train_loss"] for line in lines if "train_loss" in line]


def validation(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["val_loss"] for line in lines if "val_loss" in line]


@pytest.fixture
def options(poem, tmp_path):
    return [
        f"corpus={poem}", f"datasets={tmp_path / 'datasets'}", *NANO, "batch_size=8", "steps=20", "log_every=1",
        "optimizer=adamw", "eval_every=7", "save_every=5",
    ]  # fmt: skip


def test_two_ranks_equal_one_process_for_any_split_of_the_batch(options, tmp_path):
    ended = finish(start(*TORCHRUN, "train.py", *options, "parallel=ddp", f"run_dir={tmp_path / 'two'}"))
    assert ended.status == 0, ended.err
    ok("train", *options, f"run_dir={tmp_path / 'one'}")
    ok("train", *options, "micro_batch=2", f"run_dir={tmp_path / 'split'}")
    reference = losses(tmp_path / "one")
    assert len(reference) == 20 and reference[0] - reference[-1] > 0.05
    for name in ("two", "split"):
        assert max(abs(a - b) for a, b in zip(losses(tmp_path / name), reference, strict=True)) < 1e-5, name
        ends = zip(validation(tmp_path / name), validation(tmp_path / "one"), strict=True)
        assert max(abs(a - b) for a, b in ends) < 1e-5, name
    names = [set(checkpoint.find(tmp_path / name).weights()) for name in ("one", "two")]
    assert names[0] == names[1]
    # A run of two ranks goes on with one.
    ok("train", f"run_dir={tmp_path / 'two'}", "resume=true", "steps=22", "parallel=none")
    assert checkpoint.find(tmp_path / "two").step == 22


def test_sigterm_stops_all_ranks_after_the_same_step(options, tmp_path):
    run_dir = tmp_path / "run"
    many = [option for option in options if not option.startswith(("steps", "eval_every"))]
    process = start(*TORCHRUN, "train.py", *many, "steps=100000", "parallel=ddp", f"run_dir={run_dir}")
    deadline = time.monotonic() + 120
    while not (run_dir / "latest").exists():
        assert process.poll() is None and time.monotonic() < deadline, finish(process)
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    ended = finish(process)
    assert "stopped after step" in ended.out, ended.err
    stopped = int(ended.out.split("stopped after step ")[1].split()[0])
    assert checkpoint.find(run_dir).step == stopped
    # The command that it prints goes on; so does one process alone, which a saved parallel=ddp does not disturb.
    printed = shlex.split(ended.out.split("go on with:")[1].strip().splitlines()[0])
    assert printed[0] == "torchrun"
    more = [f"steps={stopped + 3}", "eval_every=1000", "save_every=1000"]
    ended = finish(start("-m", "torch.distributed.run", *printed[1:], *more))
    assert ended.status == 0 and checkpoint.find(run_dir).step == stopped + 3, ended.err
    ok("train", f"run_dir={run_dir}", "resume=true", f"steps={stopped + 5}", "eval_every=1000")
    assert checkpoint.find(run_dir).step == stopped + 5


def test_a_mistake_is_told_once_and_ends_every_rank(options, tmp_path):
    missing = [f"corpus={tmp_path / 'nowhere'}", *options[1:]]
    ended = finish(start(*TORCHRUN, "train.py", *missing, "parallel=ddp", f"run_dir={tmp_path / 'run'}"))
    assert ended.status != 0
    told = [line for line in ended.err.splitlines() if line.startswith("error:")]
    assert len(told) == 1 and "nowhere" in told[0]
