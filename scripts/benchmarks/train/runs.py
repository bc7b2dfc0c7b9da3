"""One run of a contender: this project's train.py or nanoGPT's training step, each in a process of its own."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conf.cli import InputError
from conf.cli.child import run_process

from ..contenders import nanogpt
from ..measure import ROOT, take_turns
from .shapes import Shape

Run = Callable[[], dict[str, Any]]  # tokens_per_second, and peak_memory in bytes or None


@dataclass
class Runs:
    """The runs of one contender."""

    speeds: list[float] = field(default_factory=list)  # tokens per second
    peak_memory: int | None = None
    disturbed: int = 0
    failed: str | None = None  # why a run failed


def ours(shape: Shape, variant: str, batch_size: int, settings: list[str], *, steps: int) -> dict[str, Any]:
    """Runs train.py: the median speed of its log lines, without those of the first steps."""
    log_every = max(1, steps // 10)
    untimed = 2 * log_every  # these steps also compile and fill the allocator's cache
    total = untimed + steps
    loop = [f"batch_size={batch_size}", f"steps={total}", f"log_every={log_every}"]
    loop += [f"save_every={total}", "save_in_background=false"]
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        run_process(
            [sys.executable, str(ROOT / "train.py"), *shape.settings(variant), *loop, *settings, f"run_dir={run_dir}"]
        )
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        timing = json.loads((run_dir / "timing.json").read_text(encoding="utf-8"))
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line and line["step"] > untimed]
    return {"tokens_per_second": statistics.median(speeds), "peak_memory": timing["peak_memory"]}


def theirs(
    checkout: str, shape: Shape, batch_size: int, *, vocab_size: int, steps: int, dropout: float, autocast: bool,
    compile: bool, device: str,
) -> dict[str, Any]:  # fmt: skip
    size = {"n_layer": shape.n_layer, "n_head": shape.n_head, "n_embd": shape.d_model, "block_size": shape.context}
    return nanogpt.measure(
        nanogpt.Training(
            str(Path(checkout).resolve()),
            shape=size | {"vocab_size": -(-vocab_size // 64) * 64},  # padded, as ours is
            batch_size=batch_size,
            steps=steps,
            dropout=dropout,
            autocast=autocast,
            compile=compile,
            device=device,
        )
    )


def in_turns(contenders: Mapping[str, Run], *, repeats: int, on_gpu: bool) -> dict[str, Runs]:
    """Runs all contenders in turn, and prints the speed of each run. One that fails is not run again.

    On a CPU, a run that other processes disturbed is repeated.
    """
    found = {name: Runs() for name in contenders}
    for turn in range(1, repeats + 1):
        for name, contender in contenders.items():
            runs = found[name]
            if runs.failed is not None:
                continue
            try:
                if on_gpu:
                    result = contender()
                else:
                    times = take_turns({name: contender}, repeats=1)[name]
                    [result] = times.results
                    runs.disturbed += times.disturbed
            except InputError as error:
                runs.failed = str(error).partition(" ended with ")[2] or str(error)  # without the command
                print(f"  turn {turn}  {name:<26} failed: {runs.failed}", flush=True)
                continue
            runs.speeds.append(result["tokens_per_second"])
            if result["peak_memory"] is not None:
                runs.peak_memory = max(runs.peak_memory or 0, result["peak_memory"])
            print(f"  turn {turn}  {name:<26} {result['tokens_per_second']:>11,.0f}", flush=True)
    return found
