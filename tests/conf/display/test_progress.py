"""Progress: a bar on a terminal and plain lines elsewhere."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from conf.display import progress

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "text, seconds",
    [
        *[("0.0s", 0), ("10.0s", 9.96), ("42s", 42), ("1m00s", 59.7), ("1m32s", 92), ("1h00m", 3600), ("1d01h", 90061)],
        *[("?", -1), ("?", float("inf")), ("?", float("nan"))],
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


@pytest.mark.parametrize(
    "number, text", [(0, "0"), (999, "999"), (999.9, "1.0k"), (21_300, "21.3k"), (1_234_567, "1.2M"), (124e6, "124M")]
)
def test_count(number: float, text: str) -> None:
    assert progress.count(number) == text


def test_progress_is_plain_lines_off_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 12.0, 13.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    file = io.StringIO()
    with progress.Progress(2000, start=100, file=file) as shown:
        shown.update(200, "loss 3.214", "21.3k tok/s")
        shown.say("validation [b]")
        shown.update(300)
    assert file.getvalue().splitlines() == [
        "step  200/2000  loss 3.214  21.3k tok/s  3m00s left",
        "validation [b]",
        "step  300/2000  1m42s left",
    ]
    with progress.Progress(10, enabled=False, file=file) as shown:
        shown.update(1)
        shown.say("no")
    assert "no" not in file.getvalue()


def test_progress_lines_can_be_limited_and_count_any_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 12.0, 15.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    file = io.StringIO()
    with progress.Progress(50, file=file, unit="prompt", every=5) as shown:
        for done in (10, 20, 30):
            shown.update(done)
    assert file.getvalue().splitlines() == ["prompt 10/50  40s left", "prompt 30/50  10s left"]


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    monkeypatch.setattr(file, "isatty", lambda: True)
    with progress.Progress(2000, file=file) as shown:
        shown.update(500, "loss 3.214")
        shown.say("validation [b]")
        shown.advance(1234)
    assert "validation [b]" in file.getvalue() and "\x1b[" in file.getvalue() and "loss 3.214" in file.getvalue()
    assert "step 1,234/2,000" in file.getvalue()


def test_importing_is_cheap() -> None:
    code = (
        "import sys, conf.cli\nfrom conf.display import chat, data_report, page, plots, progress, tables\n"
        "sys.exit(any(name in sys.modules for name in ('rich', 'matplotlib', 'hydra')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_passes_print_speed_and_time_left_at_intervals(monkeypatch):
    out, now = io.StringIO(), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    passes = progress.Passes(file=out, every=10)
    passes.begin("reading", 400_000_000)
    for _ in range(25):
        now[0] += 1
        passes.advance(4_000_000)
    passes.end()
    passes.begin("encoding", 1000)
    passes.advance(1000)  # too short to show
    passes.end()
    assert out.getvalue().splitlines() == [
        "reading  40/400 MB  4.0 MB/s  1m30s left",
        "reading  80/400 MB  4.0 MB/s  1m20s left",
    ]
