"""What a dataclass of settings says about itself: dotted keys, their types in words, the help made of both."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import os
import re
import sys
import typing
from collections.abc import Iterator
from typing import Any


def keys_of(schema: type, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of the dataclass with its type, nested dataclasses included."""
    hints = typing.get_type_hints(schema)
    keys: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        hint = hints[field.name]
        keys[prefix + field.name] = hint
        if dataclasses.is_dataclass(hint):
            keys |= keys_of(typing.cast(type, hint), f"{prefix}{field.name}.")
    return keys


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) for every value of a nested dictionary."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def describe(hint: Any) -> str:
    """A type in a user's words: `an integer or null`."""
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null", Any: "text"}
    if dataclasses.is_dataclass(hint):
        return "a group of settings, one KEY.NAME=VALUE each"
    if typing.get_origin(hint) is list:
        return f"a list [a, b] where each item is {describe(typing.get_args(hint)[0])}"
    return names.get(hint) or " or ".join(map(describe, typing.get_args(hint))) or str(hint)


def comments_of(schema: type, prefix: str = "") -> dict[str, str]:
    """The comment behind each field in the source, by dotted key."""
    comments: dict[str, str] = {}
    for ancestor in reversed(schema.__mro__):
        if dataclasses.is_dataclass(ancestor):
            for field, text in re.findall(r"(?m)^ +(\w+) *:.*?  # (.*)$", inspect.getsource(ancestor)):
                comments[prefix + field] = text
    for field, hint in typing.get_type_hints(schema).items():
        if dataclasses.is_dataclass(hint):
            comments |= comments_of(typing.cast(type, hint), f"{prefix}{field}.")
    return comments


def nearest(key: str, known: list[str]) -> list[str]:
    """The known keys that a misspelt one most likely stands for, best first; the last part of a dotted key will do."""
    last = [candidate for candidate in known if candidate.endswith(f".{key}")]
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    scores = [difflib.SequenceMatcher(None, candidate, key).ratio() for candidate in close]
    return last or [candidate for candidate, score in zip(close, scores, strict=True) if score > scores[0] - 0.05]


def help_text(schema: type, *, config: Any, options: dict[str, list[str]]) -> str:
    """Usage, the groups with their options, and every key with its default and the comment beside it in the source."""
    module = getattr(sys.modules["__main__"], "__spec__", None)  # there with `python -m scripts.prepare`
    program = f"-m {module.name}" if module else os.path.basename(sys.argv[0])
    lines = [f"usage: python {program} [KEY=VALUE ...] [--multirun] [--help]", ""]
    lines += [f"{group}=  one of {', '.join(choices) or '(none)'}" for group, choices in options.items()]
    lines += [""] if options else []
    comments = comments_of(schema)
    for key, value in leaves(dataclasses.asdict(config)):
        shown = f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        lines.append(f"  {shown:<36}  {comments.get(key, '')}".rstrip())
    return "\n".join(lines)
