"""Pictures: a run's loss, and the next words or tokens of one or several prompts. matplotlib is imported on use."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BLUE, ORANGE, GREY, INK = "#2563eb", "#ea580c", "#9ca3af", "#1f2937"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a prompt is a dollar sign
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def plot_loss(metrics_path: str | Path, png_path: str | Path, *, title: str = "Loss") -> None:
    """Draws a run's metrics.jsonl: training and validation loss over the steps, the learning rate beneath.

    A file without any loss leaves no picture.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    lines = _read_metrics(metrics_path)
    train, validation = _series(lines, "train_loss"), _series(lines, "val_loss")
    bits = dict(zip(*_series(lines, "val_bits_per_byte"), strict=True))
    if not train[0] and not validation[0]:
        return
    small = [
        (name, _series(lines, key))
        for name, key in (("learning\nrate", "learning_rate"), ("gradient\nnorm", "grad_norm"))
    ]
    small = [(name, series) for name, series in small if series[0]]
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 6), dpi=150, layout="constrained")
        axes: Any
        panels = figure.subplots(1 + len(small), 1, sharex=True, height_ratios=[6] + [1] * len(small), squeeze=False)
        axes, *below = panels[:, 0]
        if train[0]:
            axes.plot(*train, color=BLUE, linewidth=0.8, alpha=0.3)
            axes.plot(train[0], _smoothed(train[1]), color=BLUE, linewidth=1.8, label="training")
        if validation[0]:
            axes.plot(*validation, color=ORANGE, linewidth=1.8, marker="o", markersize=4, label="validation")
            best = min(range(len(validation[1])), key=validation[1].__getitem__)
            step, loss = validation[0][best], validation[1][best]
            note = f"{loss:.3f} nats/token" + (f"\n{bits[step]:.3f} bits/byte" if step in bits else "")
            axes.plot([step], [loss], "o", color=ORANGE, markersize=9, markerfacecolor="white", markeredgewidth=2)
            # Above the point, and turned inwards when it lies at the right edge: losses fall, so that is where room is.
            right = step > 0.7 * max(*train[0], *validation[0], 1)
            axes.annotate(
                note, (step, loss), xytext=(0 if right else 12, 16), textcoords="offset points", color=ORANGE,
                ha="right" if right else "left", va="bottom", fontweight="bold", linespacing=1.4,
            )  # fmt: skip
        # The fall from ln(V) in the first fiftieth of a run would squeeze all that follows against the floor.
        last = max(train[0][-1:] + validation[0][-1:])
        late = [
            loss
            for step, loss in zip(train[0] + validation[0], train[1] + validation[1], strict=True)
            if step >= last / 50
        ]
        margin = 0.08 * (max(late) - min(late)) or 0.1
        axes.set(ylabel="loss (nats per token)", title=title, ylim=(min(late) - margin, max(late) + 2 * margin))
        axes.legend(loc="upper right")
        _draw_references(axes, Path(metrics_path).with_name("references.json"))
        for panel, (name, series) in zip(below, small, strict=True):
            panel.plot(*series, color=GREY, linewidth=1.2)
            panel.fill_between(*series, color=GREY, alpha=0.2, linewidth=0)
            panel.set(ylabel=name, ylim=(0, None))
        figure.align_ylabels([axes, *below])
        bottom = [axes, *below][-1]
        bottom.set_xlabel("step")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
        bottom.xaxis.set_major_formatter(EngFormatter(sep=""))
        bottom.margins(x=0.02)
        _save(figure, png_path)


