"""A pool of worker processes: maps a function over a stream of items, with results in order and bounded memory.

Each worker is a fresh Python process that imports only the modules that the function needs. A fork would copy all that
the caller has loaded (torch and its threads), and multiprocessing's spawn would run the caller's main file again.
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

MAX_QUEUED = 3  # items per worker: one in progress, the others waiting so that the worker is never idle
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # there is one process per core already
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    # Bytes. By default glibc raises these two at run time and then keeps the memory that large arrays leave behind.
    "MALLOC_MMAP_THRESHOLD_": "4000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000",
}
WORKER_DIED = "a worker process was killed, perhaps for lack of memory; workers=1 needs the least memory"
ROOT = Path(__file__).resolve().parent.parent
WORKER = "import sys; sys.path.insert(0, sys.argv[1]); from data.pool import serve; serve(int(sys.argv[2]))"


class Pool:
    """A pool of `workers` processes. With fewer than two, the work is done in the calling process."""

    def __init__(self, workers: int) -> None:
        self.workers = [_start_worker() for _ in range(workers)] if workers > 1 else []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, which frees their memory. Later calls of map() run in the calling process."""
        for process, connection in self.workers:
            connection.close()  # an idle worker exits at this
            process.kill()  # a busy one at this
        for process, _ in self.workers:
            process.wait()
        self.workers = []

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """Yields (item, function(item)) for each item, in order.

        `function` must be defined at the top of a module, or be a functools.partial of such a function. An InputError
        that it raises is raised here when its item's turn comes; any other exception becomes a RuntimeError.
        """
        if not self.workers:
            yield from ((item, function(item)) for item in items)
            return
        pending: deque[tuple[Connection, Any]] = deque()
        for index, item in enumerate(items):
            if len(pending) == MAX_QUEUED * len(self.workers):
                yield self._receive(*pending.popleft())
            connection = self.workers[index % len(self.workers)][1]
            try:
                connection.send((function, item))
            except (BrokenPipeError, ConnectionResetError):
                raise InputError(WORKER_DIED) from None
            pending.append((connection, item))
        while pending:
            yield self._receive(*pending.popleft())

    def _receive(self, connection: Connection, item: Any) -> tuple[Any, Any]:
        try:
            error, result = connection.recv()
        except (EOFError, OSError):  # OSError: the worker died while sending
            raise InputError(WORKER_DIED) from None
        if error is not None:
            raise error
        return item, result


def available_cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", WORKER, str(ROOT), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            process_group=0,  # Ctrl-C reaches only the main process, which then ends the workers
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.DEVNULL,
        )
    return process, ours


def _raise(message: str) -> None:
    raise RuntimeError(message)


def serve(descriptor: int) -> None:
    """Runs a worker: applies each function that arrives to its item, until the connection closes."""
    connection = Connection(descriptor)
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def receive() -> None:
        # In a thread, so that the pool and the worker cannot block each other while both send, and so that the worker
        # exits at once when the pool's process dies, even by kill -9.
        while True:
            try:
                requests.put(connection.recv())
            except (EOFError, OSError):
                os._exit(0)
            except Exception:  # the message could not be unpickled: report that as this item's error
                requests.put((_raise, traceback.format_exc()))

    threading.Thread(target=receive, daemon=True).start()
    while True:
        function, item = requests.get()
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
