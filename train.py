"""The training loop, fit(), to be read top to bottom; main() prepares a corpus and pretrains a model on it."""

from __future__ import annotations

if __name__ == "__main__":
    from conf import end_on_interrupt

    end_on_interrupt()  # while torch is imported

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from conf import cli
from conf.cli.fields import typed
from conf.display import data_report, forecast, progress
from conf.run.metrics_log import MetricsLog, draw_loss
from conf.run.resume import JOB_FILE, apply_depth, follow_checkpoint, resume_config, torchrun_job
from conf.run.runs import show_sweep
from conf.run.stopwatch import Stopwatch
from data.batching.batches import BatchConfig, WindowBatches, WindowEvaluation
from data.preparation.config import PrepareConfig
from data.preparation.prepare import prepare
from data.preparation.shards import open_split
from data.reporting.baselines import baseline_losses
from data.tokenizers.build import Tokenizer
from data.tokenizers.build import load as load_tokenizer
from data.tokenizers.unknown import unknown_note
from model import InputError
from model.checkpoints import reader
from model.checkpoints.background import Saver
from model.checkpoints.lock import lock_run
from model.checkpoints.writer import Peers
from model.config import ModelConfig
from model.device import Compute, deterministic, keep_freed_memory
from model.distributed import parallel, strategies
from model.distributed.stop_signal import StopSignal
from model.gpt import GPT
from model.optimization.schedule import warmup_steps
from model.planning import memory, plan
from model.planning.budget import StepBudget
from model.planning.depth import settings_for
from model.threads import share_cpus
from model.training.average import WeightAverage
from model.training.evaluate import (
    EvaluationData,
    TaskEvaluation,
    TrainingData,
    evaluate,
    sample_text,
    to_device,
)
from model.training.measure import estimate_run, measure
from model.training.microbatch import MicroBatches, recompute_activations
from model.training.run_state import RunState, restore, save
from model.training.settings import LoopConfig, resolve_auto, resolve_compile, runtime_info, use_sharded_checkpoint
from model.training.train_step import TrainStep, global_mean_loss
from model.training.trainable import count_parameters, train_only


@dataclass
class TrainConfig(LoopConfig, PrepareConfig, BatchConfig):
    """The settings of `python train.py`: those of the loop, of the corpus and its batches, and of the model."""

    model: ModelConfig = field(default_factory=ModelConfig)
    depth: int | None = None  # sets layers, width, heads, context, batch size and learning rates: see model/planning
    # start from this checkpoint: its weights, model and tokenizer
    checkpoint: str | None = field(default=None, metadata={"kind": "path"})
    gpu: str | None = None  # with dry_run: estimate how many GPUs of this kind are needed: H100, H200, A100...

    def validate(self) -> list[str]:
        found = LoopConfig.validate(self) + PrepareConfig.validate(self) + self.validate_batches(self.corpus)
        if self.model.vocab_size:
            found.append(f"model.vocab_size={self.model.vocab_size} follows the tokenizer; set tokenizer.vocab_size")
        if self.depth is not None and not 1 <= self.depth <= 1000:
            found.append(f"depth={self.depth} must be between 1 and 1,000")
        if self.select != "loss":
            found.append(f"select={self.select} is for finetune.py; leave it out")
        if self.gpu and not self.dry_run:
            found.append(f"gpu={self.gpu} is for dry_run=true, an estimate; set device= to choose where to train")
        return found


