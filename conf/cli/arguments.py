"""The words of a command line: settings for Hydra, and values that reach the program byte for byte.

Hydra's grammar refuses "It's" and "~/notes", strips a trailing space, reads 1e3 as a number and expands ${x}. Values
whose field declares a kind (see fields.py) therefore bypass it, except under --multirun, where commas mean a sweep.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import sys
import typing
from pathlib import Path
from typing import Any

from .errors import InputError, as_input_error, one_line
from .fields import Key, Modes, describe, keys_of, nearest, typed
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
    from omegaconf import OmegaConf

    keys, trial = keys_of(schema), OmegaConf.structured(schema)
    settings: list[str] = []
    free: dict[str, Any] = {}
    problems: list[str] = []
    previous = ""
    for is_setting, group in itertools.groupby(arguments, lambda word: word[:1] != "-" and word.find("=") > 0):
        words = list(group)
        if not is_setting:
            problems.append(not_a_setting(words, previous, keys))
            continue
        previous = words[-1]
        for text in words:
            key, _, value = text.partition("=")
            if key not in keys and (new := current(key, value))[0] != key:
                if new[0] in keys:
                    print(f"note: {key}= is now called {new[0]}=", file=sys.stderr)
                (key, value), text = new, "=".join(new)
            try:
                about = keys.get(key)
                if multirun and re.match(r"hydra\b", key):
                    settings.append(text)
                elif not about and key not in options:
                    raise InputError(unknown(key, text, [*keys, *options], mode, modes))
                elif about and about.kind == "text" and about.is_list and BRACKETS.fullmatch(value):
                    item, whole = (json.dumps(part, ensure_ascii=False) for part in (value[1:-1].strip(), value))
                    raise InputError(
                        f"{key}={value} may be a list or text; write {key}='[{item}]' or {key}='[{whole}]'"
                    )
                elif about and about.kind and not multirun:
                    free[key] = free_value(key, value, about)
                else:
                    check_setting(trial, key, value, about, options=options, multirun=multirun)
                    settings.append(text)
            except InputError as error:
                problems.extend(error.args)
    if problems:
        raise InputError(*problems)
    return settings, free


def not_a_setting(words: list[str], previous: str, keys: dict[str, Key]) -> str:
    """Says what to write instead of words that are not key=value; `previous` is the setting before them."""
    first, _, rest = " ".join(words).replace("=", " ").lstrip("- ").partition(" ")
    before = keys.get(previous.partition("=")[0])
    if first in keys:
        advice = f"write {first}={rest.strip() or 'VALUE'}"
    elif before and before.kind and not words[0].startswith("-"):
        advice = f"quote a value with spaces: '{' '.join([previous, *words])}'"
    else:
        advice = "--help lists all keys"
    return f"{' '.join(words)!r} is not key=value; {advice}"


def unknown(key: str, text: str, known: list[str], mode: str, modes: Modes | None) -> str:
    """Says why a key is not among the known ones, and what to write instead."""
    if key[:1] in "+~":
        return f"{text!r}: nothing can be added or removed; write {key.lstrip('+~') or 'KEY'}=VALUE"
    if modes and (others := modes.having(key)):
        return f"{key}= has no effect in {mode}; it is for {', '.join(others)}"
    if key in REMOVED:
        return f"{key} no longer exists; leave it out"
    near = nearest(key, known)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "--help lists all keys"
    return f"unknown key {key!r}; {hint}"


def check_setting(
    trial: Any, key: str, value: str, about: Key | None, *, options: dict[str, list[str]], multirun: bool
) -> None:
    """Sets the key in `trial`, an OmegaConf config; each is checked alone, so that all mistakes are found at once.

    Raises InputError if Hydra cannot read the value or it does not fit.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    override = parsed(key, value, advice=f"quote the value: '{key}=\"...\"'")
    if override.is_sweep_override():
        if not multirun:
            raise InputError(f"{key}={value} holds several values: add --multirun, or quote it: {key}='\"{value}\"'")
    elif key in options:
        if value not in options[key]:
            raise InputError(f"{key}={value}: there is no such {key}; choose one of {', '.join(options[key])}")
    elif about:
        try:
            OmegaConf.update(trial, key, override.value())
        except OmegaConfBaseException:
            raise InputError(f"{key}={value} does not fit: {key} takes {describe(about.type)}") from None


def parsed(key: str, value: str, *, advice: str) -> Any:
    """Hydra's reading of key=value. Raises InputError with the advice if its grammar has no such value."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        return OverridesParser.create().parse_overrides([f"{key}={value}"])[0]
    except Exception as error:
        raise InputError(f"{key}={value} cannot be read ({one_line(as_input_error(error))}); {advice}") from None


def free_value(key: str, value: str, about: Key) -> Any:
    """The value of a key that bypasses Hydra's grammar: text, or None for null, or a list, as its field declares."""
    if about.kind == "text":
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{key}={value!r} is not UTF-8 text") from error
    elif not value:
        raise InputError(f"{key}= is empty; it takes {describe(about.type)}")
    elif value == "null" and (about.type is Any or type(None) in typing.get_args(about.type)):
        return None
    expand = os.path.expanduser if about.expands_home else str
    if not (about.is_list and value.startswith("[") and value.endswith("]")):
        return expand(value)
    items = parsed(key, value, advice=f'quote the items of a list: {key}=\'["a", "b"]\'').value()
    for item in items:
        if not isinstance(item, str):
            raise InputError(f'{key}={value}: the item {typed(item)} is not text; quote it: "{typed(item)}"')
    return [expand(item) for item in items]


def split_settings(name: str, text: str) -> list[str]:
    """Splits the settings in a text, the value of `name`, as a shell would. Raises InputError for an open quote."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"{name}={text!r}: {error}; close the quote, or write \\ before it") from None


def given_text(raw: str) -> str:
    """A file's text as it was meant: no byte order mark, `\\n` for `\\r\\n`, and no line end after the last line."""
    return raw.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n").removesuffix("\r")


def read_text(key: str, path: str | None) -> str:
    """The text of a file that key=path names, or of standard input, as given_text() reads it. Raises InputError."""
    place = "standard input" if path is None else f"{key}={path}"
    try:
        raw = sys.stdin.buffer.read() if path is None else Path(path).read_bytes()
        text = given_text(raw.decode("utf-8"))
    except OSError as error:
        raise InputError(f"{key}={path}: {error.strerror}; check the path") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{place} is not UTF-8 at byte {error.start}; convert it (iconv)") from None
    if "\0" in text:
        raise InputError(f"{place} holds NUL characters, as UTF-16 does; convert it (iconv)")
    return text
