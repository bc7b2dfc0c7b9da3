"""Inside a model, drawn: attention of every head, the logit lens as a heat map of words, scores of heads, copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .plots import BLUE, GREY, ORANGE, STYLE, printable, save_figure, visible

Row = Mapping[str, Any]
NAMED = 28  # more tokens than these are numbered, not named
LENS_COLUMNS = 14  # the last positions that are drawn
PARTS = {"attention", "lens", "heads", "copies"}
SMALL, DARK = "#4b5563", "#111827"


def plot(path: str | Path, result: Row, *, layer: int | None = None, head: int | None = None) -> None:
    """Draws the parts of a result of `scripts.inspect`, one below the other. layer, head: draw only these."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = []  # (height in inches, function of a subfigure)
    width = 7.0 if layer is not None and head is not None and len(result.keys() & PARTS) == 1 else 12.0
    if "attention" in result:
        weights = result["attention"] if layer is None else [result["attention"][layer]]
        weights = weights if head is None else [[heads[head]] for heads in weights]
        labels = (layer or 0, head or 0)
        height, draw = attention_panel(weights, result["tokens"], first=labels, width=width)
        panels.append((height, draw))
    if "lens" in result:
        rows = len(result["lens"]["layers"])
        panels.append((1.7 + 0.42 * rows, lambda part: draw_lens(part, result)))
    if "heads" in result:
        rows = len(result["heads"]["rows"])
        panels.append((1.5 + 0.24 * rows, lambda part: draw_heads(part, result["heads"])))
    if "copies" in result:
        panels.append((4.2, lambda part: draw_copies(part, result["copies"])))
    with rc_context(STYLE):
        total = sum(height for height, _ in panels)
        figure = Figure(figsize=(width, total), dpi=130, layout="constrained")
        parts = figure.subfigures(len(panels), 1, height_ratios=[height for height, _ in panels], squeeze=False)
        for part, (_, draw) in zip(parts[:, 0], panels, strict=True):
            draw(part)
        save_figure(figure, path)


def label_of(text: str, limit: int = 12) -> str:
    """Returns a token as a label: spaces and line ends visible."""
    return printable(visible(text), limit)


def attention_panel(
    weights: Sequence[Any], tokens: Sequence[Row], *, first: tuple[int, int], width: float
) -> tuple[float, Any]:
    """Returns the height and the drawing of small multiples: a row per layer, a column per head."""
    down, across = len(weights), len(weights[0])
    side = width / across
    names = [label_of(token["text"], 10) for token in tokens]
    fits = len(tokens) <= NAMED and (across <= 4 or across * down == 1)

    def draw(part: Any) -> None:
        part.suptitle(
            "Attention: each row is a token, and shows which tokens it reads", x=0.01, ha="left", weight="bold"
        )
        grid = part.subplots(down, across, squeeze=False)
        size = max(4, min(9, 49 * side / len(tokens)))  # points: a name per row of the matrix
        for row, heads in enumerate(weights):
            for column, matrix in enumerate(heads):
                axes = grid[row][column]
                axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
                axes.set_title(f"layer {first[0] + row}, head {first[1] + column}", fontsize=8.5, pad=3, color=SMALL)
                axes.grid(False)
                axes.tick_params(length=0, labelsize=size, pad=1.5, colors=SMALL)
                axes.set_xticks([])
                axes.set_yticks([])
                if fits and column == 0:
                    axes.set_yticks(range(len(names)), names)
                if fits and row == down - 1:
                    axes.set_xticks(range(len(names)), names, rotation=90)
                if fits and across * down == 1:
                    for query, key in ((q, k) for q in range(len(names)) for k in range(q + 1)):
                        shade = matrix[query][key]
                        axes.text(
                            key, query, f"{100 * shade:.0f}", ha="center", va="center", fontsize=size,
                            color="white" if shade > 0.5 else DARK,
                        )  # fmt: skip
                for spine in axes.spines.values():
                    spine.set(visible=True, color="#e5e7eb")

    return 0.6 + down * min(side, 6.0) * (0.98 if fits else 0.95), draw


