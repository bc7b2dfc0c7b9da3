"""The short form of a data report: a plot of four panels, and a table for the terminal.

Both show the contents of report.json (data/reporting/report.py). rich and matplotlib are imported on use.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log2
from pathlib import Path
from typing import Any

from .page import Page
from .plots import BLUE, GREY, ORANGE, STYLE, printable, save_figure

MOST_BARS = 8
SOFT = "#6b7280"


def show(summary: Mapping[str, Any], picture: Path, *, min_bytes: int = 0) -> None:
    """Prints the table of a prepared corpus and, if it has at least `min_bytes`, draws the plot."""
    report_table(summary)
    if summary["read"]["bytes"] >= min_bytes:
        plot_report(summary, picture)


def plot_report(summary: Mapping[str, Any], png_path: str | Path, *, title: str = "") -> None:
    """Plots document lengths, scripts, token frequencies and the effect of curation."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(12, 8.4), dpi=150)
        figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.15, wspace=0.04, hspace=0.06)
        panels: Any = figure.subplots(2, 2).flatten()
        train = summary["splits"]["train"]
        _lengths(panels[0], train)
        _scripts(panels[1], train["looked_at"])
        _ranks(panels[2], train["vocabulary"])
        _removed(panels[3], summary)
        if title:
            figure.suptitle(printable(title, 90), x=0.02, ha="left", fontsize=14, fontweight="bold")
        save_figure(figure, png_path)


def _lengths(axes: Any, train: Mapping[str, Any]) -> None:
    """Draws histograms over document length: bars for the documents, an outline for the tokens in them."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_title("How long are the documents?")
    documents, tokens = (max(1, sum(row[key] for row in train["lengths"])) for key in ("documents", "tokens"))
    bins = {round(4 * log2(row["at_least"])): row for row in train["lengths"]}  # each a quarter of an octave wide
    numbers = range(min(bins, default=0), max(bins, default=0) + 1)
    edges = [2 ** (number / 4) for number in [*numbers, numbers[-1] + 1]]
    empty = {"documents": 0, "tokens": 0}
    shares = [[bins.get(number, empty)[key] for number in numbers] for key in ("documents", "tokens")]
    axes.stairs([n / documents for n in shares[0]], edges, fill=True, color=BLUE, alpha=0.85, label="of the documents")
    axes.stairs([n / tokens for n in shares[1]], edges, color=ORANGE, linewidth=2, label="of the tokens")
    axes.set_xscale("log", base=2)
    low, high = edges[0] / 1.2, 1.2 * max(edges[-1], 4 * edges[0])
    axes.set_xlim(low, high)
    powers = [2**k for k in range(50) if low <= 2**k <= high]
    axes.xaxis.set_major_locator(FixedLocator(powers[:: -(-len(powers) // 9)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    axes.set(xlabel="tokens in a document", ylabel="share", ylim=(0, 1.15 * axes.get_ylim()[1]))
    axes.grid(False, axis="x")
    axes.legend(loc="upper left")


def _scripts(axes: Any, look: Mapping[str, Any]) -> None:
    axes.set_title("Which scripts?")
    rows = look["scripts"][:MOST_BARS]
    total = max(1, sum(row["letters"] for row in look["scripts"]))
    shares = [row["letters"] / total for row in rows]
    notes = [f"{_percent(share)}, {row['different']:,} different" for share, row in zip(shares, rows, strict=True)]
    _bars(axes, [row["script"] for row in rows], shares, notes)
    axes.set_xlabel("share of the letters")


def _ranks(axes: Any, words: Mapping[str, Any]) -> None:
    """Draws token frequency by rank, both logarithmic; natural text is close to 1 / rank (Zipf 1949)."""
    from matplotlib.ticker import FuncFormatter

    axes.set_title("How often do the tokens occur?")
    ranks = [rank for rank, _ in words["ranks"]]
    times = [max(1, count) for _, count in words["ranks"]]
    if ranks:
        axes.loglog(
            ranks, [times[0] / rank for rank in ranks], color=GREY, linestyle=(0, (4, 3)), label="1 / rank (Zipf)"
        )
        axes.loglog(ranks, times, color=BLUE, linewidth=2.2, label="this corpus")
        axes.set_ylim(min(times) * 0.6, max(times) * 2)
        axes.legend(loc="upper right")
    unused = words["size"] - words["used"]
    note = f"{words['size']:,} tokens: {unused:,} never occur,\n{words['under_100']:,} fewer than 100 times"
    axes.text(0.03, 0.05, note, transform=axes.transAxes, color=SOFT, fontsize=9, linespacing=1.4)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.set(xlabel="rank of the token", ylabel="times in training")


def _removed(axes: Any, summary: Mapping[str, Any]) -> None:
    axes.set_title("What did curation do?")
    n_bytes = max(1, summary["read"]["bytes"])
    rows = sorted(summary["curation"].values(), key=lambda entry: -entry["bytes"])[:MOST_BARS]
    if not rows:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "Nothing was removed.", transform=axes.transAxes, ha="center", color=SOFT, fontsize=11)
        return
    shares = [row["bytes"] / n_bytes for row in rows]
    notes = [
        f"{_percent(share)}, {row['documents']:,} document" + ("s" if row["documents"] != 1 else "")
        for share, row in zip(shares, rows, strict=True)
    ]
    _bars(axes, [row["what"] for row in rows], shares, notes)
    axes.set_xlabel("share of the bytes that were read")


def _bars(axes: Any, names: list[str], shares: list[float], notes: list[str]) -> None:
    """Draws horizontal bars with a note after each; leaves room for four, so that a single bar is not too thick."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    rows = range(len(names))
    axes.barh(rows, shares, height=0.62, color=BLUE, alpha=0.85, linewidth=0)
    for row, share, note in zip(rows, shares, notes, strict=True):
        axes.annotate(
            note, (share, row), xytext=(5, 0), textcoords="offset points", va="center", color=SOFT, fontsize=9
        )
    axes.set_yticks(rows, names, fontsize=9)
    axes.set_ylim(max(4, len(names)) - 0.4, -0.6)
    axes.set_xlim(0, 1.75 * max(shares, default=0) or 1)
    most = max(shares, default=1)  # no ticks in the room for the notes
    axes.xaxis.set_major_locator(
        FixedLocator([tick for tick in MaxNLocator(4).tick_values(0, most) if tick <= 1.1 * most])
    )
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
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
    tables = [table]
    if summary["curation"]:
        rules = page.table("", ["~curation", "documents", "bytes", "of all"])
        for entry in sorted(summary["curation"].values(), key=lambda entry: -entry["bytes"]):
            share = _percent(entry["bytes"] / max(1, summary["read"]["bytes"]))
            rules.add_row(entry["what"], f"{entry['documents']:,}", f"{entry['bytes']:,}", share)
        tables.append(rules)
    for part in tables:  # below each other even on a wide terminal
        page.print(part)
