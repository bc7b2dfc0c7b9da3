"""A program in a process of its own: its output, the time that it may take, the end of all that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def run_process(command: Sequence[str], *, timeout: float | None = None) -> str:
    """Runs a program in the clone and returns all of its output.

    Raises InputError if it fails, and TimeoutError after `timeout` seconds. Then, and on Ctrl-C, it is killed with all
    its descendants.
    """
    name = " ".join(command[1:3])
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            out, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"{name} was not finished after {timeout:.0f} seconds") from error
        finally:
            kill_tree(process)
    if process.returncode:
        last = (out.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{name} ended with status {process.returncode}: {last}")
    return out


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """Kills a process that still runs and all its descendants, including torchrun's workers.

    A process group would not do: torchrun starts each worker in a session of its own.
    """
    if process.poll() is None:
        for pid in (process.pid, *descendants(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def descendants(pid: int) -> list[int]:
    """The process ids of all descendants, parents before their children; empty without /proc."""
    children = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has ended
            stat = path.read_text(encoding="utf-8", errors="replace")
            children[int(stat.rpartition(")")[2].split()[1])].append(int(path.parent.name))
    found = list(children[pid])
    for one in found:
        found += children[one]
    return found
