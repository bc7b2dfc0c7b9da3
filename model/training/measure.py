"""Three real steps, timed: what a run costs a step, an evaluation, a save, and the memory that it takes."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import memory
from ..device import Compute
from ..distributed import parallel
from ..gpt import GPT
from ..planning import plan
from ..planning.budget import Costs, Deadline
from .evaluate import EvaluationData, TrainingData
from .settings import LoopConfig


@dataclass(frozen=True)
class Measured:
    costs: Costs
    steps: int  # timed, the first ones left out
    peak_memory: int | None  # bytes; None where unknown


@dataclass
class FirstRows:
    """The beginning of an evaluation split."""

    data: EvaluationData
    rows: int
    n_bytes: int = 1

    def __len__(self) -> int:
        return self.rows

    def batch(self, start: int, stop: int) -> Any:
        return self.data.batch(start, stop)


def measure(
    update: Callable[[int], object],
    score: Callable[[EvaluationData], object],
    val_data: EvaluationData | None,
    *,
    rows: int,
    device: torch.device,
    save_bytes: int,
    in_background: bool,
    folder: Path,
    steps: int = 3,
    seconds: float = 2.0,
) -> Measured:
    """Times update(step) `steps` times and for `seconds` at least, after two that do not count (they compile, and make
    the optimizer's state); score(data) on `rows` rows; writing 64 MB into `folder`, from which a save is judged.

    The caller sees to it that update and score change nothing, and that both have waited for the device.
    """
    for step in range(2):
        update(step)
    taken: list[float] = []
    # A step is a thing that all ranks do: they go on until each has timed enough, by its own clock.
    while not parallel.all_reduce_min(int(len(taken) >= steps and sum(taken) >= seconds), device):
        began = time.perf_counter()
        update(len(taken))
        taken.append(time.perf_counter() - began)
    evaluation = 0.0
    if val_data is not None:
        part = FirstRows(val_data, min(rows, len(val_data)))
        score(part)  # compiles
        began = time.perf_counter()
        score(part)
        evaluation = (time.perf_counter() - began) * -(-len(val_data) // rows)
    writing = write_seconds(folder, save_bytes)
    costs = Costs(
        sum(taken) / len(taken), evaluation=evaluation, saving=writing, writing=writing if in_background else 0.0
    )
    return Measured(costs, len(taken), memory.peak(device))


def outlook(
    cfg: LoopConfig,
    measured: Measured,
    model: GPT,
    data: TrainingData,
    deadline: Deadline,
    *,
    world: parallel.World,
    compute: Compute,
) -> dict[str, Any]:
    """What the run takes, in numbers: the arguments of conf/forecast.py's describe()."""
    flops, costs, steps = plan.flops_per_token(model), measured.costs, deadline.steps
    peak = plan.peak_flops(compute.device, compute.dtype)
    batches = [data.batch(step, slice(0, cfg.batch_size)) for step in range(measured.steps)]  # examples may be shorter
    tokens_per_step = sum(inputs.size for inputs, *_ in batches) // len(batches)
    total = costs.total(steps, eval_every=deadline.eval_every, save_every=deadline.save_every)
    return {
        "parts": plan.parameters_by_part(model),
        "flops_per_token": flops,
        "steps": steps,
        "tokens_per_step": tokens_per_step,
        "epochs": data.epochs(steps),
        "seconds_per_step": costs.step,
        "timed_steps": measured.steps,
        "mfu": peak and tokens_per_step * flops / costs.step / (peak * world.size),
        "total_seconds": total,
        "aside_seconds": total - steps * costs.step,
        "peak_memory": measured.peak_memory and measured.peak_memory + copied_bytes(cfg, model, deadline, compute),
        "checkpoint_bytes": saved_bytes(cfg, model),
        "kept": cfg.keep_last + 1,  # the best may be none of the last
    }


def copied_bytes(cfg: LoopConfig, model: GPT, deadline: Deadline, compute: Compute) -> int:
    """What a CPU's memory holds besides while training goes on: the copy that a save in the background is written from.

    The three steps do not see it, for nothing is saved; nor does a run that saves at its end alone.
    """
    trains_on = min(deadline.save_every, deadline.eval_every) < deadline.steps
    held = cfg.save_in_background and trains_on and compute.device.type == "cpu"
    return saved_bytes(cfg, model) if held else 0


def saved_bytes(cfg: LoopConfig, model: GPT) -> int:
    """The size of one saved step."""
    return plan.checkpoint_bytes(model, muon=cfg.optimizer.name == "muon", averaged=cfg.weight_average != "none")


def write_seconds(folder: Path, n_bytes: int) -> float:
    """What writing so many bytes, hashed and flushed, takes there; leaves nothing behind."""
    while not folder.is_dir():
        folder = folder.parent
    block = os.urandom(2**20)
    blocks = max(1, min(64, n_bytes >> 20))
    began = time.perf_counter()
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(blocks):
            file.write(block)
            hashlib.sha256(block).digest()
        file.flush()
        os.fsync(file.fileno())
    return (time.perf_counter() - began) * max(1, n_bytes / 2**20) / blocks
