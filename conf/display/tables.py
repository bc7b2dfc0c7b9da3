"""Tables, trees and coloured text for people to read: complete and plain off a terminal. rich is imported on use.

Rows are plain mappings, those that `json=` writes; probabilities are between 0 and 1, log-probabilities in nats.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
HEAT = ("#9ecae1", "#deebf7", "#fee8c8", "#fdbb84", "#fc8d59", "#e34a33")  # colours of a token's bits, from expected
LEVELS = (1, 3, 6, 9, 12)  # to surprising: the first is below 1 bit, the last from 12 on


class Page:
    """Where things are printed. Off a terminal nothing is cut off, coloured, or drawn that its encoding may lack."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False)
        self.terminal = self.console.is_terminal
        self.unicode = self.console.encoding.startswith("utf")
        if not self.terminal:
            self.console.width = 10_000

    def quoted(self, text: str) -> str:
        return repr(text) if self.unicode else ascii(text)

    def plain(self, text: str) -> str:
        return text if self.unicode else text.encode("ascii", "backslashreplace").decode()

    def named(self, word: str) -> str:
        """A word as it is where that can be read, in quotes where it is white space or holds what is invisible."""
        readable = word.isprintable() and word == word.strip() != ""
        return self.plain(word) if readable else self.quoted(word)

    def bar(self, lower: float, upper: float, longest: float) -> Any:
        """20 characters for `longest`: solid up to the lower bound, pale up to the upper one."""
        from rich.text import Text

        solid, full = (round(20 * value / (longest or 1)) for value in (lower, max(lower, upper)))
        marks = "█░" if self.unicode else "#-"
        return Text.assemble((marks[0] * solid, "blue"), (marks[1] * (full - solid), "blue"))

    def table(self, title: str, columns: Sequence[str], caption: str = "") -> Any:
        """An empty table. A column's name says how it is set: `*bold and left`, `<left`, `~left and folded`, right."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(
            box=box.SIMPLE_HEAD if self.terminal else None,
            pad_edge=False,
            title=Text(self.plain(title), style="bold") if title else None,
            title_justify="left",
            caption=Text(self.plain(caption), style="dim") if caption else None,
            caption_justify="left",
        )
        for name in columns:
            if name[:1] == "*":
                table.add_column(name[1:], overflow="fold", style="bold", min_width=8)
            elif name[:1] in ("<", "~"):
                table.add_column(name[1:], overflow="fold" if name[0] == "~" else "ellipsis", no_wrap=name[0] == "<")
            else:
                table.add_column(name, justify="right", no_wrap=True)
        return table

    def print(self, *parts: Any) -> None:
        """Prints one below the other; on a terminal side by side where they fit."""
        from rich.columns import Columns

        if self.terminal:
            self.console.print(Columns(parts, padding=(1, 4)) if len(parts) > 1 else parts[0])
            return
        for number, part in enumerate(parts):
            title, caption = getattr(part, "title", None), getattr(part, "caption", None)
            if title is not None or caption is not None:  # a table's own are folded to the table's width
                part.title = part.caption = None
            with self.console.capture() as captured:
                self.console.print(part)
            lines = [*([""] if number else []), *([title.plain] if title else []), *captured.get().splitlines()]
            print(*(line.rstrip() for line in [*lines, *([caption.plain] if caption else [])]), sep="\n")


def token_tables(results: Sequence[Row]) -> None:
    """Prints the tables of the next tokens of one or several prompts, side by side where they fit.

    A result has `prompt` and `tokens`: rows of `text`, `probability` and, where they have one, `id`; where they were
    grouped, `variants`.
    """
    page = Page()
    page.print(*(_token_table(page, result) for result in results))


def _token_table(page: Page, result: Row) -> Any:
    from rich.text import Text

    rows = result["tokens"]
    ids = any("id" in row for row in rows)
    variants = any(len(row.get("variants", ())) > 1 for row in rows)
    columns = ["rank", "probability", "cumulative", *(["id"] if ids else []), "*text", "<"]
    title = f"Next token after {page.quoted(_tail(result['prompt'], 60))}"
    table = page.table(title, [*columns, *(["~variants"] if variants else [])])
    longest, cumulative = max((row["probability"] for row in rows), default=0), 0.0
    for rank, row in enumerate(rows, start=1):
        share = row["probability"]
        cumulative += share
        cells = [f"{rank}", f"{share:.4%}", f"{cumulative:.2%}", *([str(row.get("id", ""))] if ids else [])]
        end = [Text(", ".join(map(page.quoted, row.get("variants", ()))))] if variants else []
        table.add_row(*cells, Text(page.quoted(row["text"])), page.bar(share, share, longest), *end)
    return table


def word_tables(results: Sequence[Row]) -> None:
    """Prints the tables of the next words of one or several prompts, side by side where the terminal is wide enough.

    A result has `prompt`, `words` (rows of `word`, `kind`, `lower`, `upper`, `tokenisations` and, where they were
    grouped, `variants`), `continues`, `unexplored` and `stopped`; the bar is solid up to the lower bound, pale up to
    the upper one. `note`, where there is one, ends the text beneath.
    """
    page = Page()
    page.print(*(_word_table(page, result) for result in results))


def _word_table(page: Page, result: Row) -> Any:
    from rich.text import Text

    rows = result["words"]
    kinds = any(row["kind"] != "word" for row in rows)
    variants = any(len(row.get("variants", ())) > 1 for row in rows)
    columns = ["rank", "at least", "at most", "ways", *(["<kind"] if kinds else []), "*word", "<"]
    table = page.table(
        f"Next word after {page.quoted(_tail(result['prompt'], 60))}",
        [*columns, *(["~variants"] if variants else [])],
        word_summary(result),
    )
    longest = max((row["upper"] for row in rows), default=0)
    for rank, row in enumerate(rows, start=1):
        kind = "" if row["kind"] == "word" else row["kind"]
        cells = [f"{rank}", f"{row['lower']:.3%}", f"{row['upper']:.3%}", f"{row['tokenisations']:,}"]
        cells += [kind] if kinds else []
        end = [Text(", ".join(map(page.named, row.get("variants", ()))))] if variants else []
        table.add_row(*cells, Text(page.named(row["word"])), page.bar(row["lower"], row["upper"], longest), *end)
    return table


def word_summary(result: Row) -> str:
    """What stands beneath the words: the mass outside the table, and why the search stopped."""
    parts = [
        *(
            [f"{result['continues']:.2%} continues the prompt's last word, the rows are given that it does not"]
            if result["continues"]
            else []
        ),
        f"{result['unexplored']:.2%} unexplored",
        certainty(result),
        *([result["note"]] if result.get("note") else []),
    ]
    return "; ".join(parts)


def certainty(result: Row) -> str:
    """How far the order of the rows can be trusted, in words."""
    if result["stopped"] == "certified":
        return "the order of these rows is certain"
    why = {"tolerance": "tolerance is reached", "max_tokens": "max_tokens or the context ran out"}
    unseen = f"{result['unseen']:.2%}" if "unseen" in result else "as much as is unexplored"
    return f"{why.get(result['stopped'], result['stopped'])}: a word that is not shown may have up to {unseen}"


def grouped(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """A view of rows of next words or tokens: those that differ by case or by a leading space alone become one.

    Probabilities, bounds (an upper one at most 1) and tokenisations are added, the best row gives its name, `variants`
    lists all. Only the rows given are added up; a rarer variant that is not among them is not counted, so the order
    of a grouped table is not certified.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        text = row.get("word", row.get("text", ""))
        groups.setdefault((row.get("kind", ""), text.removeprefix(" ").casefold() or text), []).append(row)
    found = []
    for members in groups.values():
        name = "word" if "word" in members[0] else "text"
        best = max(members, key=lambda row: row.get("lower", row.get("probability", 0)))
        total = {
            key: min(1.0, sum(row[key] for row in members)) if key != "tokenisations" else sum(r[key] for r in members)
            for key in ("probability", "lower", "upper", "tokenisations")
            if key in best
        }
        found.append(dict(best) | total | {"variants": [row[name] for row in members]})
    return sorted(found, key=lambda row: -row.get("lower", row.get("probability", 0)))


