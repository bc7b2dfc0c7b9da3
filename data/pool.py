"""A pool of worker processes: a function over a stream of items, results in order, never much of it in memory.

Each worker is a program of its own that imports only what the function needs: a fork would copy whatever the caller has
loaded (torch and its threads), and multiprocessing's spawn would run the caller's main file again in every worker.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, TypeVar

from . import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 3  # items that a worker may hold: one at work, the others so that it need not wait
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # all cores have a process
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "4000000",  # bytes; glibc raises it by itself, and then keeps what large arrays leave
    "MALLOC_TRIM_THRESHOLD_": "4000000",
}
ROOT = Path(__file__).resolve().parent.parent
START = "import sys; sys.path.insert(0, sys.argv[1]); from data.pool import serve; serve(int(sys.argv[2]))"


class Pool:
    """`workers` processes; with fewer than two the work is done here."""

    def __init__(self, workers: int) -> None:
        self.workers = [_start() for _ in range(workers)] if workers > 1 else []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: Any) -> None:
        self.end()

    def end(self) -> None:
        """Ends the processes, whose memory is then free; what is mapped later is done here."""
        for process, ours in self.workers:
            ours.close()  # ends it
            process.kill()  # even in the middle of something
        for process, _ours in self.workers:
            process.wait()
        self.workers = []

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """(item, function(item)) of each item, in order. `function` is a module's, or a partial of one.

        An InputError of the function's is raised in its turn; so is any other error, as a RuntimeError.
        """
        if not self.workers:
            yield from ((item, function(item)) for item in items)
            return
        waiting: deque[tuple[Any, Any]] = deque()
        for number, item in enumerate(items):
            if len(waiting) == AHEAD * len(self.workers):
                yield self._next(waiting)
            worker = self.workers[number % len(self.workers)][1]
            try:
                worker.send((function, item))
            except (BrokenPipeError, ConnectionResetError):
                raise _gone() from None
            waiting.append((worker, item))
        while waiting:
            yield self._next(waiting)

    def _next(self, waiting: deque[tuple[Any, Any]]) -> tuple[Any, Any]:
        worker, item = waiting.popleft()
        try:
            error, result = worker.recv()
        except (EOFError, OSError):  # OSError: it was ended while it sent
            raise _gone() from None
        if error is not None:
            raise error
        return item, result


def available_cpus() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start() -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = Pipe()
    with theirs:
        command = [sys.executable, "-P", "-c", START, str(ROOT), str(theirs.fileno())]
        # A group of its own: Ctrl-C is for us, and we end the workers.
        environment = os.environ | ENVIRONMENT
        process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], process_group=0, env=environment, stdin=subprocess.DEVNULL
        )
    return process, ours


def _gone() -> InputError:
    return InputError("a worker process was ended from outside (by a lack of memory?); workers=1 needs the least of it")


def _raise(what: str) -> None:
    raise RuntimeError(what)


def serve(descriptor: int) -> None:
    """A worker: applies each function that comes to its item, until the connection ends."""
    connection = Connection(descriptor)
    todo: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def receive() -> None:
        # In a thread, so that the pool never waits to send while we wait to send to it; and it sees at once that the
        # pool is gone, by kill -9 too.
        while True:
            try:
                todo.put(connection.recv())
            except (EOFError, OSError):
                os._exit(0)
            except Exception:  # what came cannot be loaded here: say so in its turn, and go on listening
                todo.put((_raise, traceback.format_exc()))

    threading.Thread(target=receive, daemon=True).start()
    while True:
        function, item = todo.get()
        try:
            reply: tuple[Exception | None, Any] = (None, function(item))
        except InputError as error:
            reply = (error, None)
        except Exception:
            reply = (RuntimeError(f"in a worker process:\n{traceback.format_exc()}"), None)
        try:
            connection.send(reply)
        except OSError:
            os._exit(0)
