"""A time budget: how many steps fit, decided from measured speed until the learning rate begins to fall."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from .. import InputError
from ..optimization.schedule import OptimizerConfig, decay_start, lr_multiplier, warmup_steps

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
TOLERANCE = 0.03  # of the steps: how many too many or too few before the fall of the rate is changed
AIM = 0.97  # of the budget: what cannot be foreseen takes time and never gives any back


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
    """What the parts of a run take, in seconds, measured or estimated."""

    step: float = 0.0  # 0: not known yet
    evaluation: float = 0.0  # over the whole validation split
    saving: float = 0.0  # as far as training waits for it
    writing: float = 0.0  # the last save, in the background: the process waits for that one
    plotting: float = 2.0

    @property
    def ending(self) -> float:
        """What follows the last step's evaluation and save."""
        return self.writing + self.plotting

    def known(
        self, *, step: float | None, evaluation: float | None, saving: float | None, writing: float | None
    ) -> Costs:
        """With what has been measured since; None where it has not."""
        found = {"step": step, "evaluation": evaluation, "saving": saving, "writing": writing}
        return replace(self, **{name: seconds for name, seconds in found.items() if seconds is not None})

    def total(self, steps: int, *, eval_every: int, save_every: int) -> float:
        """Seconds from the first of `steps` steps to the end of the process; the last one evaluates and saves."""
        evaluations, saves = math.ceil(steps / eval_every), math.ceil(steps / save_every)
        return steps * self.step + evaluations * self.evaluation + saves * self.saving + self.ending


class Deadline:
    """The number of steps of a run: as given, or as many as a budget of seconds allows.

    With a budget the number follows the measured speed up to the step at which the learning rate begins to fall, then
    stands. So the rate is a function of (step, what was decided), and no step before the fall depends on the number
    (the warm-up's length is set once, at the start). Only where TOLERANCE or more of the steps are too many or too few
    does it change within the fall: the rate then goes straight from where it is to its end. A saved step holds what
    was decided, a resumed run goes on with it.
    With schedule=cosine the fall begins after the warm-up, and with `constant` it never does.

    agree(number) makes all ranks use the smallest of their numbers.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        *,
        steps: int,
        budget: float | None = None,
        eval_every: int | None = None,
        save_every: int | None = None,
        agree: Callable[[int], int] = lambda number: number,
    ) -> None:
        self.config, self.steps, self.budget, self.agree = config, steps, budget, agree
        self.eval_every = eval_every or max(25, math.ceil(steps / 10))
        self.save_every = save_every or self.eval_every
        self.set_by_hand = eval_every is not None, save_every is not None
        self.bend: tuple[int, float] | None = None  # step and rate from which the fall was decided anew

    def rate(self, step: int) -> float:
        """The learning rate of an update, counted from 0, as a share of the highest."""
        if self.bend is None or step < self.bend[0]:
            return lr_multiplier(self.config, step, self.steps)
        (start, high), end = self.bend, self.config.min_lr_ratio
        return end + (high - end) * (self.steps - step) / (self.steps - start)

    def begin(self, costs: Costs, *, elapsed: float) -> None:
        """Sets steps, warm-up and evaluations of a new run from what its first steps took; without a budget nothing.

        Unless eval_every was given, evaluating and saving get about a tenth of the time.
        """
        if self.budget is None:
            return
        room = self.budget * AIM - elapsed - costs.ending
        if not self.set_by_hand[0]:
            aside = costs.evaluation + (0 if self.set_by_hand[1] else costs.saving)
            wanted = max(25, math.ceil(max(room / 10, 10 * aside) / costs.step))
            self.eval_every = self.agree(wanted)
        if not self.set_by_hand[1]:
            self.save_every = self.eval_every
        steps = self.fitting(0, elapsed=elapsed, costs=costs)
        self.config = replace(self.config, warmup_steps=warmup_steps(self.config, steps))
        self.steps = steps

    def reopen(self, steps: int, bend: tuple[int, float] | None, *, done: int, elapsed: float, changed: bool) -> None:
        """Goes on with what a resumed run had decided; after a changed budget with a first guess from its speed."""
        if changed and elapsed:
            self.steps = max(done, round(done * (self.budget or 0) * AIM / elapsed))
        else:
            self.steps, self.bend = steps, bend

    def decide(self, done: int, *, elapsed: float, costs: Costs) -> None:
        """Adjusts the number of steps, seen after `done` steps and `elapsed` seconds; every rank calls it alike."""
        if self.budget is None or not costs.step or done >= self.steps:
            return
        fitting = self.fitting(done, elapsed=elapsed, costs=costs)
        if self.bend is None and done < decay_start(self.config, self.steps):
            self.steps = fitting
            while decay_start(self.config, self.steps) < done:  # after a sudden slowdown: the fall begins here
                self.steps += 1
        elif abs(fitting - self.steps) > TOLERANCE * self.steps and self.config.schedule != "constant":
            self.bend = (done, self.rate(done))
            self.steps = fitting

    def fitting(self, done: int, *, elapsed: float, costs: Costs) -> int:
        """The most steps with which the run ends in time."""
        room = (self.budget or 0) * AIM - elapsed
        passed = costs.total(done, eval_every=self.eval_every, save_every=self.save_every) - costs.ending
        low, high = done + 1, done + 1 + max(0, int(room / costs.step))
        while low < high:
            middle = (low + high + 1) // 2
            ahead = costs.total(middle, eval_every=self.eval_every, save_every=self.save_every) - passed
            low, high = (middle, high) if ahead <= room else (low, middle - 1)
        return self.agree(low)
