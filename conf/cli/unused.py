"""Names the settings on a command line that do nothing, because another setting switches them off.

A field's metadata may say what its setting needs, such as {"needs": ("weight_average=ema",)}. All conditions must hold:

    KEY=A|B      the field KEY, of the same dataclass, has one of these values, written as they are typed
    KEY!=A       it has another value
    KEY|OTHER    one of these fields is neither null, false nor empty
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from operator import attrgetter
from typing import Any

from .fields import typed
from .renamed import RENAMED


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
