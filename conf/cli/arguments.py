"""The words of a command line: settings for Hydra, and values that reach the program byte for byte.

Hydra's grammar refuses "It's" and "~/notes", strips a trailing space, reads 1e3 as a number and expands ${x}. Values
whose field declares a kind (see fields.py) therefore bypass it, except under --multirun, where commas mean a sweep.
"""

from __future__ import annotations

import json
import os
import re
import sys
import typing
from collections.abc import Iterator
from typing import Any

from .errors import InputError, as_input_error, one_line
from .fields import Key, Modes, keys_of, nearest
from .renamed import REMOVED, current

BRACKETS = re.compile(r"""\[\s*[^"',[\]\s][^"',[\]]*]""")  # [/INST]: the text /INST in a list, or text with brackets


def read_arguments(
    schema: type,
    arguments: list[str],
    *,
    options: dict[str, list[str]],
    mode: str = "",
    modes: Modes | None = None,
    multirun: bool = False,
) -> tuple[list[str], dict[str, Any]]:
    """Splits key=value words into (settings for Hydra, {key: value} of free values).

    `options` are the config groups with their choices; `mode` is the one of `modes` that chose the schema.
    Raises InputError with everything that is wrong, one argument a line.
    """
    keys, settings = keys_of(schema), Settings(schema, options, multirun)
    free: dict[str, Any] = {}
    problems: list[str] = []
    for key, value, text in key_values(arguments, keys, problems):
        if key not in keys and (new := current(key, value))[0] != key:
            if new[0] in keys:
                print(f"note: {key}= is now called {new[0]}=", file=sys.stderr)
            (key, value), text = new, "=".join(new)
        try:
            if multirun and key.partition(".")[0].partition("/")[0] == "hydra":
                settings.words.append(text)
            elif key not in keys and key not in options:
                raise InputError(unknown(key, text, [*keys, *options], mode, modes))
            elif (about := keys.get(key)) and about.kind == "text" and about.is_list and BRACKETS.fullmatch(value):
                item, whole = (json.dumps(part, ensure_ascii=False) for part in (value[1:-1].strip(), value))
                raise InputError(f"{key}={value} may be a list or text; write {key}='[{item}]' or {key}='[{whole}]'")
            elif about and about.kind and not multirun:
                free[key] = free_value(key, value, about)
            else:
                settings.add(key, value, text, keys)
        except InputError as error:
            problems.extend(error.args)
    if problems:
        raise InputError(*problems)
    return settings.words, free


def key_values(arguments: list[str], keys: dict[str, Key], problems: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yields (key, value, argument) for each key=value. Appends one problem for each run of other words."""
    words: list[str] = []
    previous = ""
    for argument in [*arguments, None]:
        if argument is not None and (argument.startswith("-") or argument.find("=") < 1):
            words.append(argument)
            continue
        if words:
            first, _, rest = " ".join(words).replace("=", " ").lstrip("- ").partition(" ")
            before = keys.get(previous.partition("=")[0])
            if first not in keys and before and before.kind and not words[0].startswith("-"):
                advice = f"quote a value with spaces: '{' '.join([previous, *words])}'"
            else:
                advice = f"write {first}={rest.strip() or 'VALUE'}" if first in keys else "--help lists all keys"
            problems.append(f"{' '.join(words)!r} is not key=value; {advice}")
            words = []
        if argument is not None:
            key, _, value = argument.partition("=")
            yield key, value, argument
            previous = argument


def unknown(key: str, text: str, known: list[str], mode: str, modes: Modes | None) -> str:
    """Says why a key is not among the known ones, and what to write instead."""
    if key[:1] in "+~":
        return f"{text!r}: nothing can be added or removed; write {key.lstrip('+~') or 'KEY'}=VALUE"
    if modes and (others := modes.having(key)):
        return f"{key}= has no effect in {mode}; it is for {' or '.join(others)}"
    if key in REMOVED:
        return f"{key} no longer exists; leave it out"
    near = nearest(key, known)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "--help lists all keys"
    return f"unknown key {key!r}; {hint}"


class Settings:
    """Collects the words that Hydra will read, each checked alone so that all mistakes are found at once."""

    def __init__(self, schema: type, options: dict[str, list[str]], multirun: bool) -> None:
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from omegaconf import OmegaConf

        self.words: list[str] = []
        self.options, self.multirun = options, multirun
        self.parser, self.trial = OverridesParser.create(), OmegaConf.structured(schema)

    def add(self, key: str, value: str, text: str, keys: dict[str, Key]) -> None:
        """Adds one word. Raises InputError if Hydra's grammar cannot read it or its value does not fit the key."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            override = self.parser.parse_overrides([text])[0]
            if not override.is_sweep_override():
                if key not in self.options:
                    OmegaConf.update(self.trial, key, override.value())
                elif value not in self.options[key]:
                    raise InputError(f"{text}: there is no such {key}; choose one of {', '.join(self.options[key])}")
            elif not self.multirun:
                raise InputError(f"{text} holds several values: add --multirun, or quote it: {key}='\"{value}\"'")
        except OmegaConfBaseException:
            raise InputError(f"{text} does not fit: {key} takes {keys[key].describe()}") from None
        except InputError:
            raise
        except Exception as error:
            reason = one_line(as_input_error(error))
            raise InputError(f"{text} cannot be read ({reason}); quote the value: '{key}=\"...\"'") from None
        self.words.append(text)


def free_value(key: str, value: str, about: Key) -> Any:
    """The value of a key that bypasses Hydra's grammar: text, or None for null, or a list, as its field declares."""
    if about.kind == "text":
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{key}={value!r} is not UTF-8 text") from error
    elif not value:
        raise InputError(f"{key}= is empty; it takes {about.describe()}")
    elif value == "null" and (about.type is Any or type(None) in typing.get_args(about.type)):
        return None
    expand = os.path.expanduser if about.expands_home else str
    if about.is_list and value.startswith("[") and value.endswith("]"):
        return [expand(item) for item in list_of_texts(key, value)]
    return expand(value)


def list_of_texts(key: str, value: str) -> list[str]:
    """Reads [a, "b c"] by Hydra's grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        items: Any = OverridesParser.create().parse_overrides([f"{key}={value}"])[0].value()
    except Exception as error:
        reason = one_line(as_input_error(error))
        raise InputError(f'{key}={value} is not a list ({reason}); quote its items: {key}=\'["a", "b"]\'') from error
    for item in items:
        if not isinstance(item, str):
            raise InputError(f'{key}={value}: the item {item} is not text; quote it: "{item}"')
    return items
