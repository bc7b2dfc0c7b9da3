"""The lock of a run directory: one run at a time writes to it."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from .. import InputError


@contextlib.contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Creates and locks run_dir for the body. The kernel releases the lock when the process ends, however it ends.

    Removes the directory again if the body fails before writing anything. Raises InputError if it is locked already.
    """
    path, new = run_dir / ".lock", not run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}"
        raise InputError(f"run_dir={run_dir} is not writable ({problem}); choose another directory") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"run_dir={run_dir} is in use by another process; choose another directory") from None
        try:
            yield
        except BaseException:
            if [entry.name for entry in run_dir.iterdir()] == [path.name]:
                path.unlink()
                if new:
                    run_dir.rmdir()
            raise
