"""Selection: which documents, files and folders the patterns of include and exclude keep."""

from __future__ import annotations

import re
from fnmatch import translate
from functools import lru_cache

Patterns = str | list[str] | None


def matches(name: str, patterns: Patterns, *, default: bool) -> bool:
    """True if a name matches any of the patterns; `default` if there are none."""
    if not patterns:
        return default
    return _compiled(patterns if isinstance(patterns, str) else tuple(patterns)).match(name) is not None


@lru_cache
def _compiled(patterns: str | tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, [patterns] if isinstance(patterns, str) else patterns)))


def is_selected(name: str, file: str, *, include: Patterns, exclude: Patterns) -> bool:
    """True if include and exclude keep a document. A pattern may match its own name or its file's."""
    return any(matches(n, include, default=True) for n in (name, file)) and not any(
        matches(n, exclude, default=False) for n in (name, file)
    )


def may_be_selected(file: str, *, include: Patterns) -> bool:
    """True if include may keep documents of a file, which is opened only then.

    A colon says that a pattern is meant for documents within files, as in "*.jsonl:1*"; the part before it must match
    the name of the file.
    """
    documents = [pattern for pattern in _as_list(include) if ":" in pattern]
    return matches(file, include, default=True) or matches(
        file, [pattern.rpartition(":")[0] for pattern in documents], default=False
    )


def is_excluded_folder(folder: str, *, exclude: Patterns) -> bool:
    """True if a pattern of exclude matches everything in a folder, whose name ends with a slash."""
    return matches(folder, [pattern for pattern in _as_list(exclude) if pattern.endswith("*")], default=False)


def _as_list(patterns: Patterns) -> list[str]:
    return [patterns] if isinstance(patterns, str) else patterns or []
