"""The short form of a data report: a plot of three panels, and a table for the terminal.

Both show the contents of report.json (data/reporting/report.py). rich and matplotlib are imported on use.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .page import Page
from .plots import BLUE, ORANGE, STYLE, save_figure

MOST_BARS = 8
SOFT = "#6b7280"


def show(summary: Mapping[str, Any], picture: Path, *, min_bytes: int = 0) -> None:
    """Prints the table of a prepared corpus and, if it has at least `min_bytes`, draws the plot."""
    report_table(summary)
    if summary["read"]["bytes"] >= min_bytes:
        plot_report(summary, picture)


def plot_report(summary: Mapping[str, Any], png_path: str | Path) -> None:
    """Plots document lengths, scripts and the effect of curation."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(17, 4.2), dpi=150)
        figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.15, wspace=0.04)
        panels: Any = figure.subplots(1, 3)
        train = summary["splits"]["train"]
        _lengths(panels[0], train["lengths"])
        _scripts(panels[1], train["looked_at"]["scripts"])
        _removed(panels[2], summary)
        save_figure(figure, png_path)


def _lengths(axes: Any, rows: list[Mapping[str, Any]]) -> None:
    """Draws histograms over document length: bars for the documents, points for the tokens in them."""
    from matplotlib.ticker import PercentFormatter

    starts = [row["at_least"] for row in rows]  # each bin is a quarter of an octave wide
    documents, tokens = ([row[key] / sum(r[key] for r in rows) for row in rows] for key in ("documents", "tokens"))
    widths = [0.19 * start for start in starts]
    axes.bar(starts, documents, widths, align="edge", color=BLUE, alpha=0.85, label="of the documents")
    middles = [1.09 * start for start in starts]
    axes.plot(middles, tokens, "o", color=ORANGE, markersize=5, label="of the tokens")
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(starts, default=1) / 2, 4 * max(starts, default=1))
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set(title="How long are the documents?", xlabel="tokens in a document", ylabel="share")
    axes.margins(y=0.15)
    axes.grid(False, axis="x")
    axes.legend(loc="upper left")


def _scripts(axes: Any, rows: list[Mapping[str, Any]]) -> None:
    total = sum(row["letters"] for row in rows)
    bars = [
        (row["script"], row["letters"] / total, f"{row['different']:,} different letters") for row in rows[:MOST_BARS]
    ]
    _bars(axes, bars)
    axes.set(title="Which scripts?", xlabel="share of the letters")


def _removed(axes: Any, summary: Mapping[str, Any]) -> None:
    axes.set_title("What did curation do?")
    n_bytes = max(1, summary["read"]["bytes"])
    rows = sorted(summary["curation"].values(), key=lambda entry: -entry["bytes"])[:MOST_BARS]
    if not rows:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "Nothing was removed.", transform=axes.transAxes, ha="center", color=SOFT, fontsize=11)
        return
    notes = [f"{row['documents']:,} document" + "s" * (row["documents"] != 1) for row in rows]
    _bars(axes, [(row["what"], row["bytes"] / n_bytes, note) for row, note in zip(rows, notes, strict=True)])
    axes.set_xlabel("share of the bytes that were read")


def _bars(axes: Any, bars: list[tuple[str, float, str]]) -> None:
    """Draws horizontal bars of (name, share, note), the note after each bar."""
    names, shares = [name for name, _, _ in bars], [share for _, share, _ in bars]
    drawn = axes.barh(range(len(bars)), shares, height=0.62, color=BLUE, alpha=0.85, linewidth=0)
    notes = [f"{_percent(share)}, {note}" for _, share, note in bars]
    axes.bar_label(drawn, notes, padding=5, color=SOFT, fontsize=9)
    axes.set_yticks(range(len(bars)), names, fontsize=9)
    axes.set_ylim(max(4, len(bars)) - 0.4, -0.6)  # room for four, so that a single bar is not too thick
    axes.set_xlim(0, 1.75 * max(shares, default=0) or 1)
    axes.set_xticks([])  # the notes say the shares
    axes.tick_params(axis="y", length=0)
    axes.grid(False)
    axes.spines["left"].set_visible(False)


def _short(value: float) -> str:
    """Formats a number on an axis: 512, 2k, 1M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}" if value % 1024 or unit != "k" else f"{value / 1024:.3g}k"
    return f"{value:.4g}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.01 or not share else f"{share:.2%}" if share >= 0.0001 else "<0.01%"


def report_table(summary: Mapping[str, Any]) -> None:
    """Prints the size of each split, then the effect of curation; at most 80 columns wide on a terminal."""
    page = Page()
    table = page.table("", ["<split", "documents", "bytes", "tokens", "bytes/token"])
    for name, split in summary["splits"].items():
        rate = f"{split['bytes'] / max(1, split['tokens']):.3f}"
        table.add_row(name, *(f"{split[key]:,}" for key in ("documents", "bytes", "tokens")), rate)
    page.print(table)
    if summary["curation"]:
        rules = page.table("", ["~curation", "documents", "bytes", "of all"])
        for entry in sorted(summary["curation"].values(), key=lambda entry: -entry["bytes"]):
            share = _percent(entry["bytes"] / max(1, summary["read"]["bytes"]))
            rules.add_row(entry["what"], f"{entry['documents']:,}", f"{entry['bytes']:,}", share)
        page.print(rules)
