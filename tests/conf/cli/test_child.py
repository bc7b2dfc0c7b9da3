"""A child process: its output is returned, its failure is an error, and no descendant survives it."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from conf.cli import InputError
from conf.cli.child import run_process


def test_a_processs_output_is_returned_and_a_failure_is_an_error():
    assert run_process([sys.executable, "-c", "print('one'); print('two')"]) == "one\ntwo\n"
    with pytest.raises(InputError, match="status 3: gone"):
        run_process([sys.executable, "-c", "print('gone'); raise SystemExit(3)"])


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


@pytest.mark.parametrize("timeout", [0.4, None])
def test_a_process_that_is_given_up_ends_with_its_children_also_in_other_sessions(tmp_path, timeout):
    """Given up after a timeout, or by Ctrl-C."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        if timeout is None:
            signal.setitimer(signal.ITIMER_REAL, 0.4)
        with pytest.raises(KeyboardInterrupt if timeout is None else TimeoutError):
            script = "sleep 60 & echo $! > $0/pids; setsid sleep 60 & echo $! >> $0/pids; wait"
            run_process(["sh", "-c", script, str(tmp_path)], timeout=timeout)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    pids = list(map(int, (tmp_path / "pids").read_text().split()))
    deadline = time.monotonic() + 5
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(pids) == 2 and not any(map(is_running, pids))
