"""Fine-tuning and its evaluation: examples with what is learned, the audit, comparisons, calibration plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median_low
from typing import Any

from .page import Page
from .plots import BLUE, GREY, ORANGE, STYLE, printable, save_figure

Row = Mapping[str, Any]
MOST_LABELS = 30  # in a printed table
FEW_LABELS = 10  # are shown of more than that
MOSTLY_OUTSIDE = 0.9  # probability outside the labels
COUNTS = {  # of the audit
    "learned_tokens": "tokens with loss",
    "truncated": "prompts truncated on the left",
    "dropped": "dropped: completion too long",
    "duplicates": "exact duplicates",
    "contradictions": "same prompt, different completion",
}


def show_example(place: str, tokens: Sequence[tuple[str, bool]]) -> None:
    """Prints an example token by token; what has loss is green, or in brackets without colours."""
    from rich.text import Text

    page = Page()
    learned = sum(with_loss for _, with_loss in tokens)
    line, inside = Text.assemble((f"{place}: {len(tokens)} tokens, {learned} of them with loss\n", "bold")), False
    for number, (token, with_loss) in enumerate(tokens):
        shown = page.plain(token if token.isprintable() else repr(token)[1:-1])
        brackets = not page.coloured and with_loss != inside
        line.append(("[" if with_loss else "]") * brackets + "|" * (number > 0 and not brackets), "dim")
        line.append(shown, "bold green" if with_loss else "dim" if page.coloured else "")
        inside = with_loss
    line.append("]\n" if inside and not page.coloured else "\n")
    page.console.print(line, soft_wrap=True)


def audit_table(splits: Mapping[str, Row], labels: Mapping[str, tuple[int, int]]) -> None:
    """Prints the counts of each split, a row per count, and the examples of each label: (training, held out)."""
    page = Page()
    names = list(next(iter(splits.values())))
    cells = [
        [COUNTS.get(name, name.replace("_", " ")), *(f"{split[name]:,}" for split in splits.values())] for name in names
    ]
    near = any(split["near_duplicates"] for split in splits.values())
    caption = "near duplicates: at least 80 % of their three-word sequences are the same" if near else ""
    page.print(page.table("", ["<", *splits], caption, rows=cells))
    page.gap()
    if labels:
        shown = list(labels.items())[: MOST_LABELS if len(labels) <= MOST_LABELS else FEW_LABELS]
        largest = max(train for train, _ in labels.values())
        rows = [
            [page.named(name), f"{train:,}", f"{held:,}", page.bar(train, train, largest)]
            for name, (train, held) in shown
        ]
        rest = f"and {len(labels) - len(shown):,} more" if len(labels) > len(shown) else ""
        page.print(page.table("", ["*label", "training", "held out", "<"], rest, rows=rows))
        page.gap()


def show_results(content: Row) -> None:
    """Prints what comparison.json holds: `results`, `differences` and, where known, `confusion`, `calibration`,
    `forgetting` and `probes`.
    """
    page, number = Page(), content["examples"]
    results_table(f"{number:,} held-out example{'s' * (number != 1)}", content["results"])
    page.gap()
    if content["differences"]:
        print(*difference_lines(content["differences"], figure_of(content["results"])), "", sep="\n")
    if "confusion" in content:
        confusion_table(content["confusion"], content["labels"])
        page.gap()
        print(calibration_line(content))
        print(f"{content['outside']:.2%} of the probability is outside the label set")
        if note := outside_note([content["outside"]], trained=True):
            print(f"note: {note}")
    if found := content.get("forgetting"):
        print(
            f"forgetting: {found['before']:.4f} bits/byte before, {found['after']:.4f} after on the beginnings of "
            f"{found['documents']} held-out documents of the checkpoint's corpus: {found['difference']:+.4f} (95 % "
            f"interval {found['low']:+.4f} to {found['high']:+.4f})"
        )
    for probe in content.get("probes", ()):
        print()
        rows = [
            [
                page.named(row["word"]),
                *(f"{p:.2%}" for p in (row["before"], row["after"], row["after"] - row["before"])),
            ]
            for row in probe["words"]
        ]
        title = f"Next words after {page.after(probe['prompt'])} that changed most"
        page.print(page.table(title, ["*word", "before", "after", "change"], rows=rows))


def figure_of(rows: Sequence[Row]) -> str:
    return "exact match" if any("exact_match" in row for row in rows) else "accuracy"


def results_table(title: str, rows: Sequence[Row]) -> None:
    """Prints one model per row: `name`, `accuracy`, `low`, `high` (95 %) and, where known, `macro_f1`, `stopped`,
    `calibration_error`.
    """
    page = Page()
    columns = {"macro_f1": "macro-F1", "stopped": "ended by itself", "calibration_error": "calibration error"}
    known = [key for key in columns if any(row.get(key) is not None for row in rows)]
    best = max((row["accuracy"] for row in rows), default=0)
    cells = []
    for row in rows:
        figures = ["" if row.get(key) is None else f"{row[key]:.3f}" for key in known]
        interval = f"{row['low']:.1%} to {row['high']:.1%}"
        cells.append([row["name"], f"{row['accuracy']:.1%}", interval, *figures, page.bar(row["accuracy"], 0, best)])
    names = ["*model", figure_of(rows), "95 % interval", *(columns[key] for key in known), "<"]
    page.print(page.table(title, names, rows=cells))


def difference_lines(rows: Sequence[Row], figure: str = "accuracy") -> list[str]:
    """Returns a line per paired comparison: `a`, `b` (names), `difference`, `interval`, `only_a`, `only_b`, `p`,
    `examples`, `examples_needed`.
    """
    lines = [f"Difference in {figure}, with its 95 % interval (paired):"]
    for row in rows:
        names, (low, high) = f"  {row['b']} against {row['a']}", row["interval"]
        apart = row["only_a"] + row["only_b"]
        if not apart:  # the interval would be of no width, however few the examples are
            lines.append(
                f"{names}: none; on each of the {row['examples']:,} examples, both are right or both are wrong"
            )
            continue
        verdict = "undecided" if low <= 0 <= high else "better" if low > 0 else "worse"
        line = f"{names}: {100 * row['difference']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}), {verdict}"
        if verdict == "undecided" and row["examples_needed"] is not None:
            line += f", about {row['examples_needed']:,} examples would settle it"
        lines.append(
            f"{line}; of the {apart:,} that only one gets right, {row['b']} gets {row['only_b']:,} "
            f"(McNemar p {row['p']:.2g})"
        )
    return lines


def calibration_line(content: Row) -> str:
    parts = [
        f"{found['error']:.3f} ({found['low']:.3f} to {found['high']:.3f}) {name}"
        for name, found in content["calibration"].items()
    ]
    fitted = len(parts) > 1
    temperature = f" {content['temperature']:.2f}" if fitted else ", too few examples to test a temperature"
    return f"calibration error: {', '.join(parts)}{temperature}"


def confusion_table(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> None:
    """Prints a confusion matrix, [truth][answer], up to 12 labels; of more, the most frequent confusions."""
    page = Page()
    names = [page.named(label) for label in labels]
    if len(labels) <= 12:
        columns = ["*true label", *(f"{number}" for number in range(1, len(labels) + 1)), "right"]
        cells = []
        for number, row in enumerate(counts):
            share = f"{row[number] / sum(row):.0%}" if sum(row) else ""
            cells.append([f"{number + 1} {names[number]}", *(f"{n}" if n else "·" for n in row), share])
        page.print(page.table("Answers (columns, numbered like the rows)", columns, rows=cells))
        return
    pairs = [(n, t, a) for t, row in enumerate(counts) for a, n in enumerate(row) if t != a and n]
    cells = [[names[t], names[a], f"{n}"] for n, t, a in sorted(pairs, reverse=True)[:12]]
    page.print(page.table("Most frequent confusions", ["*true label", "*answer", "times"], rows=cells))


def outside_note(outside: Sequence[float], unprompted: Sequence[str] = (), *, trained: bool = False) -> str | None:
    """Returns a line on what may help if a model would rather write something else than the labels.

    outside: for each text, the probability of anything but a label. There is a note if it is high for most texts, and
    the labels are `unprompted`, those of no template, or the model was `trained` to write them.
    """
    if not (outside and (unprompted or trained)) or median_low(outside) <= MOSTLY_OUTSIDE:
        return None
    which = "" if len(outside) == 1 else f" for most of the {len(outside):,} texts"
    if trained:
        return (
            f"over {MOSTLY_OUTSIDE:.0%} of the probability is outside the labels{which}: the model has hardly learned "
            "to write them; more fine-tuning may help"
        )
    names = ", ".join(unprompted).replace("\\", "\\\\").replace("'", "\\'")
    prompt = rf"$'Choose one label: {names}.\n\n{{text}}\n\nLabel:'"
    return (
        f"over {MOSTLY_OUTSIDE:.0%} of the probability is outside the labels{which}, so the ranking of the labels "
        f"means little; a prompt that asks for them may help: prompt_template={prompt}"
    )


def label_table(results: Sequence[Row]) -> None:
    """Prints the probability of each label for each text: `text`, `labels` (rows of `label`, `probability`, the
    most probable first) and `outside`, the model's probability of anything else.
    """
    page = Page()
    for number, result in enumerate(results):
        if number:
            print()
        longest = max(row["probability"] for row in result["labels"])
        shown = result["text"] if len(result["text"]) <= 60 else result["text"][:59] + "…"
        cells = [
            [page.named(row["label"]), f"{row['probability']:.2%}", page.bar(row["probability"], 0, longest)]
            for row in result["labels"][:MOST_LABELS]
        ]
        caption = f"{result['outside']:.2%} of the model's probability is outside the label set"
        page.print(page.table(f"Label of {page.quoted(shown)}", ["*label", "probability", "<"], caption, rows=cells))


def plot_answers(path: str | Path, content: Row, *, title: str) -> None:
    """Draws the confusion matrix and the reliability diagram of what comparison.json holds."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    counts, labels = content["confusion"], content["labels"]

    with rc_context(STYLE):
        figure = Figure(figsize=(13, 6), dpi=130, layout="compressed")
        left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        shares = [[n / max(1, sum(row)) for n in row] for row in counts]
        left.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        left.grid(False)
        names = [printable(label, 24) for label in labels]
        left.set_yticks(range(len(labels)), names)
        slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        left.set_xticks(range(len(labels)), names, **(slant if sum(map(len, names)) > 40 else {}))
        left.tick_params(length=0)
        left.set(xlabel="answer", ylabel="true label", title="answers to held-out examples")
        if len(labels) <= 16:
            size = max(9, 18 - len(labels))
            for row, column in ((r, c) for r in range(len(labels)) for c in range(len(labels)) if counts[r][c]):
                colour = "white" if shares[row][column] > 0.5 else "#374151"
                left.text(column, row, counts[row][column], ha="center", va="center", color=colour, fontsize=size)
        right.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="perfectly calibrated")
        for (name, found), colour in zip(content["calibration"].items(), (ORANGE, BLUE), strict=False):
            bins = found["bins"]
            total = sum(b["count"] for b in bins)
            sizes = [20 + 400 * b["count"] / total for b in bins]
            points = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
            right.plot(*points, color=colour, linewidth=1.2, alpha=0.6)
            right.scatter(
                *points, s=sizes, color=colour, alpha=0.7, linewidth=0, label=f"{name}: error {found['error']:.3f}",
                clip_on=False,
            )  # fmt: skip
        right.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the answer", ylabel="share of right answers")
        right.set(title="reliability (area: number of answers)", aspect="equal")
        legend = right.legend(loc="best")
        for handle in legend.legend_handles[1:]:
            handle.set_sizes([60])
        save_figure(figure, path)


