"""A small part of Jinja, enough for most chat templates, evaluated on messages whose texts are unknown.

Steps, nesting and lengths are bounded. Of a branch that is not taken, only the tags are read. White space around tags
is treated as in transformers: trim_blocks and lstrip_blocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .expressions import DEPTH, STRING, Expression, Run, constant, expression
from .values import ABSENT, LONGEST, Content, Loop, Mixed, UnsupportedError, joined, truth

INSIDE = rf"((?:{STRING}|(?!%s)[^'\"])*+)"  # of a tag: a string may contain what would end the tag
TAGS = {
    "{{": re.compile(r"\{\{([-+]?)" + INSIDE % r"-?\}\}" + r"(-?)\}\}", re.DOTALL),
    "{%": re.compile(r"\{%([-+]?)" + INSIDE % r"[-+]?%\}" + r"([-+]?)%\}", re.DOTALL),
    "{#": re.compile(r"\{#([-+]?)(.*?)([-+]?)#\}", re.DOTALL),
}
OPENING, SPACE = re.compile(r"\{[{%#]"), re.compile(r"\s*")

Node = Callable[[Run], None]


class Program:
    """A template that was read."""

    def __init__(self, source: str) -> None:
        if len(source) > LONGEST:
            raise UnsupportedError("too long")
        self.nodes, _, _ = blocks(pieces(re.sub(r"\r\n?", "\n", source).removesuffix("\n")), (), DEPTH)

    def evaluate(self, roles: list[str], variables: Mapping[str, Any]) -> list[str | Content]:
        """Returns what the template writes for messages of these roles. Raises UnsupportedError or RefusedError."""
        messages = [{"role": role, "content": Mixed((Content(index),))} for index, role in enumerate(roles)]
        run = Run({**variables, "messages": messages})
        execute(self.nodes, run)
        return list(run.written.parts)


def pieces(source: str) -> Iterator[tuple[str, str]]:
    """Cuts a template into ("text" or the opening of a tag, what it contains). Leaves out comments."""
    place, line_starts = 0, True
    while opening := OPENING.search(source, place):
        text, kind = source[place : opening.start()], opening[0]
        tag = TAGS[kind].match(source, opening.start())
        if tag is None:
            raise UnsupportedError("a tag without an end")
        before, inside, after = tag.groups()
        line = text.rpartition("\n")[2]
        if before == "-":
            text = text.rstrip()
        elif kind != "{{" and before != "+" and not line.strip() and (line_starts or "\n" in text):
            text = text[: len(text) - len(line)]
        yield "text", text
        place = tag.end()
        if after == "-":
            place = SPACE.match(source, place).end()  # type: ignore[union-attr]  # it matches anything
        elif kind != "{{" and after != "+" and source.startswith("\n", place):
            place += 1
        line_starts = source[place - 1] == "\n"
        if kind != "{#":
            yield kind, inside
    yield "text", source[place:]


def blocks(found: Iterator[tuple[str, str]], ends: tuple[str, ...], depth: int) -> tuple[list[Node], str, str]:
    """Returns the nodes up to a tag in `ends`, that tag's first word, and the rest of it."""
    if not depth:
        raise UnsupportedError("too deep")
    nodes: list[Node] = []
    for kind, inside in found:
        if kind == "text":
            nodes += [write(constant(inside))] if inside else []
            continue
        if kind == "{{":
            nodes.append(write(expression(inside)))
            continue
        tag = re.fullmatch(r"\s*(\w+)\s*(.*)", inside, re.DOTALL)
        word, rest = tag.groups() if tag else ("", "")
        if word in ends:
            return nodes, word, rest
        if word == "if":
            branches = []
            while word != "endif":
                condition = constant(True) if word == "else" else expression(rest)
                body, word, rest = blocks(found, ("elif", "else", "endif"), depth - 1)
                branches.append((condition, body))
            nodes.append(first_of(branches))
        elif word == "for" and (parts := re.fullmatch(r"(\w+)\s+in\s(.*)", rest, re.DOTALL)):
            nodes.append(each(parts[1], expression(parts[2]), blocks(found, ("endfor",), depth - 1)[0]))
        elif word == "set" and (parts := re.fullmatch(r"(\w+)\s*=(.*)", rest, re.DOTALL)):
            nodes.append(assign(parts[1], expression(parts[2])))
        elif word == "generation":  # marks what transformers trains on
            nodes += blocks(found, ("endgeneration",), depth - 1)[0]
        else:
            raise UnsupportedError(f"{{% {word} %}}")
    if ends:
        raise UnsupportedError("a block without an end")
    return nodes, "", ""


def write(value: Expression) -> Node:
    def node(run: Run) -> None:
        written = value(run)
        if written is not ABSENT:
            run.written = joined(run.written, written)

    return node


def first_of(branches: list[tuple[Expression, list[Node]]]) -> Node:
    def node(run: Run) -> None:
        for condition, body in branches:
            run.step()
            if truth(condition(run)):
                return execute(body, run)

    return node


def each(name: str, value: Expression, body: list[Node]) -> Node:
    def node(run: Run) -> None:
        outer, items = run.scope, value(run)
        if not isinstance(items, list):
            if items is not ABSENT:
                raise UnsupportedError("a loop over something else than messages")
            return
        for index, item in enumerate(items):
            loop = Loop(index0=index, index=index + 1, first=not index, last=index == len(items) - 1)
            run.scope = {**outer, name: item, "loop": loop}  # assignments last until the iteration ends
            execute(body, run)
        run.scope = outer

    return node


def assign(name: str, value: Expression) -> Node:
    def node(run: Run) -> None:
        run.scope[name] = value(run)

    return node


def execute(nodes: list[Node], run: Run) -> None:
    for node in nodes:
        run.step()
        node(run)
