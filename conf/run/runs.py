"""Runs of train.py as measurements: each is made once, then read from its folder."""

from __future__ import annotations

import functools
import hashlib
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..cli import InputError
from ..display.plots import read_metrics

TRAIN = Path(__file__).resolve().parents[2] / "train.py"


@functools.cache
def defaults_hash() -> str:
    """A short hash of all of train.py's defaults, as --help shows them."""
    shown = subprocess.run([sys.executable, str(TRAIN), "--help"], capture_output=True, text=True, check=True).stdout
    return hashlib.sha256(shown.encode()).hexdigest()[:6]


def train_once(run_dir: Path, settings: list[str]) -> dict[str, Any]:
    """The last evaluation in the metrics of a run, which is trained now unless it is finished.

    The folder is run_dir plus a hash of train.py's defaults, so that a changed default makes it another run.
    Raises InputError if training fails.
    """
    run_dir = run_dir.with_name(f"{run_dir.name}-{defaults_hash()}")
    command = [sys.executable, str(TRAIN), *settings, f"run_dir={run_dir}", "resume=auto"]
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{shlex.join(command[1:])} ended with {ended.returncode}: {last}")
    evaluated = [line for line in read_metrics(run_dir / "metrics.jsonl") if "val_loss" in line]
    if not evaluated:
        raise InputError(f"{run_dir} evaluated nothing; it needs a validation split")
    return evaluated[-1]
