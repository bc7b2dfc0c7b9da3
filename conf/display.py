"""Everything a person looks at: progress, tables of probabilities, plots. rich and matplotlib are imported on use."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
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


def duration(seconds: float) -> str:
    """92 -> '1m32s'"""
    if not 0 <= seconds < float("inf"):
        return "?"
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def count(number: float) -> str:
    """1234567 -> '1.2M'"""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:
            scaled = number / size
            return f"{scaled:.0f}{unit}" if abs(scaled) >= 99.95 else f"{scaled:.1f}{unit}"
    return f"{number:.0f}"


class Progress:
    """Shows how far a run has come: a live bar on a terminal, plain lines elsewhere, nothing when not `enabled`.

    unit: what is counted. every: seconds that must lie between two plain lines.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        enabled: bool = True,
        file: Any = None,
        unit: str = "step",
        every: float = 0,
    ) -> None:
        self.total, self.unit, self.every = total, unit, every
        self.enabled = enabled
        self.file = file or sys.stdout
        self._seen: deque[tuple[int, float]] = deque([(start, time.monotonic())], maxlen=20)
        self._next_line = 0.0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self.enabled and self.file.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn(self.unit + " {task.completed:,}/{task.total:,}"),
                BarColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Bar(*columns, console=Console(file=self.file, highlight=False), transient=True)
            self._bar.add_task("starting", total=self.total, completed=self._seen[0][0])
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def update(
        self,
        step: int,
        *,
        loss: float | None = None,
        learning_rate: float | None = None,
        tokens_per_second: float | None = None,
    ) -> None:
        """`step` of what is counted are complete; the other figures are shown where they are known."""
        if not self.enabled:
            return
        facts = []
        if loss is not None:
            facts.append(f"loss {loss:.3f}")
        if learning_rate is not None:
            facts.append(f"lr {learning_rate:.4f}" if learning_rate >= 0.001 else f"lr {learning_rate:.1e}")
        if tokens_per_second is not None:
            facts.append(f"{count(tokens_per_second)} tok/s")
        facts.append(f"{duration(self._seconds_left(step))} left")
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, description="  ".join(facts))
        elif (now := self._seen[-1][1]) >= self._next_line:
            self._next_line = now + self.every
            width = len(str(self.total))
            print(f"{self.unit} {step:>{width}}/{self.total}", *facts, sep="  ", file=self.file, flush=True)

    def say(self, line: str) -> None:
        """A line that stays, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, soft_wrap=True)
        elif self.enabled:
            print(line, file=self.file, flush=True)

    def _seconds_left(self, step: int) -> float:
        """From the speed of the last updates: the first ones hold the compilation."""
        self._seen.append((step, time.monotonic()))
        (first, then), (last, now) = self._seen[0], self._seen[-1]
        return (self.total - step) * (now - then) / (last - first) if last > first else float("inf")


def token_table(rows: Iterable[Mapping[str, Any]], *, title: str) -> None:
    """Prints probabilities as a table with bars.

    A row has `text` and `probability`; `id` (a token's) and `upper` (an upper bound, `probability` being the lower one)
    get a column where the rows have them.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    console = Console(highlight=False)
    # Elsewhere than on a terminal nothing is cut off, and nothing is drawn that a pipe's encoding may lack.
    unicode = console.encoding.startswith("utf")
    if not console.is_terminal:
        console.width = 10_000
    bounds = any("upper" in row for row in rows)
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False)
    for name in ("rank", "at least" if bounds else "probability", *(["at most"] if bounds else []), "cumulative"):
        table.add_column(name, justify="right", no_wrap=True)
    ids = any("id" in row for row in rows)
    if ids:
        table.add_column("id", justify="right", no_wrap=True, style="dim")
    table.add_column("text", overflow="fold", style="bold")
    table.add_column("", no_wrap=True)
    longest = max([row["probability"] for row in rows], default=0) or 1
    cumulative = 0.0
    for rank, row in enumerate(rows, start=1):
        cumulative += row["probability"]
        cells = [
            f"{rank}",
            f"{row['probability']:.4%}",
            *([f"{row['upper']:.4%}"] if bounds else []),
            f"{cumulative:.2%}",
        ]
        cells += [str(row.get("id", ""))] if ids else []
        shown = repr(row["text"]) if unicode else ascii(row["text"])
        bar = ("█" if unicode else "#") * round(20 * row["probability"] / longest)
        table.add_row(*cells, Text(shown), Text(bar, style="blue"))
    title = title if unicode else title.encode("ascii", "backslashreplace").decode()
    console.print(Text(title, style="bold"), soft_wrap=True)
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    print(*(line.rstrip() for line in captured.get().splitlines()), sep="\n")


def plot_loss(metrics_path: str | Path, png_path: str | Path, *, title: str = "Loss") -> None:
    """Draws a run's metrics.jsonl: training and validation loss over the steps, the learning rate beneath.

    A file without any loss leaves no picture.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    lines = _read_metrics(metrics_path)
    train, validation = _series(lines, "train_loss"), _series(lines, "val_loss")
    rates, bits = _series(lines, "learning_rate"), dict(zip(*_series(lines, "val_bits_per_byte"), strict=True))
    if not train[0] and not validation[0]:
        return
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 5.5), dpi=150, layout="constrained")
        axes: Any
        axes, below = (
            figure.subplots(2, 1, sharex=True, height_ratios=[5, 1]) if rates[0] else (figure.subplots(), None)
        )
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
        if below is not None:
            below.plot(*rates, color=GREY, linewidth=1.5)
            below.fill_between(*rates, color=GREY, alpha=0.2, linewidth=0)
            below.set(ylabel="learning rate", ylim=(0, None))
            figure.align_ylabels([axes, below])
        bottom = axes if below is None else below
        bottom.set_xlabel("step")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
        bottom.xaxis.set_major_formatter(EngFormatter(sep=""))
        bottom.margins(x=0.02)
        _save(figure, png_path)


def plot_tokens(
    rows: Sequence[Mapping[str, Any]], png_path: str | Path, *, prompt: str, title: str = "What comes next"
) -> None:
    """Draws the probabilities of the next tokens or words as bars; rows as in token_table, an `upper` drawn paler."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(8, 1.6 + 0.32 * max(len(rows), 3)), dpi=150, layout="constrained")
        axes: Any = figure.subplots()
        places = range(len(rows))
        known = [row["probability"] for row in rows]
        most = [max(row.get("upper", 0), row["probability"]) for row in rows]
        axes.barh(places, most, color=BLUE, alpha=0.25, height=0.7)
        axes.barh(places, known, color=BLUE, height=0.7)
        for place, row in enumerate(rows):
            share = f" {row['probability']:.1%}" + (f" to {row['upper']:.1%}" if "upper" in row else "")
            axes.text(most[place], place, share, va="center", color="#4b5563", fontsize=9)
        axes.set_yticks(places, [_visible(row["text"].replace(" ", "␣"), 28) for row in rows], color=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1.18 * max(most, default=1) or 1)
        axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g}%")
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        spaces = any(" " in row["text"] for row in rows)
        axes.set_xlabel("probability" + ("     (␣ is a space)" if spaces else ""))
        axes.set_title(f"{title} after “{_visible(prompt, 60, tail=True)}”")
        _save(figure, png_path)


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
