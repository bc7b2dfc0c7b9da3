"""Tables, trees and coloured text: next tokens and words, scores, how tokens were chosen, tokenizers compared.

Rows are the mappings that `json=` writes. Probabilities are between 0 and 1, log-probabilities in nats.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .page import Page

Row = Mapping[str, Any]
HEAT = ("#9ecae1", "#deebf7", "#fee8c8", "#fdbb84", "#fc8d59", "#e34a33")  # colours of a token's bits, low to high
LEVELS = (1, 3, 6, 9, 12)  # the bits at which the colour changes
SHADES = ("#9ecae1", "#fdd0a2", "#c7e9c0", "#dadaeb")  # of successive tokens
MOST_SCRIPTS = 4


def next_tables(results: Sequence[Row]) -> None:
    """Prints the next tokens or words of one or several prompts, side by side if they fit.

    A result has `prompt` and `tokens` (rows of `id`, `text`, `probability`), or `prompt`, `words` (rows of `word`,
    `kind`, `lower`, `upper`, `tokenisations`), `continues`, `unexplored`, `unseen`, `stopped` and optionally a `note`
    for the caption. Rows may have `variants`, see grouped(). Bars are solid up to the lower bound, else pale.
    """
    page = Page()
    page.print(*(_word_table(page, result) if "words" in result else _token_table(page, result) for result in results))


def _token_table(page: Page, result: Row) -> Any:
    longest = max((row["probability"] for row in result["tokens"]), default=0)
    cells, cumulative = [], 0.0
    for rank, row in enumerate(result["tokens"], start=1):
        p = row["probability"]
        cumulative += p
        figures = [f"{rank}", f"{p:.4%}", f"{cumulative:.2%}", f"{row['id']}"]
        cells.append([*figures, page.quoted(row["text"]), page.bar(p, p, longest), variants(row, page.quoted)])
    columns = ["rank", "probability", "cumulative", "id", "*text", "<", "~variants"]
    return page.table(f"Next token after {page.after(result['prompt'])}", columns, rows=cells)


def _word_table(page: Page, result: Row) -> Any:
    longest = max((row["upper"] for row in result["words"]), default=0)
    cells = []
    for rank, row in enumerate(result["words"], start=1):
        figures = [f"{rank}", f"{row['lower']:.3%}", f"{row['upper']:.3%}", f"{row['tokenisations']:,}"]
        names = ["" if row["kind"] == "word" else row["kind"], page.named(row["word"])]
        bar = page.bar(row["lower"], row["upper"], longest)
        cells.append([*figures, *names, bar, variants(row, page.named)])
    columns = ["rank", "lower bound", "upper bound", "tokenizations", "~kind", "*word", "<", "~variants"]
    return page.table(f"Next word after {page.after(result['prompt'])}", columns, word_summary(result), rows=cells)


def variants(row: Row, shown: Callable[[str], str]) -> str:
    """Returns the cell that lists what grouped() merged; empty if nothing."""
    found = row.get("variants", ())
    return ", ".join(map(shown, found)) if len(found) > 1 else ""


def word_summary(result: Row) -> str:
    """Returns the caption of a table of words: the probability outside it, and why the search stopped."""
    parts = [f"{result['unexplored']:.2%} unexplored"]
    if result["continues"]:
        bound = "at least " if result["unexplored"] else ""  # unexplored paths may continue it too
        continues = f"{bound}{result['continues']:.2%} probability that the prompt's last word continues"
        parts = [f"{continues} (the rows are conditional on a new word)", *parts]
    if result["stopped"] == "certified":
        parts.append("the order of these rows is certain")
    else:
        tolerance = result["stopped"] == "tolerance"
        reason = "tolerance reached" if tolerance else "max_expansions or the end of the context reached"
        parts.append(f"{reason}: a word that is not shown may have up to {result['unseen']:.2%}")
    return "; ".join([*parts, result["note"]] if result.get("note") else parts)


def grouped(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Merges rows of next words or tokens that differ only in case or a leading space.

    Adds up probabilities, bounds (upper ones to at most 1) and tokenizations; the best row gives its name, `variants`
    lists all. Rarer variants that are not among the rows are missing, so the new order is not certified.
    """
    name, weight = ("word", "lower") if rows and "word" in rows[0] else ("text", "probability")
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: -row[weight]):
        text = row[name].removeprefix(" ").casefold() or row[name]
        groups.setdefault((row.get("kind", ""), text), []).append(row)
    found = []
    for members in groups.values():
        added = {"probability", "lower", "upper", "tokenisations"} & members[0].keys()
        sums = {key: sum(row[key] for row in members) for key in added}
        if "upper" in sums:
            sums["upper"] = min(1.0, sums["upper"])
        found.append({**members[0], **sums, "variants": [row[name] for row in members]})
    return sorted(found, key=lambda row: -row[weight])


