"""A table that compares tokenizers, and a text with its token boundaries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .page import Page

SHADES = ("#9ecae1", "#fdd0a2", "#c7e9c0", "#dadaeb")  # of successive tokens
MOST_SCRIPTS = 4


def comparison_table(rows: Sequence[Mapping[str, Any]], *, title: str) -> None:
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
