"""Keeps CPU computations fast beside other busy processes: OpenMP's threads then sleep where they would spin."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

INTERVAL = 0.25  # seconds over which waiting is measured
BUSY = 0.3  # seconds of waiting per second: measured 0.03 alone, 0.1 beside nice 19, 0.6 beside an equal process
PROC = Path("/proc/self")


@contextlib.contextmanager
def share_cpus(device: torch.device) -> Iterator[None]:
    """While other processes keep the CPUs busy, the body's threads sleep at once when they wait for one another.

    By default they spin for milliseconds first. That is fastest on free CPUs, but takes CPU time from the very thread
    that is waited for if another process shares its CPU: training becomes several times slower. GNU's OpenMP spins for
    only 100 turns while a process has more of its threads than CPUs (GOMP_SPINCOUNT in the libgomp manual), so a second
    team that does nothing is enough. Each operation keeps its number of threads, so results stay the same, bit for bit.
    Does nothing on a GPU, with one thread, or without Linux's scheduler statistics.
    """
    if device.type != "cpu" or torch.get_num_threads() == 1 or not (PROC / "schedstat").exists():
        yield
        return
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(done,), name="share_cpus", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def watch(done: threading.Event) -> None:
    """Keeps the second team while the CPUs are busy."""
    while wait_until(True, done):
        over = threading.Event()
        second = threading.Thread(target=hold_team, args=(over,), name="second_team", daemon=True)
        second.start()
        wait_until(False, done)
        over.set()
        second.join()


def wait_until(busy: bool, done: threading.Event) -> bool:
    """Waits until the CPUs are busy, or no longer busy, and returns True; returns False if `done` is set first."""
    before, since = waited(), time.perf_counter()
    while not done.wait(INTERVAL):
        now, at = waited(), time.perf_counter()
        if (now - before > BUSY * (at - since)) == busy:
            return True
        before, since = now, at
    return False


def waited() -> float:
    """Seconds, summed over this process's threads, during which they could have run but had no CPU."""
    seconds = 0.0
    for thread in (PROC / "task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            seconds += int((thread / "schedstat").read_text().split()[1]) / 1e9
    return seconds


def hold_team(over: threading.Event) -> None:
    """An operation in this thread makes a team of OpenMP threads of its own; they end with this thread."""
    torch.ones(2**16 * torch.get_num_threads())  # large enough to use all threads
    over.wait()