def continuation_tree(nodes: Sequence[Row], *, prompt: str) -> None:
    """Prints a tree of continuations. A node has `text`, `probability` (given its parent) and optionally `children`.

    The probability before each text is given its parent, the one after it that of the whole path. The most probable
    child of each node is bold.
    """
    from rich.text import Text
    from rich.tree import Tree

    page = Page()

    def grow(tree: Any, children: Sequence[Row], path: float) -> None:
        best = max((child["probability"] for child in children), default=0)
        for child in children:
            p, whole = child["probability"], path * child["probability"]
            label = Text.assemble((f"{p:6.2%} ", "blue"), (page.quoted(child["text"]), "bold" if p == best else ""))
            shown = f"{whole:.2%}" if whole >= 5e-5 else "<0.01%"
            label.append(f"  {shown}" if path < 1 else "", "dim")
            grow(tree.add(label), child.get("children", ()), whole)

    root = Tree(Text(page.after(prompt), style="bold"), guide_style="dim")
    grow(root, nodes, 1.0)
    page.print(root)


def surprisal(score: Row) -> None:
    """Prints a scored text: each token on a colour for its bits, then the totals.

    `score` has `prompt`, `text`, `tokens` (rows of `text` and `log_probability` in nats), `log_probability`,
    `bits_per_byte` (or None). Without colours the bits follow each token in brackets.
    """
    from rich.text import Text

    page = Page()
    line = Text.assemble((page.plain(score["prompt"]), "dim"))
    text, bits = "", 0.0
    for token in score["tokens"]:
        text, bits = text + token["text"], bits - token["log_probability"] / math.log(2)
        if not text:  # an unfinished character: its bits count with the token that completes it
            continue
        text = page.plain(text)
        if page.coloured:
            style = f"black on {HEAT[sum(bits >= level for level in LEVELS)]}"
            for number, part in enumerate(text.split("\n")):
                line.append("↵\n" if number and page.unicode else "\n" if number else "", style=style)
                line.append(part, style=style)
        else:
            line.append(f"{text}[{bits:.1f}]")
        text, bits = "", 0.0
    page.console.print(line, soft_wrap=True)
    if page.coloured:
        names = [f"under {LEVELS[0]}", *(f"{a} to {b}" for a, b in itertools.pairwise(LEVELS)), f"{LEVELS[-1]} or more"]
        legend = [(f" {name} ", f"black on {colour}") for name, colour in zip(names, HEAT, strict=True)]
        page.console.print(Text.assemble("\nbits per token: ", *legend))
    page.console.print(Text(score_summary(score), style="bold"), soft_wrap=True)


def score_summary(score: Row) -> str:
    """Returns a line with a text's log-probability, in all, per byte and per token."""
    n_tokens, bits = len(score["tokens"]), -score["log_probability"] / math.log(2)
    total = f"log-probability {score['log_probability']:.3f} nats = {-bits:.2f} bits over {n_tokens:,} tokens"
    per_token = f"{bits / max(1, n_tokens):.3f} bits/token"
    if score["bits_per_byte"] is None:
        return f"{total}: {per_token}; no bits/byte, because the tokenizer does not know all of the text"
    n_bytes = bits / score["bits_per_byte"] if score["bits_per_byte"] else 0
    return f"{total} and {n_bytes:,.0f} bytes: {score['bits_per_byte']:.4f} bits/byte, {per_token}"


def option_table(options: Sequence[Row], *, prompt: str, method: str) -> None:
    """Prints the scores of options after a prompt, with a star at the best of each column.

    A row has `option`, `log_probability`, `per_byte`, `pmi` (nats) and `probability`, the softmax over the options
    of the score that `method` names: raw, normalised or pmi.
    """
    from rich.text import Text

    page = Page()
    scores = {"raw": "log_probability", "normalised": "per_byte", "pmi": "pmi"}
    best = {key: max((row[key] for row in options), default=0) for key in scores.values()}
    chosen = max((row["probability"] for row in options), default=0)
    columns = ["*option", "log p", "log p / byte", "PMI", "share", "<"]
    caption = f"in nats; * the best of its column; share: softmax over the options by method={method}"
    table = page.table(f"After {page.after(prompt)}", columns, caption)
    for row in options:
        cells = [f"{row[key]:.3f}{'*' if row[key] == best[key] else ' '}" for key in scores.values()]
        style, star = ("bold", "*") if row["probability"] == chosen else ("not bold", " ")
        option = Text(page.quoted(row["option"]), style=style)
        table.add_row(option, *cells, f"{row['probability']:.2%}{star}", page.bar(row["probability"], 0, chosen))
    page.print(table)


