"""Jinja expressions: parsed into functions of the state, which has the variables and counts the steps."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

from .values import (
    ABSENT,
    FILTERS,
    METHODS,
    TESTS,
    Mixed,
    RefusedError,
    UnsupportedError,
    contains,
    field,
    filtered,
    joined,
    listed,
    number,
    plain,
    truth,
)  # fmt: skip

STEPS, DEPTH, TOKENS = 5_000, 20, 1_000  # of an evaluation, of nesting, in an expression
SMALL = 2  # the largest number: what depends on larger ones would not show in a short chat

STRING = r"""'(?:\\.|[^'\\])*+'|"(?:\\.|[^"\\])*+\""""
TOKEN = re.compile(
    rf"\s*(?:(?P<name>[A-Za-z_]\w*)|(?P<number>[0-9]+)|(?P<text>{STRING})|(?P<sign>[=!<>]=|[-<>+~%|.,()\[\]:]))\s*",
    re.DOTALL,
)
ODD_ESCAPE = re.compile(r"\\(?!['\"\\abfnrtv]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})")
ORDER = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}
CONSTANTS = {"true": True, "True": True, "false": False, "False": False, "none": None, "None": None}
KEYWORDS = {"and", "or", "not", "is", "in", "if", "else"}
FUNCTIONS = {"range", "dict", "lipsum", "cycler", "joiner", "namespace", "strftime_now"}  # that a template may find


class Run:
    """The state of one evaluation."""

    def __init__(self, scope: dict[str, Any]) -> None:
        self.scope, self.steps, self.written = scope, 0, Mixed(())

    def step(self) -> None:
        self.steps += 1
        if self.steps > STEPS:
            raise UnsupportedError("too many steps")


Expression = Callable[[Run], Any]


def constant(value: Any) -> Expression:
    return lambda run: value


def expression(source: str) -> Expression:
    """The expression, parsed when it is needed first."""
    parsed: list[Expression] = []

    def value(run: Run) -> Any:
        if not parsed:
            parsed.append(Parser(source).whole())
        return parsed[0](run)

    return value


