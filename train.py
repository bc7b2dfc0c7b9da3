"""The training loop: fit(), read top to bottom; main() prepares a corpus and pretrains a model on it."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conf.cli import program
from conf.display import data_report, forecast, progress
from conf.run.metrics_log import Journal, draw
from conf.run.resume import JOB, fill_in, follow_checkpoint, job, resume_config
from conf.run.stopwatch import Stopwatch
from data.batching.batches import BatchConfig, WindowBatches, WindowEvaluation
from data.preparation.prepare import PrepareConfig, open_split, prepare
from data.reporting.references import reference_losses
from data.tokenizers.build import Tokenizer
from data.tokenizers.build import load as load_tokenizer
from model import InputError, memory
from model.checkpoints import reader, writer
from model.checkpoints.background import Saver
from model.config import ModelConfig
from model.device import DTYPES, Compute, deterministic, keep_freed_memory
from model.distributed import parallel, sharded
from model.distributed.sharded_optimizer import ShardedOptimizer
from model.gpt import GPT
from model.optimization.optimizer import Optimizer
from model.optimization.schedule import warmup_steps
from model.planning import plan
from model.planning.budget import Costs, Deadline
from model.planning.depth import settings_for
from model.seeds import hash_seed
from model.training.average import Average
from model.training.evaluate import EvaluationData, Score, TrainingData, evaluate, to_device
from model.training.measure import measure, outlook, saved_bytes
from model.training.microbatch import MicroBatches, recompute_activations
from model.training.preview import sample_text
from model.training.run_state import RunState, newest_on_all, publish, restore
from model.training.settings import LoopConfig, compiled_where_it_pays, save_by_all, settle, what_was_resolved
from model.training.skip_updates import LossScale, SkipGuard


@dataclass
class TrainConfig(LoopConfig, PrepareConfig, BatchConfig):
    """The keys of `python train.py`: the loop's, those of preparing a corpus and its batches, and the model's shape."""

    model: ModelConfig = field(default_factory=ModelConfig)
    depth: int | None = None  # one dial for a size: layers, width, heads, batch, learning rates (model/depth.py)
    checkpoint: str | None = None  # start from these weights, this model and this tokenizer
    gpu: str | None = None  # dry_run: how many of this kind a large model needs (H100, H200, A100...), on paper

    def validate(self) -> list[str]:
        found = LoopConfig.validate(self) + PrepareConfig.validate(self) + self.validate_batches(self.corpus)
        if self.model.vocab_size:
            found.append(f"model.vocab_size={self.model.vocab_size} follows the tokenizer; set tokenizer.vocab_size")
        if self.depth is not None and self.depth < 1:
            found.append(f"depth={self.depth} must be at least 1")
        if self.gpu and not self.dry_run:
            found.append(f"gpu={self.gpu} is for dry_run=true: what would be needed; say device= for where to train")
        return found


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
    start: reader.Checkpoint | None = None,
    references: dict[str, float] | None = None,
) -> Score | None:
    """Trains `model` in place for cfg.steps updates; the last evaluation.

    It goes on from where run_dir's newest step left off, where cfg.resume asks for that and there is one; else it
    begins with the weights of `start`; else with random ones, the model's own or those that wrap() gives it.

    `facts` (fingerprints of data and tokenizer) go into each manifest; a run resumes only where they are the same.
    `references` are losses to compare with.
    """
    watch, device = Stopwatch(), compute.device
    run_dir, say = Path(cfg.run_dir or ""), print if world.is_main else (lambda line: None)
    share = world.share(cfg.batch_size)
    model.train()
    if cfg.activation_checkpointing:
        recompute_activations(model)
    cfg = settle(cfg, model, compute, world, document_mask=train_data.document_mask)
    memory.reset_peak(device)

    # Compile first, in place, so that parameter names stay as they are; wrap before the optimizer, so that it sees the
    # final parameters; restore last. Where from is known before, so that no weights are drawn in vain.
    if compute.compile:
        parallel.compile_in_place(model, cfg.parallel)
    found = newest_on_all(run_dir, world, say=say) if cfg.resume else None
    if cfg.resume is True and found is None:
        say(f"note: {run_dir} holds no saved step, so the run begins anew")
    wrapped = parallel.wrap(model, cfg.parallel, compute, draw=found is None and start is None)
    if found is None and start is not None:
        start.load_into(model)
    rows = cfg.micro_batch or cfg.batch_size // world.size
    micro = MicroBatches(wrapped, rows, compute=compute, world=world)
    average = Average(model, cfg.weight_average, decay=cfg.ema_decay, fraction=cfg.tail_fraction)
    optimizer, scale, guard = start_optimizer(cfg, model, compute)
    resolved = what_was_resolved(cfg, model, compute, world)
    state = RunState(budget=cfg.time_budget, resolved=resolved)
    if found is not None:
        learned = (average, optimizer, scale, guard)  # in this order: the average puts back the weights behind it
        state = restore(found, model, learned, facts=facts, resolved=resolved, say=say)
        if world.is_main and found.manifest.get("val_loss", math.nan) == state.best_val_loss:
            writer.point(run_dir, "best", found.directory.name)  # in case that a kill came before it

    def update(step: int, rate: float) -> tuple[Tensor, Tensor, int]:
        """One update; this rank's summed loss, the norm of the gradient, how many tokens were read."""
        # Forward and backward. Each loss is a sum, divided by the number of targets in the whole step: so no split
        # into micro-batches or ranks changes the gradient. DDP divides by world.size, hence that factor.
        with watch("loading"):
            inputs, targets, starts = to_device(train_data.batch(step, share), device)
        targets_in_step = train_data.supervised_tokens(step)
        weight = world.size / targets_in_step * scale.scale
        seed = hash_seed(cfg.seed, step, world.rank)  # dropout's: a resumed run drops the same
        loss_sum = micro.backward(inputs, targets, weight=weight, seed=seed, starts=starts)

        # Update, unless the gradient is not finite. `skip` stays a tensor: reading it would wait for the device.
        norm = optimizer.gradient_norm() / scale.scale
        loss_mean = mean_over_ranks(loss_sum, targets_in_step) if cfg.spike_deviations else None
        skip = guard.check(norm, step, scale, loss=loss_mean)
        clip_divisor = (
            (norm / cfg.optimizer.grad_clip).clamp_min(1) if cfg.optimizer.grad_clip else torch.ones_like(norm)
        )
        optimizer.step(rate, divisor=scale.scale * clip_divisor, skip=skip)
        optimizer.zero_grad()
        scale.update(norm)
        return loss_sum, norm, inputs.numel() * world.size

    def score(data: EvaluationData) -> Score:
        return evaluate(model, data, compute=compute, rows=micro.rows, world=world)

    deadline = Deadline(
        cfg.optimizer,
        steps=cfg.steps,
        budget=cfg.budget_seconds(),
        eval_every=cfg.eval_every,
        save_every=cfg.save_every,
        agree=lambda number: parallel.all_reduce_min(number, device),
    )
    costs = Costs()
    if cfg.dry_run or (cfg.time_budget and not state.step):
        with deterministic(compute.compile or device.type == "cuda"):
            measured = measure(
                lambda step: update(step, 0.0)[1].item(),  # at a rate of 0 no weight moves; item() waits for the device
                score,
                val_data,
                rows=micro.rows * world.size,
                device=device,
                save_bytes=saved_bytes(cfg, model),
                in_background=cfg.save_in_background,
                folder=run_dir,
            )
        optimizer, scale, guard = start_optimizer(cfg, model, compute)  # their moments did move
        costs = measured.costs
        deadline.begin(costs, elapsed=watch.total)
        cfg = replace(cfg, optimizer=deadline.config)
        if cfg.dry_run:
            numbers = outlook(cfg, measured, model, train_data, deadline, world=world, compute=compute)
            say(forecast.describe(**numbers, losses=forecast.losses(references or {}, run_dir, facts)))
            return None
    elif cfg.time_budget:
        changed = cfg.time_budget != state.budget
        deadline.reopen(state.steps, state.bend, done=state.step, elapsed=state.elapsed_seconds, changed=changed)
    state.budget = cfg.time_budget
    if state.step > deadline.steps:
        raise InputError(
            f"steps={deadline.steps}, but the run in {run_dir} has done {state.step}; choose more, or another run_dir"
        )
    if state.step == deadline.steps:
        if world.is_main and not (run_dir / "loss.png").exists():  # a kill came before it
            draw(run_dir)
        say(f"{run_dir} is finished: {state.step} of {deadline.steps} steps")
        return None

    say("  ".join(f"{name} {value}" for name, value in resolved.items()))
    say(describe_run(cfg, model, train_data, deadline.steps))
    if cfg.time_budget:
        cfg = replace(cfg, eval_every=deadline.eval_every, save_every=deadline.save_every)
    if world.is_main:
        program.write_config(cfg, run_dir / "config.yaml")
        (run_dir / JOB).write_text(job(), encoding="utf-8")
    last_score = None
    with (
        parallel.StopSignal() as stop,
        deterministic(compute.compile or device.type == "cuda"),
        Journal(
            run_dir,
            steps=deadline.steps,
            start=state.step,
            elapsed_seconds=state.elapsed_seconds + watch.total,
            settings=asdict(cfg),
            enabled=world.is_main,
            watch=watch,
            references=references,
        ) as journal,
        Saver(
            run_dir,
            keep_last=cfg.keep_last,
            best_val_loss=state.best_val_loss,
            background=cfg.save_in_background,
            peers=writer.Peers(world.rank, writers=world.size if save_by_all(cfg, model) else 1),
        ) as saver,
    ):
        learned = (average, optimizer, scale, guard)
        while state.step < deadline.steps:
            step, steps = state.step, deadline.steps
            rate = deadline.rate(step)
            loss_sum, norm, tokens_read = update(step, rate)
            average.update(step + 1, steps)
            state.step, state.tokens = step + 1, state.tokens + tokens_read
            done, tokens, last = state.step, state.tokens, state.step == steps
            stopping = stop.agreed() and not last  # every rank asks in every step
            if micro.rows != rows:
                rows = micro.rows
                journal.say(f"out of memory: from step {done} on {rows} sequences a forward; the gradient is the same")
                cfg = replace(cfg, micro_batch=rows)
                program.write_config(cfg, run_dir / "config.yaml")

            # Log: the only reads that wait for the device. A time budget is compared with the time that is left.
            if done % cfg.log_every == 0 or done == 1 or last:
                loss_mean = mean_over_ranks(loss_sum, train_data.supervised_tokens(step))
                loss, grad_norm = torch.stack([loss_mean, norm]).tolist()
                learning_rate = rate * cfg.optimizer.learning_rate
                journal.trained(done, tokens, loss=loss, learning_rate=learning_rate, grad_norm=grad_norm)
                warnings = guard.report(limit=cfg.nonfinite_limit, describe=train_data.describe)
                for warning in (*warnings, *saver.news()):
                    journal.say(warning)
                costs = costs.known(
                    step=journal.seconds_per_step,
                    evaluation=watch.mean("evaluating"),
                    saving=watch.mean("saving"),
                    writing=saver.write_seconds,
                )
                deadline.decide(done, elapsed=journal.elapsed_seconds, costs=costs)
                journal.planned(deadline.steps)

            # Evaluate, save and show what the averaged weights can do. A better evaluation always saves.
            score_now, better = None, False
            evaluating = val_data is not None and (done % deadline.eval_every == 0 or last)
            save_now = stopping or last or done % deadline.save_every == 0
            sampling = cfg.sample_every is not None and (done % cfg.sample_every == 0 or last)
            if evaluating or save_now or sampling:
                norm.item()  # waits for the device: what it still works on is training
                with journal.aside(), average.applied():
                    if val_data is not None and evaluating:
                        with watch("evaluating"):
                            last_score = score_now = score(val_data)
                        state.best_val_loss = saver.best_on_disk()
                        better = score_now.loss < (math.inf if state.best_val_loss is None else state.best_val_loss)
                        state.best_val_loss = score_now.loss if better else state.best_val_loss
                        bits = score_now.bits_per_byte
                        journal.evaluated(done, tokens, loss=score_now.loss, bits_per_byte=bits, best=better)
                    if better or save_now:
                        state.elapsed_seconds = journal.elapsed_seconds
                        state.steps, state.bend = deadline.steps, deadline.bend
                        with watch("saving"):
                            publish(
                                state, saver, model, learned, score_now, better=better, save_tokenizer=tokenizer.save,
                                facts={"seed": cfg.seed, **facts},
                            )  # fmt: skip
                    if sampling:
                        with watch("sampling"):
                            text = sample_text(model, tokenizer, cfg.sample_prompt, compute=compute)
                        journal.sampled(done, tokens, prompt=cfg.sample_prompt, text=text)
            if stopping:
                break
    if state.step < deadline.steps:
        python = "python" if shutil.which("python") == sys.executable else os.path.relpath(sys.executable)
        launcher = ["torchrun", "--standalone", f"--nproc_per_node={world.size}"] if world.size > 1 else [python]
        again = shlex.join([*launcher, sys.argv[0], f"run_dir={cfg.run_dir}", "resume=true"])
        say(f"stopped after step {state.step} of {deadline.steps}, saved; go on with:  {again}")
        return last_score
    peak = plan.peak_flops(device, compute.dtype)
    report = journal.report(
        flops_per_token=plan.flops_per_token(model),
        peak_flops=peak and peak * world.size,
        peak_memory=memory.peak(device),
        best_val_loss=state.best_val_loss,
    )
    say("\n".join(report))
    return last_score


