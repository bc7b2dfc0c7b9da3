"""Detailed statistics of documents, in bounded memory: scripts, characters, repeated lines, mojibake, HTML."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from heapq import heappush, heappushpop, nlargest
from itertools import pairwise
from typing import Any

import numpy as np

from ..curation import characters
from .frequent_lines import MAX_LINE, FrequentLines

EXAMPLES = 5
SHARE_BINS = 100  # of the histograms of shares
MOJIBAKE_LIMITS = (0.001, 0.01)  # values of curate.max_mojibake for which the report counts documents
MAX_SHAPES = 2_000  # different line shapes
MARKUP = "HTML tags or entities"
# Five or more digits with at most two other characters between them: an identifier, a telephone number, a date.
_DIGITS = re.compile("[0-9](?:[^0-9]{0,2}[0-9]){4}")
# Two patterns, since each begins with one character, which is fast to search for. "p <a and b> c" is not a tag.
_TAG = re.compile(
    r"</?(?i:p|br|div|a|td|tr|th|table|span|script|style|li|ul|img|font|h[1-6]|sup|sub|b|i)(?:\s[^<>]*=[^<>]*|\s*/?)>"
)
_ENTITY = re.compile(r"&(?:nbsp|amp|lt|gt|quot|#\d+);")


class TextStats:
    """Detailed statistics. Documents are added one by one; the statistics of several processes can be merged."""

    def __init__(self) -> None:
        self.documents = self.traces = self.hyphens = 0  # traces of mojibake
        self.characters = Counter[str]()
        self.lines = FrequentLines()
        self.shapes = FrequentLines(MAX_SHAPES)  # of lines with digits
        self.groups: dict[str, tuple[int, list[str]]] = {}  # main script, or MARKUP -> documents, some names
        self.shares = np.zeros((3, SHARE_BINS), np.int64)  # histograms: documents by share of letters, digits, symbols
        self.fewest_letters: list[tuple[float, str]] = []  # heap of (-share, name)
        self.damaged: list[tuple[int, str, str]] = []  # heap of (traces of mojibake, name, an example)
        self.damaged_above = np.zeros(1 + len(MOJIBAKE_LIMITS), np.int64)  # documents above 0 and above each limit

    def add(self, name: str, text: str) -> None:
        self.documents += 1
        counts = Counter(text)
        self.characters.update(counts)
        by_script = characters.letters_by_script(counts)
        self._group(max(by_script, key=by_script.__getitem__, default="none"), 1, [name])
        shares = characters.class_shares(counts)
        self.shares[range(3), [min(int(share * SHARE_BINS), SHARE_BINS - 1) for share in shares]] += 1
        keep_largest(self.fewest_letters, (-shares[0], name))
        if traces := characters.count_mojibake(text):
            self.traces += traces
            self.damaged_above += [traces > share * len(text) for share in (0, *MOJIBAKE_LIMITS)]
            keep_largest(self.damaged, (traces, name, _around(text)))
        # Between a letter and a lower-case one on the next line: Markdown rules and tables end in hyphens too.
        parts = text.split("-\n")
        self.hyphens += sum(a[-1:].isalpha() and b[:1].islower() for a, b in pairwise(parts))
        self.lines.add(text)
        self.shapes.count(line_shapes(text))
        if ("<" in text and _TAG.search(text)) or ("&" in text and _ENTITY.search(text)):
            self._group(MARKUP, 1, [name])

    def merge(self, other: TextStats) -> None:
        self.documents += other.documents
        self.traces += other.traces
        self.hyphens += other.hyphens
        self.characters.update(other.characters)
        self.lines.merge(other.lines)
        self.shapes.merge(other.shapes)
        for group, (documents, names) in other.groups.items():
            self._group(group, documents, names)
        self.shares += other.shares
        for fewest in other.fewest_letters:
            keep_largest(self.fewest_letters, fewest)
        for damage in other.damaged:
            keep_largest(self.damaged, damage)
        self.damaged_above += other.damaged_above

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as numbers, lists and strings for report.json, under `looked_at`."""
        damaged, *above = self.damaged_above.tolist()
        with_markup, names = self.groups.get(MARKUP, (0, []))
        return {
            "documents": self.documents,
            "characters": self.characters.total(),
            "classes": characters.class_counts(self.characters),
            "shares": dict(zip(("letters", "digits", "symbols"), self.shares.tolist(), strict=True)),
            "fewest_letters": [
                {"name": name, "share": round(-share, 4)} for share, name in sorted(self.fewest_letters, reverse=True)
            ],
            "unusual": self._unusual(),
            "scripts": self._scripts(),
            "mojibake": {
                "documents": damaged,
                "traces": self.traces,
                "above": dict(zip(map(str, MOJIBAKE_LIMITS), above, strict=True)),
                "examples": [
                    {"name": name, "traces": traces, "text": text}
                    for traces, name, text in sorted(self.damaged, reverse=True)
                ],
            },
            "high_controls": sum(self.characters[chr(point)] for point in range(0x80, 0xA0)),
            "markup": {"documents": with_markup, "examples": names},
            "hyphens": self.hyphens,
            "lines": self.lines.most(12),
            "lines_missed": self.lines.missed,
            "shapes": self._shapes(),
        }

    def _unusual(self) -> list[dict[str, Any]]:
        """Returns the most frequent invisible, control and replacement characters."""
        rows = [
            (count, character)
            for character, count in self.characters.items()
            if character == "\ufffd" or characters.class_of(character) in ("control", "invisible")
        ]
        return [
            {
                "code": f"U+{ord(character):04X}",
                "name": unicodedata.name(
                    character, "control character" if character < "\xa0" else "unassigned or private"
                ),
                "times": count,
            }
            for count, character in nlargest(8, rows)
        ]

    def _shapes(self) -> list[dict[str, Any]]:
        """Returns the most frequent line shapes with at least three letters.

        Leaves out a shape if most of its lines are one identical line.
        """
        same: Counter[str] = Counter()
        for line, times in self.lines.counts.items():
            for shape in line_shapes(line):
                same[shape] = max(same[shape], times)
        rows = [
            (times, shape)
            for shape, times in self.shapes.counts.items()
            if times > 1 and same[shape] < times / 2 and len(re.findall(r"[^\W\d_]", shape)) >= 3
        ]
        return [{"line": shape, "times": times} for times, shape in nlargest(EXAMPLES, rows)]

    def _scripts(self) -> list[dict[str, Any]]:
        different = characters.letters_by_script(dict.fromkeys(self.characters, 1))
        rows = []
        for script, letters in characters.letters_by_script(self.characters).most_common():
            documents, names = self.groups.get(script, (0, []))  # whose main script it is
            rows.append({"script": script, "letters": letters, "different": different[script]})
            rows[-1] |= {"documents": documents, "examples": names}
        return rows

    def _group(self, group: str, documents: int, names: list[str]) -> None:
        before, known = self.groups.get(group, (0, []))
        self.groups[group] = before + documents, (known + names)[:EXAMPLES]


def line_shapes(text: str) -> list[str]:
    """Returns the shapes of lines with many digits, such as identifiers: the lines with `#` for each run of digits.

    Leaves out long lines, which are prose or tables.
    """
    lines = [line.strip() for line in text.split("\n") if len(line) <= MAX_LINE and _DIGITS.search(line)]
    return [re.sub("[0-9]+", "#", line) for line in lines]


def _around(text: str) -> str:
    """Returns the first trace of mojibake with 20 characters on each side."""
    match = characters.MOJIBAKE.search(text)
    return " ".join(text[max(0, match.start() - 20) : match.end() + 20].split()) if match else ""


def keep_largest(heap: list[Any], item: tuple[Any, ...]) -> None:
    """Adds an item to a heap of the EXAMPLES largest items."""
    if len(heap) < EXAMPLES:
        heappush(heap, item)
    else:
        heappushpop(heap, item)
