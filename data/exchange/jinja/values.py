"""The values of Jinja expressions, and what may be done with them.

A value is text, a small number, a flag, a message, a list of those, or absent. Nothing else of Python is in reach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

LONGEST = 65_536  # characters of a template, and of any text
PARTS = 100  # of a mixed text
ABSENT = object()  # the value of an undefined variable or field


class UnsupportedError(Exception):
    """The template lies outside the subset."""


class RefusedError(Exception):
    """The template itself refuses these messages, with raise_exception."""


@dataclass(frozen=True)
class Content:
    """Stands for the text of a message."""

    index: int  # of the message
    trimmed: bool = False


@dataclass(frozen=True)
class Mixed:
    """Text that contains texts of messages."""

    parts: tuple[str | Content, ...]


class Loop(dict[str, Any]):
    """The variable `loop`."""


def truth(value: Any) -> bool:
    if isinstance(value, Mixed):
        raise UnsupportedError("a test of a message's text")
    return value is not ABSENT and bool(value)


def number(value: Any) -> int:
    if type(value) is not int:
        raise UnsupportedError("arithmetic")
    return value


def plain(value: Any) -> Any:
    """The value, if it may be compared."""
    if value is not ABSENT and type(value) not in (str, bool, int, type(None)):
        raise UnsupportedError("a comparison of a message's text")
    return value


def listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise UnsupportedError("an index of something else than messages")
    return value


def contains(container: Any, value: Any) -> bool:
    if isinstance(container, list):
        return any(plain(value) == plain(item) for item in container)
    if type(value) is str and type(container) in (str, dict):
        return value in container
    raise UnsupportedError("in")


def field(value: Any, name: str) -> Any:
    """A field of a message or of `loop`, which in Jinja also has the methods of a dictionary."""
    known = isinstance(value, dict) and name in value
    if not known and (type(value) is not dict or hasattr(value, name) or name.startswith("_")):
        raise UnsupportedError(f"the field {name}")
    return value.get(name, ABSENT)


def filtered(value: Any, name: str) -> Any:
    if name in ("length", "count"):
        return len(listed(value))
    if type(value) is str:
        return FILTERS[name](value)
    if name == "trim" and isinstance(value, Mixed) and len(value.parts) == 1 and isinstance(value.parts[0], Content):
        return Mixed((replace(value.parts[0], trimmed=True),))
    raise UnsupportedError(f"{name} of a message's text")


def joined(*values: Any) -> Any:
    """Concatenates texts; the parts of the result are strings and contents in turn, or it is a string."""
    parts: list[str | Content] = []
    length = 0
    for value in values:
        if not isinstance(value, str | Mixed):
            raise UnsupportedError("a concatenation of something else than texts")
        for part in value.parts if isinstance(value, Mixed) else [value]:
            length += len(part) if isinstance(part, str) else 1
            if parts and isinstance(part, str) and isinstance(parts[-1], str):
                parts[-1] += part
            elif part:
                parts.append(part)
            if length > LONGEST or len(parts) > PARTS:
                raise UnsupportedError("too much text")
    if any(isinstance(value, Mixed) for value in values):
        return Mixed(tuple(parts))
    return "".join(map(str, parts))


FILTERS: dict[str, Callable[[str], Any]] = {
    "trim": str.strip,
    "upper": str.upper,
    "lower": str.lower,
    "capitalize": str.capitalize,
    "length": len,
    "count": len,
}
METHODS = {"strip": "trim", "upper": "upper", "lower": "lower", "capitalize": "capitalize"}  # and their filters
TESTS: dict[str, Callable[[Any], bool]] = {
    "defined": lambda value: value is not ABSENT,
    "undefined": lambda value: value is ABSENT,
    "none": lambda value: value is None,
    "string": lambda value: isinstance(value, str | Mixed),
    "mapping": lambda value: isinstance(value, dict),
}