class Parser:
    """Recursive descent, with Jinja's precedence; each method returns a function of the state."""

    def __init__(self, source: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        self.next, self.depth, place = 0, 0, 0
        while place < len(source.rstrip()):
            token = TOKEN.match(source, place)
            if token is None or len(self.tokens) == TOKENS:
                raise UnsupportedError("an expression")
            self.tokens.append((str(token.lastgroup), token[str(token.lastgroup)]))
            place = token.end()

    def take(self, *words: str, kind: str = "") -> str:
        """Returns the next token and goes on if it is one of these names and signs, or of this kind; otherwise ""."""
        found, token = self.tokens[self.next] if self.next < len(self.tokens) else ("", "")
        if (found == kind) if kind else (found in ("name", "sign") and token in words):
            self.next += 1
            return token
        return ""

    def need(self, *words: str, kind: str = "") -> str:
        if not (token := self.take(*words, kind=kind)):
            raise UnsupportedError("an expression")
        return token

    def whole(self) -> Expression:
        value = self.choice()
        if self.next < len(self.tokens):
            raise UnsupportedError("an expression")
        return value

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > DEPTH:
            raise UnsupportedError("too deep")

    def choice(self) -> Expression:
        self.deeper()
        value = self.either()
        if self.take("if"):
            test = self.either()
            other = self.choice() if self.take("else") else constant(ABSENT)
            yes, self.depth = value, self.depth - 1
            return lambda run: yes(run) if truth(test(run)) else other(run)
        self.depth -= 1
        return value

    def either(self) -> Expression:
        return self.until("or", self.both, stop=True)

    def both(self) -> Expression:
        return self.until("and", self.negation, stop=False)

    def until(self, word: str, operand: Callable[[], Expression], *, stop: bool) -> Expression:
        """Operands joined by `or` (stop=True) or `and` (stop=False): the value of the first that decides."""
        terms = [operand()]
        while self.take(word):
            terms.append(operand())

        def value(run: Run) -> Any:
            for term in terms[:-1]:
                if truth(found := term(run)) is stop:
                    return found
            return terms[-1](run)

        return value if len(terms) > 1 else terms[0]

    def negation(self) -> Expression:
        if not self.take("not"):
            return self.comparison()
        self.deeper()
        value = self.negation()
        self.depth -= 1
        return lambda run: not truth(value(run))

    def comparison(self) -> Expression:
        left = self.total()
        if sign := self.take("==", "!=", *ORDER):
            right = self.total()
            if sign in ORDER:
                return lambda run: ORDER[sign](number(left(run)), number(right(run)))
            return lambda run: (plain(left(run)) == plain(right(run))) is (sign == "==")
        negated = bool(self.take("not"))
        if negated or self.take("in"):
            if negated:
                self.need("in")
            right = self.total()
            return lambda run: contains(right(run), left(run)) is not negated
        return left

    def remainder(self) -> Expression:
        left = self.value()
        if not self.take("%"):
            return left
        if self.need(kind="number") != "2":
            raise UnsupportedError("a remainder of another number than 2")
        return lambda run: number(left(run)) % 2

    def total(self) -> Expression:
        terms = [self.remainder()]
        while self.take("+", "~"):
            terms.append(self.remainder())
        return (lambda run: joined(*(term(run) for term in terms))) if len(terms) > 1 else terms[0]

    def value(self) -> Expression:
        """A value with its fields, filters and tests."""
        first, steps = self.primary(), list[Callable[[Any], Any]]()
        while sign := self.take(".", "[", "|", "is"):
            steps.append(self.field() if sign == "." else self.item() if sign == "[" else self.filter_or_test(sign))

        def value(run: Run) -> Any:
            found = first(run)
            for step in steps:
                run.step()
                found = step(found)
            return found

        return value if steps else first

    def field(self) -> Callable[[Any], Any]:
        name = self.need(kind="name")
        if not self.take("("):
            return lambda value: field(value, name)
        self.need(")")
        if name not in METHODS:
            raise UnsupportedError(f"a call of {name}")
        return lambda value: filtered(value, METHODS[name])

    def item(self) -> Callable[[Any], Any]:
        if name := self.take(kind="text"):
            self.need("]")
            return lambda value: field(value, unquoted(name))
        start = self.integer()
        if not self.take(":"):
            self.need("]")
            if start is None:
                raise UnsupportedError("an index")
            return lambda value: listed(value)[start] if -len(value) <= start < len(value) else ABSENT
        stop = self.integer()
        self.need("]")
        return lambda value: listed(value)[start:stop]

    def integer(self) -> int | None:
        sign = self.take("-")
        digits = self.need(kind="number") if sign else self.take(kind="number")
        return int(sign + small(digits)) if digits else None

    def filter_or_test(self, sign: str) -> Callable[[Any], Any]:
        negated = sign == "is" and bool(self.take("not"))
        name = self.need(kind="name")
        if name not in (FILTERS if sign == "|" else TESTS):
            raise UnsupportedError(f"{sign} {name}")
        if sign == "|":
            return lambda value: filtered(value, name)
        return lambda value: TESTS[name](value) is not negated

    def primary(self) -> Expression:
        if text := self.take(kind="text"):
            return constant(unquoted(text))
        if digits := self.take(kind="number"):
            return constant(int(small(digits)))
        if self.take("("):
            value = self.choice()
            self.need(")")
            return value
        if self.take("["):
            items = [self.choice()]
            while self.take(","):
                items.append(self.choice())
            self.need("]")
            return lambda run: [item(run) for item in items]
        name = self.need(kind="name")
        if name in CONSTANTS:
            return constant(CONSTANTS[name])
        if name == "raise_exception" and self.take("("):
            self.choice()
            self.need(")")
            return refuse
        if name in FUNCTIONS or name in KEYWORDS:
            raise UnsupportedError(name)

        def variable(run: Run) -> Any:
            run.step()
            return run.scope.get(name, ABSENT)

        return variable


def refuse(run: Run) -> Any:
    raise RefusedError


def small(digits: str) -> str:
    if len(digits) > 1 or int(digits) > SMALL:
        raise UnsupportedError(f"the number {digits[:20]}")
    return digits


def unquoted(literal: str) -> str:
    if ODD_ESCAPE.search(re.sub(r"\\\\", "", literal)):
        raise UnsupportedError("an escape sequence")
    return literal[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape")
