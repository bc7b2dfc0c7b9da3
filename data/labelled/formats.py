"""Reads labelled examples from JSON Lines, CSV or TSV files. The fields of a row say which kind of example it is."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import InputError
from ..corpus.compressed import open_stream, without_suffix
from ..corpus.jsonl import json_lines
from .examples import Example
from .fields import check_fields
from .templates import CHAT_TEMPLATES, ROLES, ChatTemplate, Task

Record = dict[str, Any]
FORM = '{"prompt": "...", "completion": "..."}, {"text": "...", "label": "..."} or {"messages": [...]}'
FORMATS = "examples can be JSON Lines (.jsonl), CSV (.csv) or TSV (.tsv)"
OPTIONAL = ("group", "weight")
TABLES = {".csv": ",;\t", ".tsv": "\t"}  # by ending: the delimiters that a table may have


def read_examples(
    path: str | Path, *, task: Task | None = None, text_field: str = "text", label_field: str = "label"
) -> list[Example]:
    """Reads examples with the fields prompt and completion, text and label, or messages, all of one kind.

    `group` (text) and `weight` (a number, at least 0) are optional; other fields are ignored. Texts with labels and
    chats become prompts and completions by the task's templates. Raises InputError with file and line.
    """
    task = task or Task()
    kinds: dict[tuple[str, ...], str] = {}  # the fields of each kind met -> where it was first
    examples = []
    for place, record in records(path):
        fields = kind_of(record, place, text_field, label_field)
        kinds.setdefault(fields, place)
        if len(kinds) > 1:
            (first, where), (second, _) = kinds.items()
            raise InputError(
                f"{place}: fields {', '.join(second)}, but {where} has {', '.join(first)}; use one file for each kind"
            )
        check_fields(record, place, required=fields, strings=("group",))
        common: dict[str, Any] = {"group": record.get("group"), "place": place, "weight": weight_of(record, place)}
        kept = {name: record[name] for name in (*fields, *OPTIONAL) if name in record}
        if fields == ("messages",):
            examples.append(chat_example(record, place, task.chat or CHAT_TEMPLATES["plain"], common, kept))
            continue
        check_fields(record, place, required=fields, strings=fields)
        prompt, completion = (record[name] for name in fields)
        if not completion.strip():
            raise InputError(f"{place}: {fields[1]!r} is empty; write one, or remove the line")
        label = None
        if fields == (text_field, label_field):
            label = completion.strip()
            prompt, completion = task.prompt_of(prompt), task.completion_of(label)
        examples.append(Example(prompt, completion, **common, label=label, record=kept))
    if not examples:
        table = Path(without_suffix(str(path))).suffix in TABLES
        form = "a header such as text,label and an example in each row" if table else f"one per line: {FORM}"
        raise InputError(f"{path}: no examples; write {form}")
    return examples


def kind_of(record: Record, place: str, text_field: str, label_field: str) -> tuple[str, ...]:
    """Returns the fields that make a row an example."""
    for fields in (("prompt", "completion"), (text_field, label_field), ("messages",)):
        if record.keys() >= set(fields):
            return fields
    raise InputError(
        f"{place}: fields {', '.join(map(repr, record)) or 'none'}; an example is {FORM}. text_field= and label_field= "
        "name other fields"
    )


def weight_of(record: Mapping[str, Any], place: str) -> float:
    value = record.get("weight")
    if value is None or value == "":
        return 1.0
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if isinstance(value, bool) or not 0 <= weight < math.inf:
        raise InputError(f"{place}: 'weight' is {json.dumps(value)}, not a number of at least 0")
    return weight


def chat_example(record: Record, place: str, template: ChatTemplate, common: dict[str, Any], kept: Record) -> Example:
    """A chat that ends with the assistant's answer; every answer of the assistant is learned."""
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{place}: 'messages' is {json.dumps(messages)[:60]}, not a list of messages")
    turns: list[str] = []
    for number, message in enumerate(messages, start=1):
        where = f"{place}, message {number}"
        if not isinstance(message, dict):
            raise InputError(
                f'{where}: {json.dumps(message)[:60]} is not an object like {{"role": ..., "content": ...}}'
            )
        check_fields(message, where, required=("role", "content"), strings=("role", "content"))
        role = message["role"]
        if role not in template.roles:
            known = ", ".join(role for role in ROLES if role in template.roles)
            raise InputError(f"{where}: role {role!r} is not one of {known}, the roles of the chat template")
        expected = ("system", "user") if not turns else ("user",) if turns[-1] != "user" else ("assistant",)
        if role not in expected:
            raise InputError(
                f"{where}: role {role!r}, but {' or '.join(expected)} must come here: at most one system message at "
                "the start, then user and assistant in turns"
            )
        if role == "assistant" and not message["content"].strip():
            raise InputError(f"{where}: the answer is empty; write one, or remove the line")
        turns.append(role)
    if turns[-1] != "assistant":
        raise InputError(f"{place}: the last message is the {turns[-1]}'s; the assistant's answer must come last")
    prompt = "".join(segment.text for segment in template.prompt(messages[:-1]))
    return Example(prompt, messages[-1]["content"], **common, chat=template.segments(messages), record=kept)


def records(path: str | Path) -> Iterator[tuple[str, Record]]:
    """Yields (file:line, row) of a JSON Lines, CSV or TSV file."""
    file = Path(path).expanduser()
    delimiters = TABLES.get(Path(without_suffix(file.name)).suffix)
    if delimiters is None:
        for number, record in json_lines(file, formats=FORMATS):
            yield f"{path}:{number}", record
        return
    try:
        with open_stream(file) as (stream, _):
            text = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise InputError(f"{path}:{line}: byte 0x{byte:02x} is not UTF-8; convert it (iconv)") from None
    csv.field_size_limit(max(len(text), csv.field_size_limit()))  # by default, longer fields are an error
    head = text.partition("\n")[0]
    delimiter = max(delimiters, key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    start = 1  # the line on which the next row starts: quoted fields may contain line breaks
    try:
        for row in reader:
            place, start = f"{path}:{start}", reader.line_num + 1
            if not any(field.strip() for field in row):
                continue
            if not names:
                names = [name.strip() for name in row]
                if len(set(names)) < len(names):
                    raise InputError(f"{place}: two columns have the same name: {', '.join(names)}")
            elif len(row) != len(names):
                raise InputError(
                    f"{place}: {len(row)} columns, but the header has {len(names)}; put fields with {delimiter!r} or "
                    "line breaks in double quotes"
                )
            else:
                yield (
                    place,
                    {
                        name: value
                        for name, value in zip(names, row, strict=True)
                        if value or name not in ("group", "weight")
                    },
                )
    except csv.Error as error:
        raise InputError(f'{path}:{reader.line_num}: {error}; quote fields as in "a ""quoted"" word"') from None
