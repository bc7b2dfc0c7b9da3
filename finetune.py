"""Fine-tuning: trains all weights of a checkpoint on labelled examples, with the same fit() as pretraining."""

from __future__ import annotations

if __name__ == "__main__":
    from conf import end_on_interrupt

    end_on_interrupt()  # while torch is imported

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from conf import cli
from conf.run.resume import resume_config
from data.labelled.examples import (
    Example,
    fingerprint,
    note_overlap,
    note_unknown,
    split_examples,
    write_examples,
)
from data.labelled.formats import read_examples
from data.labelled.rows import ExampleBatches, ExampleEvaluation, Rows
from data.tokenizers.build import load as load_tokenizer
from model.checkpoints import reader
from model.checkpoints.lock import lock_run
from model.device import Compute, keep_freed_memory
from model.distributed import parallel, strategies
from train import LoopConfig, fit

PATH = {"kind": "path"}


@dataclass
class FinetuneConfig(LoopConfig):
    """The settings of `python finetune.py`: those of the loop, the checkpoint to start from, and the examples."""

    # start from this checkpoint: its weights, model and tokenizer
    checkpoint: str | None = field(default=None, metadata=PATH)
    # JSONL file of {"prompt": ..., "completion": ..., optional "group": ...}
    examples: str | None = field(default=None, metadata=PATH)
    # held-out examples, JSONL; null: hold out val_fraction of `examples`, in whole groups
    val_examples: str | None = field(default=None, metadata=PATH)
    # fraction of the examples to hold out
    val_fraction: float = field(default=0.1, metadata={"group": "data", "needs": ("val_examples=null",)})
    dropout: float = 0.0  # replaces the checkpoint's dropout
    preview: int = 2  # number of examples to print before the first step, with the part that is trained on

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
    """Returns the training and the held-out examples."""
    examples = read_examples(cfg.examples or "")
    if cfg.val_examples is not None:
        return examples, read_examples(cfg.val_examples)
    return split_examples(examples, val_fraction=cfg.val_fraction)


def main(cfg: FinetuneConfig, overrides: cli.Overrides) -> None:
    cfg = resume_config(cfg, overrides)
    world = parallel.World.from_environment()
    compute = Compute.resolve(cfg.device, dtype=cfg.dtype, compile=cfg.compile, local_rank=world.local_rank)
    keep_freed_memory()
    start = reader.source(cfg.run_dir, cfg.checkpoint, resume=bool(cfg.resume))
    tokenizer = load_tokenizer(start.directory / "tokenizer")
    start.check_tokenizer(vocab_size=tokenizer.vocab_size, fingerprint=tokenizer.fingerprint)
    train_examples, val_examples = read_splits(cfg)
    model_config = replace(start.config, dropout=cfg.dropout)
    context, one_width = model_config.context, compute.compile
    rows = Rows(train_examples, tokenizer, context=context)
    train_data = ExampleBatches(rows, batch_size=cfg.batch_size, seed=cfg.seed, one_width=one_width)
    val_data = ExampleEvaluation(Rows(val_examples, tokenizer, context=context), one_width=one_width)
    with contextlib.ExitStack() as stack:
        if world.is_main and not cfg.dry_run:
            stack.enter_context(lock_run(Path(cfg.run_dir or "")))
        stack.enter_context(parallel.process_group(world, compute.device))
        if world.is_main:
            for index, example in enumerate(rows.examples[: cfg.preview]):
                print(f"{example.place}: " + "|".join(f"[{text}]" if learned else text for text, learned in rows.tokens(index)))
            for line in note_unknown(train_examples + val_examples, tokenizer, "the examples"):
                print(f"note: {line}")
            for line in note_overlap(train_examples, val_examples):
                print(line)
            print(
                f"{len(train_data)} training examples, {len(val_data)} held out; {len(rows.truncated)} prompts "
                f"truncated to the context, {len(rows.dropped)} examples dropped"
            )
        torch.manual_seed(cfg.seed)
        model = strategies.build(model_config, cfg.parallel)
        fingerprints = {
            "data_fingerprint": fingerprint(train_examples + val_examples),
            "tokenizer_fingerprint": tokenizer.fingerprint,
        }
        resuming = start.directory.parent == Path(cfg.run_dir or "")  # then the file exists already
        if world.is_main and cfg.val_examples is None and not resuming and not cfg.dry_run:
            held_out = Path(cfg.run_dir or "") / "held_out.jsonl"
            write_examples(val_examples, held_out)
            print(f"the held-out examples are in {held_out}")
        fit(
            cfg, model, tokenizer, train_data, val_data,
            world=world, compute=compute, fingerprints=fingerprints, start=start,
        )  # fmt: skip


if __name__ == "__main__":
    cli.run(main, FinetuneConfig, name="finetune")
