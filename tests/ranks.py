"""The part of test_distributed.py that two ranks run. One torchrun does it all: starting takes longer than training.

torchrun --nproc_per_node=2 -m tests.ranks FOLDER small     # the fits below, then the commands in FOLDER
torchrun --nproc_per_node=2 -m tests.ranks FOLDER families
"""

from __future__ import annotations

import functools
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

import train
from model import InputError, gpt, loss
from model.checkpoints import reader
from model.device import Compute
from model.distributed import parallel, sharded, strategies
from model.distributed.stop_signal import StopSignal
from model.optimization.schedule import OptimizerConfig
from model.training.microbatch import MicroBatches
from tests import programs
from tests.families import make
from tests.toy_training import NoTokenizer, Rows, UnequalMasks, short_ends

ADAMW = OptimizerConfig(name="adamw", learning_rate=1e-3, warmup_steps=2)
MUON = OptimizerConfig(warmup_steps=2, newton_schulz_dtype="float32")
SMALL: dict[str, dict[str, Any]] = {  # settings that must train alike on one process, with DDP and with FSDP
    "adamw": {"optimizer": ADAMW},
    "muon": {"optimizer": MUON},
    "odd": {"optimizer": MUON, "d_model": 40, "d_ff": 51},  # rows that do not divide among the ranks
}
STARTS: dict[str, dict[str, Any]] = {  # built as programs build a model: with FSDP no rank ever holds all of it
    "random": {"optimizer": MUON, "built": True},
    "loaded": {"optimizer": ADAMW, "built": True, "start": "one-muon"},
}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"optimizer": ADAMW, "family": "gpt2"},  # a tied head, biases and norms with weights
    "llama": {"optimizer": MUON, "family": "llama"},  # queries and keys of different sizes
    "micro": {"optimizer": MUON, "micro_batch": 2},
    "muon_bfloat16": {"optimizer": replace(MUON, newton_schulz_dtype="bfloat16")},
    "bfloat16": {"optimizer": MUON, "dtype": "bfloat16"},
    "gpt2_bfloat16": {"optimizer": ADAMW, "family": "gpt2", "dtype": "bfloat16"},
}


def fit(
    run_dir: Path,
    *,
    family: str = "modern",
    d_model: int = 32,
    d_ff: int | None = None,
    built: bool = False,
    start: str | None = None,
    **settings: Any,
) -> dict[str, torch.Tensor]:
    """Trains a tiny model for eight steps and returns its last weights.

    built: the model is built as programs do, with random weights; start: the name of a run whose weights it loads.
    """
    model = make(family, n_layer=2, d_model=d_model, d_ff=d_ff)
    if built:
        strategy = settings.get("parallel", "none")
        torch.manual_seed(3)
        model = strategies.build(model.config, strategy)
        assert model.embed.weight.is_meta == (strategy == "fsdp")
    settings = {"steps": 8, "dtype": "float32", "log_every": 1, "eval_every": 4, "optimizer": ADAMW} | settings
    cfg = train.LoopConfig(run_dir=str(run_dir), batch_size=8, device="cpu", **settings)
    run_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = None if start is None else reader.find(run_dir.parent / start)
    train.fit(
        cfg, model, NoTokenizer(), UnequalMasks(), Rows(7), world=parallel.World.from_environment(),
        compute=Compute.resolve("cpu", dtype=cfg.dtype), fingerprints={}, start=checkpoint,
    )  # fmt: skip
    return model.state_dict()


def stop_after(step: int) -> None:
    """Stops the next run after this many steps, as a signal would."""
    calls = iter(range(1, 10_000))
    StopSignal.agreed = lambda self: next(calls) == step  # type: ignore[method-assign]


def poison(rank: int, steps: range, *, micro_batches: int) -> None:
    """Makes the loss of the second micro-batch of these steps NaN, on one rank only."""
    calls, original = iter(range(10**9)), gpt.head_loss

    def head_loss(*args: Any, **options: Any) -> torch.Tensor:
        step, micro_batch = divmod(next(calls), micro_batches)
        poisoned = int(os.environ["RANK"]) == rank and step in steps and micro_batch == 1
        return original(*args, **options) * (float("nan") if poisoned else 1.0)

    gpt.head_loss = head_loss


def fit_with_both(folder: Path, runs: dict[str, dict[str, Any]]) -> None:
    for name, settings in runs.items():
        for strategy in ("ddp", "fsdp"):
            fit(folder / f"{name}-{strategy}", parallel=strategy, **settings)


def check_gradients_stay_sharded() -> None:
    """From now on, an FSDP rank that holds a whole gradient after a micro-batch is an error."""
    accumulate = MicroBatches.accumulate

    def checked(self: MicroBatches, *args: Any) -> torch.Tensor:
        loss_sum = accumulate(self, *args)
        if not isinstance(self.model, DistributedDataParallel):
            assert all(p.grad is not None and sharded.is_sharded(p.grad) for p in self.model.parameters())
        return loss_sum

    MicroBatches.accumulate = checked  # type: ignore[method-assign]


def save_in_parts(folder: Path) -> None:
    fit_with_both(folder, {"parts": {"optimizer": MUON, "save_sharded": True, "micro_batch": 2}})


def move_between_strategies(folder: Path) -> None:
    """Continues two runs that one process trained for two steps: two steps with DDP, then two with FSDP."""
    original = StopSignal.agreed
    for name, optimizer in (("adamw", ADAMW), ("muon", MUON)):
        stop_after(2)
        fit(folder / f"moved-{name}", parallel="ddp", optimizer=optimizer, resume=True)
        stop_after(2)
        fit(folder / f"moved-{name}", parallel="fsdp", optimizer=optimizer, resume=True, save_sharded=True)
        StopSignal.agreed = original  # type: ignore[method-assign]


def meet_nan(folder: Path) -> None:
    original = gpt.head_loss
    for strategy in ("ddp", "fsdp"):
        for name, steps in (("once", range(3, 4)), ("always", range(3, 99))):
            gpt.head_loss = original
            poison(1, steps, micro_batches=2)
            try:
                fit(folder / f"{name}-{strategy}", parallel=strategy, micro_batch=2, eval_every=99, nonfinite_limit=3)
            except InputError as error:
                print(f"{name}-{strategy} rank {os.environ['RANK']}: {error}", flush=True)
    gpt.head_loss = original


@short_ends()
def run_commands(folder: Path) -> None:
    """Runs train.py with each list of arguments in commands.json; each rank keeps what it printed in NAME-RANK.json."""
    train.measure = functools.partial(train.measure, seconds=0.1)  # type: ignore[attr-defined]
    for number, (name, arguments) in enumerate(json.loads((folder / "commands.json").read_text()).items(), 1):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)  # a new process group in the same process
        ended = programs.run("train", *arguments)
        (folder / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(asdict(ended)))
        assert (ended.status == 0) == (name != "missing"), ended.err


if __name__ == "__main__":
    torch.set_num_threads(1)
    loss.LARGE_LOGITS["cpu"], loss.CHUNK_TOKENS["cpu"] = 0, 50  # chunked here, plain in the process to compare with
    folder, part = Path(sys.argv[1]), sys.argv[2]
    with short_ends(), parallel.process_group(parallel.World.from_environment(), torch.device("cpu")):
        if part == "families":
            fit_with_both(folder, FAMILIES)
        else:
            fit_with_both(folder, SMALL | STARTS)
            check_gradients_stay_sharded()
            save_in_parts(folder)
            move_between_strategies(folder)
            meet_nan(folder)
    if part == "small":
        run_commands(folder)
