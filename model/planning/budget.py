"""A time budget: how many training steps fit, re-estimated from measured speed until the learning rate decays."""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from .. import InputError
from ..optimization.schedule import OptimizerConfig, decay_start, lr_multiplier, warmup_steps

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
BUDGET_UTILISATION = 0.97  # fraction of the budget to plan for; the rest is slack for unforeseen delays
REPLAN_THRESHOLD = 0.03  # during the decay, the number of steps changes only by more than this fraction


def seconds_of(text: str) -> float:
    """'90s', '10m', '1h30m' -> seconds. Raises InputError for anything else."""
    if not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", str(text)):
        raise InputError(f"time_budget={text!r} is not a time; write 90s, 10m, 2h or 1h30m")
    seconds = sum(float(number) * UNITS[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)([smhd])", str(text)))
    if seconds <= 0:
        raise InputError(f"time_budget={text!r} must be above 0")
    return seconds


@dataclass(frozen=True)
class Costs:
    """Durations of the parts of a run in seconds, measured or estimated."""

    step: float = 0.0  # 0: not known yet
    evaluation: float = 0.0  # of the whole validation split
    saving: float = 0.0  # as long as training waits for a save
    writing: float = 0.0  # of the last save, which the process waits for even if it is in the background
    plotting: float = 2.0

    @property
    def ending(self) -> float:
        """Everything after the last step's evaluation and save."""
        return self.writing + self.plotting

    def total(self, steps: int, *, eval_every: int, save_every: int) -> float:
        """Seconds from the first of `steps` steps to the end of the process. The last step evaluates and saves."""
        evaluations, saves = math.ceil(steps / eval_every), math.ceil(steps / save_every)
        return steps * self.step + evaluations * self.evaluation + saves * self.saving + self.ending


class StepBudget:
    """The number of steps of a run and its learning-rate multipliers: a fixed number, or what `seconds` allow.

    With a time budget the number of steps follows the measured speed until the learning rate starts to decay. Earlier
    multipliers do not depend on it (plan() fixes the length of the warmup), so changing it never contradicts a step
    already taken. Once the decay has started, the number stays, unless it is off by more than REPLAN_THRESHOLD: then
    the decay restarts as a straight line from the present multiplier to the final one. For example, with 100 seconds
    and decay_ratio=0.5 (evaluating, saving and plotting left out):

        step   0    0.100 s per step    970 steps fit; the decay starts at step 485
        step 300    0.125 s per step    836 steps fit; the decay starts at step 418
        step 500    0.125 s per step    836 steps fit; nothing changes
        step 600    0.100 s per step    895 steps fit; from here the multiplier falls from 0.56 to 0 at step 895

    A cosine decay starts right after the warmup; with schedule=constant nothing ever decays.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        *,
        steps: int,
        seconds: float | None = None,
        eval_every: int | None = None,
        save_every: int | None = None,
        all_reduce_min: Callable[[int], int] = lambda number: number,
    ) -> None:
        """all_reduce_min(number) returns the smallest number over all ranks, so that they all plan the same."""
        self.config, self.steps, self.seconds, self.all_reduce_min = config, steps, seconds, all_reduce_min
        self.eval_every = eval_every or max(25, math.ceil(steps / 10))
        self.save_every = save_every or self.eval_every
        self.eval_every_user_set, self.save_every_user_set = eval_every is not None, save_every is not None
        self.decay_restart: tuple[int, float] | None = None  # step and multiplier at which the decay restarted
        self.costs = Costs()

    def multiplier(self, step: int) -> float:
        """The learning rate of update `step` (from 0) as a fraction of the peak."""
        if self.decay_restart is None or step < self.decay_restart[0]:
            return lr_multiplier(self.config, step, self.steps)
        (start, high), low = self.decay_restart, self.config.min_lr_ratio
        return low + (high - low) * (self.steps - step) / (self.steps - start)

    def plan(self, costs: Costs, *, elapsed: float) -> None:
        """Sets steps, warmup and evaluation interval of a new run from measured costs. Without a budget: nothing.

        Evaluating and saving get about a tenth of the time, unless the user set their intervals.
        """
        self.costs = costs
        if self.seconds is None:
            return
        remaining = self.seconds * BUDGET_UTILISATION - elapsed - costs.ending
        if not self.eval_every_user_set:
            pause = costs.evaluation + (0 if self.save_every_user_set else costs.saving)
            self.eval_every = self.all_reduce_min(max(25, math.ceil(max(remaining / 10, 10 * pause) / costs.step)))
        if not self.save_every_user_set:
            self.save_every = self.eval_every
        steps = self.max_steps_in_time(0, elapsed=elapsed)
        self.config = replace(self.config, warmup_steps=warmup_steps(self.config, steps))
        self.steps = steps

    def too_short(self, *, elapsed: float) -> str | None:
        """A sentence saying that not even one step fits the budget, or None. plan() must have measured the costs."""
        if self.seconds is None or (needed := elapsed + self._total(1)) <= self.seconds:
            return None
        return f"{self.seconds:g}s is too short for time_budget: one step, evaluated and saved, takes {needed:.0f}s"

    def new_schedule(self, planned: int, *, done: int) -> str | None:
        """A sentence saying that steps= changes the learning rate of a run that `planned` other steps, or None."""
        if not planned or done >= self.steps:
            return None
        before, now = (f"{lr_multiplier(self.config, done, steps):.0%}" for steps in (planned, self.steps))
        change = f"the learning rate continues at {now} of its peak instead of {before}"
        return None if before == now else f"steps was {planned}, is now {self.steps}; the schedule follows: {change}"

    def resume(
        self, steps: int, decay_restart: tuple[int, float] | None, *, done: int, elapsed: float, changed: bool
    ) -> None:
        """Continues with the plan of a resumed run; if its budget has changed, with an estimate from its past speed."""
        if changed and elapsed:
            self.steps = max(done, round(done * (self.seconds or 0) * BUDGET_UTILISATION / elapsed))
        else:
            self.steps, self.decay_restart = steps, decay_restart

    def observe(
        self,
        done: int,
        *,
        elapsed: float,
        step: float | None,
        evaluation: float | None = None,
        saving: float | None = None,
        writing: float | None = None,
    ) -> None:
        """Takes in the latest durations (None: no news) in seconds after `done` steps, and replans, on all ranks."""
        new = {"step": step, "evaluation": evaluation, "saving": saving, "writing": writing}
        self.costs = replace(self.costs, **{name: value for name, value in new.items() if value is not None})
        if self.seconds is not None and self.costs.step and done < self.steps:
            self.replan(done, elapsed=elapsed)

    def replan(self, done: int, *, elapsed: float) -> None:
        fitting = self.max_steps_in_time(done, elapsed=elapsed)
        if self.decay_restart is None and done < decay_start(self.config, self.steps):
            self.steps = fitting
            while decay_start(self.config, self.steps) < done:  # after a sudden slowdown the decay starts now
                self.steps += 1
        elif abs(fitting - self.steps) > REPLAN_THRESHOLD * self.steps and self.config.schedule != "constant":
            self.decay_restart = (done, self.multiplier(done))
            self.steps = fitting

    def max_steps_in_time(self, done: int, *, elapsed: float) -> int:
        """Returns the largest total number of steps with which the run, `done` steps in, ends in time."""
        remaining = (self.seconds or 0) * BUDGET_UTILISATION - elapsed
        past = self._total(done) - self.costs.ending
        candidates = range(done + 1, done + 2 + max(0, int(remaining / self.costs.step)))
        fitting = bisect.bisect_right(candidates, past + remaining, key=self._total)
        return self.all_reduce_min(done + max(1, fitting))

    def _total(self, steps: int) -> float:
        return self.costs.total(steps, eval_every=self.eval_every, save_every=self.save_every)
