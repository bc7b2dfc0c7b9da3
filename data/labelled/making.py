"""Makes train.jsonl and held_out.jsonl: which examples are held out, how many of each label are kept."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import regex

from .. import InputError

SIDES = ("train", "held_out")


def beginning(text: str, words: int) -> str:
    """Returns the first `words` words of a text, with their line breaks."""
    found = list(regex.finditer(r"\S+", text))
    return text if len(found) <= words else text[: found[words - 1].end()]


def side_of(group: str, held_out: float) -> str:
    """Returns the side of a group, by a hash of its name, so that about a fraction `held_out` of groups is held out."""
    return SIDES[int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) < held_out * 2**64]


def write_sides(
    folder: Path, sides: dict[str, list[dict[str, str]]], limits: tuple[int, int], *, text: str, label: str, fix: str
) -> list[str]:
    """Writes a file for each of SIDES and returns a line about each: its path, size and counts per label.

    limits: maximum number of examples per label, for each side. text, label: the fields with them. fix: what to change
    if a side has no examples, which raises InputError.
    """
    for side in SIDES:
        if not sides[side]:
            raise InputError(f"no {side} examples: {fix}")
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for side, limit in zip(SIDES, limits, strict=True):
        counts: Counter[str] = Counter()
        kept = []
        # A fixed random order decides which examples are kept if there are too many.
        for row in sorted(sides[side], key=lambda row: hashlib.sha256(row[text].encode()).digest()):
            if counts[row[label]] < limit:
                counts[row[label]] += 1
                kept.append(json.dumps(row, ensure_ascii=False) + "\n")
        path = folder / f"{side}.jsonl"
        path.write_text("".join(kept), encoding="utf-8")
        of_each = ", ".join(f"{n:,} {name.strip()}" for name, n in sorted(counts.items()))
        lines.append(f"{path}: {len(kept):,} examples ({of_each})")
    return lines
