"""Toy data and a short training run for the tests of fit(), and readers of what a run leaves."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import train
from conf.display import answers
from conf.run import metrics_log
from data.batching.batches import IGNORE
from model.checkpoints import reader
from model.device import Compute
from model.distributed import parallel
from model.distributed.stop_signal import StopSignal
from model.gpt import GPT
from model.optimization.schedule import OptimizerConfig
from model.training.settings import LoopConfig
from tests.families import make


class UnequalMasks:
    """Rows with widely different numbers of targets, as in labelled examples."""

    batch_size, context, document_mask = 8, 32, False

    def batch(self, step, rows):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 96, (8, 33), generator=generator)
        targets = ids[:, 1:].clone()
        for row in range(8):
            targets[row, : 4 * row] = IGNORE
        return ids[rows, :-1].numpy(), targets[rows].numpy()

    def supervised_tokens(self, step):
        return sum(32 - 4 * row for row in range(8))

    def epochs(self, step):
        return {"random ids": step}

    def describe(self, step):
        return f"batch of step {step}"


class Poisoned(UnequalMasks):
    """Makes the loss of some steps infinite."""

    def __init__(self, model, steps):
        self.model, self.steps, self.clean = model, steps, embedding(model).detach().clone()

    def batch(self, step, rows):
        weight = embedding(self.model)
        with torch.no_grad():
            weight.copy_(self.clean)
            if step in self.steps:
                weight[0] = float("nan")
            else:
                self.clean.copy_(weight)
        return super().batch(step, rows)


class Rows:
    """Evaluation data of `count` rows."""

    n_bytes = 50

    def __init__(self, count):
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, 96, (count, 21), generator=generator)

    def __len__(self):
        return len(self.ids)

    def batch(self, begin, end):
        inputs = torch.zeros(end - begin, 20, dtype=torch.int64)
        targets = torch.full_like(inputs, IGNORE)
        part = self.ids[begin:end]
        inputs[: len(part)], targets[: len(part)] = part[:, :-1], part[:, 1:]
        return inputs.numpy(), targets.numpy()


class NoTokenizer:
    def save(self, directory):
        (directory / "tokenizer.json").write_text("{}")


def embedding(model: GPT) -> torch.nn.Parameter:
    return next(iter(model.parameters()))


def fit(
    tmp_path: Path, data_of: Callable[[GPT], Any] = lambda model: UnequalMasks(), val_data: Any = None, **settings: Any
) -> GPT:
    """Six steps of a tiny model; the trained model."""
    model = make("modern", n_layer=1)
    settings = {"steps": 6, "dtype": "float32"} | settings
    adamw = OptimizerConfig(name="adamw", learning_rate=1e-3, warmup_steps=2)
    cfg = LoopConfig(run_dir=str(tmp_path), batch_size=8, device="cpu", log_every=1, optimizer=adamw, **settings)
    compute = Compute.resolve("cpu", dtype=cfg.dtype)
    Path(tmp_path).mkdir(parents=True, exist_ok=True)
    data, world = data_of(model), parallel.World()
    train.fit(cfg, model, NoTokenizer(), data, val_data, world=world, compute=compute, fingerprints={})
    return model


def signal_in_step(step: int, number: int) -> None:
    """Sends this process a signal during that step of its next run."""
    steps, agreed = itertools.count(1), StopSignal.agreed

    def signalled(self: StopSignal) -> bool:
        if next(steps) == step:
            os.kill(os.getpid(), number)
        return agreed(self)

    StopSignal.agreed = signalled  # type: ignore[method-assign]


@contextlib.contextmanager
def short_ends() -> Iterator[None]:
    """Within, a run ends with empty plots: drawing takes longer than a tiny run."""

    def no_plot(run_dir: Path) -> None:
        (run_dir / "loss.png").write_bytes(b"\x89PNG")

    with (
        mock.patch.object(metrics_log, "draw_loss", no_plot),
        mock.patch.object(train, "draw_loss", no_plot),
        mock.patch.object(answers, "plot_answers", lambda path, content, *, title: Path(path).write_bytes(b"\x89PNG")),
    ):
        yield


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return reader.find(run_dir).weights()


def digest(run_dir: Path) -> str:
    return reader.sha256(reader.find(run_dir).directory / "model.safetensors")


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
