"""Text that a person gives in a file or on standard input."""

from __future__ import annotations


def given_text(raw: str) -> str:
    """Returns the text as it was meant: no byte order mark, `\\n` for `\\r\\n`, and no line end after the last line."""
    return raw.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n").removesuffix("\r")
