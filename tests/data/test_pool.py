"""The pool: order, errors, and the death of a worker or of the pool's own process."""

from __future__ import annotations

import os
import time
from functools import partial
from operator import mul
from pathlib import Path

import pytest

from data import InputError
from data.pool import Pool, available_cpus
from tests.programs import finish, start


@pytest.mark.parametrize("workers", [1, 3])
def test_results_are_in_order_and_one_pool_maps_many_functions(workers):
    with Pool(workers) as pool:
        assert list(pool.map(partial(mul, 3), range(100))) == [(n, 3 * n) for n in range(100)]
        assert [result for _, result in pool.map(len, ["a", "bb"])] == [1, 2]
        assert list(pool.map(len, [])) == []


def test_large_items_and_results_do_not_block_each_other():
    with Pool(2) as pool:
        assert all(result == item for item, result in pool.map(bytes, [bytes(3_000_000)] * 20))


def test_items_are_read_only_as_needed():
    taken = []
    with Pool(2) as pool:
        results = pool.map(abs, (taken.append(n) or n for n in range(1000)))
        for _ in range(10):
            next(results)
        assert len(taken) < 30


def test_workers_do_not_import_what_the_caller_has_imported():
    import torch  # noqa: F401

    with Pool(2) as pool:
        ((_, loaded),) = pool.map(eval, ["sorted(__import__('sys').modules)"])
    assert "data.pool" in loaded and not {"torch", "hydra", "rich", "numpy", "tests"} & set(loaded)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_when_its_item_is_due(workers):
    with Pool(workers) as pool:
        results = pool.map(int, ["1", "2", "x", "3"])
        assert [next(results)[1] for _ in range(2)] == [1, 2]
        with pytest.raises((RuntimeError, ValueError), match="invalid literal"):
            next(results)


def test_a_killed_worker_is_an_input_error():
    with Pool(2) as pool, pytest.raises(InputError, match="workers=1"):
        list(pool.map(os._exit, range(9, 30)))


class Unloadable:
    def __reduce__(self):
        return __import__, ("no_such_module_at_all",)


def test_an_item_that_cannot_be_unpickled_is_an_error_and_does_not_hang():
    with Pool(2) as pool, pytest.raises(RuntimeError, match="no_such_module_at_all"):
        list(pool.map(len, [Unloadable(), "a"]))


def test_workers_do_not_import_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queue.py").write_text("raise SystemExit")
    with Pool(2) as pool:
        assert [n for _, n in pool.map(len, ["a", "bb"])] == [1, 2]


def test_workers_exit_when_the_pool_is_killed():
    code = "import os; from data.pool import Pool; p = Pool(2); print(*(w[0].pid for w in p.workers), flush=True)"
    ended = finish(start("-c", code + "; list(p.map(int, '12')); os.kill(os.getpid(), 9)"))
    numbers = ended.out.split()
    assert len(numbers) == 2
    deadline = time.monotonic() + 20
    for number in numbers:
        while (alive := Path(f"/proc/{number}/cmdline")).exists() and alive.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_available_cpus_is_within_the_machine():
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