def accuracy_table(rows: Sequence[Row], *, title: str) -> None:
    """Prints accuracies with their 95 % intervals.

    A row has `method`, `accuracy` and optionally `low`, `high`, `group_low`, `group_high`.
    """
    page = Page()
    best = max((row["accuracy"] for row in rows), default=0)
    cells = []
    for row in rows:
        intervals = [
            f"{row[low]:.1%} to {row[high]:.1%}" if low in row else ""
            for low, high in (("low", "high"), ("group_low", "group_high"))
        ]
        cells.append([row["method"], f"{row['accuracy']:.1%}", *intervals, page.bar(row["accuracy"], 0, best)])
    page.print(page.table(title, ["*method", "accuracy", "~95 % interval", "~over whole groups", "<"], rows=cells))


def explain_table(rows: Sequence[Row], *, prompt: str = "") -> None:
    """Prints how each token was chosen, one row per token.

    A row has `text`, `rank` (1: the model's first choice), `probability` (the model's own), `filters` (in order, each
    with `name`, the token's probability `before` and `after`, and `removed`, the mass it took from others) and
    optionally `alternatives` (rows of `text` and `probability`: the model's first choices). Filters without any effect
    are left out.
    """
    page = Page()
    steps = [step for row in rows for step in row["filters"] if step["removed"] or step["before"] != step["after"]]
    names = list(dict.fromkeys(step["name"] for step in steps))
    cut = any(step["removed"] for step in steps)
    cells = []
    for row in rows:
        after = {
            step["name"]: f"{step['after']:.2%}" + (f" (-{step['removed']:.1%})" if step["removed"] >= 0.0005 else "")
            for step in row["filters"]
        }
        kept = math.prod(1 - step["removed"] for step in row["filters"])  # each of the mass left before it
        first = ", ".join(f"{page.quoted(o['text'])} {o['probability']:.1%}" for o in row.get("alternatives", ()))
        figures = [f"{row['rank']:,}", f"{row['probability']:.2%}", *(after.get(name, "") for name in names)]
        figures += [f"{max(0.0, 1 - kept):.2%}"] * cut
        cells.append([page.quoted(row["text"]), *figures, first])
    columns = ["*token", "rank", "model", *names, *["removed"] * cut, "~first choices"]
    caption = "the token's probability in the model"
    caption += ", then after each filter" * bool(names) + " (and the mass that the filter removed)" * cut
    page.print(page.table(f"After {page.after(prompt)}" if prompt else "", columns, caption, rows=cells))


def comparison_table(rows: Sequence[Row], *, title: str) -> None:
    """Prints one row per tokenizer.

    A row has `name`, `vocab_size`, `bytes_per_token`, `used` (the fraction of the vocabulary), `megabytes_per_second`,
    `trained_here` and `fertility`: {script: {`per_word`, `per_character`}}.
    """
    page = Page()
    scripts = list(dict.fromkeys(script for row in rows for script in row["fertility"]))[:MOST_SCRIPTS]
    captions = ["per script: tokens/word and tokens/character; a word is a run of its letters"] if scripts else []
    if not all(row["trained_here"] for row in rows):
        captions.append("* loaded, not trained here: it may have seen this text")
    columns = ["*tokenizer", "vocabulary", "used", "bytes/token", "MB/s", *scripts]
    table = page.table(title, columns, "\n".join(captions))
    for row in rows:
        cells = [f"{row['vocab_size']:,}", f"{row['used']:.1%}", f"{row['bytes_per_token']:.3f}"]
        cells.append(f"{row['megabytes_per_second']:.1f}")
        for script in scripts:
            found = row["fertility"].get(script)
            cells.append(f"{found['per_word']:.2f} {found['per_character']:.2f}" if found else "")
        table.add_row(page.plain(row["name"] + ("" if row["trained_here"] else " *")), *cells)
    page.print(table)


def show_cuts(tokens: Iterable[bytes], *, title: str) -> None:
    """Prints a text as its tokens: in alternating colours on a terminal, else with a mark between them."""
    from rich.text import Text

    page = Page()
    parts = [page.plain(readable(token)) for token in tokens]
    text = "".join(parts)
    mark = next((mark for mark in "|¦│" if mark not in text and page.plain(mark) == mark), "|")
    line = Text()
    for number, part in enumerate(parts):
        style = f"black on {SHADES[number % len(SHADES)]}" if page.coloured else ""
        line.append(part, style=style)
        if not page.coloured and number + 1 < len(parts) and not part.endswith("\n"):
            line.append(mark)
    page.console.print(Text(page.plain(title), style="bold"), soft_wrap=True)
    page.console.print(line, soft_wrap=True)


def readable(token: bytes) -> str:
    """Returns a token as text: bytes of unfinished characters as <E2>, a line end as ↵ and the line end."""
    text = ""
    for character in token.decode("utf-8", "surrogateescape"):
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:
            text += f"<{code - 0xDC00:02X}>"
        elif character == "\n":
            text += "↵\n"
        else:
            text += character if character.isprintable() else f"<{character!r}>".replace("'", "")
    return text
