"""What tokenizers make of text, for people to see: a table that compares them, and a text with its cuts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .tables import Page, Row

SHADES = ("#9ecae1", "#fdd0a2", "#c7e9c0", "#dadaeb")  # neighbours differ
MOST_SCRIPTS = 4


def comparison_table(rows: Sequence[Row], *, title: str) -> None:
    """Prints a row a tokenizer: `name`, `vocab_size`, `bytes_per_token`, `used` (share of the vocabulary), and
    `megabytes_per_second`; of the most frequent scripts `fertility`, {script: {`per_word`, `per_character`}}.
    One that was not `trained_here` is marked."""
    page = Page()
    scripts = list(dict.fromkeys(script for row in rows for script in row["fertility"]))[:MOST_SCRIPTS]
    captions = ["of each script: tokens/word and tokens/character, of words as runs of its letters"] if scripts else []
    if not all(row["trained_here"] for row in rows):
        captions.append("* was loaded: it may have been trained on this text")
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
    """Prints a text as its tokens: on colours in turn where there are any, else with a mark between them."""
    from rich.text import Text

    page = Page()
    coloured = page.terminal and page.console.color_system in ("256", "truecolor") and not page.console.no_color
    parts = [page.plain(readable(token)) for token in tokens]
    text = "".join(parts)
    mark = next((mark for mark in "|¦│" if mark not in text and page.plain(mark) == mark), "|")
    line = Text()
    for number, part in enumerate(parts):
        style = f"black on {SHADES[number % len(SHADES)]}" if coloured else ""
        line.append(part, style=style)
        if not coloured and number + 1 < len(parts) and not part.endswith("\n"):
            line.append(mark)
    page.console.print(Text(page.plain(title), style="bold"), soft_wrap=True)
    page.console.print(line, soft_wrap=True)


def readable(token: bytes) -> str:
    """A token as text: bytes that are no whole character as <E2>, line ends as ↵ before the line ends."""
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