def _draw_references(axes: Any, path: Path) -> None:
    """Lines at the losses of models that only count (data/references.py), where the run has written them down.

    The lowest is brought into view; those that stay above it are named at the top.
    """
    try:
        references = json.loads(path.read_text(encoding="utf-8"))
        lowest, (bottom, top) = min(references.values()), axes.get_ylim()
    except (OSError, ValueError, AttributeError):
        return
    top = max(top, lowest + 0.08 * (lowest - bottom))
    axes.set_ylim(bottom, top)
    above = [f"{name} {loss:.2f}" for name, loss in references.items() if loss > top]
    for name, loss in references.items():
        if bottom <= loss <= top:
            axes.axhline(loss, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            # Left of the legend, where the loss has long crossed the line.
            axes.annotate(
                f"{name} {loss:.2f}", (0.8, loss), xycoords=axes.get_yaxis_transform(), xytext=(0, 3),
                textcoords="offset points", ha="right", va="bottom", color="#6b7280", fontsize=8,
            )  # fmt: skip
    if above:
        axes.text(
            0.5, 0.985, "above: " + ", ".join(above), transform=axes.transAxes, ha="center", va="top", color="#6b7280",
            fontsize=8,
        )  # fmt: skip


def plot_next(results: Sequence[Mapping[str, Any]], png_path: str | Path) -> None:
    """Draws what comes next after one or several prompts as bars, up to three side by side, all on one scale.

    A result is what `json=` writes: `prompt` with `words` (rows of `word`, `kind`, `lower`, `upper`; the bar is solid
    up to the lower bound and pale up to the upper one), `continues` and `unexplored`; or `prompt` with `tokens` (rows
    of `text` and `probability`).
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = [_bars(result) for result in results]
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    rows = max([3, *(len(bars) for bars in panels)])
    scale = max([upper for bars in panels for _, _, upper, _ in bars], default=1) or 1
    with rc_context(STYLE):
        figure = Figure(figsize=(8 if across == 1 else 5.2 * across, down * (1.4 + 0.33 * rows)), dpi=150)
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
        everywhere = figure.subplots(down, across, squeeze=False).flatten()
        for axes, result, bars in zip(everywhere, results, panels, strict=False):
            _draw_bars(axes, bars, rows=rows, scale=scale)
            prompt = _visible(result["prompt"], 60 if across == 1 else 34, tail=True)
            axes.set_title(f"“{prompt} …”" if prompt else "at the start of a document", fontweight="bold")
            axes.set_xlabel(_explanation(result, bars), loc="left", color="#6b7280", fontsize=8.5, linespacing=1.5)
        for axes in everywhere[len(panels) :]:
            axes.set_axis_off()
        _save(figure, png_path)


Bar = tuple[str, float, float, bool]  # label, lower and upper bound, whether it is a word or a token


def _bars(result: Mapping[str, Any]) -> list[Bar]:
    if "words" not in result:
        return [(row["text"], row["probability"], row["probability"], True) for row in result["tokens"]]
    ordinary = ("word", "character")
    return [
        (row["word"], row["lower"], max(row["lower"], row["upper"]), row["kind"] in ordinary) for row in result["words"]
    ]


def _draw_bars(axes: Any, bars: Sequence[Bar], *, rows: int, scale: float) -> None:
    from matplotlib.ticker import MaxNLocator

    for place, (_, lower, upper, ordinary) in enumerate(bars):
        colour, digits = BLUE if ordinary else GREY, 1 if lower >= 0.01 else 2
        axes.barh(place, upper, color=colour, alpha=0.3, height=0.7, linewidth=0)
        axes.barh(place, lower, color=colour, height=0.7, linewidth=0)
        shares = dict.fromkeys(f"{100 * bound:.{digits}f}" for bound in (lower, upper))  # one where they read alike
        axes.annotate(
            "–".join(shares) + "%", (upper, place), xytext=(4, -0.5), textcoords="offset points", va="center",
            color="#4b5563", fontsize=8.5, bbox={"facecolor": "white", "linewidth": 0, "pad": 1},
        )  # fmt: skip
    axes.set_yticks(range(len(bars)), [_visible(text.replace(" ", "␣"), 24) for text, *_ in bars], fontsize=10.5)
    for label, (*_, ordinary) in zip(axes.get_yticklabels(), bars, strict=True):
        label.set(color=INK if ordinary else "#6b7280", style="normal" if ordinary else "italic")
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_xlim(0, 1.25 * scale)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g}%")
    axes.tick_params(length=0)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.grid(False, axis="y")
    axes.spines[["left", "bottom"]].set_visible(False)


def _explanation(result: Mapping[str, Any], bars: Sequence[Bar]) -> str:
    """What stands below the bars: what they are, and for words the mass that is outside them."""
    words = "words" in result
    longest = max((upper for _, _, upper, _ in bars), default=0)
    notes = [f"probability of the next {'word' if words else 'token'}"]
    notes += (
        ["solid: at least, pale: at most"]
        if any(upper - lower > 0.002 * longest for _, lower, upper, _ in bars)
        else []
    )
    notes += ["␣ is a space"] if any(" " in text for text, *_ in bars) else []
    if not words:
        return "; ".join(notes)
    beyond = [f"{result['unexplored']:.1%} unexplored", f"{result['continues']:.1%} continues the prompt's last word"]
    if result.get("stopped", "certified") != "certified" and "unseen" in result:
        beyond.append(f"stopped early: a word not shown may have {result['unseen']:.1%}")
    return "; ".join(notes) + "\n" + "; ".join(beyond)


def _read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; one that is still being written is left out."""
    lines = []
    for text in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def _series(lines: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """The steps at which a figure is known and finite, and the figure there."""
    points = [(line["step"], float(line[key])) for line in lines if isinstance(line.get(key), (int, float))]
    points = [(step, value) for step, value in points if abs(value) < float("inf")]
    return [step for step, _ in points], [value for _, value in points]


def _smoothed(values: list[float]) -> list[float]:
    """A centred moving average over a thirtieth of the points, narrower near both ends: it lags behind nowhere."""
    smooth = []
    for place in range(len(values)):
        reach = min(len(values) // 60, place, len(values) - 1 - place)
        window = values[place - reach : place + reach + 1]
        smooth.append(sum(window) / len(window))
    return smooth


def _visible(text: str, limit: int, *, tail: bool = False) -> str:
    """Text as a plot can show it: control characters and what the font lacks as escapes, cut to `limit` characters."""
    from matplotlib.font_manager import findfont, get_font

    glyphs = get_font(findfont("DejaVu Sans")).get_charmap()
    if len(text) > limit:
        text = "…" + text[1 - limit :] if tail else text[: limit - 1] + "…"
    shown = (
        ascii(letter)[1:-1] if not letter.isprintable() or ord(letter) not in glyphs else letter for letter in text
    )
    return "".join(shown)


def _save(figure: Any, path: str | Path) -> None:
    """Writes a picture whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
