"""Where a run's time goes: seconds for each activity, recent seconds per step, and sudden slowness."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections import deque
from collections.abc import Iterator


class Stopwatch:
    """`with watch("saving"): ...` adds to the seconds of `saving`. Nested activities count only for the inner one."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.times: dict[str, int] = {}
        self._inner = 0.0  # seconds of activities inside the present one

    @contextlib.contextmanager
    def __call__(self, activity: str) -> Iterator[None]:
        started, outer, self._inner = time.perf_counter(), self._inner, 0.0
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[activity] = self.seconds.get(activity, 0.0) + spent - self._inner
            self.times[activity] = self.times.get(activity, 0) + 1
            self._inner = outer + spent

    @property
    def total(self) -> float:
        """Seconds since the watch was made."""
        return time.perf_counter() - self.started

    def mean(self, activity: str) -> float | None:
        """Mean seconds of an activity; None before its first time."""
        return self.seconds[activity] / self.times[activity] if activity in self.times else None

    def shares(self) -> dict[str, float]:
        """Each activity's fraction of the total time, largest first."""
        total = self.total
        return {name: spent / total for name, spent in sorted(self.seconds.items(), key=lambda item: -item[1])}


class Pace:
    """Recent seconds per step: an average that decays over the last seventh of the time, but at least seven lines."""

    def __init__(self) -> None:
        self.steps, self.seconds, self.total = 0.0, 0.0, 0.0

    def add(self, steps: int, seconds: float) -> None:
        self.total += seconds
        keep = max(0.85, math.exp(-seconds / (0.15 * self.total)))
        self.steps, self.seconds = keep * self.steps + steps, keep * self.seconds + seconds

    @property
    def seconds_per_step(self) -> float | None:
        return self.seconds / self.steps if self.steps else None


class Slowdown:
    """Notices when training becomes much slower than it was, by seconds per token over windows of some seconds."""

    WINDOW = 10.0  # seconds; a background save or a recompilation rarely slows down two windows in a row
    RATIO = 1.5  # one busy process beside a run on two CPUs makes it 1.8 times as slow

    def __init__(self) -> None:
        self.usual: deque[float] = deque(maxlen=99)  # seconds per token of the windows that were not slow
        self.tokens, self.seconds, self.slow_windows = 0, 0.0, 0

    def add(self, tokens: int, seconds: float) -> str | None:
        """Adds training time. Returns a line for the log after the second slow window in a row, until one is fast."""
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
        if self.seconds < self.WINDOW:
            return None
        pace, self.tokens, self.seconds = self.seconds / self.tokens, 0, 0.0
        ratio = pace / statistics.median(self.usual) if self.usual else 1.0
        if ratio <= self.RATIO:
            self.usual.append(pace)
            self.slow_windows = 0
            return None
        self.slow_windows += 1
        if self.slow_windows != 2:
            return None
        return f"steps take {ratio:.1f} times as long as before: the CPUs may be busy with other work"
