"""Plots: a run's loss; the next words or tokens of prompts, the labels of texts. matplotlib is imported on use."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#9ca3af"
STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a prompt may contain dollar signs
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "legend.frameon": False,
}
MOST_LABELS = 30  # bars of a text
Series = tuple[list[int], list[float]]  # steps, and a metric's values there
# Of answers to held-out examples, by their key in metrics.jsonl: between 0 and 1.
METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1", "exact_match": "exact match", "stopped": "ended by itself"}


def plot_loss(metrics_path: str | Path, png_path: str | Path, *, title: str = "Loss") -> None:
    """Plots a run's metrics.jsonl: training and validation loss by step, below them learning rate and gradient norm.

    Shares of right answers to held-out examples have a panel between them. Draws nothing if there is no loss yet.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    lines = read_metrics(metrics_path)
    train, validation = _series(lines, "train_loss"), _series(lines, "val_loss")
    bits = dict(zip(*_series(lines, "val_bits_per_byte"), strict=True))
    if not train[0] and not validation[0]:
        return
    small = {"learning\nrate": _series(lines, "learning_rate"), "gradient\nnorm": _series(lines, "grad_norm")}
    small = {name: series for name, series in small.items() if series[0]}
    shares = {name: series for key, name in METRICS.items() if (series := _series(lines, key))[0]}
    first = [steps[0] for steps, _ in shares.values()]
    with rc_context(STYLE):
        heights = [6, *([2.5] if shares else []), *([1] * len(small))]
        figure = Figure(figsize=(9, 7.5 if shares else 6), dpi=150, layout="constrained")
        panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)
        axes, *below = panels[:, 0]
        if shares:
            _draw_shares(below.pop(0), shares)
        # Bits per byte of labels mean nothing, and before the first answers the loss is far off.
        _draw_losses(axes, train, validation, {} if "accuracy" in shares else bits, after=min(first) if first else 0)
        _draw_references(axes, Path(metrics_path).with_name("references.json"))
        axes.set(ylabel="loss (nats per token)", title=title)
        if train[1] and train[1][0] > axes.get_ylim()[1]:
            cut = f"above the axis: {train[1][0]:.2f} at step {train[0][0]}"
            axes.set_title(cut, loc="right", color=BLUE, fontsize=9)
        axes.legend(loc="best", frameon=True, framealpha=1, edgecolor="none")
        for panel, (name, series) in zip(below, small.items(), strict=True):
            panel.plot(*series, color=GREY, linewidth=1.2)
            panel.fill_between(*series, color=GREY, alpha=0.2, linewidth=0)
            panel.set(ylabel=name, ylim=(0, None))
            panel.yaxis.set_major_formatter("{x:g}")
        figure.align_ylabels(panels[:, 0])
        bottom = panels[-1, 0]
        bottom.set_xlabel("step")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        bottom.xaxis.set_major_formatter(EngFormatter(sep=""))
        bottom.margins(x=0.02)
        save_figure(figure, png_path)


def _draw_losses(axes: Any, train: Series, validation: Series, bits: Mapping[int, float], *, after: int) -> None:
    """Draws the training loss, smoothed, and the validation loss with its best value. `bits`: bits/byte by step.

    Losses before the step `after` may be above the axis.
    """
    if train[0]:
        axes.plot(*train, color=BLUE, linewidth=0.8, alpha=0.3)
        axes.plot(train[0], smoothed(train[1]), color=BLUE, linewidth=1.8, label="training")
    if validation[0]:
        axes.plot(*validation, color=ORANGE, linewidth=1.8, marker="o", markersize=4, label="validation")
        best = min(range(len(validation[1])), key=validation[1].__getitem__)
        step, loss = validation[0][best], validation[1][best]
        note = f"{loss:.3f} nats/token" + (f"\n{bits[step]:.3f} bits/byte" if step in bits else "")
        axes.plot([step], [loss], "o", color=ORANGE, markersize=9, markerfacecolor="white", markeredgewidth=2)
        # Above the point, where a falling loss leaves room; to its left if it is near the right edge.
        right = step > 0.7 * max(*train[0], *validation[0], 1)
        axes.annotate(
            note, (step, loss), xytext=(0 if right else 12, 16), textcoords="offset points", color=ORANGE,
            ha="right" if right else "left", va="bottom", fontweight="bold", linespacing=1.4,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
        )  # fmt: skip
    # The first 2 % of a run, where the loss falls from ln(V), would compress the rest of the curve.
    last = max(train[0][-1:] + validation[0][-1:])
    points = zip(train[0] + validation[0], train[1] + validation[1], strict=True)
    late = [loss for step, loss in points if step >= max(after, last / 50)]
    margin = 0.08 * (max(late) - min(late)) or 0.1
    axes.set_ylim(min(late) - margin, max(late) + 2 * margin)


