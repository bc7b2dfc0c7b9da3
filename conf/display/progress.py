"""Durations, counts, the progress of a run, a pass over a corpus or a file of prompts. rich is imported on use."""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol


def duration(seconds: float) -> str:
    """92 -> '1m32s'"""
    if not 0 <= seconds < float("inf"):
        return "?"
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def count(number: float) -> str:
    """1234567 -> '1.2M'"""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:
            scaled = number / size
            return f"{scaled:.0f}{unit}" if abs(scaled) >= 99.95 else f"{scaled:.1f}{unit}"
    return f"{number:.0f}"


class Progress:
    """Shows the progress of a run: a live bar on a terminal, plain lines elsewhere, nothing if not `enabled`.

    unit: the name of what is counted. every: minimum seconds between two plain lines.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        enabled: bool = True,
        file: Any = None,
        unit: str = "step",
        every: float = 0,
    ) -> None:
        self.total, self.unit, self.every = total, unit, every
        self.enabled, self.file = enabled, file or sys.stdout
        self._history: deque[tuple[int, float]] = deque([(start, time.monotonic())], maxlen=20)  # (step, time)
        self._next_line = 0.0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self.enabled and self.file.isatty():
            label = self.unit + " {task.completed:,}/{task.total:,}"
            self._bar = _start_bar(self.file, label, self.total, completed=self._history[0][0])
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, *facts: str) -> None:
        """Shows that `step` units are complete, the facts, and the time left."""
        if not self.enabled:
            return
        facts = (*facts, f"{duration(self._seconds_left(step))} left")
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, description="  ".join(facts))
        elif (now := self._history[-1][1]) >= self._next_line:
            self._next_line = now + self.every
            width = len(str(self.total))
            print(f"{self.unit} {step:>{width}}/{self.total}", *facts, sep="  ", file=self.file, flush=True)

    def advance(self, step: int) -> None:
        """Moves the bar, if there is one, to `step`; update() also shows facts."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step)

    def say(self, line: str) -> None:
        """Prints a line that stays, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, soft_wrap=True)
        elif self.enabled:
            print(line, file=self.file, flush=True)

    def _seconds_left(self, step: int) -> float:
        """Extrapolates from the last updates only, because the first ones include compilation."""
        self._history.append((step, time.monotonic()))
        (first, then), (last, now) = self._history[0], self._history[-1]
        return (self.total - step) * (now - then) / (last - first) if last > first else float("inf")


class Passes:
    """Shows the progress of each pass over a corpus, with MB/s and the time left; short passes show nothing.

    A bar on a terminal, plain lines elsewhere. every: minimum seconds between two plain lines, and before the first.
    """

    def __init__(self, *, file: Any = None, every: float = 10) -> None:
        self.file, self.every = file or sys.stdout, every
        self._bar: Any = None

    def begin(self, what: str, total: int) -> None:
        """Starts a pass over `total` bytes."""
        self.what, self.total, self.done = what, total, 0
        self._began = time.monotonic()
        self._next = self._began + (0.5 if self.file.isatty() else self.every)

    def advance(self, n_bytes: int) -> None:
        """Adds bytes that are done."""
        self.done += n_bytes
        now = time.monotonic()
        if now < self._next:
            return
        speed = self.done / max(1e-9, now - self._began)
        left = duration((self.total - self.done) / speed) if speed else "?"
        facts = f"{self.done / 1e6:,.0f}/{self.total / 1e6:,.0f} MB  {speed / 1e6:.1f} MB/s  {left} left"
        if not self.file.isatty():
            self._next = now + self.every
            print(f"{self.what}  {facts}", file=self.file, flush=True)
            return
        self._next = now + 0.1
        if self._bar is None:
            self._bar = _start_bar(self.file, self.what, self.total)
        self._bar.update(self._bar.task_ids[0], completed=self.done, description=facts)

    def end(self) -> None:
        """Ends the pass, complete or not."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _start_bar(file: Any, label: str, total: int, *, completed: int = 0) -> Any:
    """Starts a live bar of one task: the label, the bar, and the task's description."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    # The style of a finished bar is grey on a terminal with 16 colours.
    columns = (TextColumn(label), BarColumn(finished_style="bar.complete"), TextColumn("{task.description}"))
    bar = Bar(*columns, console=Console(file=file, highlight=False), transient=True)
    bar.add_task("", total=total, completed=completed)
    bar.start()
    return bar


Results = list[dict[str, Any]]


class Outputs(Protocol):
    """The file of results, which keeps what was added even if the process is killed."""

    rows: int  # results in the file
    finished: bool

    def add(self, results: Results) -> None: ...
    def publish(self) -> None: ...


def answer_all(answers: Iterable[Results], outputs: Outputs, *, total: int, name: str) -> None:
    """Adds the results of each batch to `outputs`, the file `name` of `total` results in the end.

    SIGTERM and Ctrl-C drop the current batch and return; the same call later resumes.
    """
    if outputs.finished:
        return print(f"{name} is complete: {total:,} results; nothing to do")
    earlier, began, tokens = outputs.rows, time.perf_counter(), 0
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt, as Ctrl-C does
    try:
        with Progress(total, start=earlier, unit="prompt", every=5, file=sys.stderr) as shown:
            for results in answers:
                outputs.add(results)
                tokens += sum(len(result["log_probabilities"]) for result in results if "log_probabilities" in result)
                speed = tokens / (time.perf_counter() - began)
                shown.update(outputs.rows, *([f"{count(speed)} tok/s"] if tokens else []))
            outputs.publish()
    except KeyboardInterrupt:
        return print(f"stopped after {outputs.rows:,} of {total:,} results; run the same command to resume")
    finally:
        signal.signal(signal.SIGTERM, before)
    seconds = time.perf_counter() - began
    again = f" ({earlier:,} of them from before)" if earlier else ""
    made = f", {tokens:,} tokens, {tokens / seconds:,.0f} tokens/s" if tokens else ""
    print(f"{total:,} results{again} in {duration(seconds)}{made}: {name}")
