"""The page that tables and coloured texts are printed on. rich is imported on use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


class Page:
    """Standard output. Off a terminal nothing is cut off, coloured, or drawn in characters its encoding lacks."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False)
        self.terminal = self.console.is_terminal
        self.unicode = self.console.encoding.startswith("utf")
        colours = self.console.color_system in ("256", "truecolor") and not self.console.no_color
        self.coloured = self.terminal and colours
        if not self.terminal:
            self.console.width = 10_000

    def quoted(self, text: str) -> str:
        return repr(text) if self.unicode else ascii(text)

    def plain(self, text: str) -> str:
        return text if self.unicode else text.encode("ascii", "backslashreplace").decode()

    def named(self, word: str) -> str:
        """Returns a word as it is if it is readable, or quoted if it is white space or has invisible characters."""
        shown = re.sub("(?<=.)[\u200c\u200d](?=.)", "", word)  # joiners inside words of Persian, Hindi and others
        readable = shown.isprintable() and word == word.strip() != ""
        return self.plain(word) if readable else self.quoted(word)

    def after(self, prompt: str) -> str:
        """Returns a prompt, quoted, for a title; only the end of a long one."""
        return self.quoted(prompt if len(prompt) <= 60 else "…" + prompt[-59:])

    def bar(self, lower: float, upper: float, longest: float) -> Any:
        """Returns a bar of 20 characters for `longest`: solid up to the lower bound, pale up to the upper one."""
        from rich.text import Text

        solid, full = (round(20 * value / (longest or 1)) for value in (lower, max(lower, upper)))
        marks = "█░" if self.unicode else "#-"
        return Text.assemble((marks[0] * solid, "blue"), (marks[1] * (full - solid), "blue"))

    def table(
        self, title: str, columns: Sequence[str], caption: str = "", *, rows: Sequence[Sequence[Any]] | None = None
    ) -> Any:
        """Returns a table; without `rows` they are to be added.

        A column's name begins with its style: `*bold, left`, `<left`, `~left, folded` and left out if it is empty.
        """
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
        styles: dict[str, dict[str, Any]] = {
            "*": {"overflow": "fold", "style": "bold", "min_width": 8},
            "<": {"overflow": "ellipsis", "no_wrap": True},
            "~": {"overflow": "fold"},
        }
        shown = [n for n, name in enumerate(columns) if rows is None or name[0] != "~" or any(row[n] for row in rows)]
        for name in (columns[n] for n in shown):
            style = styles.get(name[0])
            table.add_column(name[1:] if style else name, **(style or {"justify": "right", "no_wrap": True}))
        for row in rows or ():
            table.add_row(*(Text(row[n]) if isinstance(row[n], str) else row[n] for n in shown))
        if self.terminal and rows and columns[-1] == "<":
            whole = self.console.measure(table, options=self.console.options.update(width=10_000)).maximum
            if whole > self.console.width:  # without the bars, names and figures have more room
                return self.table(title, columns[:-1], caption, rows=[row[:-1] for row in rows])
        return table

    def gap(self) -> None:
        """Prints an empty line after a table without a caption; on a terminal, it ends with one."""
        if not self.terminal:
            print()

    def print(self, *parts: Any) -> None:
        """Prints parts below each other; on a terminal side by side if they fit."""
        from rich.columns import Columns

        if self.terminal:
            self.console.print(Columns(parts, padding=(1, 4)) if len(parts) > 1 else parts[0])
            return
        for number, part in enumerate(parts):
            title, caption = getattr(part, "title", None), getattr(part, "caption", None)
            if title is not None or caption is not None:  # rich would fold them to the table's width
                part.title = part.caption = None
            with self.console.capture() as captured:
                self.console.print(part)
            lines = [*([""] if number else []), *([title.plain] if title else []), *captured.get().splitlines()]
            print(*(line.rstrip() for line in [*lines, *([caption.plain] if caption else [])]), sep="\n")
