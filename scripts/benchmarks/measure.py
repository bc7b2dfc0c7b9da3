"""Times that can be trusted: contenders take turns, and what was timed while others used the machine is timed again.

A contender is a function or a whole process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from conf.cli import InputError

TOO_BUSY = 0.10  # a figure is taken again where others used more than this part of the CPUs meanwhile
PATIENCE = 4  # times, after which it is kept, and counted as disturbed


@dataclass
class Times:
    """The repeats of one contender, in seconds."""

    seconds: list[float] = field(default_factory=list)
    disturbed: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def row(self, amount: int) -> dict[str, float]:
        """For the JSON line: `amount` (tokens, prompts...) a second, the median with its extremes."""
        rates = {"per_second": self.median, "lowest": max(self.seconds), "highest": min(self.seconds)}
        row: dict[str, float] = {name: round(amount / seconds, 1) for name, seconds in rates.items()}
        return row | {"repeats": len(self.seconds), "disturbed": self.disturbed}


def cpu_seconds() -> tuple[float, float] | None:
    """Seconds of CPU used by all processes since the machine started, by a hypervisor too, and by this one."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, file.readline().split()[1:])
    except OSError:
        return None
    used = os.times()
    return (
        (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"),
        used.user + used.system + used.children_user + used.children_system,
    )


def timed(action: Callable[[], Any]) -> tuple[float, bool]:
    """Seconds that `action` took, and whether others used the CPUs meanwhile (never, where /proc/stat is missing)."""
    before, start = cpu_seconds(), time.perf_counter()
    action()
    seconds, after = time.perf_counter() - start, cpu_seconds()
    if before is None or after is None:
        return seconds, False
    others = (after[0] - before[0]) - (after[1] - before[1])
    grain = 2 * (os.cpu_count() or 1) / os.sysconf("SC_CLK_TCK")  # /proc/stat counts in hundredths of a second
    return seconds, others - grain > TOO_BUSY * seconds * (os.cpu_count() or 1)


def take_turns(contenders: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, Times]:
    """Times each contender `repeats` times, one after the other in turn, so that what drifts drifts for all."""
    times = {name: Times() for name in contenders}
    for _ in range(repeats):
        for name, action in contenders.items():
            for attempt in range(PATIENCE):
                seconds, disturbed = timed(action)
                if not disturbed or attempt == PATIENCE - 1:
                    break
            times[name].seconds.append(seconds)
            times[name].disturbed += disturbed
    return times


def memory_rate() -> float:
    """Bytes a second at which torch reads memory: it sums a tensor of half a gigabyte, which no cache can hold."""
    tensor = torch.ones(2**27)
    tensor.sum()
    return 4 * tensor.numel() / take_turns({"read": tensor.sum}, repeats=9)["read"].median


@dataclass
class Process:
    """A process from its start to its end."""

    seconds: float = 0.0
    lines: list[tuple[float, str]] = field(default_factory=list)  # what it printed, and after how many seconds
    disturbed: bool = False

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def until(self, part: str) -> float:
        """Seconds to the first line that holds `part`; to the end where none does."""
        return next((seconds for seconds, line in self.lines if part in line), self.seconds)


def run_process(command: Sequence[str], *, folder: Path | None = None, **environment: str) -> Process:
    """Runs a program in `folder`, with these variables in its environment. Raises InputError where it fails."""
    ran = Process()

    def action() -> None:
        began = time.perf_counter()
        with subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process:
            assert process.stdout is not None
            ran.lines = [(time.perf_counter() - began, line.rstrip("\n")) for line in process.stdout]
        if process.returncode:
            last = ran.lines[-1][1] if ran.lines else "no message"
            raise InputError(f"{' '.join(command)} ended with status {process.returncode}: {last}")

    ran.seconds, ran.disturbed = timed(action)
    return ran


@dataclass(frozen=True)
class Target:
    """A ratio that is to be reached; `stretch` is beyond what was asked for."""

    name: str
    value: float
    wanted: float
    stretch: float | None = None

    def __str__(self) -> str:
        verdict = "reached" if self.value >= self.wanted else "MISSED"
        further = "" if self.stretch is None else f" (stretch {self.stretch:g}x)"
        verdict += ", the stretch too" if self.stretch is not None and self.value >= self.stretch else ""
        return f"{self.name:<44} {self.value:6.2f}x   target {self.wanted:g}x{further}   {verdict}"


def print_json(result: dict[str, Any]) -> None:
    """The last line of a benchmark, for programs."""
    print(json.dumps(result, allow_nan=False))
