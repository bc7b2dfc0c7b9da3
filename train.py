"""The training loop: fit(), read top to bottom; main() prepares a corpus and pretrains a model on it."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from conf import cli, display
from conf.journal import Journal, draw
from conf.resume import JOB, follow_checkpoint, job, resume_config
from data.batches import WindowBatches, WindowEvaluation
from data.prepare import PrepareConfig, open_split, prepare
from data.tokenizer import Tokenizer
from data.tokenizer import load as load_tokenizer
from model import InputError, checkpoint, parallel, saving
from model.attention import choose_kernel
from model.background import Saver
from model.config import ModelConfig
from model.device import DTYPES, Compute, cpu_has_bfloat16, keep_freed_memory
from model.evaluate import EvaluationData, Score, evaluate, summed_loss, to_device
from model.gpt import GPT
from model.guard import LossScale, SkipGuard
from model.optim import Optimizer, OptimizerConfig, rate_at, warmup
from model.run_state import RunState, newest_on_all, publish, restore
from model.seeds import hash_seed


@dataclass
class WandbConfig:
    mode: str = "disabled"  # disabled | offline | online
    project: str = "nextword"  # where wandb files the run


@dataclass
class LoopConfig:
    """What fit() reads, whatever the data."""

    run_dir: str | None = None  # where the run lives
    steps: int = 1000  # optimizer updates
    batch_size: int = 16  # sequences per update, over all ranks
    micro_batch: int | None = None  # sequences per forward on one rank; null: all of its share
    seed: int = 1  # of the weights, the order of the data and dropout
    device: str = "auto"  # auto | cpu | cuda | cuda:N | mps
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16
    compile: Any = "auto"  # auto | true | false
    parallel: str = "none"  # none | ddp | fsdp
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    log_every: int = 10  # steps between two lines of figures
    eval_every: int | None = None  # null: ten times a run, at least 25 steps apart
    save_every: int | None = None  # null: whenever it evaluates; a better evaluation always saves
    keep_last: int = 2  # newest saved steps to keep, beside the best
    save_in_background: bool = True  # write a checkpoint while training goes on, from a copy; false: wait for it
    save_sharded: Any = "auto"  # auto | true | false: each rank writes a part; auto: fsdp, from 2 billion parameters
    resume: Any = False  # false | true | auto
    nonfinite_limit: int = 10  # skipped updates in a row that end the run
    spike_deviations: float = 0.0  # skip updates whose gradient norm or loss lies so far above the usual; 0: none
    wandb: WandbConfig = field(default_factory=WandbConfig)
    debug: bool = False  # tracebacks for every error

    def problems(self) -> list[str]:
        """All that is wrong beyond single types."""
        world = parallel.World.from_environment()
        found = [] if self.run_dir else ["run_dir is required: where to keep the run, such as run_dir=out/first"]
        counts = ("steps", "batch_size", "micro_batch", "log_every", "eval_every", "save_every", "keep_last")
        for name in (*counts, "nonfinite_limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                found.append(f"{name}={value} must be at least 1")
        if self.resume not in (False, True, "auto"):
            found.append(f"resume={self.resume!r} is not one of false, true, auto")
        if self.parallel not in parallel.STRATEGIES:
            found.append(f"parallel={self.parallel!r} is not one of {', '.join(parallel.STRATEGIES)}")
        elif world.size > 1 and self.parallel == "none":
            found.append(f"this is one of {world.size} processes; say how they share the work: parallel=ddp or fsdp")
        if world.size > 1 and ":" in self.device:
            found.append(f"device={self.device} would give all {world.size} processes one device; use device=cuda")
        if not 0 <= self.spike_deviations < math.inf:
            found.append(f"spike_deviations={self.spike_deviations} must be 0 (off) or above")
        if self.save_sharded not in (False, True, "auto"):
            found.append(f"save_sharded={self.save_sharded!r} is not one of auto, true, false")
        if self.wandb.mode not in ("disabled", "offline", "online"):
            found.append(f"wandb.mode={self.wandb.mode!r} is not one of disabled, offline, online")
        if self.batch_size % world.size:
            found.append(f"batch_size={self.batch_size} is not divisible by the {world.size} processes")
        elif self.micro_batch and self.batch_size // world.size % self.micro_batch:
            share = self.batch_size // world.size
            found.append(f"micro_batch={self.micro_batch} does not divide the {share} sequences of each process")
        if self.steps >= 1 and (self.optimizer.warmup_steps or 0) > self.steps:
            found.append(f"optimizer.warmup_steps={self.optimizer.warmup_steps} is longer than steps={self.steps}")
        if not -(2**63) <= self.seed < 2**63:
            found.append(f"seed={self.seed} has more than 64 bits")
        return found


@dataclass
class TrainConfig(LoopConfig, PrepareConfig):
    """The keys of `python train.py`: those of the loop, those of preparing a corpus, and the model's shape."""

    model: ModelConfig = field(default_factory=ModelConfig)
    checkpoint: str | None = None  # start from these weights, this model and this tokenizer

    def problems(self) -> list[str]:
        found = LoopConfig.problems(self) + PrepareConfig.problems(self)
        if self.model.vocab_size:
            found.append(f"model.vocab_size={self.model.vocab_size} follows the tokenizer; set tokenizer.vocab_size")
        return found


