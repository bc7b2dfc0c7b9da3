"""Inside a model, on the terminal: its operations, attention, logit lens and heads; what a text copies."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .page import Page

Row = Mapping[str, Any]
SHADES = ("#eff6ff", "#dbeafe", "#bfdbfe", "#93c5fd", "#60a5fa", "#3b82f6", "#2563eb", "#1d4ed8", "#1e40af", "#1e3a8a")
GRID_COLUMNS = 8  # positions in the grid of the lens
MATRIX_COLUMNS = 40  # tokens in the map of one head
MOST_SPANS = 15
PAGE = Path(__file__).with_name("inside.html")


def show(result: Row, *, layer: int | None, head: int | None, position: int | None, top: int) -> None:
    """Prints the parts of a result of `scripts.inspect`, as its `json=` holds them.

    layer, head: the ones to show, by default block 0 of the trace and all of the attention. position: of the token
    whose reading is shown, by default the last.
    """
    page = Page()
    if "trace" in result:
        show_trace(page, result["trace"], layer=layer or 0)
        print()
    if "attention" in result:
        if layer is not None and head is not None:
            show_head(page, result["attention"][layer][head], result["tokens"], title=f"Layer {layer}, head {head}")
        else:
            show_attention(page, result, layer=layer, position=position, top=top)
        page.gap()
    if "lens" in result:
        show_lens(page, result, position=position)
        page.gap()
    if "heads" in result:
        show_heads(page, result["heads"])
    if "copies" in result:
        show_copies(page, result["copies"], top=top)


def short(number: float) -> str:
    """Returns a count in three digits: 950, 1.23k, 45.6M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def show_trace(page: Page, trace: Row, *, layer: int) -> None:
    """Prints one row per operation; blocks other than `layer` have one row each. Views are left out."""
    cells: list[list[str]] = []
    blocks: dict[str, list[Row]] = {}  # by name, except the one that is shown
    for op in trace["operations"]:
        block = ".".join(op["module"].split(".")[:2])
        if block.startswith("blocks.") and block != f"blocks.{layer}":
            blocks.setdefault(block, []).append(op)
            if len(blocks[block]) == 1:
                cells.append([block])  # filled below
        elif not op["view"]:
            figures = [f"{op['mean']:.3f}", f"{op['deviation']:.3f}", op["place"]]
            sizes = [" ".join(op["axes"]), "×".join(map(str, op["shape"])), op["dtype"]]
            work = [short(op["flops"]) if op["flops"] else "", short(op["n_bytes"])]
            cells.append([op["module"], op["name"], *sizes, *work, *figures])
    for row in cells:
        if len(row) == 1:
            ops = blocks[row[0]]
            work = [short(sum(op[key] for op in ops)) for key in ("flops", "n_bytes")]
            last = ops[-1]
            figures = [f"{last['mean']:.3f}", f"{last['deviation']:.3f}", ""]
            row += [
                f"{len(ops)} operations",
                " ".join(last["axes"]),
                "×".join(map(str, last["shape"])),
                last["dtype"],
                *work,
                *figures,
            ]
    title = f"Forward pass: {short(trace['flops'])} FLOPs, {short(trace['n_bytes'])} bytes read and written"
    caption = (
        "FLOPs of matrix products; mean and standard deviation of the result; B batch, T time, D d_model, H heads, "
        "K key/value heads, E head width, F d_ff, V vocabulary"
    )
    columns = ["<module", "<operation", "<axes", "<shape", "<dtype", "FLOPs", "bytes", "mean", "std", "~line"]
    rows = [[page.plain(cell) for cell in row] for row in cells]
    page.print(page.table(title, columns, caption, rows=rows))


def show_attention(page: Page, result: Row, *, layer: int | None, position: int | None, top: int) -> None:
    """Prints which tokens each head reads at one position, the largest weights first."""
    tokens = result["tokens"]
    place = len(tokens) - 1 if position is None else position
    cells = []
    for number, heads in enumerate(result["attention"]):
        for head, weights in enumerate(heads if layer in (None, number) else []):
            order = sorted(range(place + 1), key=lambda key: -weights[place][key])[:top]
            read = [f"{weights[place][key]:.0%} {page.quoted(tokens[key]['text'])}@{key}" for key in order]
            cells.append([f"{number}", f"{head}", "  ".join(read)])
    title = f"Attention of token {place}, {page.quoted(tokens[place]['text'])}: what each head reads"
    page.print(page.table(title, ["layer", "head", "~weight, token@position"], rows=cells))


def show_head(page: Page, weights: Sequence[Sequence[float]], tokens: Sequence[Row], *, title: str) -> None:
    """Prints the weights of one head: a row per token that reads, a column per token that is read."""
    from rich.text import Text

    first = max(0, len(tokens) - MATRIX_COLUMNS)
    labels = [page.quoted(token["text"])[:14] for token in tokens]
    lines = [Text(page.plain(f"{title}: rows read columns, numbered like the rows"), style="bold")]
    lines.append(Text(" " * 20 + "".join(f"{key % 100:3d}" for key in range(first, len(tokens))), style="dim"))
    for query in range(first, len(tokens)):
        line = Text(f"{query:4d} {labels[query]:<15}")
        for key in range(first, query + 1):
            weight = weights[query][key]
            digits = f"{100 * weight:3.0f}" if weight >= 0.005 else "  ·" if page.unicode else "  ."
            style = ""
            if page.coloured:
                shade = min(9, int(10 * weight))
                style = f"{'white' if shade > 4 else 'black'} on {SHADES[shade]}"
            line.append(digits, style=style)
        lines.append(line)
    for line in [*lines, Text("percent", style="dim")]:
        page.console.print(line, soft_wrap=True)


