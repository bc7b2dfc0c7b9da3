"""The state of a run, saved in each checkpoint and restored from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from .. import InputError
from ..checkpoints import writer
from ..checkpoints.background import DIVERGED, Saver
from ..checkpoints.reader import Checkpoint, check_types
from ..checkpoints.tensors import COPY_AGAIN
from ..distributed.parallel import World
from ..gpt import GPT
from .evaluate import EvalResult

FORMER_NAMES = {
    "bend": "decay_restart",
    "budget": "time_budget",
    "best_val_loss": "best_score",
}  # fields of older train_state.json files


@dataclass
class RunState:
    """All that a resume needs besides the weights and the Stateful parts: the content of train_state.json."""

    step: int = 0  # completed updates
    tokens: int = 0  # read in training over all ranks, padding of labelled rows included
    elapsed_seconds: float = 0.0
    best_score: float | None = None  # of the best evaluation, see EvalResult.score
    evaluations_since_best: int = 0
    steps: int = 0  # of the whole run, as last planned
    decay_restart: tuple[int, float] | None = None  # see StepBudget
    time_budget: str | None = None  # the budget for which `steps` was planned
    resolved: dict[str, Any] = field(default_factory=dict)  # runtime_info()

    def update_best(self, result: EvalResult, *, best_on_disk: float | None) -> bool:
        """Sets best_score. Returns True if the result beats the best checkpoint on disk (a save may have failed).

        Raises InputError if the loss is not a finite number: a run must not end as if it had trained a model.
        """
        if not math.isfinite(result.loss):
            raise InputError(f"step {self.step} has validation loss {result.loss}, so it is not saved; {DIVERGED}")
        score = result.score
        best = score < (math.inf if best_on_disk is None else best_on_disk)
        self.best_score = score if best else best_on_disk
        self.evaluations_since_best = 0 if best else self.evaluations_since_best + 1
        return best

    def out_of_patience(self, patience: int | None) -> bool:
        return patience is not None and self.evaluations_since_best >= patience

    @staticmethod
    def of(checkpoint: Checkpoint, values: dict[str, Any]) -> RunState:
        """Returns the state in a checkpoint's train_state.json. Raises InputError if the values cannot be its own."""
        path = checkpoint.directory / "train_state.json"
        values = {FORMER_NAMES.get(name, name): value for name, value in values.items()}
        state = RunState(**check_types(values, RunState, path))
        if state.step != checkpoint.step:
            raise InputError(f"{path}: step is {state.step}, not {checkpoint.step}; {COPY_AGAIN}")
        return state


class Stateful(Protocol):
    """A part of a run that changes with training besides the weights: optimizer, loss scale, running statistics."""

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


def restore(
    checkpoint: Checkpoint, model: GPT, stateful: Sequence[Stateful], *, fingerprints: dict[str, Any],
    resolved: dict[str, Any], world: World, say: Callable[[str], None],
) -> RunState:  # fmt: skip
    """Restores the model and the stateful parts, in order, and returns the run's state.

    Raises InputError if the fingerprint of data or tokenizer has changed. Notes each setting in `resolved` that has.
    """
    for name, now in fingerprints.items():
        before = str(checkpoint.manifest.get(name))
        if before != now:
            what = f"{name.replace('_', ' ')} {before:.12}, but now it is {now:.12}"
            raise InputError(f"{checkpoint.directory} has {what}; use a new run_dir")
    tensors, values = checkpoint.train_state()
    state = RunState.of(checkpoint, values)
    checkpoint.load_into(model)
    for part in stateful:
        part.load_state_dict(tensors)
    for name, before in state.resolved.items():
        if before != resolved.get(name):
            was, now = json.dumps(before), json.dumps(resolved.get(name))
            say(f"note: {name} was {was}, is now {now}; results may differ in the last bits")
    if (
        world.is_main
        and state.evaluations_since_best == 0  # another step may have the same score
        and checkpoint.manifest.get("score", checkpoint.manifest.get("val_loss", math.nan)) == state.best_score
    ):
        # A kill may have prevented this.
        writer.write_pointer(checkpoint.directory.parent, "best", checkpoint.directory.name)
    say(f"resuming {checkpoint.directory} at step {state.step}")
    return replace(state, resolved=resolved)


def save(
    state: RunState, saver: Saver, model: GPT, stateful: Sequence[Stateful], result: EvalResult | None,
    save_files: Sequence[Callable[[Path], None]], *, best: bool, facts: dict[str, Any],
) -> None:  # fmt: skip
    """Saves the present step, with its evaluation if there was one. A collective: all ranks must call it.

    `facts` go into the manifest; save_files write the other files into the step directory. With `best`, the checkpoint
    becomes the run's best one.
    """
    measured = {} if result is None else {"val_loss": result.loss, "val_bits_per_byte": result.bits_per_byte}
    measured = {name: value for name, value in measured.items() if value is not None}
    if result is not None and result.select != "loss":
        measured |= {"score": result.score}
    measured |= {} if result is None else result.metrics
    tensors: dict[str, Tensor] = {}
    for part in stateful:
        tensors |= part.state_dict()
    snapshot = writer.snapshot(
        state.step, model=model, tensors=tensors, state=asdict(state), save_files=save_files,
        manifest={"tokens": state.tokens, **measured, **facts}, peers=saver.peers,
    )  # fmt: skip
    saver.save(snapshot, best=result.score if best and result else None)