def plot_tradeoff(path: str | Path, points: Sequence[Row]) -> None:
    """Draws a point per fine-tuning run, with 95 % intervals: `name`, `task` (a row of results) over the `difference`
    in bits/byte (`low`, `high`) on the corpus of the starting checkpoint, whose own row is `start`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(8, 5.5), dpi=150, layout="constrained")
        axes = figure.subplots()
        for point in points:
            x, y = point["difference"], point["task"]["accuracy"]
            across = [[x - point["low"]], [point["high"] - x]]
            along = [[y - point["task"]["low"]], [point["task"]["high"] - y]]
            axes.errorbar(x, y, xerr=across, yerr=along, fmt="o", color=BLUE, ecolor=GREY, elinewidth=1, capsize=2)
            axes.annotate(printable(point["name"], 30), (x, y), xytext=(6, 6), textcoords="offset points", fontsize=9)
        before = points[0]["start"]["accuracy"]
        axes.axhline(before, color=ORANGE, linewidth=1, linestyle=":", label=f"before fine-tuning: {before:.1%}")
        axes.axvline(0, color=GREY, linewidth=1, linestyle=":")
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}%")
        axes.set(xlabel="forgetting: bits/byte more on the starting checkpoint's held-out text", ylabel="accuracy")
        axes.set_title("gain on the task against forgetting")
        axes.legend(loc="lower right")
        save_figure(figure, path)
