"""What a chat template in Jinja writes, found by a walk over jinja2's syntax tree: nothing is compiled or rendered.

The text of a message is unknown; one character stands for it. Values are text, numbers, flags, None, messages, lists
of these, and ABSENT. No other object of Python can be reached. What the tables below do not list is unsupported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

LONGEST = 65_536  # characters of a template, and of any text
STEPS = 10_000  # visits to nodes of the tree

# The text of message i is CONTENTS[i], or TRIMMED[i] once trimmed: Unicode's noncharacters, which no other text has.
CONTENTS = "".join(map(chr, range(0xFDD0, 0xFDE0)))
TRIMMED = "".join(map(chr, range(0xFDE0, 0xFDF0)))
UNKNOWN = re.compile(f"[{CONTENTS}{TRIMMED}]")

# transformers marks what it trains on with this tag; `with` treats white space and assignments in the same way.
GENERATION = re.compile(r"(\{%[-+]?\s*)(end|)generation(\s*[-+]?%\})")
FUNCTIONS = "range dict lipsum cycler joiner namespace strftime_now raise_exception self".split()
ABSENT = object()  # the value of an undefined variable or field
SIMPLE = (str, bool, int, type(None), type(ABSENT))
SMALL = (0, 1, 2, False, True, None)  # the constants besides text: larger numbers show only in longer chats than ours


class UnsupportedError(Exception):
    """The template is not Jinja, or it needs what the tables do not list, or it exceeds a limit."""


class RefusedError(Exception):
    """The template itself refuses these messages, with raise_exception."""


class Template:
    """A parsed template, and the state of a walk: steps taken, variables in scope, text written."""

    def __init__(self, source: str) -> None:
        """White space around tags is treated as in transformers. Raises UnsupportedError."""
        import jinja2

        need(len(source) <= LONGEST, "a long template")
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        try:
            texts = [text for _, kind, text in environment.lex(source) if kind in ("data", "string")]
            need(not any(map(GENERATION.search, texts)), "a tag in a text")
            self.body = environment.parse(GENERATION.sub(r"\1\2with\3", source)).body
        except (jinja2.TemplateError, ValueError, RecursionError) as error:  # ValueError: a number with 5000 digits
            raise UnsupportedError(str(error)) from None

    def write(self, roles: Sequence[str], variables: Mapping[str, Any]) -> str:
        """Returns what the template writes for messages of these roles. Raises UnsupportedError or RefusedError."""
        messages = [{"role": role, "content": CONTENTS[index]} for index, role in enumerate(roles)]
        self.steps, self.text = 0, ""
        self.scope: dict[str, Any] = dict.fromkeys(FUNCTIONS, FUNCTIONS)  # defined, but no operation takes this value
        self.scope |= {**{name: known(value) for name, value in variables.items()}, "messages": messages}
        try:
            self.execute(self.body)
        except (KeyError, TypeError, ValueError, RecursionError) as error:  # not in a table, wrong arguments, too deep
            raise UnsupportedError(str(error)) from None
        return self.text

    def value(self, node: Any) -> Any:
        """The value of an expression; a statement is executed."""
        self.steps += 1
        need(self.steps <= STEPS, "many steps")
        if control := CONTROL.get(type(node).__name__):
            return control(self, node)
        return VALUES[type(node).__name__](node, *map(self.value, node.iter_child_nodes()))

    def execute(self, nodes: Sequence[Any]) -> None:
        for node in nodes:
            self.value(node)

    def block(self, nodes: Sequence[Any], targets: Iterable[Any], values: Iterable[Any], **variables: Any) -> None:
        """Executes statements in a scope of their own: what they assign ends with it."""
        named = dict(zip(map(name_of, targets), values, strict=True))
        outer, self.scope = self.scope, {**self.scope, **variables, **named}
        self.execute(nodes)
        self.scope = outer

    def output(self, node: Any) -> None:
        self.text = joined(self.text, *(text for text in map(self.value, node.nodes) if text is not ABSENT))

    def branch(self, node: Any) -> None:
        taken = (case.body for case in [node, *node.elif_] if truth(self.value(case.test)))
        self.execute(next(taken, node.else_))

    def loop(self, node: Any) -> None:
        need(not (node.else_ or node.test or node.recursive), "a loop with a condition")
        items = [] if (found := self.value(node.iter)) is ABSENT else known(found, list)
        for index, item in enumerate(items):
            loop = {"index0": index, "index": index + 1, "first": index == 0, "last": index == len(items) - 1}
            self.block(node.body, [node.target], [item], loop=MappingProxyType(loop))

    def slice(self, node: Any) -> Any:
        return slice(*(part and known(self.value(part), int) for part in (node.start, node.stop, node.step)))

    def call(self, node: Any) -> Any:
        if getattr(node.node, "name", "") == "raise_exception":
            raise RefusedError
        function = METHODS[getattr(node.node, "attr", "")]
        return function(self.value(node.node.node), *map(self.value, [*node.iter_child_nodes()][1:]))


def need(condition: bool, what: str) -> None:
    if not condition:
        raise UnsupportedError(what)


def known(value: Any, *kinds: type) -> Any:
    """The value, if it is of one of these kinds, by default the simple ones, and no message's text is part of it."""
    need(type(value) in (kinds or SIMPLE) and not (type(value) is str and UNKNOWN.search(value)), "a value")
    return value


