"""Plots: files are complete, nothing warns, and all text is printable."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from conf.display import inside_plots, plots
from tests.conf.display.test_tables import ODD, words


def metrics(path: Path, lines: list[dict[str, Any]], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return path


def test_the_loss_is_plotted_from_incomplete_metrics(tmp_path: Path) -> None:
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
            plots.plot_loss(path, tmp_path / f"{number}.png", title="$5 [x]")
            assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
        plots.plot_loss(metrics(tmp_path / "metrics.jsonl", []), tmp_path / "empty.png")
    assert len(list(tmp_path.iterdir())) == len(cases) + 1  # no temporary file, and no plot without a loss


def test_shares_of_right_answers_have_a_panel_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    answers = [0.25, 0.75, 0.5]
    lines: list[dict[str, Any]] = [{"step": 1, "train_loss": 9.0}]
    lines += [
        {"step": 10 * n, "train_loss": 1 / n, "val_loss": 1 / n, "val_bits_per_byte": 1 / n, "accuracy": share}
        for n, share in enumerate(answers, start=1)
    ]
    plots.plot_loss(metrics(tmp_path / "metrics.jsonl", lines), tmp_path / "loss.png")
    loss, shares = drawn[0].axes
    assert [line.get_label() for line in shares.get_lines()] == ["accuracy 0.500"]
    assert list(shares.get_lines()[0].get_ydata()) == answers
    assert loss.get_ylim()[1] < 2  # the loss of the first step is left out
    assert loss.get_title(loc="right") == "above the axis: 9.00 at step 1"
    assert not any("bits/byte" in text.get_text() for text in loss.texts)  # of labels they mean nothing


def test_smoothing_keeps_the_level_without_lag() -> None:
    line = [2.0 * step for step in range(600)]
    assert plots.smoothed(line) == pytest.approx(line)
    zigzag = plots.smoothed([1.0, -1.0] * 300)
    assert max(abs(value) for value in zigzag[50:-50]) < 0.1


def test_next_words_and_tokens_are_plotted_without_missing_glyphs(tmp_path: Path) -> None:
    tokens = [{"id": 37, "text": text, "probability": 0.3 / rank} for rank, text in enumerate(ODD, start=1)]
    cases: list[list[dict[str, Any]]] = [
        [{"prompt": "costs $5 and $6\n你好 " * 20, "tokens": tokens}],
        [words("")],
        [words("one"), words("two", []), {"prompt": "x", "tokens": []}, words("four")],
        [{"prompt": "x", "tokens": []}],
        [words("x", [{"word": "a", "kind": "word", "lower": 0.0, "upper": 0.0, "tokenisations": 0}])],
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, results in enumerate(cases):
            plots.plot_next(results, tmp_path / f"{number}.png")
    assert len(list(tmp_path.iterdir())) == len(cases)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
    assert plots.printable("a\n你é", 9) == "a\\n\\u4f60é"
    assert plots.printable("\u200b", 9) == "\\u200b"
    assert plots.printable("abcdef", 4) == "abc…" and plots.printable("abcdef", 4, tail=True) == "…def"


@pytest.mark.parametrize(
    "name, start", [("a.svg", b"<?xml"), ("a.PDF", b"%PDF"), ("a.png", b"\x89PNG"), ("a", b"\x89PNG")]
)
def test_the_ending_chooses_the_format(tmp_path: Path, name: str, start: bytes) -> None:
    plots.plot_next([words("left")], tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start) and len(list(tmp_path.iterdir())) == 1


def test_a_plot_shows_every_word_and_both_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    plots.plot_next([words("left"), words("right")], tmp_path / "no.png")
    left, right = figures[0].axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["heart", "friend's", "↵"]
    assert sorted(bar.get_width() for bar in left.patches) == sorted([0.5, 0.4, 0.2, 0.1, 0.05, 0.05])
    assert [text.get_text() for text in left.texts] == ["40.0–50.0%", "10.0–20.0%", "5.0%"]
    assert left.get_xlim() == right.get_xlim()
    assert "12.5% unexplored" in left.get_xlabel() and "at least 25.0% continues" in left.get_xlabel()


def test_two_labels_fill_a_plot_and_ticks_are_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    labels = [{"label": label, "probability": p} for label, p in (("good", 0.0259), ("bad", 0.01))]
    plots.plot_next([{"text": "x", "labels": labels, "outside": 0.5}], tmp_path / "no.png")
    [axes] = figures[0].axes
    assert axes.get_ylim() == (1.6, -0.6)
    ticks = [tick for tick in axes.get_xticks() if tick <= axes.get_xlim()[1]]
    assert ticks == pytest.approx([0, 0.01, 0.02, 0.03])


def test_small_scores_of_heads_fill_the_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(inside_plots, "save_figure", lambda figure, path: figures.append(figure))
    chance = {"induction": 0.02, "previous_token": 0.06, "duplicate_token": 0.02}
    rows = [{"layer": 0, "head": head, **dict.fromkeys(chance, 0.01 * (head + 1))} for head in range(4)]
    inside_plots.plot(tmp_path / "no.png", {"heads": {"rows": rows, "chance": chance}})
    [axes] = figures[0].axes
    assert 0.04 < axes.get_xlim()[1] < 0.05
