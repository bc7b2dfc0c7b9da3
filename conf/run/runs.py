"""Runs read from their folders: measurements that are made once, and the table at the end of a sweep."""

from __future__ import annotations

import functools
import hashlib
import math
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cli import InputError
from ..display.page import Page
from ..display.plots import METRICS, read_metrics

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


def best_evaluation(run_dir: Path, select: str) -> dict[str, Any] | None:
    """The line of a run's metrics.jsonl with the smallest loss, or the highest `select`; None without evaluations."""
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if "val_loss" in line]
    if select == "loss":
        return min(lines, key=lambda line: line["val_loss"], default=None)
    return max(lines, key=lambda line: line.get(select, 0.0), default=None)


def show_sweep(jobs: Sequence[tuple[Any, Mapping[str, Any]]]) -> None:
    """Prints the best evaluation of each job (settings with run_dir and select, and what was typed), the best first.

    Of the typed settings, those that differ between the jobs have a column.
    """
    keys = [key for key in jobs[0][1] if key != "run_dir" and len({str(typed.get(key)) for _, typed in jobs}) > 1]
    found = [best_evaluation(Path(cfg.run_dir), cfg.select) or {} for cfg, _ in jobs]
    figures = {"step": "best step", "val_loss": "validation loss", **METRICS}
    figures = {key: name for key, name in figures.items() if any(key in line for line in found)}
    select = jobs[0][0].select
    score, sign = ("val_loss", 1) if select == "loss" else (select, -1)
    order = sorted(range(len(jobs)), key=lambda job: sign * found[job].get(score, math.inf * sign))
    rows = []
    for job in order:
        cfg, typed = jobs[job]
        values = [found[job].get(key, "") for key in figures]
        cells = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in values]
        rows.append([cfg.run_dir, *(str(typed[key]) for key in keys), *cells])
    page = Page()
    title = f"{len(jobs)} jobs, the best {select.replace('_', ' ')} first"
    page.print(page.table(title, ["*run_dir", *keys, *figures.values()], rows=rows))


def corpus_of(run_dir: Path) -> list[str]:
    """The corpora that a run was trained on, as its config.yaml names them; empty if it names none."""
    import yaml

    try:
        corpus = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8")).get("corpus")
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return []
    return [corpus] if isinstance(corpus, str) else [one for one in corpus or [] if isinstance(one, str)]
