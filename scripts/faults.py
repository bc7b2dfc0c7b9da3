"""Kills a training run again and again at random moments, lets it resume, and compares its end with an undisturbed one.

Each attempt is a process of its own that ends by SIGKILL: in one of ten cases at any moment since its start, else while
it trains and saves; every other one saves in the background (or all, or none: background=). What was done so far stands
in OUT/faults.json: the same command goes on from there.
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
TINY = (  # so small that starting Python takes longer than to train a hundred steps
    "model.n_layer=1", "model.n_head=2", "model.d_model=32", "model.context=32", "model.dropout=0.1", "tokenizer=char",
    "batch_size=4", "device=cpu", "dtype=float32", "compile=false", "log_every=1", "eval_every=15",
    # A schedule that does not depend on the number of steps: when the last kill comes is not known before.
    "optimizer.schedule=constant", "optimizer.warmup_steps=0",
)  # fmt: skip
TEXT = "Listen to your heart. Listen to your gut, your body; listen to the wind, that listens to nobody.\n"


@dataclass
class FaultsConfig:
    """The keys of `python -m scripts.faults`."""

    out: str = field(default="out/faults", metadata={"kind": "path"})  # where the runs live
    kills: int = 200  # how often the run is killed in all
    at_once: int | None = None  # how often in this call at most; null: until all are done
    save_every: int = 5  # steps between two checkpoints
    window: float = 0.5  # seconds of training in which a kill may come
    background: bool | None = None  # how the run saves; null: both ways in turn
    seed: int = 1  # of the moments
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
    return number % 2 == 1 if cfg.background is None else cfg.background


def figures(run_dir: Path) -> int | None:
    """Which file of figures is there: a process replaces that of the one before it, which knows of lost steps too."""
    path = run_dir / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else None


def last_step(run_dir: Path) -> int:
    """The last completed step that the run wrote down."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def attempt(cfg: FaultsConfig, number: int) -> tuple[int, int]:
    """Starts the run or goes on with it, and kills it; the last step it did and the newest that is intact.

    Raises InputError where it ended by itself, or did not go on from the newest step.
    """
    moments = random.Random(cfg.seed * 1_000_003 + number)
    run_dir = Path(cfg.out) / "killed"
    before = reader.newest(run_dir, say=print)
    expected, earlier = before.step if before else 0, figures(run_dir)
    log = Path(cfg.out) / "attempt.log"
    any_moment, share = moments.random() < 0.1, moments.random()
    how = ["steps=1000000000", f"resume={'true' if before else 'auto'}"]
    how.append(f"save_in_background={in_background(cfg, number)}")
    with log.open("w", encoding="utf-8") as file:
        start = time.monotonic()
        process = subprocess.Popen(command(cfg, "killed", *how), stdout=file, stderr=subprocess.STDOUT)
        while not any_moment and process.poll() is None and not trains(run_dir, expected, earlier):
            time.sleep(0.002)
        usual_start = 4.0 if any_moment else 0.0
        while process.poll() is None and time.monotonic() - start < share * usual_start:
            time.sleep(0.002)
        if not any_moment:
            time.sleep(share * cfg.window)
        process.send_signal(signal.SIGKILL)
        status = process.wait()
    said = log.read_text(encoding="utf-8")
    if status != -signal.SIGKILL:
        last = (said.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{log}: the run ended by itself with status {status}: {last}")
    for found in re.findall(r"resuming .* at step (\d+)", said):
        if int(found) != expected:
            raise InputError(f"{log}: went on from step {found} instead of {expected}")
    now = reader.newest(run_dir, say=print)
    intact = now.step if now else 0
    return (last_step(run_dir) if figures(run_dir) != earlier else intact), intact


def trains(run_dir: Path, step: int, earlier: int | None) -> bool:
    """Whether a process that began with these figures there, and goes on from that step, has trained."""
    return figures(run_dir) != earlier and last_step(run_dir) > step


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
        print(f"kill {len(lost)} of {cfg.kills} after step {done}: {lost[-1]} steps lost, goes on from {intact}")
    if len(lost) < cfg.kills:
        return
    newest = reader.newest(out / "killed")
    steps = f"steps={(newest.step if newest else 0) + 10}"
    for name in ("killed", "undisturbed"):
        ended = subprocess.run(command(cfg, name, steps, "resume=auto"), capture_output=True, text=True)
        if ended.returncode:
            raise InputError(f"{out / name}: {ended.stderr.strip()}")
    files = [reader.find(out / name).directory / "model.safetensors" for name in ("killed", "undisturbed")]
    equal = reader.sha256(files[0]) == reader.sha256(files[1])
    print(f"{len(lost)} kills in {steps[6:]} steps, each followed by a resume that went on from the newest saved step")
    for background, what in ((False, "waiting for each save"), (True, "saving in the background")):
        some = [steps for number, steps in enumerate(lost) if in_background(cfg, number) == background]
        if not some:
            continue
        above = sum(steps > cfg.save_every for steps in some)
        mean = sum(some) / len(some)
        print(f"steps lost {what}: {mean:.1f} on average, {max(some)} at most, above {cfg.save_every} {above} times")
    print(f"the final weights are {'' if equal else 'not '}the same, bit for bit, as those of an undisturbed run")
    if not equal:
        raise InputError(f"{files[0]} and {files[1]} differ")


if __name__ == "__main__":
    cli.run(main, FaultsConfig, name="faults")
