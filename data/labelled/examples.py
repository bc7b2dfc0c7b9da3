"""Labelled examples, and their split into training and held-out ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import InputError
from ..tokenizers.unknown import NEW_MODEL, CharacterSet, unknown_in, unknown_note
from .templates import Segment


@dataclass(frozen=True)
class Example:
    prompt: str
    completion: str
    group: str | None = None  # examples of one group stay in one split
    place: str = "example"  # file:line, for messages
    weight: float = 1.0  # how often the example is drawn, relative to the others
    label: str | None = None  # of a {"text", "label"} example
    chat: tuple[Segment, ...] = ()  # of a chat; prompt and completion are then the rendered text around the last answer
    record: Mapping[str, Any] = field(default_factory=dict, compare=False)  # the fields it was read from

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What a row is made of, without the end token that follows a completion."""
        return self.chat or tuple(s for s in (Segment(self.prompt), Segment(self.completion, learned=True)) if s.text)


def write_examples(examples: Sequence[Example], path: Path) -> None:
    """Writes a JSON Lines file that read_examples() can read."""
    lines = []
    for e in examples:
        row = dict(e.record) or {"prompt": e.prompt, "completion": e.completion, "group": e.group}
        lines.append(json.dumps({key: value for key, value in row.items() if value is not None}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def fingerprint(examples: Sequence[Example]) -> str:
    """Returns the sha256 of all prompts, completions and weights in their order, whichever file they come from."""
    content = [(e.prompt, e.completion, *([] if e.weight == 1 else [e.weight])) for e in examples]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def split_examples(examples: Sequence[Example], *, val_fraction: float) -> tuple[list[Example], list[Example]]:
    """Returns (training, validation). Holds out whole groups; without one, examples with the same prompt are a group.

    Examples without a prompt are grouped by their completion. Groups are chosen by a hash, so the order of the file
    does not matter. Raises InputError for fewer than two groups.
    """

    def group(example: Example) -> bytes:
        text = ("prompt", example.prompt) if example.prompt else ("completion", example.completion)
        key = text if example.group is None else ("group", example.group)
        return hashlib.sha256(repr(key).encode()).digest()

    groups = sorted({group(example) for example in examples})
    if not 0 < val_fraction < 1 or len(groups) < 2:
        raise InputError(
            f"cannot hold out val_fraction={val_fraction} of {len(groups)} groups of examples; "
            "at least 2 groups (different prompts or group fields) and a fraction between 0 and 1 are needed; "
            "or name held-out examples with val_examples="
        )
    held_out = set(groups[: min(len(groups) - 1, max(1, round(val_fraction * len(groups))))])
    return (
        [example for example in examples if group(example) not in held_out],
        [example for example in examples if group(example) in held_out],
    )


def note_unknown(examples: Sequence[Example], tokenizer: CharacterSet, place: str) -> list[str]:
    """Returns a message if the tokenizer does not know all characters of the examples, which `place` names."""
    unknown = unknown_in((text for e in examples for text in (e.prompt, e.completion)), tokenizer)
    learned = unknown_in((example.completion for example in examples), tokenizer)
    if not unknown:
        return []
    fix = f"{learned.total():,} of them are in completions, which the model cannot learn to write; {NEW_MODEL}"
    return [unknown_note(unknown, place, fix=fix if learned else NEW_MODEL)]
