"""conf.display: what people read is complete and plain off a terminal; pictures are whole and warn of nothing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from conf import display

ROOT = Path(__file__).resolve().parents[1]
ROWS = [
    {"id": 37, "text": text, "probability": 0.3 / rank}
    for rank, text in enumerate([" body", "\n", "$\\x$", "你好", "\x00\t", "[bold]", "\ud800", "�", ""], start=1)
]


@pytest.mark.parametrize(
    "text, seconds",
    [
        *[("0.0s", 0), ("10.0s", 9.96), ("42s", 42), ("1m00s", 59.7), ("1m32s", 92), ("1h00m", 3600), ("1d01h", 90061)],
        *[("?", -1), ("?", float("inf")), ("?", float("nan"))],
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert display.duration(seconds) == text


@pytest.mark.parametrize(
    "number, text", [(0, "0"), (999, "999"), (999.9, "1.0k"), (21_300, "21.3k"), (1_234_567, "1.2M"), (124e6, "124M")]
)
def test_count(number: float, text: str) -> None:
    assert display.count(number) == text


def test_progress_is_plain_lines_off_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 12.0, 13.0])
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    file = io.StringIO()
    with display.Progress(2000, start=100, file=file) as progress:
        progress.update(200, loss=3.2141, learning_rate=0.02, tokens_per_second=21300)
        progress.say("validation [b]")
        progress.update(300)
    assert file.getvalue().splitlines() == [
        "step  200/2000  loss 3.214  lr 0.0200  21.3k tok/s  3m00s left",
        "validation [b]",
        "step  300/2000  1m42s left",
    ]
    with display.Progress(10, enabled=False, file=file) as progress:
        progress.update(1)
        progress.say("no")
    assert "no" not in file.getvalue()


def test_progress_lines_may_be_few_and_count_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 12.0, 15.0])
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    file = io.StringIO()
    with display.Progress(50, file=file, unit="prompt", every=5) as progress:
        for done in (10, 20, 30):
            progress.update(done)
    assert file.getvalue().splitlines() == ["prompt 10/50  40s left", "prompt 30/50  10s left"]


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    monkeypatch.setattr(file, "isatty", lambda: True)
    with display.Progress(2000, file=file) as progress:
        progress.update(500, loss=3.2141)
        progress.say("validation [b]")
    assert "validation [b]" in file.getvalue() and "\x1b[" in file.getvalue() and "loss 3.214" in file.getvalue()


def test_a_table_is_plain_and_complete_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*ROWS[:6], {"id": 9, "text": "long " * 40, "probability": 0.0}]
    display.token_table(rows, title="after [x]")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "after [x]" and lines[1].split() == ["rank", "probability", "cumulative", "id", "text"]
    assert len(lines) == 2 + len(rows) and not any("\x1b" in line or line != line.rstrip() for line in lines)
    for line, row in zip(lines[2:], rows, strict=True):
        assert repr(row["text"]) in line and f"{row['probability']:.4%}" in line
    assert lines[3].split()[2] == "45.00%"

    display.token_table([{"text": "body", "probability": 0.2, "upper": 0.25}], title="words")
    lines = capsys.readouterr().out.splitlines()
    assert "at most" in lines[1] and "25.0000%" in lines[2] and " id " not in lines[1]
    display.token_table([], title="nothing")


def test_a_table_survives_an_ascii_pipe() -> None:
    code = "from conf.display import token_table; token_table([{'text': 'é', 'probability': 1}], title='café')"
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "'\\xe9'" in done.stdout, done.stderr


def metrics(path: Path, lines: list[dict[str, Any]], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return path


def test_the_loss_is_drawn_from_what_there_is(tmp_path: Path) -> None:
    full = [
        {"step": step, "train_loss": 8 / (step + 1), "val_loss": 8.0, "val_bits_per_byte": 2.0, "learning_rate": 0.02}
        for step in range(100)
    ]
    cases = [full, full[:1], [{"step": 1, "train_loss": 3}], [{"step": 0, "val_loss": 3.0}]]
    cases += [[{"step": 1, "train_loss": float("nan")}, {"step": 2, "train_loss": 3.0}, {"step": 3}]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, lines in enumerate(cases):
            path = metrics(tmp_path / "metrics.jsonl", lines, tail='{"step": 5, "tr')
            display.plot_loss(path, tmp_path / f"{number}.png", title="$5 [x]")
            assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
        display.plot_loss(metrics(tmp_path / "metrics.jsonl", []), tmp_path / "empty.png")
    assert len(list(tmp_path.iterdir())) == len(cases) + 1  # no temporary file, and no picture of nothing


def test_smoothing_keeps_the_level_and_lags_nowhere() -> None:
    line = [2.0 * step for step in range(600)]
    assert display._smoothed(line) == pytest.approx(line)
    zigzag = display._smoothed([1.0, -1.0] * 300)
    assert max(abs(value) for value in zigzag[50:-50]) < 0.1


def test_tokens_are_drawn_without_a_missing_glyph(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        display.plot_tokens(ROWS, tmp_path / "tokens.png", prompt="costs $5 and $6\n你好 " * 20)
        words = [{"text": "body", "probability": 0.2, "upper": 0.3}]
        display.plot_tokens(words, tmp_path / "words.png", prompt="")
        display.plot_tokens([], tmp_path / "none.png", prompt="x")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
    assert display._visible("a\n你é", 9) == "a\\n\\u4f60é"
    assert display._visible("\u200b", 9) == "\\u200b"
    assert display._visible("abcdef", 4) == "abc…" and display._visible("abcdef", 4, tail=True) == "…def"


def test_importing_is_cheap() -> None:
    code = (
        "import sys, conf.display, conf.cli; sys.exit(any(x in sys.modules for x in ('rich', 'matplotlib', 'hydra')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