def _draw_shares(axes: Any, shares: Mapping[str, Series]) -> None:
    """Draws the share of right answers and the like, each named beside its last point."""
    for (name, (steps, values)), colour in zip(shares.items(), (BLUE, ORANGE, GREY), strict=False):
        axes.plot(
            steps, values, color=colour, linewidth=1.8, marker="o", markersize=4, label=f"{name} {values[-1]:.3f}"
        )
    axes.set(ylabel="share", ylim=(0, 1.02))
    axes.legend(loc="lower right", ncols=len(shares))


def _draw_references(axes: Any, path: Path) -> None:
    """Draws the counting baselines of references.json, if the run has them. The axis reaches the lowest one."""
    try:
        references = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    lowest, (bottom, top) = min(references.values()), axes.get_ylim()
    axes.set_ylim(bottom, max(top, lowest + 0.08 * (lowest - bottom)))
    for (name, loss), style in zip(references.items(), itertools.cycle([":", "--", "-."]), strict=False):
        axes.axhline(loss, color=GREY, linewidth=1, linestyle=style, zorder=1, label=f"{name} {loss:.2f}")


def plot_next(results: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Plots the next words or tokens of prompts, or the labels of texts, as bars: up to three side by side, one scale.

    A result is what `json=` writes: `prompt` with `words` (rows of `word`, `kind`, `lower`, `upper`; the bar is solid
    up to the lower bound and pale up to the upper one), `continues` and `unexplored`; or `prompt` with `tokens` (rows
    of `text` and `probability`); or `text` with `labels` (rows of `label` and `probability`) and `outside`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = [_bars(result) for result in results]
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    rows = max([2, *(len(bars) for bars in panels)])
    scale = max([upper for bars in panels for _, _, upper, _ in bars], default=1) or 1
    with rc_context(STYLE):
        figure = Figure(figsize=(8 if across == 1 else 5.2 * across, down * (1.4 + 0.33 * rows)), dpi=150)
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
        grid = figure.subplots(down, across, squeeze=False).flatten()
        for axes, result, bars in zip(grid, results, panels, strict=False):
            _draw_bars(axes, bars, rows=rows, scale=scale)
            width = 60 if across == 1 else 34
            if "labels" in result:
                axes.set_title(f"“{printable(result['text'], width)}”", fontweight="bold")
            else:
                prompt = printable(result["prompt"], width, tail=True)
                axes.set_title(f"“{prompt} …”" if prompt else "at the start of a document", fontweight="bold")
            axes.set_xlabel(_explanation(result, bars), loc="left", color="#6b7280", fontsize=8.5, linespacing=1.5)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        save_figure(figure, path)


Bar = tuple[str, float, float, bool]  # label, lower and upper bound, True for words and tokens (not punctuation etc.)


def _bars(result: Mapping[str, Any]) -> list[Bar]:
    if "labels" in result:
        return [(row["label"], *[row["probability"]] * 2, True) for row in result["labels"][:MOST_LABELS]]
    if "words" not in result:
        return [(visible(row["text"]), *[row["probability"]] * 2, True) for row in result["tokens"]]
    return [
        (
            visible(row["word"]),
            row["lower"],
            max(row["lower"], row["upper"]),
            row["kind"] in ("word", "character"),
        )
        for row in result["words"]
    ]


def _draw_bars(axes: Any, bars: Sequence[Bar], *, rows: int, scale: float) -> None:
    from matplotlib.ticker import MaxNLocator

    for row, (_, lower, upper, ordinary) in enumerate(bars):
        colour, digits = BLUE if ordinary else GREY, 1 if lower >= 0.01 else 2
        axes.barh(row, upper, color=colour, alpha=0.3, height=0.7, linewidth=0)
        axes.barh(row, lower, color=colour, height=0.7, linewidth=0)
        bounds = dict.fromkeys(f"{100 * bound:.{digits}f}" for bound in (lower, upper))  # one if both are the same
        axes.annotate(
            "–".join(bounds) + "%", (upper, row), xytext=(4, -0.5), textcoords="offset points", va="center",
            color="#4b5563", fontsize=8.5, bbox={"facecolor": "white", "linewidth": 0, "pad": 1},
        )  # fmt: skip
    axes.set_yticks(range(len(bars)), [printable(text, 24) for text, *_ in bars], fontsize=10.5)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_xlim(0, 1.25 * scale)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g}%")
    axes.tick_params(length=0)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.grid(False, axis="y")
    axes.spines[["left", "bottom"]].set_visible(False)


