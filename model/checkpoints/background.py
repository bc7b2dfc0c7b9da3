"""Checkpoints written in a thread of their own, one at a time, while training goes on."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from .. import InputError
from .writer import Peers, Snapshot, write


class Saver:
    """Writes snapshots of a run; where one cannot be written the run goes on, says so, and tries again at the next.

    So a disk that fills up costs no work as long as somebody makes room: the earlier steps stay as they are. Only when
    the last save of a run fails does the run end with an error. `best_val_loss` is that of the best step on disk.
    """

    def __init__(
        self, run_dir: Path, *, keep_last: int, background: bool, peers: Peers, best_val_loss: float | None = None
    ) -> None:
        self.run_dir, self.keep_last, self.background, self.peers = run_dir, keep_last, background, peers
        self.best_val_loss = best_val_loss
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.well = self.told = True
        self.write_seconds: float | None = None  # of the newest save, where training did not wait for it

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for the save under way. Raises InputError if it fails, unless another error ends the run anyway."""
        if kind is not None:
            if self.thread is not None:
                self.thread.join()
        elif not self.wait():
            raise InputError(f"{self.problem()}; make room, then go on with resume=true")

    def save(self, new: Snapshot, *, best: float | None) -> None:
        """Starts to write a snapshot, once the one before is written. `best`: its loss, if it is the best so far."""
        self.wait()
        self.step, self.best, self.error, self.told = new.step, best, None, False

        def work() -> None:
            began = time.perf_counter()
            try:
                write(self.run_dir, new, best=best is not None, keep_last=self.keep_last, peers=self.peers)
            except BaseException as error:
                self.error = error
            if self.background:
                self.write_seconds = time.perf_counter() - began

        self.thread = threading.Thread(target=work, name="saver")
        self.thread.start()
        if not self.background:
            self.thread.join()

    def wait(self) -> bool:
        """Ends the save under way; whether it went well, the same on all ranks, which must all ask.

        Raises what is no trouble of the disk: that is a bug.
        """
        if self.thread is not None:
            self.thread.join()
            self.thread = None
            if self.error is not None and not isinstance(self.error, OSError):
                raise self.error
            self.well = self.peers.agree(self.error is None)
            if self.well and self.best is not None:
                self.best_val_loss = self.best
        return self.well

    def best_on_disk(self) -> float | None:
        """The validation loss of the best step that was published, once the save under way has ended on all ranks."""
        self.wait()
        return self.best_val_loss

    def news(self) -> list[str]:
        """A warning about a save that failed, once."""
        if self.error is None or self.told:
            return []
        self.told = True
        return [f"warning: {self.problem()}; the run goes on, the steps saved before are as they were"]

    def problem(self) -> str:
        return f"step {self.step} could not be saved in {self.run_dir}: {self.error or 'another rank could not'}"
