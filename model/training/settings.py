"""LoopConfig: what a run of training is asked to do, whatever the data; fit() in train.py reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from .. import InputError
from ..attention import choose_kernel
from ..device import Compute, has_bfloat16, missing_for_compile
from ..distributed import parallel
from ..gpt import GPT
from ..optimization.schedule import OptimizerConfig, warmup_steps
from ..planning.budget import seconds_of
from ..planning.plan import flops_per_token
from .average import KINDS
from .microbatch import best_rows

LONG_SECONDS = 600  # a run on a CPU that earns its compilation back
LONG_FLOPS = 1e14  # likewise, a thread: about so long where it has bfloat16 instructions, else longer


@dataclass
class WandbConfig:
    mode: str = "disabled"  # disabled | offline | online
    project: str = "nextword"  # where wandb files the run


@dataclass
class LoopConfig:
    """What fit() reads, whatever the data."""

    run_dir: str | None = None  # where the run lives
    steps: int = 1000  # optimizer updates
    time_budget: str | None = None  # time instead of steps: 90s, 10m, 1h30m; as many steps as fit, the decay included
    dry_run: bool = False  # measure three steps, say what the run would take, stop
    batch_size: int = 16  # sequences per update, over all ranks
    micro_batch: Any = None  # sequences per forward on one rank; null: all of its share; auto: the best that fits
    activation_checkpointing: bool = False  # keep a layer's input only, compute the rest again in backward: less memory
    seed: int = 1  # of the weights, the order of the data and dropout
    device: str = "auto"  # auto | cpu | cuda | cuda:N | mps
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16
    compile: Any = "auto"  # auto (on a GPU; train.py: also on a CPU, for ten minutes or more) | true | false
    parallel: str = "none"  # none | ddp | fsdp
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    weight_average: str = (
        "none"  # which mean of the weights is evaluated, saved and used: none | ema | tail (the last steps)
    )
    ema_decay: float = 0.99  # ema: what is left of a step's weight after the next
    tail_fraction: float = 0.1  # tail: the share of the steps that counts
    log_every: int = 10  # steps between two lines of figures
    eval_every: int | None = None  # null: ten times a run, at least 25 steps apart
    save_every: int | None = None  # null: whenever it evaluates; a better evaluation always saves
    sample_every: int | None = None  # steps between two texts that show how far it is; null: none
    sample_prompt: str = ""  # what these texts continue; empty: the start of a document
    keep_last: int = 2  # newest saved steps to keep, beside the best
    save_in_background: bool = True  # write a checkpoint while training goes on, from a copy; false: wait for it
    save_sharded: Any = "auto"  # auto | true | false: each rank writes a part; auto: fsdp, from 2 billion parameters
    resume: Any = False  # false | true | auto
    nonfinite_limit: int = 10  # skipped updates in a row that end the run
    spike_deviations: float = 0.0  # skip updates whose gradient norm or loss lies so far above the usual; 0: none
    wandb: WandbConfig = field(default_factory=WandbConfig)
    debug: bool = False  # tracebacks for every error

    def validate(self) -> list[str]:
        """All that is wrong beyond single types."""
        world = parallel.World.from_environment()
        found = [] if self.run_dir else ["run_dir is required: where to keep the run, such as run_dir=out/first"]
        if self.dry_run and not self.resume:
            found = []
        elif self.dry_run:
            found.append("dry_run=true describes a new run; leave out resume=")
        if self.micro_batch is not None and self.micro_batch != "auto" and not isinstance(self.micro_batch, int):
            found.append(f"micro_batch={self.micro_batch!r} is not a number, null or auto")
        micro_batch = self.micro_batch if isinstance(self.micro_batch, int) else None
        counts = ("steps", "batch_size", "log_every", "eval_every", "save_every", "sample_every", "keep_last")
        for name in (*counts, "nonfinite_limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                found.append(f"{name}={value} must be at least 1")
        if micro_batch is not None and micro_batch < 1:
            found.append(f"micro_batch={micro_batch} must be at least 1")
        if self.resume not in (False, True, "auto"):
            found.append(f"resume={self.resume!r} is not one of false, true, auto")
        if self.parallel not in parallel.STRATEGIES:
            found.append(f"parallel={self.parallel!r} is not one of {', '.join(parallel.STRATEGIES)}")
        elif world.size > 1 and self.parallel == "none":
            found.append(f"this is one of {world.size} processes; say how they share the work: parallel=ddp or fsdp")
        if world.size > 1 and ":" in self.device:
            found.append(f"device={self.device} would give all {world.size} processes one device; use device=cuda")
        if world.size > 1 and self.parallel == "fsdp" and self.micro_batch == "auto":
            found.append("micro_batch=auto does not work with parallel=fsdp; set a number")
        if not 0 <= self.spike_deviations < math.inf:
            found.append(f"spike_deviations={self.spike_deviations} must be 0 (off) or above")
        if self.save_sharded not in (False, True, "auto"):
            found.append(f"save_sharded={self.save_sharded!r} is not one of auto, true, false")
        if self.weight_average not in KINDS:
            found.append(f"weight_average={self.weight_average!r} is not one of {', '.join(KINDS)}")
        if not 0 <= self.ema_decay < 1:
            found.append(f"ema_decay={self.ema_decay} must be in [0, 1)")
        if not 0 < self.tail_fraction <= 1:
            found.append(f"tail_fraction={self.tail_fraction} must be in (0, 1]")
        if self.wandb.mode not in ("disabled", "offline", "online"):
            found.append(f"wandb.mode={self.wandb.mode!r} is not one of disabled, offline, online")
        if self.batch_size % world.size:
            found.append(f"batch_size={self.batch_size} is not divisible by the {world.size} processes")
        elif micro_batch is not None and micro_batch > 0 and self.batch_size // world.size % micro_batch:
            share = self.batch_size // world.size
            found.append(f"micro_batch={micro_batch} does not divide the {share} sequences of each process")
        # A run that is resumed may end sooner than was meant when its warm-up was settled.
        if (
            self.steps >= 1
            and not (self.time_budget or self.resume)
            and (self.optimizer.warmup_steps or 0) > self.steps
        ):
            found.append(f"optimizer.warmup_steps={self.optimizer.warmup_steps} is longer than steps={self.steps}")
        if not -(2**63) <= self.seed < 2**63:
            found.append(f"seed={self.seed} has more than 64 bits")
        try:
            self.budget_seconds()
        except InputError as error:
            found.append(str(error))
        return found

    def budget_seconds(self) -> float | None:
        return None if self.time_budget is None else seconds_of(self.time_budget)


Settings = TypeVar("Settings", bound=LoopConfig)


def settle(
    cfg: Settings, model: GPT, compute: Compute, world: parallel.World, *, document_mask: bool = False
) -> Settings:
    """The settings with `auto` replaced by what it came to, so that a resumed run need not decide anew.

    The same holds for a warm-up that follows the number of steps: a run that is made longer is not warmed up again.

    Device and compile stay as they were asked for: a run may go on elsewhere. Newton-Schulz, Muon's iteration,
    tolerates bfloat16 and takes it where that is fast, whatever the model's own format.
    """
    optimizer = cfg.optimizer
    if optimizer.newton_schulz_dtype == "auto":
        optimizer = replace(optimizer, newton_schulz_dtype="bfloat16" if has_bfloat16(compute.device) else "float32")
    if not cfg.time_budget:
        optimizer = replace(optimizer, warmup_steps=warmup_steps(optimizer, cfg.steps))
    share = cfg.batch_size // world.size
    rows = cfg.micro_batch
    if rows == "auto":
        model.to(compute.device)
        found = best_rows(model, share, compute=compute, document_mask=document_mask)
        rows = parallel.all_reduce_min(found, compute.device)
    return replace(cfg, dtype=str(compute.dtype).removeprefix("torch."), optimizer=optimizer, micro_batch=rows)


def compiled_where_it_pays(cfg: LoopConfig, model: GPT, compute: Compute, world: parallel.World) -> Compute:
    """compile=auto on a CPU: compiled where the run is long enough for the half minute or more that it takes.

    Compiled steps are a tenth to a third faster. By arithmetic on the settings, so that a resumed run decides the same.
    """
    if cfg.compile != "auto" or compute.device.type != "cpu" or world.size > 1:
        return compute
    flops = flops_per_token(model) * model.config.context * cfg.batch_size * cfg.steps
    budget = cfg.budget_seconds()
    long = flops >= LONG_FLOPS * torch.get_num_threads() if budget is None else budget >= LONG_SECONDS
    return replace(compute, compile=long and not missing_for_compile(compute.device))


def save_by_all(cfg: LoopConfig, model: GPT) -> bool:
    """Whether each rank writes a part of a checkpoint: where asked for, or where one host might not hold it all."""
    large = cfg.parallel == "fsdp" and sum(p.numel() for p in model.parameters()) >= 2e9
    return large if cfg.save_sharded == "auto" else bool(cfg.save_sharded)


def what_was_resolved(cfg: LoopConfig, model: GPT, compute: Compute, world: parallel.World) -> dict[str, Any]:
    """What a run prints at its start and keeps: where one of these changes, so may the last bits of what follows."""
    return compute.describe() | {
        "attention": choose_kernel(compute.device.type, compute.dtype, model.config.context),
        "newton_schulz": cfg.optimizer.newton_schulz_dtype,
        "micro_batch": cfg.micro_batch or cfg.batch_size // world.size,
        "ranks": world.size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