def start_optimizer(cfg: LoopConfig, model: GPT, compute: Compute) -> tuple[Optimizer, LossScale, SkipGuard]:
    make = ShardedOptimizer if any(map(sharded.is_sharded, model.parameters())) else Optimizer
    optimizer = make(model, cfg.optimizer, newton_schulz_dtype=DTYPES[cfg.optimizer.newton_schulz_dtype])
    guard = SkipGuard(compute.device, spike_deviations=cfg.spike_deviations)
    return optimizer, LossScale(compute.dtype, compute.device), guard


def describe_run(cfg: LoopConfig, model: GPT, data: TrainingData, steps: int) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    epochs = ", ".join(f"{number:.1f} epochs over {name}" for name, number in data.epochs(steps).items())
    return (
        f"{progress.count(parameters)} parameters, {steps} steps of {cfg.batch_size} x {data.context} tokens "
        f"({epochs}), "
        f"{cfg.optimizer.name}, warm-up {warmup_steps(cfg.optimizer, steps)}, schedule {cfg.optimizer.schedule}"
    )


def mean_over_ranks(loss_sum: Tensor, targets: int) -> Tensor:
    """The mean loss of a step's batch, a tensor (); all ranks must ask."""
    return parallel.all_reduce_sum(loss_sum.clone()) / targets


