"""Measures a few real steps: the time of a step, an evaluation and a save, and the memory used."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..device import Compute, deterministic, resolve_deterministic
from ..distributed import parallel
from ..gpt import GPT
from ..planning import memory, plan
from ..planning.budget import Costs, StepBudget
from .evaluate import EvaluationData, TrainingData, evaluate, to_device
from .microbatch import MicroBatches
from .settings import LoopConfig
from .train_step import TrainStep


@dataclass(frozen=True)
class Measured:
    costs: Costs
    timed_steps: int
    peak_memory: int | None  # bytes; None where unknown


def measure(
    cfg: LoopConfig, model: GPT, micro_batches: MicroBatches, train_data: TrainingData,
    val_data: EvaluationData | None, *, world: parallel.World, compute: Compute, steps: int = 3, seconds: float = 2.0,
) -> Measured:  # fmt: skip
    """Times at least `steps` updates and `seconds` of them, an evaluation, and a write of up to 64 MB near run_dir.

    Changes no weight: the learning rate is 0, and the optimizer is discarded. Two untimed updates come first; they
    compile, and allocate the optimizer state.
    """
    train_step = TrainStep(cfg, model, micro_batches, world=world, compute=compute)
    rank_rows = world.share(cfg.batch_size)

    def update(step: int) -> float:
        """Returns the seconds that an update takes."""
        began = time.perf_counter()
        batch = to_device(train_data.batch(step, rank_rows), compute.device)
        n_targets = train_data.supervised_tokens(step)
        _, norm = train_step(step, batch, n_targets=n_targets, lr_multiplier=0.0)
        norm.item()  # waits for the device
        return time.perf_counter() - began

    def score(data: EvaluationData) -> float:
        """Returns the seconds that one forward takes on each rank."""
        began, size = time.perf_counter(), micro_batches.micro_batch_size
        evaluate(model, data, compute=compute, batch_size=size, world=world, forwards=1)
        return time.perf_counter() - began

    with deterministic(resolve_deterministic(cfg.deterministic, compute.device)):
        for step in range(2):
            update(step)
        taken: list[float] = []
        # All ranks must take the same number of steps, so they continue until each has timed enough by its own clock.
        while not parallel.all_reduce_min(int(len(taken) >= steps and sum(taken) >= seconds), compute.device):
            taken.append(update(len(taken)))
        evaluation = 0.0
        if val_data is not None:
            score(val_data)  # compiles
            evaluation = score(val_data) * math.ceil(len(val_data) / (micro_batches.micro_batch_size * world.size))
    writing = write_seconds(Path(cfg.run_dir or ""), saved_bytes(cfg, model))
    ending = writing if cfg.save_in_background else 0.0
    costs = Costs(sum(taken) / len(taken), evaluation=evaluation, saving=writing, writing=ending)
    return Measured(costs, len(taken), memory.peak(compute.device))


def estimate_run(
    cfg: LoopConfig, measured: Measured, model: GPT, data: TrainingData, budget: StepBudget, *,
    world: parallel.World, compute: Compute,
) -> dict[str, Any]:  # fmt: skip
    """Returns the numbers that conf/display/forecast.py's describe() prints, by its parameter names."""
    flops, costs, steps = plan.flops_per_token(model, context=data.context), measured.costs, budget.steps
    peak = plan.peak_flops(compute.device, compute.dtype)
    # Counted, not batch_size * context: batches of labelled examples can be narrower.
    batches = [data.batch(step, slice(0, cfg.batch_size)) for step in range(measured.timed_steps)]
    tokens_per_step = sum(inputs.size for inputs, *_ in batches) // len(batches)
    total = costs.total(steps, eval_every=budget.eval_every, save_every=budget.save_every)
    return {
        "parts": plan.parameters_by_part(model),
        "flops_per_token": flops,
        "steps": steps,
        "tokens_per_step": tokens_per_step,
        "epochs": data.epochs(steps),
        "seconds_per_step": costs.step,
        "timed_steps": measured.timed_steps,
        "mfu": peak and tokens_per_step * flops / costs.step / (peak * world.size),
        "total_seconds": total,
        "overhead_seconds": total - steps * costs.step,
        "peak_memory": measured.peak_memory and measured.peak_memory + copied_bytes(cfg, model, budget, compute),
        "checkpoint_bytes": saved_bytes(cfg, model),
        "kept": cfg.keep_last + 1,  # the best one may not be among the last
    }


def copied_bytes(cfg: LoopConfig, model: GPT, budget: StepBudget, compute: Compute) -> int:
    """Host memory for the copy that a background save writes from, if training continues meanwhile.

    measure() saves nothing, so its peak does not include the copy. On a GPU the copy is not in the GPU's memory.
    """
    saves_midway = min(budget.save_every, budget.eval_every) < budget.steps
    copies = cfg.save_in_background and saves_midway and compute.device.type == "cpu"
    return saved_bytes(cfg, model) if copies else 0


def saved_bytes(cfg: LoopConfig, model: GPT) -> int:
    """The size of one checkpoint."""
    return plan.checkpoint_bytes(model, muon=cfg.optimizer.name == "muon", averaged=cfg.weight_average != "none")


def write_seconds(folder: Path, n_bytes: int) -> float:
    """Estimates how long it takes to write, hash and flush n_bytes in `folder`. Leaves no file behind."""
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
