"""Where a run stands: put into a checkpoint together with what it learned, and taken out again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import InputError
from ..checkpoints import writer
from ..checkpoints.background import Saver
from ..checkpoints.reader import Checkpoint, newest, verify
from ..distributed.parallel import World, exit_after_rank0
from ..distributed.sharded import OwnedTensor
from ..gpt import GPT
from .evaluate import Score


@dataclass
class RunState:
    """Where a run stands. Together with weights and optimizer state this is all that a resume needs."""

    step: int = 0  # completed updates
    tokens: int = 0  # read in training over all ranks, padding of labelled rows included
    elapsed_seconds: float = 0.0
    best_val_loss: float | None = None
    steps: int = 0  # of the whole run; with a budget as many as were decided of late
    bend: tuple[int, float] | None = None  # budget: step and rate from which the fall was decided anew
    budget: str | None = None  # for which it was decided
    resolved: dict[str, Any] = field(default_factory=dict)  # what `auto` came to


class Learned(Protocol):
    """What changes with training beside the weights: the optimizer, the loss scale, running estimates."""

    def state_dict(self) -> Mapping[str, Tensor | OwnedTensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


def newest_on_all(run_dir: Path, world: World, *, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest intact step, the same on all ranks: rank 0 verifies, once and for all of them."""
    if world.size == 1:
        return newest(run_dir, say=say)
    none, failed = -1, -2
    found, step = None, torch.tensor(failed)
    # Hundreds of gigabytes are read meanwhile: longer than others may wait for one another elsewhere.
    group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=1))
    try:
        if world.is_main:
            found = newest(run_dir, say=say)
            step.fill_(found.step if found else none)
    finally:
        torch.distributed.broadcast(step, src=0, group=group)
    if step == failed:
        exit_after_rank0()
    if not world.is_main and step != none:
        found = verify(run_dir / f"step_{int(step):08d}", contents=False)
    return found


def restore(
    found: Checkpoint,
    model: GPT,
    learned: Sequence[Learned],
    *,
    facts: dict[str, Any],
    resolved: dict[str, Any],
    say: Callable[[str], None],
) -> RunState:
    """Puts model and `learned` back to a saved step; where the run stands."""
    for name, now in facts.items():
        before = str(found.manifest.get(name))
        if before != now:
            what = name.replace("_", " ")
            raise InputError(
                f"{found.directory} has {what} {before:.12}, now it is {now:.12}; start a new run_dir for it"
            )
    tensors, values = found.train_state()
    state = RunState(**values)
    found.load_into(model)
    for part in learned:
        part.load_state_dict(tensors)
    for name, before in state.resolved.items():
        if before != resolved.get(name):
            say(
                f"note: {name} was {before}, is now {resolved.get(name)}: the run goes on, but not bit for bit the same"
            )
    say(f"resuming {found.directory} at step {state.step}")
    return replace(state, resolved=resolved)


def publish(
    state: RunState,
    saver: Saver,
    model: GPT,
    learned: Sequence[Learned],
    score: Score | None,
    *,
    better: bool,
    save_tokenizer: Callable[[Path], None],
    facts: dict[str, Any],
) -> None:
    """Saves the run's present step, with its evaluation if there was one; all ranks take part."""
    measured = {}
    if score is not None and math.isfinite(score.loss):  # JSON has no NaN
        measured = {"val_loss": score.loss, "val_bits_per_byte": score.bits_per_byte}
    tensors: dict[str, Tensor | OwnedTensor] = {}
    for part in learned:
        tensors |= part.state_dict()
    snapshot = writer.snapshot(
        state.step,
        model=model,
        save_tokenizer=save_tokenizer,
        tensors=tensors,
        state=asdict(state),
        facts={"tokens": state.tokens, **measured, **facts},
        peers=saver.peers,
    )
    saver.save(snapshot, best=score.loss if better and score else None)