def fit(
    cfg: LoopConfig, model: GPT, tokenizer: Tokenizer, train_data: TrainingData, val_data: EvaluationData | None, *,
    world: parallel.World, compute: Compute, fingerprints: dict[str, Any], start: reader.Checkpoint | None = None,
    references: dict[str, float] | None = None, task: TaskEvaluation | None = None,
) -> bool:  # fmt: skip
    """Trains `model` in place for cfg.steps updates. Returns whether the run is finished: False for a dry run and for
    a run that a signal stopped.

    Resumes from run_dir's newest checkpoint if cfg.resume; otherwise starts from `start`, or from random init.
    `fingerprints` of data and tokenizer go into each manifest; a run resumes only if they are unchanged.
    `references` are baseline losses to print and plot. `task` answers held-out examples at each evaluation.
    """
    watch = Stopwatch()
    device = compute.device
    run_dir = Path(cfg.run_dir or "")
    say = print if world.is_main else (lambda line: None)
    model.train()
    train_only(model, cfg.trainable)
    if cfg.activation_checkpointing:
        recompute_activations(model)
    cfg = resolve_auto(cfg, model, compute, world, document_mask=train_data.document_mask)
    memory.reset_peak(device)

    # The order matters. Compile in place first: parameter names stay the same, and FSDP wraps compiled blocks. Find the
    # checkpoint before wrap(), which then skips random init. Load after wrap(), which allocates the parameters.
    if compute.compile:
        strategies.compile_in_place(model, cfg.parallel)
    checkpoint = parallel.from_rank0(lambda: reader.newest(run_dir, say=say), world) if cfg.resume else None
    if cfg.resume is True and checkpoint is None:
        say(f"note: {run_dir} holds no checkpoint, so the run starts from step 0")
    wrapped = strategies.wrap(model, cfg.parallel, compute, random_init=checkpoint is None and start is None)
    if checkpoint is None and start is not None:
        start.load_into(model)
    micro_batch_size = cfg.micro_batch or cfg.batch_size // world.size
    micro_batches = MicroBatches(wrapped, micro_batch_size, compute=compute, world=world)
    budget = StepBudget(
        cfg.optimizer, steps=cfg.steps, seconds=cfg.budget_seconds(), eval_every=cfg.eval_every,
        save_every=cfg.save_every, all_reduce_min=lambda number: parallel.all_reduce_min(number, device),
    )  # fmt: skip
    if cfg.dry_run or (cfg.time_budget and checkpoint is None):
        measured = measure(cfg, model, micro_batches, train_data, val_data, world=world, compute=compute)
        budget.plan(measured.costs, elapsed=watch.total)
        if note := budget.too_short(elapsed=watch.total):
            say(f"note: {note}")
        if cfg.dry_run:
            numbers = estimate_run(cfg, measured, model, train_data, budget, world=world, compute=compute)
            say(forecast.describe(**numbers, losses=forecast.losses(references or {}, run_dir, fingerprints)))
            return False
    train_step = TrainStep(cfg, model, micro_batches, world=world, compute=compute)
    average = WeightAverage(model, cfg.weight_average, decay=cfg.ema_decay, fraction=cfg.tail_fraction)
    stateful = (average, train_step.optimizer, train_step.loss_scale, train_step.guard)
    resolved = runtime_info(cfg, model, compute, world, document_mask=train_data.document_mask)
    state = RunState(resolved=resolved)
    if checkpoint is not None:
        state = restore(checkpoint, model, stateful, fingerprints=fingerprints, resolved=resolved, world=world, say=say)
        if cfg.time_budget:
            changed = cfg.time_budget != state.time_budget
            budget.resume(
                state.steps, state.decay_restart, done=state.step, elapsed=state.elapsed_seconds, changed=changed
            )
        elif note := budget.new_schedule(state.steps, done=state.step):
            say(f"note: {note}")
    state.time_budget = cfg.time_budget
    if state.step >= budget.steps or state.out_of_patience(cfg.patience):
        end_finished_run(state, budget, run_dir, world)
        return True
    if cfg.time_budget:
        cfg = replace(cfg, optimizer=budget.config, eval_every=budget.eval_every, save_every=budget.save_every)
    say("  ".join(f"{name} {typed(value)}" for name, value in resolved.items()))
    if not resolved["deterministic"]:
        say("note: a resumed run may differ from this one in the last bits; deterministic=true would prevent that")
    say(describe_run(cfg, model, tokenizer, train_data, budget.steps))
    if world.is_main:
        cli.write_config(cfg, run_dir / "config.yaml")
        (run_dir / JOB_FILE).write_text(torchrun_job(), encoding="utf-8")

    facts = {"seed": cfg.seed, **fingerprints}  # for the manifests
    if start is not None:  # the origin and the licence of an imported model
        facts |= {key: start.manifest[key] for key in ("source", "licence") if key in start.manifest}

    def save_files() -> list[Callable[[Path], None]]:  # each writes its files into a step directory
        return [lambda step: tokenizer.save(step / "tokenizer"), *([] if task is None else [task.task.save])]

    with (
        StopSignal() as stop,
        deterministic(resolved["deterministic"]),
        share_cpus(device),
        MetricsLog(
            run_dir, steps=budget.steps, start=state.step, elapsed_seconds=state.elapsed_seconds + watch.total,
            settings=asdict(cfg), enabled=world.is_main, watch=watch, references=references,
            report_slow=device.type == "cpu",
        ) as log,
        Saver(
            run_dir, keep_last=cfg.keep_last, best_score=state.best_score, background=cfg.save_in_background,
            peers=Peers(world.rank, writers=world.size if use_sharded_checkpoint(cfg, model) else 1),
        ) as saver,
    ):  # fmt: skip
        while state.step < budget.steps:
            # Update the weights.
            step = state.step
            lr_multiplier = budget.multiplier(step)
            with watch("loading"):
                batch = to_device(train_data.batch(step, world.share(cfg.batch_size)), device)
            n_targets = train_data.supervised_tokens(step)
            loss_sum, norm = train_step(step, batch, n_targets=n_targets, lr_multiplier=lr_multiplier)
            done = state.step = step + 1
            average.update(done, budget.steps)
            state.tokens += batch[0].numel() * world.size
            last = done == budget.steps
            stopping = stop.agreed() and not last  # a collective: all ranks call it after every step
            if micro_batches.micro_batch_size != micro_batch_size:
                micro_batch_size = micro_batches.micro_batch_size
                log.say(f"out of memory: micro_batch={micro_batch_size} from step {done}; same gradient")
                cli.write_config(replace(cfg, micro_batch=micro_batch_size), run_dir / "config.yaml")

            # Log. Of all steps, only those that log, evaluate or save wait for the device.
            log.progress.advance(done)
            if done % cfg.log_every == 0 or done == 1 or last:
                loss, grad_norm = torch.stack([global_mean_loss(loss_sum, n_targets), norm]).tolist()
                learning_rate = lr_multiplier * cfg.optimizer.learning_rate
                log.log_training(done, state.tokens, loss=loss, learning_rate=learning_rate, grad_norm=grad_norm)
                warnings = train_step.guard.report(limit=cfg.nonfinite_limit, describe=train_data.describe)
                for warning in (*warnings, *saver.warnings()):
                    log.say(warning)
                budget.observe(
                    done, elapsed=log.elapsed_seconds, step=log.seconds_per_step,
                    evaluation=watch.mean("evaluating"), saving=watch.mean("saving"), writing=saver.write_seconds,
                )  # fmt: skip
                log.set_total_steps(budget.steps)

            # Evaluate, save and sample, all with the averaged weights. A better evaluation always saves.
            evaluating = val_data is not None and (done % budget.eval_every == 0 or last)
            saving = stopping or last or done % budget.save_every == 0
            sampling = cfg.sample_every is not None and (done % cfg.sample_every == 0 or last)
            best = False
            result = None
            if evaluating or saving or sampling:
                norm.item()  # waits for the device, so that its work counts as training
                with log.paused(), average.applied():
                    if evaluating and val_data is not None:
                        with watch("evaluating"):
                            result = evaluate(
                                model, val_data, compute=compute, batch_size=micro_batch_size, world=world, task=task,
                                select=cfg.select,
                            )  # fmt: skip
                        best = state.update_best(result, best_on_disk=saver.best_on_disk())
                        log.log_evaluation(done, state.tokens, result, best=best)
                    if best or saving or state.out_of_patience(cfg.patience):
                        state.elapsed_seconds = log.elapsed_seconds
                        state.steps, state.decay_restart = budget.steps, budget.decay_restart
                        with watch("saving"):
                            save(state, saver, model, stateful, result, save_files(), best=best, facts=facts)
                    if sampling:
                        with watch("sampling"):
                            text = sample_text(model, tokenizer, cfg.sample_prompt, compute=compute)
                        log.log_sample(done, state.tokens, prompt=cfg.sample_prompt, text=text)
            if stopping or state.out_of_patience(cfg.patience):
                break
    if state.out_of_patience(cfg.patience):
        say(f"ended early: no better {cfg.select} in {cfg.patience} evaluations")
    elif state.step < budget.steps:
        say(f"stopped after step {state.step} of {budget.steps}, saved; {how_to_resume(cfg, world)}")
        return False
    peak = plan.peak_flops(device, compute.dtype)
    lines = log.summary(
        flops_per_token=plan.flops_per_token(model, context=train_data.context), peak_flops=peak and peak * world.size,
        peak_memory=memory.peak(device), best=describe_best(cfg.select, state.best_score),
    )  # fmt: skip
    say("\n".join(lines))
    return True


