"""A time budget ends on time with a finished decay, whatever the machine's speed does."""

from __future__ import annotations

import itertools

import pytest
import torch

from conf.run.stopwatch import Pace
from model import InputError
from model.optimization.schedule import OptimizerConfig, decay_start, lr_multiplier
from model.planning.budget import Costs, StepBudget, seconds_of


@pytest.mark.parametrize("text, seconds", [("90s", 90), ("10m", 600), ("1h30m", 5400), ("0.5h", 1800), ("1d", 86400)])
def test_seconds_of_a_time(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["10", "ten minutes", "0s", "-5m", "10 m", "5x", ""])
def test_an_invalid_time_is_refused(text):
    with pytest.raises(InputError, match="time_budget="):
        seconds_of(text)


def test_a_budget_that_not_even_one_step_fits_says_so():
    costs = Costs(step=1.0, evaluation=2.0, saving=0.5, writing=0.5, plotting=2.0)
    for seconds, elapsed, needed in ((10, 4.0, None), (9.9, 4.0, 10), (2, 0.0, 6), (None, 9.0, None)):
        budget = StepBudget(OptimizerConfig(), steps=9, seconds=seconds)
        budget.plan(costs, elapsed=elapsed)
        note = f"{seconds}s is too short for time_budget: one step, evaluated and saved, takes {needed}s"
        assert budget.too_short(elapsed=elapsed) == (note if needed else None)


@pytest.mark.parametrize("schedule, before, now", [("wsd", "40%", "100%"), ("cosine", "10%", "55%")])
def test_another_number_of_steps_is_noted_if_the_learning_rate_jumps(schedule, before, now):
    budget = StepBudget(OptimizerConfig(schedule=schedule, warmup_steps=0), steps=170)
    note = budget.new_schedule(100, done=80)
    assert (
        note
        and note.startswith("steps was 100, is now 170")
        and note.endswith(f"{now} of its peak instead of {before}")
    )
    assert budget.new_schedule(170, done=80) is None and budget.new_schedule(0, done=80) is None
    assert budget.new_schedule(100, done=170) is None  # the run is finished
    constant = StepBudget(OptimizerConfig(schedule="constant"), steps=170)
    assert constant.new_schedule(100, done=80) is None


def simulate(speed, config=None, log_every=10, evaluation=4.0):
    """A run of 120 seconds on a simulated clock, where step n takes speed(n) seconds.

    Returns the budget, the planned number of steps and the multiplier at each step, and the time of the end.
    """
    budget = StepBudget(config or OptimizerConfig(), steps=1000, seconds=120.0)
    costs, now = Costs(step=speed(0), evaluation=evaluation, saving=0.2), 5.0
    budget.plan(costs, elapsed=now)
    planned, multipliers, done, line, pace = [], [], 0, (0, 0.0), Pace()
    while done < budget.steps:
        multipliers.append(budget.multiplier(done))
        planned.append(budget.steps)
        now += speed(done)
        done += 1
        if done % log_every == 0 or done == 1:
            if done > 1:
                pace.add(done - line[0], now - line[1])
            line = (done, now)
            budget.observe(done, elapsed=now, step=pace.seconds_per_step)
        if done % budget.eval_every == 0 or done == budget.steps:
            now += costs.evaluation + costs.saving
            line = (line[0], line[1] + costs.evaluation + costs.saving)
    return budget, planned, multipliers, now + costs.ending


def test_the_timeline_in_the_docstring():
    budget = StepBudget(OptimizerConfig(warmup_steps=0), steps=1, seconds=100)
    budget.plan(Costs(step=0.1, plotting=0.0), elapsed=0)
    assert (budget.steps, decay_start(budget.config, budget.steps)) == (970, 485)
    budget.observe(300, elapsed=30, step=0.125)
    assert (budget.steps, decay_start(budget.config, budget.steps)) == (836, 418)
    budget.observe(500, elapsed=55, step=0.125)
    assert budget.steps == 836 and budget.decay_restart is None
    budget.observe(600, elapsed=67.5, step=0.1)
    assert budget.steps == pytest.approx(895, abs=1) and budget.decay_restart == (600, pytest.approx(0.56, abs=0.01))
    assert budget.multiplier(600) == budget.decay_restart[1] and budget.multiplier(budget.steps) == 0


@pytest.mark.parametrize("seconds", [0.005, 0.05, 0.5, 2.0])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_budget_ends_on_time_with_the_learning_rate_decayed(seconds, noise):
    generator = torch.Generator().manual_seed(0)
    factors = (1 + noise * torch.randn(100_000, generator=generator)).clamp(0.3, 3).tolist()
    budget, planned, multipliers, end = simulate(lambda step: seconds * factors[step])
    assert 105 < end < 130
    assert multipliers[-1] < 0.05 + 2 / len(multipliers)
    if seconds < 1:  # once the decay has started, the number of steps stays
        assert len(set(planned[decay_start(budget.config, budget.steps) + 10 :])) == 1 and budget.decay_restart is None
        # Earlier multipliers do not depend on it: they are those of a run with the final number of steps.
        assert multipliers == [lr_multiplier(budget.config, step, budget.steps) for step in range(len(multipliers))]


@pytest.mark.parametrize("change", [300, 1000, 1500])
@pytest.mark.parametrize("factor", [0.5, 2.5])
def test_a_budget_follows_a_machine_whose_speed_changes(change, factor):
    budget, planned, multipliers, end = simulate(lambda step: 0.05 if step < change else 0.05 * factor)
    assert (planned[0] > planned[-1]) == (factor > 1) and 105 < end < 130
    decay = multipliers[budget.config.warmup_steps + 1 :]
    assert all(0 <= early - late < 0.05 for early, late in itertools.pairwise(decay)) and decay[-1] < 0.03


def test_a_budget_leaves_time_to_write_the_last_step():
    ends = {}
    for writing in (0.0, 20.0):
        budget = StepBudget(OptimizerConfig(), steps=1000, seconds=100)
        budget.plan(Costs(step=0.1, saving=0.2, writing=writing), elapsed=5)
        ends[writing] = budget.steps
    assert ends[0.0] - ends[20.0] == pytest.approx(20 / 0.1, rel=0.05)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_budget_works_with_every_schedule(schedule):
    budget, _, multipliers, end = simulate(lambda step: 0.05, config=OptimizerConfig(schedule=schedule))
    assert 105 < end < 130
    assert multipliers == [lr_multiplier(budget.config, step, budget.steps) for step in range(len(multipliers))]


def test_a_resumed_budget_keeps_its_plan():
    budget = StepBudget(OptimizerConfig(warmup_steps=5), steps=1000, seconds=60)
    budget.resume(400, (250, 0.5), done=300, elapsed=43, changed=False)
    assert (budget.steps, budget.multiplier(300)) == (400, pytest.approx(1 / 3))
    budget.observe(310, elapsed=45, step=0.13)
    assert budget.steps == 400 and budget.decay_restart == (250, 0.5)
    budget.resume(400, (250, 0.5), done=300, elapsed=45, changed=True)  # another budget
    assert budget.steps == pytest.approx(300 * 60 * 0.97 / 45, abs=1)
