"""The settings of a dataclass: dotted keys, types, and how the command line reads each value.

A field's metadata may say:

- "kind": how its value is read. Hydra's grammar reads it unless the kind is one of
  - "text": byte for byte;
  - "pattern": likewise, but null means None;
  - "path": as a pattern, and a leading ~ is the home directory;
  - "output": as a path, of a file to write; its folder is checked before the program starts.
- "list": True if [a, "b c"] means a list of such values.
- "group": its heading in --help.
- "needs": the conditions, such as ("weight_average=ema",), that must all hold for it to have an effect:
  - KEY=A|B: the field KEY, of the same dataclass, has one of these values, written as they are typed;
  - KEY!=A: it has another value;
  - KEY|OTHER: one of these fields is neither null, false nor empty.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import itertools
import json
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from .renamed import RENAMED


class Key(NamedTuple):
    """One setting of a program."""

    type: Any
    kind: str
    is_list: bool
    group: str

    @property
    def expands_home(self) -> bool:
        return self.kind in ("path", "output")


@dataclasses.dataclass(frozen=True)
class Modes:
    """Several schemas of one program; the command line chooses one."""

    schemas: Mapping[str, type]  # by the words that choose each, such as "mode=score"; the first is the default
    choose: Callable[[Mapping[str, str]], str]  # {key: value} on the command line -> a key of `schemas`

    def chosen(self, arguments: list[str]) -> str:
        return self.choose(dict(argument.split("=", 1) for argument in arguments if "=" in argument))

    def having(self, key: str) -> list[str]:
        """The modes with this key, less those that add words to another of them."""
        found = [mode for mode, schema in self.schemas.items() if key in keys_of(schema)]
        return [mode for mode in found if not any(mode.startswith(f"{other} ") for other in found)]


def keys_of(schema: type, prefix: str = "", group: str = "") -> dict[str, Key]:
    """Every dotted key of the dataclass, including those of nested dataclasses.

    Without metadata, a key belongs to the group named like its nested dataclass (model.n_layer: model), or at the top
    level to data if a dataclass of the package `data` has it, else to run.
    """
    hints = typing.get_type_hints(schema)
    keys: dict[str, Key] = {}
    for field in dataclasses.fields(schema):
        owners = [base for base in schema.__mro__ if field.name in inspect.get_annotations(base)]
        default = group or ("data" if all(base.__module__.startswith("data.") for base in owners) else "run")
        about, hint = field.metadata, hints[field.name]
        own_group = about.get("group", field.name if dataclasses.is_dataclass(hint) else default)
        keys[prefix + field.name] = Key(hint, about.get("kind", ""), about.get("list", False), own_group)
        if dataclasses.is_dataclass(hint):
            keys |= keys_of(typing.cast(type, hint), f"{prefix}{field.name}.", own_group)
    return keys


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for every value of a nested dictionary."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def describe(hint: Any) -> str:
    """A type in a user's words, such as `an integer or null`."""
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null", Any: "text"}
    if dataclasses.is_dataclass(hint):
        return "a group of settings, one KEY.NAME=VALUE each"
    if typing.get_origin(hint) is list:
        return f"a list [a, b] where each item is {describe(typing.get_args(hint)[0])}"
    return names.get(hint) or " or ".join(map(describe, typing.get_args(hint))) or str(hint)


def typed(value: Any) -> str:
    """A value as a person types it: null, true, 0.5, ["a", "b"]; text without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def nearest(key: str, known: list[str]) -> list[str]:
    """The known keys whose last part is this misspelt one or has it as initials, or else the closest key, if any is."""
    last = [candidate for candidate in known if candidate.endswith(f".{key}")]
    group, dot, name = key.rpartition(".")
    inside = [candidate for candidate in known if candidate.startswith(group + dot)] or known
    short = [candidate for candidate in inside if len(name) > 1 and initials(candidate) == name]
    return last or short or difflib.get_close_matches(key, inside, n=1)


def initials(key: str) -> str:
    """optimizer.learning_rate -> lr"""
    return "".join(word[:1] for word in key.rpartition(".")[2].split("_"))


def unused(config: Any, arguments: Iterable[str]) -> list[str]:
    """Returns a message for each setting among the arguments, KEY=VALUE, that has no effect in this config.

    A run that resumes uses its saved settings, which are not known here, so there are no messages then.
    """
    found = []
    for argument in arguments if not getattr(config, "resume", False) else ():
        key = argument.partition("=")[0]
        owner, _, name = RENAMED.get(key, key).rpartition(".")
        node = attrgetter(owner)(config) if owner else config
        fields = {field.name: field for field in dataclasses.fields(node)} if dataclasses.is_dataclass(node) else {}
        needs = fields[name].metadata.get("needs", ()) if name in fields else ()
        reasons = filter(None, (unmet(node, condition, f"{owner}." if owner else "") for condition in needs))
        found += [f"{key}= has no effect {reason}" for reason in itertools.islice(reasons, 1)]
    return found


def unmet(node: Any, condition: str, prefix: str) -> str | None:
    """Returns why a condition on the fields of a dataclass does not hold, or None. prefix: of its keys."""
    key, equals, values = condition.partition("=")
    if not equals:
        keys = key.split("|")
        known = any(attrgetter(one)(node) for one in keys)
        return None if known else "without " + " or ".join(prefix + one for one in keys)
    negated, key = key.endswith("!"), key.removesuffix("!")
    value = typed(attrgetter(key)(node))
    return None if (value in values.split("|")) != negated else f"with {prefix}{key}={value}"