def describe_best(select: str, score: float | None) -> str | None:
    """Describes the best score. Lower scores are better, so those of accuracies are negative."""
    if score is None:
        return None
    return f"validation loss {score:.4f}" if select == "loss" else f"{select.replace('_', ' ')} {-score:.4f}"


def end_finished_run(state: RunState, budget: StepBudget, run_dir: Path, world: parallel.World) -> None:
    """Says that a resumed run is finished. Raises InputError if it has done more steps than it was asked for."""
    if state.step > budget.steps:
        raise InputError(
            f"steps={budget.steps}: the run in {run_dir} has done {state.step}; set more or another run_dir"
        )
    if world.is_main:
        if not (run_dir / "loss.png").exists():  # the process was killed before drawing it
            draw_loss(run_dir)
        early = "" if state.step >= budget.steps else ", ended early; raise patience to continue"
        print(f"{run_dir} is finished: {state.step} of {budget.steps} steps{early}")


def describe_run(cfg: LoopConfig, model: GPT, tokenizer: Tokenizer, data: TrainingData, steps: int) -> str:
    unknown = tokenizer.unknown(cfg.sample_prompt) if cfg.sample_every else None
    note = f"\nnote: {unknown_note(unknown, 'sample_prompt=')}" if unknown else ""
    reach = round(1 / (1 - cfg.ema_decay))  # steps
    if cfg.weight_average == "ema" and steps < 2 * reach:
        note += f"\nnote: ema_decay={cfg.ema_decay:g} averages about the last {reach} steps, most of this run; lower it"
    parameters, trained = count_parameters(model)
    some = (
        ""
        if trained == parameters
        else f", of which {progress.count(trained)} are trained ({trained / parameters:.1%})"
    )
    epochs = forecast.describe_epochs(data.epochs(steps))
    return (
        f"{progress.count(parameters)} parameters{some}, {steps} steps of {cfg.batch_size} x {data.context} tokens "
        f"(epochs: {epochs}), {cfg.optimizer.name}, warmup {warmup_steps(cfg.optimizer, steps)}, "
        f"schedule {cfg.optimizer.schedule}{note}"
    )


