"""Evaluation of several checkpoints: a table of bits/byte beside baselines, and bars with intervals as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .page import Page
from .plots import BLUE, GREY, STYLE, printable, save_figure

Row = Mapping[str, Any]


def windows_of(row: Row) -> str:
    """Returns how a text was cut, in words."""
    overlap = row["stride"] < row["context"]
    return f"windows that start every {row['stride']:,} tokens" if overlap else "disjoint windows"


def corpus_table(rows: Sequence[Row]) -> None:
    """Prints one checkpoint per row, then the baselines, and how much better the first one is than each other one.

    A row is what `json=` writes: `checkpoint`, `loss`, `bits_per_byte` (or None), `bits_per_byte_low`,
    `bits_per_byte_high`, `perplexity_per_token`, `perplexity_per_word`, `context`, `stride`, `bytes`, `documents`,
    `words` and, except in the first, `difference`. The first one has `baselines`, in bits/byte by name.
    """
    page, first = Page(), rows[0]
    baselines: Mapping[str, float] = first["baselines"]
    longest = max([*(row["bits_per_byte"] or 0 for row in rows), *baselines.values()], default=0)
    cells: list[list[Any]] = []
    for row in rows:
        bits, low, high = (row[f"bits_per_byte{end}"] for end in ("", "_low", "_high"))
        interval = "" if low is None else f"{low:.4f} to {high:.4f}"
        figures = ["" if bits is None else f"{bits:.4f}", interval, f"{row['loss']:.4f}"]
        for key in ("perplexity_per_token", "perplexity_per_word"):
            figures.append("" if row[key] is None else f"{row[key]:,.2f}")
        figures += [f"{row['context']:,}"]
        cells.append([page.plain(row["checkpoint"]), *figures, page.bar(bits or 0, 0, longest)])
    cells += [[name, f"{bits:.4f}", *[""] * 5, page.bar(bits, 0, longest)] for name, bits in baselines.items()]
    columns = ["*model", "bits/byte", "~95 % interval", "nats/token", "perplexity/token", "per word", "context", "<"]
    documents = f"{first['documents']:,} document{'s' * (first['documents'] != 1)}"
    title = f"{documents}: {windows_of(first)} over {first['bytes']:,} bytes"
    if any(row["bits_per_byte"] is None for row in rows):
        title += "; no bits/byte (unknown characters)"
    over = "intervals over documents; " if any(row["bits_per_byte_low"] is not None for row in rows) else ""
    captions = [f"{over}a word: a run of characters other than white space, {first['words']:,} here"]
    captions += [first["baselines_about"]] if baselines else []
    page.print(page.table(title, columns, "\n".join(captions), rows=cells))
    for row in rows[1:]:
        if found := row.get("difference"):
            line = f"{first['checkpoint']} minus {row['checkpoint']}: {found['difference']:+.4f} bits/byte"
            if found["low"] is not None:
                line += f" (95 % interval {found['low']:+.4f} to {found['high']:+.4f}, paired by document)"
            print(line)


def plot_corpus(path: str | Path, rows: Sequence[Row], *, title: str) -> None:
    """Draws the bits/byte of rows as corpus_table() takes them."""
    bars: list[Row] = [
        {"name": row["checkpoint"], "value": row["bits_per_byte"], "low": row["bits_per_byte_low"],
         "high": row["bits_per_byte_high"]}
        for row in rows if row["bits_per_byte"] is not None
    ]  # fmt: skip
    bars += [{"name": name, "value": bits, "baseline": True} for name, bits in rows[0]["baselines"].items()]
    plot_scores(path, bars, title=title, label=f"bits/byte, {windows_of(rows[0])}")


def plot_accuracies(path: str | Path, rows: Sequence[Row], *, title: str) -> None:
    """Draws rows of `name`, `accuracy` and, where known, `low` and `high`."""
    bars = [{**row, "value": row["accuracy"]} for row in rows]
    plot_scores(path, bars, title=title, label="share of right answers", percent=True)


def plot_scores(path: str | Path, rows: Sequence[Row], *, title: str, label: str, percent: bool = False) -> None:
    """Draws a bar per row: `name`, `value` and, where known, `low` and `high` (95 %); grey for a `baseline`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(8, 1.3 + 0.38 * len(rows)), dpi=150, layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            value, low, high = row["value"], row.get("low"), row.get("high")
            axes.barh(place, value, height=0.65, color=GREY if row.get("baseline") else BLUE, linewidth=0)
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color="#111827", linewidth=1.4)
            shown = f"{value:.1%}" if percent else f"{value:.3f}"
            end = max(value, high or 0)
            axes.annotate(shown, (end, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes.set_yticks(range(len(rows)), [printable(row["name"], 40) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1.15 * max([1e-9, *(max(row["value"], row.get("high") or 0) for row in rows)]))
        if percent:
            axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g}%")
        axes.tick_params(length=0)
        axes.grid(False, axis="y")
        axes.set(xlabel=f"{label}; lines: 95 % intervals", title=printable(title, 90))
        save_figure(figure, path)
