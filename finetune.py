"""Fine-tuning: other weights, other data, the same fit(). Every parameter is trained, on labelled examples."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from conf.cli import program
from conf.run.resume import resume_config
from data.labelled.examples import (
    Example,
    ExampleBatches,
    ExampleEvaluation,
    fingerprint,
    read_examples,
    split_examples,
    write_examples,
)
from data.tokenizers.build import load as load_tokenizer
from model.checkpoints import reader
from model.device import Compute, keep_freed_memory
from model.distributed import parallel
from train import LoopConfig, fit


@dataclass
class FinetuneConfig(LoopConfig):
    """The keys of `python finetune.py`: those of the loop, the checkpoint to start from and the examples to learn."""

    checkpoint: str | None = None  # whose model, weights and tokenizer to start from
    examples: str | None = None  # JSONL: {"prompt": ..., "completion": ..., optional "group": ...}
    val_examples: str | None = None  # held-out examples; null: val_fraction of `examples`, whole groups
    val_fraction: float = 0.1
    dropout: float = 0.0  # replaces the checkpoint's
    preview: int = 2  # examples to show before the first step, with what is learned of them

    def validate(self) -> list[str]:
        found = super().validate()
        if not self.checkpoint:
            found.append("checkpoint is required: the run to start from, such as checkpoint=out/first")
        if not self.examples:
            found.append('examples is required: a file of lines like {"prompt": "2+2=", "completion": "4"}')
        if not 0 < self.val_fraction < 1:
            found.append(f"val_fraction={self.val_fraction} must be between 0 and 1")
        if not 0 <= self.dropout < 1:
            found.append(f"dropout={self.dropout} must be in [0, 1)")
        if self.preview < 0:
            found.append(f"preview={self.preview} must be 0 or above")
        return found


def read_splits(cfg: FinetuneConfig) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples."""
    examples = read_examples(cfg.examples or "")
    if cfg.val_examples is not None:
        return examples, read_examples(cfg.val_examples)
    return split_examples(examples, val_fraction=cfg.val_fraction)


def main(cfg: FinetuneConfig, overrides: program.Overrides) -> None:
    cfg = resume_config(cfg, overrides)
    world = parallel.World.from_environment()
    compute = Compute.resolve(cfg.device, dtype=cfg.dtype, compile=cfg.compile, local_rank=world.local_rank)
    keep_freed_memory()
    start = reader.source(cfg.run_dir, cfg.checkpoint, resume=bool(cfg.resume))
    tokenizer = load_tokenizer(start.directory / "tokenizer")
    start.check_tokenizer(vocab_size=tokenizer.vocab_size, fingerprint=tokenizer.fingerprint)
    train_examples, val_examples = read_splits(cfg)
    shape = replace(start.config, dropout=cfg.dropout)
    context, one_width = shape.context, compute.compile
    train_data = ExampleBatches(
        train_examples, tokenizer, context=context, batch_size=cfg.batch_size, seed=cfg.seed, one_width=one_width
    )
    val_data = ExampleEvaluation(val_examples, tokenizer, context=context, one_width=one_width)
    with contextlib.ExitStack() as held:
        if world.is_main and not cfg.dry_run:
            held.enter_context(reader.lock(Path(cfg.run_dir or "")))
        held.enter_context(parallel.process_group(world, compute.device, lambda: ""))
        if world.is_main:
            print(train_data.preview(cfg.preview))
            print(
                f"{len(train_data)} examples to learn, {len(val_data)} held out; {len(train_data.truncated)} prompts "
                f"shortened to the context, {len(train_data.dropped)} examples dropped"
            )
        torch.manual_seed(cfg.seed)
        model = parallel.build(shape, cfg.parallel)
        start.check_weights(model)  # before anything is written
        facts = {
            "data_fingerprint": fingerprint(train_examples + val_examples),
            "tokenizer_fingerprint": tokenizer.fingerprint,
        }
        goes_on = start.directory.parent == Path(cfg.run_dir or "")  # then the file is there, and may say otherwise now
        if world.is_main and cfg.val_examples is None and not goes_on and not cfg.dry_run:
            held_out = Path(cfg.run_dir or "") / "held_out.jsonl"
            write_examples(val_examples, held_out)
            print(f"the held-out examples are in {held_out}")
        fit(cfg, model, tokenizer, train_data, val_data, world=world, compute=compute, facts=facts, start=start)


if __name__ == "__main__":
    program.run(main, FinetuneConfig, name="finetune")