def continuation_tree(nodes: Sequence[Row], *, prompt: str) -> None:
    """Prints a tree of continuations. A node has `text`, `probability` (given its parent) and perhaps `children`.

    Beside each text stand its probability given what is before it, and that of the whole path from the prompt; the
    most probable child of each node is bold.
    """
    from rich.text import Text
    from rich.tree import Tree

    page = Page()

    def grow(tree: Any, children: Sequence[Row], before: float) -> None:
        best = max((child["probability"] for child in children), default=0)
        for child in children:
            share, whole = child["probability"], before * child["probability"]
            style = "bold" if share == best else ""
            label = Text.assemble((f"{share:6.2%} ", "blue"), (page.quoted(child["text"]), style))
            shown = f"{whole:.2%}" if whole >= 5e-5 else "<0.01%"
            label.append(f"  {shown}" if before < 1 else "", "dim")
            grow(tree.add(label), child.get("children", ()), whole)

    root = Tree(Text(page.quoted(_tail(prompt, 60)), style="bold"), guide_style="dim")
    grow(root, nodes, 1.0)
    page.print(root)


def surprisal(score: Row) -> None:
    """Prints a scored text: each token on a colour that says how many bits it took, and the totals.

    `score` has `prompt`, `text`, `tokens` (rows of `text` and `log_probability` in nats), `log_probability`,
    `bits_per_byte`. Where there are no colours the bits stand behind each token in brackets.
    """
    from rich.text import Text

    page = Page()
    colours = page.console.color_system in ("256", "truecolor") and not page.console.no_color
    coloured = page.terminal and colours
    line = Text.assemble((page.plain(score["prompt"]), "dim"))
    text, bits = "", 0.0
    for token in score["tokens"]:
        text, bits = text + token["text"], bits - token["log_probability"] / math.log(2)
        if not text:  # a token that only begins a character: its bits count with the one that ends it
            continue
        text = page.plain(text)
        if coloured:
            style = f"black on {HEAT[sum(bits >= level for level in LEVELS)]}"
            for number, part in enumerate(text.split("\n")):
                line.append("↵\n" if number and page.unicode else "\n" if number else "", style=style)
                line.append(part, style=style)
        else:
            line.append(f"{text}[{bits:.1f}]")
        text, bits = "", 0.0
    page.console.print(line, soft_wrap=True)
    if coloured:
        names = [f"under {LEVELS[0]}", *(f"{a} to {b}" for a, b in itertools.pairwise(LEVELS))]
        legend = [(f" {name} ", f"black on {c}") for name, c in zip([*names, f"{LEVELS[-1]} on"], HEAT, strict=True)]
        page.console.print(Text.assemble("\nbits a token: ", *legend))
    page.console.print(Text(score_summary(score), style="bold"), soft_wrap=True)


