"""The state of a run: which step is the best, and what of train_state.json is refused."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model import InputError
from model.checkpoints.reader import Checkpoint
from model.config import ModelConfig
from model.distributed.parallel import World
from model.training.evaluate import EvalResult
from model.training.run_state import RunState, restore
from tests.families import make

CHECKPOINT = Checkpoint(Path("run/step_00000007"), {"step": 7}, ModelConfig())
STATE = RunState(step=7, tokens=70, elapsed_seconds=1.5, best_score=2.0, steps=9, decay_restart=(5, 0.5))


def test_the_best_step_is_the_one_with_the_lowest_loss_on_disk():
    state = RunState(step=1)

    def update(loss: float, best_on_disk: float | None) -> bool:
        return state.update_best(EvalResult(loss, None, 9), best_on_disk=best_on_disk)

    assert update(2.0, None) and state.best_score == 2.0 and state.evaluations_since_best == 0
    assert not update(2.0, 2.0) and not update(3.0, 2.0) and state.evaluations_since_best == 2
    assert state.out_of_patience(2) and not state.out_of_patience(3) and not state.out_of_patience(None)
    assert update(2.5, 3.0) and state.best_score == 2.5  # saving 2.0 had failed
    assert state.evaluations_since_best == 0 and not state.out_of_patience(1)


def test_a_metric_chooses_the_best_step_if_it_is_selected():
    state = RunState(step=1)
    results = [
        EvalResult(loss, None, 9, {"accuracy": accuracy}, "accuracy")
        for loss, accuracy in ((2.0, 0.5), (3.0, 0.7), (1.0, 0.6))
    ]
    best = [state.update_best(r, best_on_disk=state.best_score) for r in results]
    assert best == [True, True, False] and state.best_score == -0.7
    with pytest.raises(InputError, match=r"select=exact_match is not among the figures.*: loss, accuracy"):
        state.update_best(replace(results[0], select="exact_match"), best_on_disk=None)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_ends_the_run(loss):
    state = RunState(step=7, best_score=2.0)
    with pytest.raises(InputError, match=f"step 7 has validation loss {loss}, so it is not saved.*learning_rate"):
        state.update_best(EvalResult(loss, None, 9), best_on_disk=2.0)
    assert state.best_score == 2.0


@pytest.mark.parametrize("since_best, names", [(0, ["best"]), (1, [])])
def test_a_resume_names_its_step_the_best_only_if_it_was(tmp_path, since_best, names):
    """A kill may come between a save and the pointer. Another step may have the same accuracy."""
    state = RunState(step=4, best_score=-0.9, evaluations_since_best=since_best)
    checkpoint: Any = SimpleNamespace(
        directory=tmp_path / "step_00000004", step=4, manifest={"score": -0.9},
        train_state=lambda: ({}, asdict(state)), load_into=lambda model: None,
    )  # fmt: skip
    restore(checkpoint, make("modern"), [], fingerprints={}, resolved={}, world=World(), say=print)
    assert [path.name for path in tmp_path.iterdir()] == names


def as_json(**changes: object) -> dict[str, object]:
    return asdict(STATE) | {"decay_restart": [5, 0.5]} | changes


def test_the_state_of_a_checkpoint_is_read_unchanged():
    assert asdict(RunState.of(CHECKPOINT, as_json())) == as_json()
    assert RunState.of(CHECKPOINT, as_json(best_score=None, decay_restart=None)).best_score is None


@pytest.mark.parametrize(
    "name, value",
    [
        *(("step", 8), ("step", -7), ("step", "7"), ("step", 7.0), ("tokens", True), ("steps", None), ("other", 1)),
        *(("elapsed_seconds", math.nan), ("elapsed_seconds", 10**400), ("best_score", "low"), ("resolved", [])),
        *(("decay_restart", [5]), ("decay_restart", [5, "x"]), ("time_budget", 3)),
    ],
)
def test_a_value_that_a_run_cannot_have_is_refused_with_its_name(name, value):
    with pytest.raises(InputError, match=rf"step_00000007/train_state\.json: .*{name}"):
        RunState.of(CHECKPOINT, as_json(**{name: value}))
