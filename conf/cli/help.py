"""The text of --help: every key under a heading, with its default and the comment beside it in the source."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import itertools
import os
import sys
import textwrap
import tokenize
import typing
from typing import Any

from .fields import Modes, keys_of, leaves, typed

HEADINGS = ("run", "data", "tokenizer", "curation", "model", "optimizer", "evaluation and saving", "distributed")
LAST = "advanced"  # settings to leave alone in the first month


def help_text(schema: type, config: Any, options: dict[str, list[str]]) -> str:
    """Usage, the config groups with their choices, and the keys under their headings."""
    keys, comments = keys_of(schema), comments_of(schema)
    sections: dict[str, list[str]] = {heading: [] for heading in HEADINGS}
    for key, value in leaves(dataclasses.asdict(config)):
        sections.setdefault(keys[key].group, []).append(line(key, value, comments))
    sections[LAST] = sections.pop(LAST, [])
    return page(options, sections)


def help_of_modes(modes: Modes, configs: dict[str, Any], options: dict[str, list[str]]) -> str:
    """Usage, the keys of every mode, then the keys of each mode in `configs`. Each key is explained once."""
    shared = set.intersection(*(set(keys_of(schema)) for schema in modes.schemas.values()))
    sections: dict[str, list[str]] = {"every mode": []}
    explained: set[str] = set()
    for mode, config in configs.items():
        comments, values = comments_of(modes.schemas[mode]), dict(leaves(dataclasses.asdict(config)))
        lines = {key: line(key, value, comments) for key, value in values.items()}
        sections["every mode"] = sections["every mode"] or [lines[key] for key in lines if key in shared]
        own = [key for key in lines if key not in shared]
        sections[mode] = [lines[key] for key in own if key not in explained]
        if again := [key for key in own if key in explained]:
            text = f"and, explained above: {', '.join(again)}"
            sections[mode] += textwrap.wrap(text, 110, initial_indent="  ", subsequent_indent="  ")
        explained.update(own)
    return page(options, sections)


def page(options: dict[str, list[str]], sections: dict[str, list[str]]) -> str:
    """The usage, the config groups, and the lines under each heading that has some."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # set by `python -m scripts.prepare`
    program = f"-m {spec.name}" if spec else os.path.basename(sys.argv[0])
    usage = f"usage: python {program} [KEY=VALUE ...] [--multirun] [--cfg job] [--help]"
    groups = [f"{group}=  one of {', '.join(choices) or '(none)'}" for group, choices in options.items()]
    blocks = [[usage], groups, *([f"{heading}:", *lines] for heading, lines in sections.items() if lines)]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def line(key: str, value: Any, comments: dict[str, str]) -> str:
    shown = f"{key}={typed(value)}"
    return f"  {shown:<36}  {comments.get(key, '')}".rstrip()


def comments_of(schema: type, prefix: str = "") -> dict[str, str]:
    """The comment on each field's lines in the source, or else directly above, by dotted key."""
    comments: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if dataclasses.is_dataclass(base):
            own = comments_in(inspect.getsource(base))  # a new default without a comment keeps the old comment
            comments |= {prefix + name: text for name, text in own.items() if text}
    for field, hint in typing.get_type_hints(schema).items():
        if dataclasses.is_dataclass(hint):
            comments |= comments_of(typing.cast(type, hint), f"{prefix}{field}.")
    return comments


def comments_in(source: str) -> dict[str, str]:
    """The comments in a class's source by the name of the field that they explain."""
    source = textwrap.dedent(source)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    at = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    own_line = {number for number, token in at.items() if token.line.strip() == token.string}
    found: dict[str, str] = {}
    [definition] = ast.parse(source).body
    for node in definition.body if isinstance(definition, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = itertools.takewhile(own_line.__contains__, range(node.lineno - 1, 0, -1))
            beside = [n for n in range(node.lineno, (node.end_lineno or node.lineno) + 1) if n in at]
            found[node.target.id] = " ".join(at[n].string.lstrip("# ") for n in beside or sorted(above))
    return found
