"""Kills a training run at random moments, resumes it each time, and compares its end with an uninterrupted run.

Each attempt is a process that ends by SIGKILL: one in ten at any moment after its start, the others during training and
saving. Every second attempt saves in the background (background= sets that for all). OUT/faults.json records the kills;
the same command continues from there.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from conf import cli
from model import InputError
from model.checkpoints import reader

TRAIN = Path(__file__).parent.parent / "train.py"
TINY = (  # so small that a hundred steps take less time than starting Python
    "model.n_layer=1", "model.n_head=2", "model.d_model=32", "model.context=32", "model.dropout=0.1", "tokenizer=char",
    "batch_size=4", "device=cpu", "dtype=float32", "compile=false", "log_every=1", "eval_every=15",
    # A schedule that does not depend on the number of steps, which is unknown until the last kill.
    "optimizer.schedule=constant", "optimizer.warmup_steps=0",
)  # fmt: skip
USUAL_START = 4.0  # seconds from the start of a process to its first step, roughly
TEXT = "Listen to your heart. Listen to your gut, your body; listen to the wind, that listens to nobody.\n"


@dataclass
class FaultsConfig:
    """The keys of `python -m scripts.faults`."""

    out: str = field(default="out/faults", metadata={"kind": "path"})  # the folder of the runs
    kills: int = 200  # kills in all
    at_once: int | None = None  # maximum number of kills in this call; null: all
    save_every: int = 5  # steps between two checkpoints
    window: float = 0.5  # a kill comes within this many seconds of training
    background: bool | None = None  # save in the background; null: in every second attempt
    seed: int = 1  # of the random moments
    debug: bool = False

    def validate(self) -> list[str]:
        names = ("kills", "at_once", "save_every", "window")
        values = {name: getattr(self, name) for name in names}
        return [f"{name}={value} must be above 0" for name, value in values.items() if value is not None and value <= 0]


def command(cfg: FaultsConfig, name: str, *more: str) -> list[str]:
    out = Path(cfg.out)
    own = (f"corpus={out / 'text.txt'}", f"datasets={out / 'datasets'}", f"run_dir={out / name}")
    return [sys.executable, str(TRAIN), *own, *TINY, f"save_every={cfg.save_every}", *more]


def in_background(cfg: FaultsConfig, number: int) -> bool:
    """True if this attempt saves in the background."""
    return number % 2 == 1 if cfg.background is None else cfg.background


def metrics_inode(run_dir: Path) -> int | None:
    """Identifies the metrics file. A process that resumes replaces it, which drops the lines of lost steps."""
    path = run_dir / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else None


def last_step(run_dir: Path) -> int:
    """The last step in the run's metrics."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def attempt(cfg: FaultsConfig, number: int) -> tuple[int, int]:
    """Starts or resumes the run and kills it. Returns its last completed step and its newest intact checkpoint's step.

    Raises InputError if the run ended by itself, or did not resume from the newest checkpoint.
    """
    moments = random.Random(cfg.seed * 1_000_003 + number)
    run_dir = Path(cfg.out) / "killed"
    before = reader.newest(run_dir, say=print)
    expected, earlier = before.step if before else 0, metrics_inode(run_dir)
    log = Path(cfg.out) / "attempt.log"
    any_moment, fraction = moments.random() < 0.1, moments.random()
    how = ["steps=1000000000", f"resume={'true' if before else 'auto'}"]
    how.append(f"save_in_background={in_background(cfg, number)}")
    with log.open("w", encoding="utf-8") as file:
        start = time.monotonic()
        process = subprocess.Popen(command(cfg, "killed", *how), stdout=file, stderr=subprocess.STDOUT)
        if any_moment:
            while process.poll() is None and time.monotonic() - start < fraction * USUAL_START:
                time.sleep(0.002)
        else:
            while process.poll() is None and not is_training(run_dir, expected, earlier):
                time.sleep(0.002)
            time.sleep(fraction * cfg.window)
        process.send_signal(signal.SIGKILL)
        status = process.wait()
    output = log.read_text(encoding="utf-8")
    if status != -signal.SIGKILL:
        last = (output.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{log}: the run ended by itself with status {status}: {last}")
    for found in re.findall(r"resuming .* at step (\d+)", output):
        if int(found) != expected:
            raise InputError(f"{log}: resumed from step {found} instead of {expected}")
    now = reader.newest(run_dir, say=print)
    intact = now.step if now else 0
    return (last_step(run_dir) if metrics_inode(run_dir) != earlier else intact), intact


def is_training(run_dir: Path, step: int, earlier: int | None) -> bool:
    """True once a process that resumed from `step`, when the metrics file was `earlier`, has completed a step."""
    return metrics_inode(run_dir) != earlier and last_step(run_dir) > step


def main(cfg: FaultsConfig, overrides: cli.Overrides) -> None:
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "text.txt").write_text("".join(f"{number}. {TEXT}" for number in range(30)), encoding="utf-8")
    record_path = out / "faults.json"
    record = json.loads(record_path.read_text(encoding="utf-8")) if record_path.exists() else {"lost": []}
    lost = record["lost"]
    stop = min(cfg.kills, len(lost) + (cfg.at_once or cfg.kills))
    while len(lost) < stop:
        done, intact = attempt(cfg, len(lost))
        lost.append(max(0, done - intact))
        record_path.write_text(json.dumps(record), encoding="utf-8")
        print(f"kill {len(lost)} of {cfg.kills} after step {done}: {lost[-1]} steps lost, resumes from {intact}")
    if len(lost) < cfg.kills:
        return
    newest = reader.newest(out / "killed")
    steps = f"steps={(newest.step if newest else 0) + 10}"
    for name in ("killed", "uninterrupted"):
        ended = subprocess.run(command(cfg, name, steps, "resume=auto"), capture_output=True, text=True)
        if ended.returncode:
            raise InputError(f"{out / name}: {ended.stderr.strip()}")
    files = [reader.find(out / name).directory / "model.safetensors" for name in ("killed", "uninterrupted")]
    equal = reader.sha256(files[0]) == reader.sha256(files[1])
    print(f"{len(lost)} kills in {steps[6:]} steps; every resume started from the newest checkpoint")
    for background, what in ((False, "waiting for each save"), (True, "saving in the background")):
        some = [steps for number, steps in enumerate(lost) if in_background(cfg, number) == background]
        if not some:
            continue
        above = sum(steps > cfg.save_every for steps in some)
        mean = sum(some) / len(some)
        print(f"steps lost {what}: mean {mean:.1f}, maximum {max(some)}, {above} times above {cfg.save_every}")
    print(f"the final weights are {'' if equal else 'not '}the same, bit for bit, as those of an uninterrupted run")
    if not equal:
        raise InputError(f"{files[0]} and {files[1]} differ")


if __name__ == "__main__":
    cli.run(main, FaultsConfig, name="faults")