def draw_lens(part: Any, result: Row) -> None:
    """Draws a cell per layer and position with the most probable next token, the darker the more probable."""
    tokens, lens = result["tokens"], result["lens"]
    first = max(0, len(tokens) - LENS_COLUMNS)
    layers = [layer[first:] for layer in lens["layers"]]
    shares = [[cell["tokens"][0]["probability"] for cell in layer] for layer in layers]
    axes = part.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
    limit = max(5, int(115 / max(1, len(layers[0]))))
    for row, layer in enumerate(layers):
        for column, cell in enumerate(layer):
            p = shares[row][column]
            final = cell["tokens"][0]["id"] == layers[-1][column]["tokens"][0]["id"]
            axes.text(
                column, row, label_of(cell["tokens"][0]["text"], limit), ha="center", va="center", fontsize=8.5,
                color="white" if p > 0.5 else DARK, weight="bold" if final else "normal",
            )  # fmt: skip
    axes.set_yticks(range(len(layers)), lens["names"])
    axes.set_xticks(range(len(layers[0])), [label_of(token["text"], limit) for token in tokens[first:]], rotation=0)
    axes.set_xticks([x - 0.5 for x in range(1, len(layers[0]))], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, len(layers))], minor=True)
    axes.grid(False)
    axes.grid(True, which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title("Logit lens: the most probable next token, as read from each layer", weight="bold")
    axes.set_xlabel(
        "token read   (bold: the same as the model's own prediction; ␣ is a space)", color=SMALL, loc="left"
    )
    bar = part.colorbar(image, ax=axes, pad=0.01, aspect=14)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}%")
    bar.ax.tick_params(length=0, labelsize=8, colors=SMALL)


def draw_heads(part: Any, heads: Row) -> None:
    """Draws the three scores of each head as dots, and the loss without it with its interval."""
    rows, ablated = heads["rows"], "loss" in heads
    panels = part.subplots(1, 2 if ablated else 1, sharey=True, squeeze=False)[0]
    places = range(len(rows))
    largest = max(row[name] for row in rows for name in heads["chance"])
    marks = {"induction": (BLUE, "o"), "previous_token": (ORANGE, "s"), "duplicate_token": ("#16a34a", "D")}
    for name, (colour, mark) in marks.items():
        values = [row[name] for row in rows]
        panels[0].scatter(values, places, color=colour, marker=mark, s=30, label=name.replace("_", " "), zorder=3)
    panels[0].set_yticks(places, [f"layer {row['layer']}, head {row['head']}" for row in rows], fontsize=8.5)
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    panels[0].set(xlim=(-0.03 * largest, 1.05 * largest), xlabel="mean attention weight on repeated random tokens")
    panels[0].set_title("Heads: what they look for", weight="bold")
    part.legend(loc="outside lower left", ncols=len(marks), fontsize=8.5)
    if ablated:
        for place, row in enumerate(rows):
            if row["low"] is not None:
                panels[1].plot([row["low"], row["high"]], [place, place], color=GREY, linewidth=2, zorder=2)
            panels[1].scatter([row["increase"]], [place], color=BLUE, s=30, zorder=3)
        panels[1].axvline(0, color=GREY, linewidth=1)
        replaced = "its mean" if heads["ablation"] == "mean" else "zero"
        panels[1].set_xlabel(f"nats/token more if the output is replaced by {replaced}; lines: 95 % intervals")
        panels[1].set_title(f"Loss without each head ({heads['loss']:.3f} with all)", weight="bold")
    layers = [row["layer"] for row in rows]
    for panel in panels:
        panel.tick_params(length=0)
        for place in (n for n in places if n and layers[n] != layers[n - 1]):
            panel.axhline(place - 0.5, color="#d1d5db", linewidth=1)
        panel.spines["left"].set_visible(False)


def draw_copies(part: Any, found: Row) -> None:
    """Draws the shares of copied tokens beside those of human text, and the longest spans of the texts."""
    left, right = part.subplots(1, 2, width_ratios=[1, 1.3])
    sides = {"this text": (found["statistics"], BLUE), "held-out human text": (found["human"], GREY)}
    names = {
        "covered": f"inside spans of\n{found['min_tokens']}+ tokens",
        "rare": f"… with a count of\nat most {found['rare']}",
    }
    for number, (label, (side, colour)) in enumerate((n, s) for n, s in sides.items() if s[0]):
        for place, key in enumerate(names):
            share, x = side[key], place + 0.36 * number - 0.18
            left.bar(x, share["share"], width=0.32, color=colour, label=label if place == 0 else None)
            if share["low"] is not None:
                left.plot([x, x], [share["low"], share["high"]], color=DARK, linewidth=1.4)
    left.set_xticks(range(len(names)), list(names.values()))
    left.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    left.grid(False, axis="x")
    left.tick_params(length=0)
    left.set_title("Tokens that the training text also has", weight="bold")
    left.legend(fontsize=9)
    spans = sorted((span for text in found["texts"] for span in text["spans"]), key=lambda s: -s["length"])[:8]
    for place, span in enumerate(spans):
        right.barh(place, span["length"], color=BLUE, alpha=1 if span["count"] <= found["rare"] else 0.4, height=0.82)
        text = f"“{label_of(span['text'].strip(), 62).replace('␣', ' ')}”  ×{span['count']:,}"
        right.annotate(text, (0, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color=DARK,
                       bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1})  # fmt: skip
    right.set_ylim(max(3, len(spans)) - 0.4, -0.6)
    right.set_yticks([])
    right.grid(False, axis="y")
    right.tick_params(length=0)
    right.spines["left"].set_visible(False)
    right.set(xlabel="tokens   (pale: common, × times in the training text)")
    right.set_title("Longest spans", weight="bold")