def how_to_resume(cfg: LoopConfig, world: parallel.World) -> str:
    if world.local_size < world.size:
        return "to resume, resubmit the same job with resume=true"
    python = "python" if shutil.which("python") == sys.executable else os.path.relpath(sys.executable)
    launcher = ["torchrun", "--standalone", f"--nproc_per_node={world.size}"] if world.size > 1 else [python]
    return "resume with:  " + shlex.join([*launcher, sys.argv[0], f"run_dir={cfg.run_dir}", "resume=true"])


def main(cfg: TrainConfig, overrides: cli.Overrides) -> None:
    if cfg.depth:
        cfg = apply_depth(cfg, settings_for(cfg.depth, cfg.optimizer), overrides)
    cfg = resume_config(cfg, overrides)
    if cfg.gpu:
        numbers = plan.on_paper(cfg, cfg.model, gpu=cfg.gpu, vocab_size=cfg.tokenizer.vocab_size)
        print(forecast.describe_sizing(**numbers))
        return
    world = parallel.World.from_environment()
    compute = Compute.resolve(cfg.device, dtype=cfg.dtype, compile=cfg.compile, local_rank=world.local_rank)
    keep_freed_memory()
    start = reader.source(cfg.run_dir, cfg.checkpoint, resume=bool(cfg.resume)) if cfg.checkpoint else None
    if start is not None:
        tokenizer = load_tokenizer(start.directory / "tokenizer")
        start.check_tokenizer(vocab_size=tokenizer.vocab_size, fingerprint=tokenizer.fingerprint)
        cfg = follow_checkpoint(cfg, overrides, start.config, start.directory / "tokenizer")
    run_dir = Path(cfg.run_dir or "")
    # For smaller corpora, drawing would take longer than preparing.
    show = partial(data_report.show, min_bytes=1_000_000)
    with contextlib.ExitStack() as stack:
        if world.is_main and not cfg.dry_run:
            stack.enter_context(lock_run(run_dir))
        stack.enter_context(parallel.process_group(world, compute.device))
        prepared = parallel.from_rank0(lambda: prepare(cfg, progress=progress.Passes(), show=show), world)
        tokenizer = load_tokenizer(prepared / "tokenizer")
        model_config = replace(cfg.model, vocab_size=tokenizer.vocab_size)
        train_split = open_split(prepared, "train")
        train_data = WindowBatches(
            train_split, context=model_config.context, batch_size=cfg.batch_size, seed=cfg.seed,
            packing=cfg.packing, document_mask=cfg.document_mask, mixture_weights=cfg.mixture_weights,
        )  # fmt: skip
        for line in train_data.report() if world.is_main else ():
            print(line)
        val_split = open_split(prepared, "val") if cfg.val_fraction or cfg.val_include else None
        val_data = None if val_split is None else WindowEvaluation(val_split, context=model_config.context)
        references = baseline_losses(train_split, val_split, vocab_size=tokenizer.vocab_size) if world.is_main else {}
        torch.manual_seed(cfg.seed)
        if start is not None:
            model_config = replace(start.config, dropout=cfg.model.dropout)
        model = strategies.build(model_config, cfg.parallel)
        fingerprints = {"data_fingerprint": train_split.fingerprint, "tokenizer_fingerprint": tokenizer.fingerprint}
        compute = resolve_compile(cfg, model, compute, world)
        if compute.compile and world.is_main:
            print("compiling during the first step; takes 30 s or more (disable with compile=false)")
        finished = fit(
            cfg, model, tokenizer, train_data, val_data,
            world=world, compute=compute, fingerprints=fingerprints, start=start, references=references,
        )  # fmt: skip
        if finished and world.is_main:
            print(f'sample from it:  python sample.py checkpoint={shlex.quote(str(run_dir))} prompt="..."')


if __name__ == "__main__":
    cli.run(main, TrainConfig, name="train", after_sweep=show_sweep)