def score_summary(score: Row) -> str:
    """One line: how probable a text is, in all and per byte."""
    n_tokens, bits = len(score["tokens"]), -score["log_probability"] / math.log(2)
    n_bytes = bits / score["bits_per_byte"] if score["bits_per_byte"] else 0
    return (
        f"log-probability {score['log_probability']:.3f} nats = {-bits:.2f} bits over {n_tokens:,} tokens and "
        f"{n_bytes:,.0f} bytes: {score['bits_per_byte']:.4f} bits/byte, {bits / max(1, n_tokens):.3f} bits/token"
    )


def option_table(options: Sequence[Row], *, prompt: str, method: str) -> None:
    """Prints the scores of options after a prompt; a star marks the best of each column.

    A row has `option`, `log_probability`, `per_byte`, `pmi` (nats) and `probability`, the softmax over the options
    of the score that `method` names: raw, normalised or pmi.
    """
    from rich.text import Text

    page = Page()
    scores = {"raw": "log_probability", "normalised": "per_byte", "pmi": "pmi"}
    best = {name: max((row[key] for row in options), default=0) for name, key in scores.items()}
    chosen = max((row["probability"] for row in options), default=0)
    columns = ["*option", "log p", "log p / byte", "PMI", "share", "<"]
    caption = f"in nats; * the best of its column; share: of the options by method={method}"
    table = page.table(f"After {page.quoted(_tail(prompt, 60))}", columns, caption)
    for row in options:
        cells = [f"{row[key]:.3f}{'*' if row[key] == best[name] else ' '}" for name, key in scores.items()]
        style = "bold" if row["probability"] == chosen else ""
        share = f"{row['probability']:.2%}{'*' if row['probability'] == chosen else ' '}"
        bar = page.bar(row["probability"], row["probability"], chosen)
        table.add_row(Text(page.quoted(row["option"]), style=style or "not bold"), *cells, share, bar)
    page.print(table)


def accuracy_table(rows: Iterable[Row], *, title: str) -> None:
    """Prints shares of right answers with their 95 % intervals.

    Rows of `method` and `accuracy`, and where they have them `low`, `high`, `group_low`, `group_high`.
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
    """Prints how each token was chosen, one row a token.

    A row has `text`, `rank` (1: the model's first choice), `probability` (the model's own), `filters` (in their order,
    each with `name`, the token's probability `before` and `after`, and `removed`, the mass that it took from others)
    and perhaps `alternatives` (rows of `text` and `probability`: the model's first choices). Filters that did nothing
    to any token are left out.
    """
    from rich.text import Text

    page, rows = Page(), list(rows)
    steps = [step for row in rows for step in row["filters"] if step["removed"] or step["before"] != step["after"]]
    names = list(dict.fromkeys(step["name"] for step in steps))
    others = any(row.get("alternatives") for row in rows)
    columns = ["*token", "rank", "model", *names, "removed", *(["~first choices"] if others else [])]
    caption = "the token's probability in the model, then after each filter (and what it took from all)"
    table = page.table(f"After {page.quoted(_tail(prompt, 60))}" if prompt else "", columns, caption)
    for row in rows:
        after = {
            step["name"]: f"{step['after']:.2%}" + (f" (-{step['removed']:.1%})" if step["removed"] >= 0.0005 else "")
            for step in row["filters"]
        }
        kept = math.prod(1 - step["removed"] for step in row["filters"])  # each takes from what those before it left
        cells = [f"{row['rank']:,}", f"{row['probability']:.2%}", *(after.get(name, "") for name in names)]
        first = ", ".join(f"{page.quoted(o['text'])} {o['probability']:.1%}" for o in row.get("alternatives", ()))
        table.add_row(
            Text(page.quoted(row["text"])), *cells, f"{max(0.0, 1 - kept):.2%}", *([Text(first)] if others else [])
        )
    page.print(table)


def _tail(text: str, limit: int) -> str:
    return text if len(text) <= limit else "…" + text[1 - limit :]