def main(cfg: TrainConfig, overrides: program.Overrides) -> None:
    if cfg.depth:
        cfg = fill_in(cfg, settings_for(cfg.depth, cfg.optimizer), overrides)
    cfg = resume_config(cfg, overrides)
    if cfg.gpu:
        print(
            forecast.describe_sizing(**plan.on_paper(cfg, cfg.model, gpu=cfg.gpu, vocab_size=cfg.tokenizer.vocab_size))
        )
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
    show = partial(data_report.show, least=1e6)  # of less text a picture would take longer than all of its preparation
    with contextlib.ExitStack() as held:
        if world.is_main and not cfg.dry_run:
            held.enter_context(reader.lock(run_dir))
        prepared = held.enter_context(
            parallel.process_group(
                world, compute.device, lambda: str(prepare(cfg, progress=progress.Passes(), show=show))
            )
        )
        tokenizer = load_tokenizer(Path(prepared) / "tokenizer")
        shape = replace(cfg.model, vocab_size=tokenizer.vocab_size)
        train_split = open_split(Path(prepared), "train")
        train_data = WindowBatches(
            train_split, context=shape.context, batch_size=cfg.batch_size, seed=cfg.seed,
            mode=cfg.packing, document_mask=cfg.document_mask, weights=cfg.mixture_weights,
        )  # fmt: skip
        for line in train_data.report() if world.is_main else ():
            print(line)
        val_split = open_split(Path(prepared), "val") if cfg.val_fraction or cfg.val_include else None
        val_data = None if val_split is None else WindowEvaluation(val_split, context=shape.context)
        references = reference_losses(train_split, val_split, vocab_size=shape.vocab_size) if world.is_main else {}
        torch.manual_seed(cfg.seed)
        if start is None:
            model = parallel.build(shape, cfg.parallel)
        else:
            model = parallel.build(replace(start.config, dropout=shape.dropout), cfg.parallel)
            start.check_weights(model)
        facts = {"data_fingerprint": train_split.fingerprint, "tokenizer_fingerprint": tokenizer.fingerprint}
        compute = compiled_where_it_pays(cfg, model, compute, world)
        if compute.compile and world.is_main:
            print("compiles in the first step, which takes half a minute or more (compile=false: not)")
        fit(
            cfg, model, tokenizer, train_data, val_data,
            world=world, compute=compute, facts=facts, start=start, references=references,
        )  # fmt: skip


if __name__ == "__main__":
    program.run(main, TrainConfig, name="train")
