"""JSON Lines: a file with one JSON object per line, with every error named with its line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path

from .. import InputError
from .compressed import open_stream, without_suffix

MAX_LINE = 64 << 20  # bytes of one line of JSON


def json_lines(path: str | Path, *, formats: str) -> Iterator[tuple[int, dict]]:
    """Yields (line number from 1, object) for each non-blank line of a .jsonl, .jsonl.gz or .jsonl.zst file.

    formats: what can be read, for the error about a file in another format.
    """
    begun = False
    with open_stream(Path(path)) as (stream, _):
        # Lines of bytes: in text mode, Python would also split at U+2028, which JSON strings may contain.
        for number, content in enumerate(stream, start=1):
            if not begun and content.removeprefix(codecs.BOM_UTF8).strip():
                check_first_line(content, path, formats=formats)
                begun = True
            try:
                line = content.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = content[error.start]
                raise InputError(f"{path}:{number}: byte 0x{byte:02x} is not UTF-8; convert it (iconv)") from None
            if line.strip():
                yield number, json_object(line, f"{path}:{number}")


def check_first_line(content: bytes, path: str | Path, *, formats: str) -> None:
    """Raises InputError, which says what can be read, if a file is neither named nor begins like JSON Lines."""
    named = without_suffix(Path(path).name).endswith((".jsonl", ".ndjson"))
    if not named and not content.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
        raise InputError(f"{path} is not a JSON Lines file; {formats}")


def json_object(line: str, place: str) -> dict:
    """Parses a line that must be a JSON object. Raises InputError, which names the place."""
    try:
        record = json.loads(line)
        if "\\u" in line:
            json.dumps(record, ensure_ascii=False).encode()  # fails on a lone surrogate, which UTF-8 cannot encode
    except UnicodeEncodeError:
        raise InputError(f"{place}: half of a surrogate pair, like \\ud800, is not a character") from None
    except (ValueError, RecursionError) as error:
        reason = f"column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else error
        raise InputError(f"{place}: not JSON ({reason}); each line must be one JSON object") from None
    if not isinstance(record, dict):
        raise InputError(f"{place}: a JSON {type(record).__name__}, not an object like {{...}}")
    return record


def text_of(record: dict, field: str, place: str) -> str:
    """Returns the text in a field of an object, "" for null.

    Raises InputError, which names the place and the fields that hold text.
    """
    text = record.get(field, 0)
    if isinstance(text, str) or text is None:
        return text or ""
    problem = f"its {field!r} is not a string" if field in record else f"no field {field!r}"
    names = [name for name, value in record.items() if isinstance(value, str)]
    fix = f"set text_field= to one of {', '.join(names)}" if names else f"write the text into {field!r}"
    raise InputError(f"{place}: {problem}; {fix}, or leave the file out with exclude=")
