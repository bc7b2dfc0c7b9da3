"""What two ranks do for test_distributed.py: torchrun starts it once, for starting is what takes long."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

import train
from model import InputError, gpt, loss
from model.checkpoints import reader
from model.device import Compute
from model.distributed import parallel, sharded
from model.optimization.schedule import OptimizerConfig
from model.training.microbatch import MicroBatches
from tests.end_to_end.test_train import NoTokenizer, Rows, UnequalMasks
from tests.families import make

ADAMW = OptimizerConfig(name="adamw", learning_rate=1e-3, warmup_steps=2)
MUON = OptimizerConfig(warmup_steps=2, newton_schulz_dtype="float32")
SOME: dict[str, dict[str, Any]] = {  # settings that train alike on one process, and on two in each way
    "adamw": {"optimizer": ADAMW},
    "muon": {"optimizer": MUON},
    "odd": {"optimizer": MUON, "d_model": 40, "d_ff": 51},  # rows that do not divide among the ranks
}
BEGUN: dict[str, dict[str, Any]] = {  # as programs begin: with fsdp no rank ever has the model whole
    "drawn": {"optimizer": MUON, "drawn": True},
    "started": {"optimizer": ADAMW, "drawn": True, "start": "one-muon"},
}
MORE: dict[str, dict[str, Any]] = {
    "gpt2": {"optimizer": ADAMW, "family": "gpt2"},  # a tied head, biases and norms with weights
    "llama": {"optimizer": MUON, "family": "llama"},  # unequal queries and keys
    "micro": {"optimizer": MUON, "micro_batch": 2},
    "muon_bfloat16": {"optimizer": replace(MUON, newton_schulz_dtype="bfloat16")},
    "half": {"optimizer": MUON, "dtype": "bfloat16"},
    "gpt2_half": {"optimizer": ADAMW, "family": "gpt2", "dtype": "bfloat16"},
}


def fit(
    run_dir: Path,
    *,
    family: str = "modern",
    d_model: int = 32,
    d_ff: int | None = None,
    drawn: bool = False,
    start: str | None = None,
    **settings: Any,
) -> dict[str, torch.Tensor]:
    """Twenty steps of a tiny model, the last weights of which come back whole.

    drawn: it begins with its own random weights, as a program builds it; start: with those of the run of that name.
    """
    model = make(family, n_layer=2, d_model=d_model, d_ff=d_ff)
    if drawn:
        strategy = settings.get("parallel", "none")
        torch.manual_seed(3)
        model = parallel.build(model.config, strategy)
        assert model.embed.weight.is_meta == (strategy == "fsdp")
    settings = {"steps": 20, "dtype": "float32", "log_every": 1, "eval_every": 10, "optimizer": ADAMW} | settings
    cfg = train.LoopConfig(run_dir=str(run_dir), batch_size=8, device="cpu", **settings)
    run_dir.mkdir(parents=True, exist_ok=True)
    world, compute = parallel.World.from_environment(), Compute.resolve("cpu", dtype=cfg.dtype)
    begin = None if start is None else reader.find(run_dir.parent / start)
    train.fit(cfg, model, NoTokenizer(), UnequalMasks(), Rows(7), world=world, compute=compute, fingerprints={}, start=begin)
    return model.state_dict()


def stop_after(step: int) -> None:
    """The next run ends after so many steps, as if asked to."""
    calls = iter(range(1, 10_000))
    parallel.StopSignal.agreed = lambda self: next(calls) == step  # type: ignore[method-assign]


def poison(rank: int, steps: range, *, micro_batches: int) -> None:
    """The loss of the second micro-batch of these steps is not a number, on one rank alone."""
    calls, sound = iter(range(10**9)), gpt.head_loss

    def head_loss(*args: Any) -> torch.Tensor:
        step, micro = divmod(next(calls), micro_batches)
        harm = int(os.environ["RANK"]) == rank and step in steps and micro == 1
        return sound(*args) * (float("nan") if harm else 1.0)

    gpt.head_loss = head_loss


def compare(folder: Path, runs: dict[str, dict[str, Any]]) -> None:
    for name, settings in runs.items():
        for strategy in ("ddp", "fsdp"):
            fit(folder / f"{name}-{strategy}", parallel=strategy, **settings)


def look_between_micro_batches() -> None:
    """From now on a gradient that a rank keeps whole between two micro-batches is an error."""
    accumulate = MicroBatches.accumulate

    def checked(self: MicroBatches, *args: Any) -> torch.Tensor:
        loss = accumulate(self, *args)
        if not isinstance(self.model, DistributedDataParallel):
            assert all(p.grad is not None and sharded.is_sharded(p.grad) for p in self.model.parameters())
        return loss

    MicroBatches.accumulate = checked  # type: ignore[method-assign]


def others(folder: Path) -> None:
    look_between_micro_batches()
    compare(folder, {"parts": {"optimizer": MUON, "save_sharded": True, "micro_batch": 2}})
    undisturbed = parallel.StopSignal.agreed
    for name, optimizer in (("adamw", ADAMW), ("muon", MUON)):
        # One process has done seven steps; two do seven more, half of them in each way; the test does the rest.
        stop_after(3)
        fit(folder / f"there-{name}", parallel="ddp", optimizer=optimizer, resume=True)
        stop_after(4)
        fit(folder / f"there-{name}", parallel="fsdp", optimizer=optimizer, resume=True, save_sharded=True)
        parallel.StopSignal.agreed = undisturbed  # type: ignore[method-assign]
    sound = gpt.head_loss
    for strategy in ("ddp", "fsdp"):
        for name, steps in (("once", range(3, 4)), ("always", range(3, 99))):
            gpt.head_loss = sound
            poison(1, steps, micro_batches=2)
            try:
                fit(folder / f"{name}-{strategy}", parallel=strategy, micro_batch=2, eval_every=99)
            except InputError as error:
                print(f"{name}-{strategy} rank {os.environ['RANK']}: {error}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    loss.PART_LOGITS, loss.PART_TOKENS = 0, 50  # so that the loss comes in parts here, and in one in the other process
    this = parallel.World.from_environment()
    with parallel.process_group(this, torch.device("cpu"), lambda: ""):
        if sys.argv[2] == "more":
            compare(Path(sys.argv[1]), MORE)
        else:
            compare(Path(sys.argv[1]), SOME | BEGUN)
            others(Path(sys.argv[1]))
