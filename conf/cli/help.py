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
    lines = usage(options)
    keys, comments, values = keys_of(schema), comments_of(schema), dict(leaves(dataclasses.asdict(config)))
    found = dict.fromkeys(keys[key].group for key in values)
    order = [heading for heading in HEADINGS if heading in found]
    order += [heading for heading in found if heading not in (*HEADINGS, LAST)]
    for heading in [*order, *([LAST] if LAST in found else [])]:
        lines += ["", f"{heading}:"]
        lines += [line(key, value, comments) for key, value in values.items() if keys[key].group == heading]
    return "\n".join(lines)


def help_of_modes(modes: Modes, configs: dict[str, Any], options: dict[str, list[str]]) -> str:
    """Usage, the keys of every mode, then the keys of each mode in `configs`. Each key is explained once."""
    shared = set.intersection(*(set(keys_of(schema)) for schema in modes.schemas.values()))
    comments = {mode: comments_of(modes.schemas[mode]) for mode in configs}
    values = {mode: dict(leaves(dataclasses.asdict(config))) for mode, config in configs.items()}
    first = next(iter(configs))
    lines = [*usage(options), "", "every mode:"]
    lines += [line(key, value, comments[first]) for key, value in values[first].items() if key in shared]
    explained: set[str] = set()
    for mode in configs:
        own = {key: value for key, value in values[mode].items() if key not in shared}
        lines += ["", f"{mode}:", *(line(key, own[key], comments[mode]) for key in own if key not in explained)]
        if again := [key for key in own if key in explained]:
            text = f"and, explained above: {', '.join(again)}"
            lines += textwrap.wrap(text, 110, initial_indent="  ", subsequent_indent="  ")
        explained |= own.keys()
    return "\n".join(lines)


def usage(options: dict[str, list[str]]) -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # set by `python -m scripts.prepare`
    program = f"-m {spec.name}" if spec else os.path.basename(sys.argv[0])
    lines = [f"usage: python {program} [KEY=VALUE ...] [--multirun] [--cfg job] [--help]"]
    lines += [""] if options else []
    return lines + [f"{group}=  one of {', '.join(choices) or '(none)'}" for group, choices in options.items()]


def line(key: str, value: Any, comments: dict[str, str]) -> str:
    shown = f"{key}={typed(value)}"
    return f"  {shown:<36}  {comments.get(key, '')}".rstrip()


def comments_of(schema: type, prefix: str = "") -> dict[str, str]:
    """The comment on each field's lines in the source, or else directly above, by dotted key."""
    comments: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if dataclasses.is_dataclass(base):
            comments |= {prefix + name: text for name, text in comments_in(inspect.getsource(base)).items()}
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
