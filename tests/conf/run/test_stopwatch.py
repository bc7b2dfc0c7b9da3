"""Slowdown: says once that steps became much slower, and is silent about what is brief or usual."""

from __future__ import annotations

import pytest

from conf.run.stopwatch import Slowdown


def lines(*windows: float) -> list[int]:
    """The windows, by index, that gave a line. Each has 100 tokens and takes this many seconds."""
    slowdown = Slowdown()
    return [index for index, seconds in enumerate(windows) if slowdown.add(100, seconds)]


@pytest.mark.parametrize(
    "windows, expected",
    [
        ((10, 10, 10, 30, 30, 30, 30), [4]),  # once
        ((10, 10, 30, 30, 10, 30, 30, 10), [3, 6]),  # again after it recovered
        ((10, 10, 30, 10, 30, 10), []),  # brief: a save, a compilation
        ((90, 10, 10, 10), []),  # the first is slow
        ((10, 12, 14, 16, 18, 18), []),  # gradual
    ],
)
def test_a_lasting_slowdown_is_said_once(windows, expected):
    assert lines(*windows) == expected


def test_it_says_how_much_slower_and_counts_tokens_not_steps():
    slowdown = Slowdown()
    assert not any(slowdown.add(n, n / 40) for n in (400, 800, 1200, 400))  # steps of several widths
    assert slowdown.add(400, 31.0) is None
    line = slowdown.add(400, 31.0)
    assert line == "steps take 3.1 times as long as before: the CPUs may be busy with other work"


def test_short_intervals_are_added_up():
    slowdown = Slowdown()
    assert not any(slowdown.add(1, 0.001 * (1 + 9 * (index % 7 == 0))) for index in range(10_000))
