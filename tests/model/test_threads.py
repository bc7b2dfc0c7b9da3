"""Threads beside busy processes: the second team comes and goes, the waiting threads sleep, no result changes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from model import threads
from model.threads import share_cpus

pytestmark = pytest.mark.skipif(not (threads.PROC / "schedstat").exists(), reason="needs Linux's scheduler statistics")
CPU = torch.device("cpu")


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.setattr(threads, "INTERVAL", 0.01)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def contention(monkeypatch):
    """A list of one number: the seconds of waiting per second that are reported."""
    share = [0.0]
    total = [0.0, time.perf_counter()]

    def waited() -> float:
        now = time.perf_counter()
        total[:] = total[0] + share[0] * (now - total[1]), now
        return total[0]

    monkeypatch.setattr(threads, "waited", waited)
    return share


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & {"share_cpus", "second_team"}


def eventually(holds) -> bool:
    deadline = time.monotonic() + 20
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.005)
    return holds()


def n_tasks() -> int:
    return len(os.listdir("/proc/self/task"))


def test_a_second_team_exists_while_the_cpus_are_busy(two_threads, contention):
    torch.ones(1 << 20).sum()  # the first team
    before = n_tasks()
    with share_cpus(CPU):
        assert names() == {"share_cpus"}
        for _ in range(2):
            contention[0] = 0.6
            assert eventually(lambda: n_tasks() == before + 3)  # the watcher, the helper and its OpenMP thread
            contention[0] = 0.1
            assert eventually(lambda: names() == {"share_cpus"} and n_tasks() == before + 1)
        contention[0] = 0.6
        assert eventually(lambda: n_tasks() == before + 3)
    assert not names() and eventually(lambda: n_tasks() == before)


def test_it_ends_with_an_error_in_the_body(two_threads, contention):
    contention[0] = 0.6
    with pytest.raises(ZeroDivisionError), share_cpus(CPU):
        assert eventually(lambda: "second_team" in names())
        raise ZeroDivisionError
    assert not names()


def test_nothing_is_watched_with_one_thread_or_on_another_device(two_threads):
    with share_cpus(torch.device("cuda")):
        assert not names()
    torch.set_num_threads(1)
    with share_cpus(CPU):
        assert not names()


def test_results_are_equal_bit_for_bit(two_threads, contention):
    def gradient() -> torch.Tensor:
        weight = torch.linspace(-1, 1, 300 * 300).view(300, 300).requires_grad_()
        (torch.linspace(-2, 2, 400 * 300).view(400, 300) @ weight).softmax(-1).square().sum().backward()
        return weight.grad

    alone, state = gradient(), torch.get_rng_state()
    contention[0] = 0.6
    with share_cpus(CPU):
        assert eventually(lambda: "second_team" in names())
        assert torch.equal(gradient(), alone)
    assert torch.equal(torch.get_rng_state(), state)


SPIN = """
import sys, threading, time, torch
from model.threads import hold_team
torch.set_num_threads(max(2, len(__import__("os").sched_getaffinity(0))))
over, data = threading.Event(), torch.ones(1 << 20)
def cpu_seconds():
    data.add_(1)
    start = time.process_time()
    for _ in range(20):
        data.add_(1)
        time.sleep(0.01)
    return time.process_time() - start
alone = cpu_seconds()
helper = threading.Thread(target=hold_team, args=(over,))
helper.start()
time.sleep(0.5)
busy = cpu_seconds()
over.set()
helper.join()
print(alone, busy)
"""


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one CPU, threads never spin long")
@pytest.mark.skipif(bool({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()), reason="spinning is set")
def test_threads_without_work_spin_less_beside_a_second_team():
    """CPU seconds of the process while its main thread sleeps, so a busy machine does not change the order."""
    ended = subprocess.run([sys.executable, "-c", SPIN], capture_output=True, text=True, check=True)
    alone, busy = map(float, ended.stdout.split())
    assert busy < 0.7 * alone


def test_waiting_for_a_cpu_is_counted():
    """This thread and a busy process share one CPU."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])  # inherits the CPU
    try:
        before = threads.waited()
        assert eventually(lambda: sum(range(100_000)) and threads.waited() - before > 0.05)
    finally:
        neighbour.kill()
        neighbour.wait()
        os.sched_setaffinity(0, allowed)
