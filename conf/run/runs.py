"""Whole runs of train.py as an instrument: each made once, then read from its folder."""

from __future__ import annotations

import functools
import hashlib
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from .. import cli

TRAIN = Path(__file__).resolve().parent.parent / "train.py"


@functools.cache
def defaults() -> str:
    """A short hash of all of train.py's defaults, as its help shows them."""
    shown = subprocess.run([sys.executable, str(TRAIN), "--help"], capture_output=True, text=True, check=True).stdout
    return hashlib.sha256(shown.encode()).hexdigest()[:6]


def words(key: str, text: str) -> list[str]:
    """The settings in `text`, written as on a command line. InputError where a quote is not closed."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise cli.InputError(f"{key}={text!r}: {error}; close the quote, or write \\ before it") from None


def train(run_dir: Path, settings: list[str]) -> dict[str, Any]:
    """The last evaluation's line of a run, made now unless it is there. InputError where training fails.

    Its folder is run_dir with the defaults' hash behind: made before one of them was changed, it is another run.
    """
    run_dir = run_dir.with_name(f"{run_dir.name}-{defaults()}")
    command = [sys.executable, str(TRAIN), *settings, f"run_dir={run_dir}", "resume=auto"]
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise cli.InputError(f"{shlex.join(command[1:])} ended with {ended.returncode}: {last}")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluated = [line for line in lines if "val_loss" in line]
    if not evaluated:
        raise cli.InputError(f"{run_dir} evaluated nothing; it needs a validation split")
    return evaluated[-1]