def show_lens(page: Page, result: Row, *, position: int | None) -> None:
    """Prints the predictions of each layer at one position, then the best token of each layer at the last ones."""
    from rich.text import Text

    tokens, lens = result["tokens"], result["lens"]
    place = len(tokens) - 1 if position is None else position
    cells = []
    for name, layer in zip(lens["names"], lens["layers"], strict=True):
        row = layer[place]
        best = [f"{page.quoted(token['text'])} {token['probability']:.1%}" for token in row["tokens"]]
        cells.append([name, f"{row['divergence']:.3f}", *best])
    before = "".join(token["text"] for token in tokens[: place + 1])
    columns = ["<after", "KL", *(f"<{rank}." for rank in range(1, len(cells[0]) - 1))]
    title = f"Logit lens: the next token after {page.after(before)}, as read from each layer"
    page.print(
        page.table(title, columns, "KL: nats from the model's own prediction, which is the last row", rows=cells)
    )
    print()
    first = max(0, place + 1 - GRID_COLUMNS)
    grid = []
    for name, layer in zip(lens["names"], lens["layers"], strict=True):
        words: list[Any] = [name]
        for row in layer[first : place + 1]:
            [best, *_] = row["tokens"]
            shade = min(9, int(10 * best["probability"]))
            style = f"{'white' if shade > 4 else 'black'} on {SHADES[shade]}" if page.coloured else ""
            words.append(Text(page.quoted(best["text"]), style=style))
        grid.append(words)
    heads = [f"<{page.quoted(token['text'])}" for token in tokens[first : place + 1]]
    page.print(page.table("The most probable next token at each position", ["<after", *heads], rows=grid))


def show_heads(page: Page, heads: Row) -> None:
    """Prints one row per head: scores, and the loss without it."""
    cells, chance, ablated = [], heads["chance"], "loss" in heads
    for row in [*heads["rows"], *({"head": "all", **layer} for layer in heads.get("layers", ()))]:
        scores = [f"{row[name]:.3f}" if name in row else "" for name in chance]
        cells.append([f"{row['layer']}", f"{row['head']}", *scores, *(loss_cells(row) if ablated else ["", ""])])
    cells.sort(key=lambda row: (int(row[0]), row[1] == "all"))
    notes = ["scores on repeated random tokens; uniform attention has "]
    notes[0] += ", ".join(f"{value:.3f}" for value in chance.values())
    if ablated:
        windows = "a window" if heads["windows"] == 1 else f"{heads['windows']} windows"
        notes.append(
            f"loss: {heads['loss']:.4f} nats/token over {heads['tokens']:,} tokens in {windows}, and "
            f"how much more without the head (replaced by {'its mean' if heads['ablation'] == 'mean' else 'zero'})"
            "; all: the heads of a layer together"
        )
    columns = ["layer", "head", *(f"{name.replace('_', ' ')}" for name in chance), "~loss", "~95 % interval"]
    page.print(page.table("Attention heads", columns, "\n".join(notes), rows=cells))


def loss_cells(row: Row) -> list[str]:
    interval = "" if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}"
    return [f"{row['increase']:+.4f}", interval]


def show_copies(page: Page, found: Row, *, top: int) -> None:
    """Prints the longest spans that occur in the training text, then the shares of tokens beside human text."""
    spans = [(number, span) for number, text in enumerate(found["texts"]) for span in text["spans"]]
    spans.sort(key=lambda pair: (-pair[1]["length"], pair[1]["count"]))
    cells = [
        [f"{number}", f"{span['length']}", f"{span['count']:,}", page.quoted(span["text"]), ", ".join(span["sources"])]
        for number, span in spans[: max(top, MOST_SPANS)]
    ]
    title = (
        f"Spans of {found['min_tokens']} tokens or more that occur in {found['indexed_tokens']:,} training tokens: "
        f"{len(spans):,}"
    )
    rest = f"and {len(spans) - len(cells):,} shorter ones" if len(spans) > len(cells) else ""
    if cells:
        columns = ["text", "tokens", "times", "~span", "~documents"]
        page.print(page.table(title, columns, rest, rows=cells))
    else:
        print(f"no span of {found['min_tokens']} tokens or more occurs in the training text")
    names = {"covered": "tokens inside spans", "rare": f"inside spans with a count of at most {found['rare']}"}
    sides = {"this text": found["statistics"], "held-out human text": found["human"]}
    known = {name: side for name, side in sides.items() if side}
    rows = [[label, *(share_cell(side[key]) for side in known.values())] for key, label in names.items()]
    rows.append(["longest span, mean over texts", *(f"{side['mean_longest']:.1f}" for side in known.values())])
    rows.append(["longest span", *(f"{side['longest']:,}" for side in known.values())])
    rows.append(["tokens", *(f"{side['tokens']:,}" for side in known.values())])
    page.print(page.table("Copied from the training text", ["<", *known], rows=rows))
    for key, label in names.items() if "difference" in found else ():
        print(difference_line(found["difference"][key], label))


def share_cell(share: Row) -> str:
    interval = "" if share["low"] is None else f" ({share['low']:.1%} to {share['high']:.1%})"
    return f"{share['share']:.1%}{interval}"


def difference_line(difference: Row, label: str) -> str:
    low, high = difference["low"], difference["high"]
    verdict = "more than human text" if low > 0 else "less than human text" if high < 0 else "no clear difference"
    points = f"{100 * difference['difference']:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f})"
    return f"{label}: {points}: {verdict}"


def write_page(path: str | Path, result: Row) -> None:
    """Writes one HTML file with everything in the result; it loads nothing and needs no network."""
    path = Path(path)
    # Within a script element only "<" could end it or begin a comment.
    data = json.dumps(result, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        temporary.write_text(PAGE.read_text(encoding="utf-8").replace("{{DATA}}", data), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
