"""The check of a labelled line's fields, shared by examples, questions and prompts."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .. import InputError


def check_fields(record: dict[str, Any], place: str, *, required: Collection[str], strings: Collection[str]) -> None:
    """Raises InputError if a required field is missing, or a field in `strings` is there and not a string."""
    for name in required:
        if name not in record:
            raise InputError(f"{place}: no field {name!r} (fields: {', '.join(record) or 'none'}); add it")
    for name in strings:
        if not isinstance(record.get(name, ""), str):
            raise InputError(f"{place}: {name!r} is {record[name]!r}, not a string; put it in quotes")
