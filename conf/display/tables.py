"""Tables, trees and coloured text about prompts and texts: next tokens and words, scores, how tokens were chosen.

Rows are the mappings that `json=` writes. Probabilities are between 0 and 1, log-probabilities in nats.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .page import Page

Row = Mapping[str, Any]
HEAT = ("#9ecae1", "#deebf7", "#fee8c8", "#fdbb84", "#fc8d59", "#e34a33")  # colours of a token's bits, low to high
LEVELS = (1, 3, 6, 9, 12)  # the bits at which the colour changes


def token_tables(results: Sequence[Row]) -> None:
    """Prints the next tokens of one or several prompts, side by side if they fit.

    A result has `prompt` and `tokens`: rows of `text`, `probability` and optionally `id`, `variants` (see grouped()).
    """
    page = Page()
    page.print(*(_token_table(page, result) for result in results))


def _token_table(page: Page, result: Row) -> Any:
    from rich.text import Text

    rows = result["tokens"]
    ids = any("id" in row for row in rows)
    variants = any(len(row.get("variants", ())) > 1 for row in rows)
    columns = ["rank", "probability", "cumulative", *(["id"] if ids else []), "*text", "<"]
    title = f"Next token after {page.after(result['prompt'])}"
    table = page.table(title, [*columns, *(["~variants"] if variants else [])])
    longest, cumulative = max((row["probability"] for row in rows), default=0), 0.0
    for rank, row in enumerate(rows, start=1):
        p = row["probability"]
        cumulative += p
        cells = [f"{rank}", f"{p:.4%}", f"{cumulative:.2%}", *([str(row.get("id", ""))] if ids else [])]
        last = [Text(", ".join(map(page.quoted, row.get("variants", ()))))] if variants else []
        table.add_row(*cells, Text(page.quoted(row["text"])), page.bar(p, p, longest), *last)
    return table


def word_tables(results: Sequence[Row]) -> None:
    """Prints the next words of one or several prompts, side by side if they fit.

    A result has `prompt`, `words` (rows of `word`, `kind`, `lower`, `upper`, `tokenisations` and optionally `variants`,
    see grouped()), `continues`, `unexplored`, `stopped`, and optionally `unseen` and a `note` for the caption. The bar
    is solid up to the lower bound, pale up to the upper one.
    """
    page = Page()
    page.print(*(_word_table(page, result) for result in results))


def _word_table(page: Page, result: Row) -> Any:
    from rich.text import Text

    rows = result["words"]
    kinds = any(row["kind"] != "word" for row in rows)
    variants = any(len(row.get("variants", ())) > 1 for row in rows)
    columns = ["rank", "lower bound", "upper bound", "tokenizations", *(["<kind"] if kinds else []), "*word", "<"]
    title = f"Next word after {page.after(result['prompt'])}"
    table = page.table(title, [*columns, *(["~variants"] if variants else [])], word_summary(result))
    longest = max((row["upper"] for row in rows), default=0)
    for rank, row in enumerate(rows, start=1):
        kind = "" if row["kind"] == "word" else row["kind"]
        cells = [f"{rank}", f"{row['lower']:.3%}", f"{row['upper']:.3%}", f"{row['tokenisations']:,}"]
        cells += [kind] if kinds else []
        last = [Text(", ".join(map(page.named, row.get("variants", ()))))] if variants else []
        table.add_row(*cells, Text(page.named(row["word"])), page.bar(row["lower"], row["upper"], longest), *last)
    return table


def word_summary(result: Row) -> str:
    """Returns the caption of a table of words: the probability outside it, and why the search stopped."""
    parts = [f"{result['unexplored']:.2%} unexplored", certainty(result)]
    if result["continues"]:
        continues = f"{result['continues']:.2%} probability that the prompt's last word continues"
        parts = [f"{continues} (the rows are conditional on a new word)", *parts]
    return "; ".join([*parts, result["note"]] if result.get("note") else parts)


def certainty(result: Row) -> str:
    """Says whether the order of the rows is proven, or what a missing word may have."""
    if result["stopped"] == "certified":
        return "the order of these rows is certain"
    reasons = {"tolerance": "tolerance reached", "max_tokens": "max_expansions or the end of the context reached"}
    unseen = f"{result['unseen']:.2%}" if "unseen" in result else "all of the unexplored probability"
    return f"{reasons.get(result['stopped'], result['stopped'])}: a word that is not shown may have up to {unseen}"


def grouped(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Merges rows of next words or tokens that differ only in case or a leading space.

    Adds up probabilities, bounds (upper ones to at most 1) and tokenizations; the best row gives its name, `variants`
    lists all. Rarer variants that are not among the rows are missing, so the new order is not certified.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        text = row.get("word", row.get("text", ""))
        groups.setdefault((row.get("kind", ""), text.removeprefix(" ").casefold() or text), []).append(row)
    found = []
    for members in groups.values():
        name = "word" if "word" in members[0] else "text"
        best = max(members, key=lambda row: row.get("lower", row.get("probability", 0)))
        sums: dict[str, float] = {
            key: min(1.0, sum(row[key] for row in members)) for key in ("probability", "lower", "upper") if key in best
        }
        if "tokenisations" in best:
            sums["tokenisations"] = sum(row["tokenisations"] for row in members)
        found.append(dict(best) | sums | {"variants": [row[name] for row in members]})
    return sorted(found, key=lambda row: -row.get("lower", row.get("probability", 0)))


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
        style = "bold" if row["probability"] == chosen else "not bold"
        share = f"{row['probability']:.2%}{'*' if row['probability'] == chosen else ' '}"
        bar = page.bar(row["probability"], row["probability"], chosen)
        table.add_row(Text(page.quoted(row["option"]), style=style), *cells, share, bar)
    page.print(table)


def accuracy_table(rows: Iterable[Row], *, title: str) -> None:
    """Prints accuracies with their 95 % intervals.

    A row has `method`, `accuracy` and optionally `low`, `high`, `group_low`, `group_high`.
    """
    page, rows = Page(), list(rows)
    intervals = {"low": "95 % interval", "group_low": "over whole groups"}
    intervals = {key: name for key, name in intervals.items() if any(key in row for row in rows)}
    table = page.table(title, ["*method", "accuracy", *intervals.values(), "<"])
    best = max((row["accuracy"] for row in rows), default=0)
    for row in rows:
        shares = [f"{row[key]:.1%} to {row[key.replace('low', 'high')]:.1%}" if key in row else "" for key in intervals]
        table.add_row(row["method"], f"{row['accuracy']:.1%}", *shares, page.bar(row["accuracy"], 0, best))
    page.print(table)


def explain_table(rows: Iterable[Row], *, prompt: str = "") -> None:
    """Prints how each token was chosen, one row per token.

    A row has `text`, `rank` (1: the model's first choice), `probability` (the model's own), `filters` (in order, each
    with `name`, the token's probability `before` and `after`, and `removed`, the mass it took from others) and
    optionally `alternatives` (rows of `text` and `probability`: the model's first choices). Filters without any effect
    are left out.
    """
    from rich.text import Text

    page, rows = Page(), list(rows)
    steps = [step for row in rows for step in row["filters"] if step["removed"] or step["before"] != step["after"]]
    names = list(dict.fromkeys(step["name"] for step in steps))
    alternatives = any(row.get("alternatives") for row in rows)
    columns = ["*token", "rank", "model", *names, "removed", *(["~first choices"] if alternatives else [])]
    caption = "the token's probability in the model, then after each filter (and the mass that the filter removed)"
    table = page.table(f"After {page.after(prompt)}" if prompt else "", columns, caption)
    for row in rows:
        after = {
            step["name"]: f"{step['after']:.2%}" + (f" (-{step['removed']:.1%})" if step["removed"] >= 0.0005 else "")
            for step in row["filters"]
        }
        kept = math.prod(
            1 - step["removed"] for step in row["filters"]
        )  # each is a fraction of the mass left before it
        cells = [f"{row['rank']:,}", f"{row['probability']:.2%}", *(after.get(name, "") for name in names)]
        cells.append(f"{max(0.0, 1 - kept):.2%}")
        first = ", ".join(f"{page.quoted(o['text'])} {o['probability']:.1%}" for o in row.get("alternatives", ()))
        table.add_row(Text(page.quoted(row["text"])), *cells, *([Text(first)] if alternatives else []))
    page.print(table)