def _explanation(result: Mapping[str, Any], bars: Sequence[Bar]) -> str:
    """Returns the text below the bars: their meaning, and for words and labels the probability outside them."""
    if "labels" in result:
        more = len(result["labels"]) - len(bars)
        rest = f"; {more:,} more labels are not shown" if more else ""
        outside = f"{result['outside']:.1%} of the model's probability is outside the label set"
        return f"probability of the label\n{outside}{rest}"
    words = "words" in result
    longest = max((upper for _, _, upper, _ in bars), default=0)
    notes = []
    if any(upper - lower > 0.002 * longest for _, lower, upper, _ in bars):
        notes.append("solid: lower bound, pale: upper bound")
    if any("␣" in text for text, *_ in bars):
        notes.append("␣ is a space")
    lines = [f"probability of the next {'word' if words else 'token'}", *filter(None, ["; ".join(notes)])]
    if words:
        bound = "at least " if result["unexplored"] else ""
        continues = f"{bound}{result['continues']:.1%} continues the prompt's last word"
        lines.append(f"{result['unexplored']:.1%} unexplored; {continues}")
        if result["stopped"] != "certified":
            lines.append(f"stopped early: a word that is not shown may have up to {result['unseen']:.1%}")
    return "\n".join(lines)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl, if it exists, without damaged ones: a kill may have cut the last one."""
    lines = []
    text = Path(path).read_text(encoding="utf-8", errors="replace") if Path(path).exists() else ""
    for line in text.split("\n"):
        with contextlib.suppress(ValueError):
            if isinstance(metrics := json.loads(line), dict) and isinstance(metrics.get("step"), int):
                lines.append(metrics)
    return lines


def _series(lines: list[dict[str, Any]], key: str) -> Series:
    """Returns the steps at which a metric is known and finite, and its values."""
    found = [line for line in lines if isinstance(line.get(key), (int, float)) and math.isfinite(line[key])]
    return [line["step"] for line in found], [float(line[key]) for line in found]


def smoothed(values: list[float]) -> list[float]:
    """Returns a centred moving average over a thirtieth of the points; the window shrinks near the ends, so no lag."""
    smooth = []
    for index in range(len(values)):
        reach = min(len(values) // 60, index, len(values) - 1 - index)
        smooth.append(fmean(values[index - reach : index + reach + 1]))
    return smooth


def visible(text: str) -> str:
    """Returns text with a sign for each space and line end, as the web page shows them."""
    return text.replace(" ", "␣").replace("\n", "↵")


def printable(text: str, limit: int, *, tail: bool = False) -> str:
    """Returns text for a plot: control characters and missing glyphs as escapes, cut to `limit` characters."""
    from matplotlib.font_manager import findfont, get_font

    glyphs = get_font(findfont("DejaVu Sans")).get_charmap()
    if len(text) > limit:
        text = "…" + text[1 - limit :] if tail else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() and ord(c) in glyphs else ascii(c)[1:-1] for c in text)


def save_figure(figure: Any, path: str | Path) -> None:
    """Writes a figure atomically: as SVG or PDF if the path ends so, else as PNG."""
    path = Path(path)
    ending = path.suffix.lower().lstrip(".")
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        figure.savefig(temporary, format=ending if ending in ("svg", "pdf") else "png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
