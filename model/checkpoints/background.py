"""Checkpoints written in a background thread, one at a time, while training continues."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from .. import InputError
from .writer import Peers, Snapshot, write

DIVERGED = "start again in a new run_dir with a lower optimizer.learning_rate, or sample from an earlier step"


class Saver:
    """Writes snapshots of a run. If a save fails, the run logs a warning and continues; the next save tries again.

    The run ends with an error only if its last save fails. `best_score` is the score of the best step on disk.
    """

    def __init__(
        self, run_dir: Path, *, keep_last: int, background: bool, peers: Peers, best_score: float | None = None
    ) -> None:
        self.run_dir, self.keep_last, self.background, self.peers = run_dir, keep_last, background, peers
        self.best_score = best_score
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.succeeded = self.reported = True
        self.write_seconds: float | None = None  # duration of the last save, if it ran in the background

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for the current save. Raises InputError if it fails, unless another error ends the run already."""
        if kind is not None:
            if self.thread is not None:
                self.thread.join()
        elif not self.wait():
            raise InputError(f"{self.failure()}; make room, then set resume=true")

    def save(self, new: Snapshot, *, best: float | None) -> None:
        """Starts writing a snapshot after the previous one is written. `best`: its score, if it is the best so far.

        Raises InputError on all ranks, and writes nothing, if weights or optimizer state hold NaN or infinity.
        """
        self.wait()
        if not self.peers.all_succeeded(new.is_finite()):
            problem = "its weights or optimizer state hold NaN or infinity"
            raise InputError(f"step {new.step} is not saved: {problem}; {DIVERGED}")
        self.step, self.best, self.error, self.reported = new.step, best, None, False

        def work() -> None:
            start = time.perf_counter()
            try:
                write(self.run_dir, new, best=best is not None, keep_last=self.keep_last, peers=self.peers)
            except BaseException as error:
                self.error = error
            if self.background:
                self.write_seconds = time.perf_counter() - start

        self.thread = threading.Thread(target=work, name="saver")
        self.thread.start()
        if not self.background:
            self.thread.join()

    def wait(self) -> bool:
        """Waits for the current save and returns True if it succeeded on all ranks, which must all call this.

        Re-raises any error that is not an OSError: it is a bug.
        """
        if self.thread is not None:
            self.thread.join()
            self.thread = None
            if self.error is not None and not isinstance(self.error, OSError):
                raise self.error
            self.succeeded = self.peers.all_succeeded(self.error is None)
            if self.succeeded and self.best is not None:
                self.best_score = self.best
        return self.succeeded

    def best_on_disk(self) -> float | None:
        """Waits for the current save, then returns the score of the best published step."""
        self.wait()
        return self.best_score

    def warnings(self) -> list[str]:
        """Returns a warning about a save that failed, once."""
        if self.error is None or self.reported:
            return []
        self.reported = True
        return [f"warning: {self.failure()}; the run continues, earlier checkpoints are untouched"]

    def failure(self) -> str:
        return f"step {self.step} could not be saved in {self.run_dir}: {self.error or 'another rank could not'}"
