"""Timing: contenders take turns, and a measurement is repeated if other processes used the CPUs meanwhile."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
TOO_BUSY = 0.10  # share of the CPUs that other processes may use during a measurement
ATTEMPTS = 4  # if all of them are disturbed, the last one counts and is marked


@dataclass
class Times:
    """The repeats of one contender."""

    seconds: list[float] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)  # the return value of each repeat
    disturbed: int = 0  # repeats during which other processes used the CPUs

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def rates(self, amount: float) -> dict[str, float]:
        """`amount` (tokens, megabytes) per second: the median and the extremes over the repeats."""
        return rates([amount / seconds for seconds in self.seconds], disturbed=self.disturbed)


def rates(per_second: Sequence[float], *, disturbed: int) -> dict[str, float]:
    """A contender's row in the table and in the JSON line."""
    found = {"per_second": statistics.median(per_second), "lowest": min(per_second), "highest": max(per_second)}
    row: dict[str, float] = {name: round(value, 1) for name, value in found.items()}
    return row | {"repeats": len(per_second), "disturbed": disturbed}


def describe_rates(name: str, row: Mapping[str, float]) -> str:
    """A line of the table: the median, the range and how many repeats were disturbed."""
    line = f"{name:<26} {row['per_second']:>11,.1f}  ({row['lowest']:,.1f} to {row['highest']:,.1f})"
    return line + (f"  {row['disturbed']} of {row['repeats']} disturbed" if row["disturbed"] else "")


def cpu_seconds() -> tuple[float, float] | None:
    """CPU seconds used so far: by the whole machine (and its hypervisor), and by this process and its children."""
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


def timed(action: Callable[[], Any]) -> tuple[float, bool, Any]:
    """Runs `action`; returns its seconds, whether other processes disturbed it (False without /proc), its result."""
    before, start = cpu_seconds(), time.perf_counter()
    result = action()
    seconds, after = time.perf_counter() - start, cpu_seconds()
    if before is None or after is None:
        return seconds, False, result
    others = (after[0] - before[0]) - (after[1] - before[1])
    grain = 2 * (os.cpu_count() or 1) / os.sysconf("SC_CLK_TCK")  # /proc/stat counts hundredths of a second
    return seconds, others - grain > TOO_BUSY * seconds * (os.cpu_count() or 1), result


def take_turns(contenders: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, Times]:
    """Runs all contenders in turn, `repeats` times, so that a drift of the machine's speed affects all of them."""
    times = {name: Times() for name in contenders}
    for _ in range(repeats):
        for name, action in contenders.items():
            for _ in range(ATTEMPTS):
                seconds, disturbed, result = timed(action)
                if not disturbed:
                    break
            times[name].seconds.append(seconds)
            times[name].results.append(result)
            times[name].disturbed += disturbed
    return times


def memory_bandwidth(device: torch.device) -> float:
    """Bytes per second at which torch reads memory: the sum of a tensor that fits into no cache."""
    tensor = torch.ones(2**27 if device.type == "cpu" else 2**29, device=device)

    def read() -> None:
        tensor.sum().item()  # waits for the device

    read()
    return 4 * tensor.numel() / take_turns({"read": read}, repeats=9)["read"].median


def cpu_peak_flops() -> float:
    """The peak FLOP/s of matrix products on this CPU, measured; too low beside other work."""
    size = 1024
    found = []
    for dtype in (torch.bfloat16, torch.float32):  # without bfloat16 instructions float32 is the faster
        a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
        for _ in range(8):
            began = time.perf_counter()
            a @ b
            found.append(2 * size**3 / (time.perf_counter() - began))
    return max(found)


def print_json(result: dict[str, Any]) -> None:
    """Prints the last line of a benchmark, for programs."""
    print(json.dumps(result, allow_nan=False))
