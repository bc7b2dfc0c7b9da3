"""LoopConfig, the settings of fit() in train.py, and how `auto` is resolved."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .. import InputError
from ..attention import choose_kernel, has_varlen_kernel
from ..device import Compute, has_bfloat16, missing_for_compile, resolve_deterministic
from ..distributed import parallel, strategies
from ..gpt import GPT
from ..optimization.schedule import OptimizerConfig, warmup_steps
from ..planning.budget import seconds_of
from ..planning.plan import flops_per_token
from .average import KINDS
from .microbatch import best_micro_batch_size

LONG_SECONDS = 600  # from this time budget on, compiling pays on a CPU
LONG_FLOPS = 1e14  # the same per thread: about that long with bfloat16 instructions, longer without
LARGEST_BATCH = 10**6  # sequences per update; more would exhaust memory before the first one

TEXT = {"kind": "text"}
DISTRIBUTED = {"group": "distributed"}
SAVING = {"group": "evaluation and saving"}
ADVANCED = {"group": "advanced"}


@dataclass
class WandbConfig:
    mode: str = "disabled"  # disabled | offline | online
    # Weights & Biases project
    project: str = field(default="nextword", metadata=TEXT | {"needs": ("mode=offline|online",)})


@dataclass
class LoopConfig:
    """The settings of fit(), whatever the data."""

    # directory of the run: checkpoints, metrics, config
    run_dir: str | None = field(default=None, metadata={"kind": "path"})
    steps: int = field(default=1000, metadata={"needs": ("time_budget=null",)})  # optimizer updates
    time_budget: str | None = None  # 90s, 10m, 1h30m: as many steps as fit, including the decay; replaces steps
    dry_run: bool = False  # measure a few steps, print an estimate of the whole run, and stop
    batch_size: int = 16  # sequences per update, over all ranks
    micro_batch: Any = None  # sequences per forward on each rank; null: all of its batch | auto: the best size
    activation_checkpointing: bool = False  # recompute activations in the backward pass: slower, much less memory
    seed: int = 1  # for weights, data order and dropout
    device: str = "auto"  # auto | cpu | cuda | cuda:N | mps
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16
    compile: Any = "auto"  # auto (on a GPU; train.py: also on a CPU, for runs of about ten minutes) | true | false
    # equal and resumed runs end with the same weights, bit for bit: true | false | auto (on a CPU, where it is free)
    deterministic: Any = "auto"
    parallel: str = field(default="none", metadata=DISTRIBUTED)  # none | ddp | fsdp
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    # what to train, the rest stays as it is: all | embed | head | norms | biases | blocks.-2: | *.mlp.* | [several]
    trainable: Any = "all"
    # evaluate and save averaged weights: none | ema | tail (mean of the last steps)
    weight_average: str = field(default="none", metadata=SAVING)
    ema_decay: float = field(default=0.99, metadata=SAVING | {"needs": ("weight_average=ema",)})  # ema: decay per step
    # tail: fraction of the steps to average
    tail_fraction: float = field(default=0.1, metadata=SAVING | {"needs": ("weight_average=tail",)})
    log_every: int = field(default=10, metadata=SAVING)  # steps between log lines
    # steps between evaluations; null: ten per run, at least 25 steps apart
    eval_every: int | None = field(default=None, metadata=SAVING)
    # steps between checkpoints; null: eval_every. A better evaluation always saves
    save_every: int | None = field(default=None, metadata=SAVING)
    sample_every: int | None = field(default=None, metadata=SAVING)  # steps between sampled texts; null: none
    # prompt of the sampled texts; empty: the start of a document
    sample_prompt: str = field(default="", metadata=TEXT | SAVING | {"needs": ("sample_every",)})
    # which figure makes an evaluation the best: loss; of labels also accuracy | macro_f1, of free text exact_match
    select: str = field(default="loss", metadata=SAVING)
    # end the run after this many evaluations without a better one; null: never
    patience: int | None = field(default=None, metadata=SAVING)
    keep_last: int = field(default=2, metadata=SAVING)  # newest checkpoints to keep, besides the best one
    # write checkpoints from a copy while training continues
    save_in_background: bool = field(default=True, metadata=ADVANCED)
    # each rank writes a part: true | false | auto (fsdp with 2 billion parameters or more)
    save_sharded: Any = field(default="auto", metadata=DISTRIBUTED)
    resume: Any = False  # true | false | auto (resume if the run exists, else start it)
    # abort after this many consecutive updates with non-finite gradients
    nonfinite_limit: int = field(default=10, metadata=ADVANCED)
    # skip updates with loss or gradient norm this many sigma above the mean; 0: off
    spike_deviations: float = field(default=0.0, metadata=ADVANCED)
    wandb: WandbConfig = field(default_factory=WandbConfig, metadata=SAVING)
    debug: bool = False  # show tracebacks of user errors

    def validate(self) -> list[str]:
        """Returns all errors that the types alone do not catch."""
        world = parallel.World.from_environment()
        needed = "run_dir is required: the directory of the run, such as run_dir=out/first; --help lists all settings"
        found = [] if self.run_dir else [needed]
        if self.run_dir and self.run_dir.encode(errors="ignore").decode() != self.run_dir:
            found.append(f"run_dir={self.run_dir!r} is not UTF-8; choose another name")
        if self.dry_run and not self.resume:
            found = []
        elif self.dry_run:
            found.append("dry_run=true is for a new run; leave out resume=")
        for name, value, allowed in (
            ("resume", self.resume, (False, True, "auto")),
            ("deterministic", self.deterministic, (False, True, "auto")),
            ("parallel", self.parallel, strategies.STRATEGIES),
            ("save_sharded", self.save_sharded, (False, True, "auto")),
            ("weight_average", self.weight_average, KINDS),
            ("select", self.select, ("loss", "accuracy", "macro_f1", "exact_match")),
            ("wandb.mode", self.wandb.mode, ("disabled", "offline", "online")),
        ):
            if value not in allowed:
                shown = repr(value) if isinstance(value, str) else json.dumps(value)
                found.append(f"{name}={shown} is not one of {', '.join(str(one).lower() for one in allowed)}")
        if self.micro_batch not in (None, "auto") and type(self.micro_batch) is not int:
            found.append(f"micro_batch={json.dumps(self.micro_batch)} is not a number, null or auto")
        micro_batch = self.micro_batch if isinstance(self.micro_batch, int) else None
        counts = (
            "steps",
            "batch_size",
            "log_every",
            "eval_every",
            "save_every",
            "sample_every",
            "keep_last",
            "patience",
        )
        values = {name: getattr(self, name) for name in (*counts, "nonfinite_limit")} | {"micro_batch": micro_batch}
        small = {name: value for name, value in values.items() if value is not None and value < 1}
        found += [f"{name}={value} must be at least 1" for name, value in small.items()]
        if self.batch_size > LARGEST_BATCH:
            found.append(f"batch_size={self.batch_size} must be at most {LARGEST_BATCH:,}")
        if world.size > 1 and self.parallel == "none":
            found.append(f"parallel=none with {world.size} processes; set parallel=ddp or parallel=fsdp")
        if world.size > 1 and ":" in self.device:
            found.append(f"device={self.device} would put all {world.size} processes on one device; use device=cuda")
        if world.size > 1 and self.parallel == "fsdp" and self.micro_batch == "auto":
            found.append("micro_batch=auto does not work with parallel=fsdp; set a number")
        if not 0 <= self.spike_deviations < math.inf:
            found.append(f"spike_deviations={self.spike_deviations} must be 0 (off) or above")
        if not 0 <= self.ema_decay < 1:
            found.append(f"ema_decay={self.ema_decay} must be in [0, 1)")
        if not 0 < self.tail_fraction <= 1:
            found.append(f"tail_fraction={self.tail_fraction} must be in (0, 1]")
        if self.batch_size % world.size:
            found.append(f"batch_size={self.batch_size} is not divisible by the {world.size} processes")
        elif micro_batch is not None and micro_batch > 0 and self.batch_size // world.size % micro_batch:
            per_rank_batch = self.batch_size // world.size
            found.append(f"micro_batch={micro_batch} does not divide the {per_rank_batch} sequences of each process")
        warmup = self.optimizer.warmup_steps or 0
        # A resumed run may have fewer steps than when its warmup was fixed.
        if 1 <= self.steps < warmup and not (self.time_budget or self.resume):
            found.append(f"optimizer.warmup_steps={warmup} is longer than steps={self.steps}")
        if not -(2**63) <= self.seed < 2**63:
            found.append(f"seed={self.seed} has more than 64 bits")
        try:
            self.budget_seconds()
        except InputError as error:
            found.append(str(error))
        return found

    def budget_seconds(self) -> float | None:
        return None if self.time_budget is None else seconds_of(self.time_budget)


def resolve_auto(
    cfg: LoopConfig, model: GPT, compute: Compute, world: parallel.World, *, document_mask: bool = False
) -> LoopConfig:
    """Returns the settings with each `auto` replaced by its value, so that a resumed run uses the same values.

    The default warmup is fixed too: it depends on the number of steps, and a run that is extended must not warm up
    again. Device, compile and deterministic stay as given, since a run may resume on another machine. Muon's
    Newton-Schulz iteration tolerates bfloat16, so it uses bfloat16 where that is fast, whatever the model's dtype.
    """
    optimizer = cfg.optimizer
    if optimizer.newton_schulz_dtype == "auto":
        optimizer = replace(optimizer, newton_schulz_dtype="bfloat16" if has_bfloat16(compute.device) else "float32")
    if not cfg.time_budget:
        optimizer = replace(optimizer, warmup_steps=warmup_steps(optimizer, cfg.steps))
    micro_batch_size = cfg.micro_batch
    if micro_batch_size == "auto":
        model.to(compute.device)
        best = best_micro_batch_size(model, cfg.batch_size // world.size, compute=compute, document_mask=document_mask)
        micro_batch_size = parallel.all_reduce_min(best, compute.device)
    dtype = str(compute.dtype).removeprefix("torch.")
    return replace(cfg, dtype=dtype, optimizer=optimizer, micro_batch=micro_batch_size)


def resolve_compile(cfg: LoopConfig, model: GPT, compute: Compute, world: parallel.World) -> Compute:
    """Resolves compile=auto on a CPU: compiles if the run is long enough to earn back half a minute of compilation.

    Compiled steps are a tenth to a third faster. The decision depends on the settings only, so a resumed run makes the
    same one.
    """
    if cfg.compile != "auto" or compute.device.type != "cpu" or world.size > 1:
        return compute
    flops = flops_per_token(model) * model.config.context * cfg.batch_size * cfg.steps
    budget = cfg.budget_seconds()
    long = flops >= LONG_FLOPS * torch.get_num_threads() if budget is None else budget >= LONG_SECONDS
    return replace(compute, compile=long and not missing_for_compile(compute.device))


def use_sharded_checkpoint(cfg: LoopConfig, model: GPT) -> bool:
    """True if each rank writes a part of a checkpoint: on request, or if it may not fit the memory of one host."""
    large = cfg.parallel == "fsdp" and sum(p.numel() for p in model.parameters()) >= 2e9
    return large if cfg.save_sharded == "auto" else bool(cfg.save_sharded)


def runtime_info(
    cfg: LoopConfig, model: GPT, compute: Compute, world: parallel.World, *, document_mask: bool = False
) -> dict[str, Any]:
    """Returns what a run prints at its start and saves: if any of these change, results may differ in the last bits."""
    attention = choose_kernel(compute.device.type, compute.dtype, model.config.context)
    if document_mask and compute.device.type != "cpu":
        varlen = has_varlen_kernel(compute.device, compute.dtype, model.config.head_dim)
        attention = "varlen" if varlen else f"{attention} with a dense mask"
    return compute.describe() | {
        "deterministic": resolve_deterministic(cfg.deterministic, compute.device),
        "attention": attention,
        "newton_schulz": cfg.optimizer.newton_schulz_dtype,
        "micro_batch": cfg.micro_batch or cfg.batch_size // world.size,
        "ranks": world.size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