def truth(value: Any) -> bool:
    return value is not ABSENT and bool(known(value, *SIMPLE, list, dict))


def name_of(target: Any) -> str:
    need(type(target).__name__ == "Name", "an assignment to something else than a variable")
    return target.name


def joined(*texts: Any) -> str:
    need(sum(map(len, texts)) <= LONGEST, "a long text")
    return "".join(texts)


def trimmed(text: Any) -> str:
    if isinstance(text, str) and UNKNOWN.fullmatch(text):
        return TRIMMED[(ord(text) - ord(CONTENTS[0])) % len(TRIMMED)]
    return known(text, str).strip()


def item(value: Any, key: Any) -> Any:
    """An item of a list, or a field of a message or of `loop`. In Jinja a message also has the methods of dict."""
    if isinstance(value, list):
        return value[key] if isinstance(key, slice) or -len(value) <= known(key, int) < len(value) else ABSENT
    if isinstance(value, dict | MappingProxyType) and known(key, str) in value:
        return value[key]
    need(isinstance(value, dict) and not hasattr(value, key), f"the field {key}")
    return ABSENT


METHODS: dict[str, Callable[[Any], Any]] = {
    "strip": trimmed,
    "upper": lambda text: known(text, str).upper(),
    "lower": lambda text: known(text, str).lower(),
    "capitalize": lambda text: known(text, str).capitalize(),
}
FILTERS = {**METHODS, "trim": trimmed, "length": lambda value: len(known(value, list))}
TESTS: dict[str, Callable[[Any], bool]] = {
    "defined": lambda value: value is not ABSENT,
    "none": lambda value: value is None,
    "string": lambda value: isinstance(value, str),
    "mapping": lambda value: isinstance(value, dict),
}
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda left, right: known(left) == known(right),
    "ne": lambda left, right: known(left) != known(right),
    "lt": lambda left, right: known(left, int) < known(right, int),
    "gt": lambda left, right: known(left, int) > known(right, int),
    "in": lambda left, right: known(left) in known(right, str, list, dict),
    "notin": lambda left, right: known(left) not in known(right, str, list, dict),
}
CONTROL: dict[str, Callable[[Template, Any], Any]] = {  # these decide which of the nodes below them have a value
    "Output": Template.output,
    "If": Template.branch,
    "For": Template.loop,
    "With": lambda run, node: run.block(node.body, node.targets, map(run.value, node.values)),
    "Assign": lambda run, node: run.scope.update({name_of(node.target): run.value(node.node)}),
    "Name": lambda run, node: run.scope.get(node.name, ABSENT),
    "Call": Template.call,
    "Slice": Template.slice,
    "CondExpr": lambda run, node: run.value(node.expr1 if truth(run.value(node.test)) else node.expr2),
    "And": lambda run, node: run.value(node.right) if truth(left := run.value(node.left)) else left,
    "Or": lambda run, node: left if truth(left := run.value(node.left)) else run.value(node.right),
    "NoneType": lambda run, node: ABSENT,  # an `if` without `else`
}
VALUES: dict[str, Callable[..., Any]] = {  # from the values of all nodes below
    "TemplateData": lambda node: known(node.data),
    "Const": lambda node: known(node.value, *(SIMPLE if node.value in SMALL else [str])),
    "Getattr": lambda node, value: item(value, node.attr),
    "Getitem": lambda node, value, key: item(value, key),
    "Filter": lambda node, value: FILTERS[node.name](value),
    "Test": lambda node, value: TESTS[node.name](value),
    "Compare": lambda node, left, right: COMPARISONS[node.ops[0].op](left, right),
    "Operand": lambda node, value: value,
    "Not": lambda node, value: not truth(value),
    "Neg": lambda node, value: -known(value, int),
    "Mod": lambda node, value, divisor: known(value, int) % {2: 2}[divisor],  # to tell odd and even turns
    "Add": lambda node, left, right: joined(left, right),
    "Concat": lambda node, *texts: joined(*texts),
    "List": lambda node, *values: [known(value) for value in values],
}