Settings = TypeVar("Settings", bound=LoopConfig)


class TrainingData(Protocol):
    """Batches as a pure function of (seed, step): a resumed run, or one on more ranks, sees the same."""

    batch_size: int
    context: int

    def batch(self, step: int, rows: slice) -> Any: ...  # (inputs, targets), this rank's rows of the global batch

    def supervised_tokens(self, step: int) -> int: ...  # targets that carry loss, in the whole global batch

    def epochs(self, step: int) -> float: ...  # how often the data were seen after so many steps

    def describe(self, step: int) -> str: ...  # where the batch comes from, for error messages


def fit(
    cfg: LoopConfig,
    model: GPT,
    tokenizer: Tokenizer,
    train_data: TrainingData,
    val_data: EvaluationData | None,
    *,
    world: parallel.World,
    compute: Compute,
    facts: dict[str, Any],
) -> Score | None:
    """Trains `model` in place for cfg.steps updates, or from where run_dir's newest step left off; the last evaluation.

    `facts` (fingerprints of data and tokenizer) go into each manifest; a run resumes only where they are the same.
    """
    cfg = settle(cfg, compute)
    run_dir, say = Path(cfg.run_dir or ""), print if world.is_main else (lambda line: None)
    resolved = compute.describe() | {
        "attention": choose_kernel(compute.device.type, compute.dtype, model.config.context),
        "newton_schulz": cfg.optimizer.newton_schulz,
        "ranks": world.size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }

    # Compile first, in place, so that parameter names stay as they are; wrap before the optimizer, so that it sees the
    # final parameters; restore last.
    model.train()
    loss_of: Callable[[Tensor, Tensor], Tensor] = summed_loss
    if compute.compile:
        model.compile(dynamic=False)
        loss_of = torch.compile(summed_loss, dynamic=False)
    wrapped = parallel.wrap(model, cfg.parallel, compute)
    optimizer = Optimizer(model, cfg.optimizer, newton_schulz_dtype=DTYPES[cfg.optimizer.newton_schulz])
    scale = LossScale(compute.dtype, compute.device)
    guard = SkipGuard(compute.device, spike_deviations=cfg.spike_deviations)
    learned = (optimizer, scale, guard)  # what is saved beside the weights
    state = RunState(resolved=resolved)
    if cfg.resume and (found := newest_on_all(run_dir, world, compute.device, say=say)):
        state = restore(found, model, learned, facts=facts, resolved=resolved, say=say)
        if world.is_main and found.manifest.get("val_loss", math.nan) == state.best_val_loss:
            saving.point(run_dir, "best", found.directory.name)  # in case that a kill came before it
    if state.step > cfg.steps:
        raise InputError(
            f"steps={cfg.steps}, but the run in {run_dir} has done {state.step}; choose more, or another run_dir"
        )
    if state.step == cfg.steps:
        if world.is_main and not (run_dir / "loss.png").exists():  # a kill came before it
            draw(run_dir)
        say(f"{run_dir} is finished: {state.step} of {cfg.steps} steps")
        return None

    say("  ".join(f"{name} {value}" for name, value in resolved.items()))
    say(describe_run(cfg, model, train_data))
    if world.is_main:
        cli.write_config(cfg, run_dir / "config.yaml")
        (run_dir / JOB).write_text(job(), encoding="utf-8")
    share = world.share(cfg.batch_size)
    micro = cfg.micro_batch or cfg.batch_size // world.size
    eval_every = cfg.eval_every or max(25, -(-cfg.steps // 10))
    save_every = cfg.save_every or eval_every
    last_score = None
    with (
        parallel.StopSignal() as stop,
        deterministic(compute.compile or compute.device.type == "cuda"),
        Journal(
            run_dir,
            steps=cfg.steps,
            start=state.step,
            elapsed_seconds=state.elapsed_seconds,
            settings=asdict(cfg),
            enabled=world.is_main,
        ) as journal,
        Saver(
            run_dir,
            keep_last=cfg.keep_last,
            best_val_loss=state.best_val_loss,
            background=cfg.save_in_background,
            peers=saving.Peers(world.rank, writers=world.size if save_by_all(cfg, model) else 1),
        ) as saver,
    ):
        for step in range(state.step, cfg.steps):
            # Forward and backward. Each loss is a sum, divided by the number of targets in the whole step: so no split
            # into micro-batches or ranks changes the gradient.
            torch.manual_seed(hash_seed(cfg.seed, step, world.rank))  # dropout's: a resumed run drops the same
            targets_in_step = train_data.supervised_tokens(step)
            inputs, targets = to_device(train_data.batch(step, share), compute.device)
            loss_sum = torch.zeros((), device=compute.device)
            for rows in (slice(start, start + micro) for start in range(0, len(inputs), micro)):
                with parallel.no_sync(wrapped, skip=rows.stop < len(inputs)):
                    with compute.autocast():
                        loss = loss_of(wrapped(inputs[rows]), targets[rows])
                    # DDP divides by world.size when it averages over the ranks, hence the factor.
                    (loss * (world.size / targets_in_step) * scale.scale).backward()
                loss_sum += loss.detach()

            # Update, unless the gradient is not finite. `skip` stays a tensor: reading it would wait for the device.
            rate = rate_at(step, cfg.steps, cfg.optimizer)
            norm = optimizer.gradient_norm() / scale.scale
            loss_mean = mean_over_ranks(loss_sum, targets_in_step) if cfg.spike_deviations else None
            skip = guard.check(norm, step, scale, loss=loss_mean)
            clip_divisor = (norm / cfg.optimizer.clip).clamp_min(1) if cfg.optimizer.clip else torch.ones_like(norm)
            optimizer.step(rate, divisor=scale.scale * clip_divisor, skip=skip)
            optimizer.zero_grad()
            scale.update(skip)
            state.step, state.tokens = step + 1, state.tokens + inputs.numel() * world.size
            done, tokens, last = state.step, state.tokens, state.step == cfg.steps
            stopping = stop.agreed() and not last  # every rank asks in every step

            # Log: the only read that waits for the device.
            if done % cfg.log_every == 0 or done == 1 or last:
                figures = torch.stack([mean_over_ranks(loss_sum, targets_in_step), norm, *guard.counts]).tolist()
                learning_rate = rate * cfg.optimizer.learning_rate
                journal.trained(done, tokens, loss=figures[0], learning_rate=learning_rate, grad_norm=figures[1])
                warnings = guard.report(figures[2:], limit=cfg.nonfinite_limit, describe=train_data.describe)
                for warning in (*warnings, *saver.news()):
                    journal.say(warning)

            # Evaluate and save. A better evaluation always saves.
            with journal.aside():
                score, better = None, False
                if val_data is not None and (done % eval_every == 0 or last):
                    score = evaluate(model, val_data, compute=compute, rows=micro, world=world, loss=loss_of)
                    last_score = score
                    state.best_val_loss = saver.best_on_disk()
                    better = score.loss < (math.inf if state.best_val_loss is None else state.best_val_loss)
                    state.best_val_loss = score.loss if better else state.best_val_loss
                    journal.evaluated(done, tokens, loss=score.loss, bits_per_byte=score.bits_per_byte, best=better)
                if better or stopping or last or done % save_every == 0:
                    state.elapsed_seconds = journal.elapsed_seconds
                    publish(
                        state, saver, model, learned, score, better=better, save_tokenizer=tokenizer.save,
                        facts={"seed": cfg.seed, **facts},
                    )  # fmt: skip
            if stopping:
                break
    if state.step < cfg.steps:
        python = "python" if shutil.which("python") == sys.executable else os.path.relpath(sys.executable)
        launcher = ["torchrun", "--standalone", f"--nproc_per_node={world.size}"] if world.size > 1 else [python]
        again = shlex.join([*launcher, sys.argv[0], f"run_dir={cfg.run_dir}", "resume=true"])
        say(f"stopped after step {state.step} of {cfg.steps}, saved; go on with:  {again}")
    else:
        best = f", the best step in {run_dir / 'best'}" if val_data is not None else ""
        say(f"finished: saved in {run_dir}{best}, the curves in {run_dir / 'loss.png'}")
    return last_score


def settle(cfg: Settings, compute: Compute) -> Settings:
    """The settings with `auto` replaced by what it came to, so that a resumed run need not decide anew.

    Device and compile stay as they were asked for: a run may go on elsewhere. Newton-Schulz, Muon's iteration,
    tolerates bfloat16 and takes it where that is fast, whatever the model's own format.
    """
    fast = compute.device.type == "cuda" or (compute.device.type == "cpu" and cpu_has_bfloat16())
    optimizer = cfg.optimizer
    if optimizer.newton_schulz == "auto":
        optimizer = replace(optimizer, newton_schulz="bfloat16" if fast else "float32")
    return replace(cfg, dtype=str(compute.dtype).removeprefix("torch."), optimizer=optimizer)


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Without it two equal runs differ where they are compiled or on a GPU (atomic adds in gradients)."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def describe_run(cfg: LoopConfig, model: GPT, data: TrainingData) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    return (
        f"{display.count(parameters)} parameters, {cfg.steps} steps of {cfg.batch_size} x {data.context} tokens "
        f"({data.epochs(cfg.steps):.1f} epochs), "
        f"{cfg.optimizer.kind}, warm-up {warmup(cfg.optimizer, cfg.steps)}, schedule {cfg.optimizer.schedule}"
    )


def mean_over_ranks(loss_sum: Tensor, targets: int) -> Tensor:
    """The mean loss of a step's batch, a tensor (); all ranks must ask."""
    return parallel.sum_over_ranks(loss_sum.clone()) / targets


def save_by_all(cfg: LoopConfig, model: GPT) -> bool:
    """Whether each rank writes a part of a checkpoint: where asked for, or where one host might not hold it all."""
    large = cfg.parallel == "fsdp" and sum(p.numel() for p in model.parameters()) >= 2e9
    return large if cfg.save_sharded == "auto" else bool(cfg.save_sharded)


def main(cfg: TrainConfig, overrides: cli.Overrides) -> None:
    cfg = resume_config(cfg, overrides)
    world = parallel.World.from_environment()
    compute = Compute.resolve(cfg.device, dtype=cfg.dtype, compile=cfg.compile, local_rank=world.local_rank)
    keep_freed_memory()
    start = checkpoint.source(cfg.run_dir, cfg.checkpoint, resume=bool(cfg.resume)) if cfg.checkpoint else None
    if start is not None:
        tokenizer = load_tokenizer(start.directory / "tokenizer")
        start.check_tokenizer(vocab_size=tokenizer.vocab_size, fingerprint=tokenizer.fingerprint)
        cfg = follow_checkpoint(cfg, overrides, start.config, start.directory / "tokenizer")
    run_dir = Path(cfg.run_dir or "")
    with contextlib.ExitStack() as held:
        if world.is_main:
            held.enter_context(checkpoint.lock(run_dir))
        prepared = held.enter_context(parallel.process_group(world, compute.device, lambda: str(prepare(cfg))))
        tokenizer = load_tokenizer(Path(prepared) / "tokenizer")
        shape = replace(cfg.model, vocab_size=tokenizer.vocab_size)
        train_split = open_split(Path(prepared), "train")
        train_data = WindowBatches(train_split, context=shape.context, batch_size=cfg.batch_size, seed=cfg.seed)
        val_data = None
        if cfg.val_fraction or cfg.val_include:
            val_data = WindowEvaluation(open_split(Path(prepared), "val"), context=shape.context)
        torch.manual_seed(cfg.seed)
        model = GPT(shape)
        if start is not None:
            start.load_into(model)
        facts = {"data_fingerprint": train_split.fingerprint, "tokenizer_fingerprint": tokenizer.fingerprint}
        fit(cfg, model, tokenizer, train_data, val_data, world=world, compute=compute, facts=facts)


if __name__ == "__main__":
    cli.run(main, TrainConfig, name="train")
