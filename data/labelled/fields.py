"""The check of a labelled line's fields, shared by examples, questions and prompts."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from .. import InputError


def check_fields(record: dict[str, Any], place: str, *, required: Collection[str], strings: Collection[str]) -> None:
    """Raises InputError if a required field is missing, or a field in `strings` is not a string; null means missing."""
    for name in required:
        if record.get(name) is None:
            problem = f"{name!r} is null" if name in record else f"no field {name!r}"
            raise InputError(f"{place}: {problem} (fields: {', '.join(record) or 'none'}); add it")
    for name in strings:
        if not isinstance(value := record.get(name), str | None):
            raise InputError(f"{place}: {name!r} is {json.dumps(value)}, not a string; put it in quotes")
