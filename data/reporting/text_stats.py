"""Detailed statistics of documents, in bounded memory: scripts, characters, repeated lines, mojibake, HTML."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from heapq import heappush, heappushpop, nlargest
from typing import Any

import numpy as np

from ..curation import characters
from .frequent_lines import MAX_LINE, FrequentLines

FLUSH = 1_000_000  # characters that are counted together
SCRIPT_SAMPLE = 256  # characters of a document that decide its script
EXAMPLES = 5
SHARE_BINS = 100  # of the histograms of shares
MOJIBAKE_LIMITS = (0.001, 0.01)  # values of curate.max_mojibake for which the report counts documents
MAX_SHAPES = 2_000  # different line shapes
# Five or more digits with at most two other characters between them: an identifier, a telephone number, a date.
_DIGITS = re.compile(rb"\0" + 4 * rb"[^\0\n]{0,2}+\0")
_DIGITS_TO_NUL = bytes.maketrans(b"0123456789", bytes(10))
# Two patterns, since each begins with one character, which is fast to search for. "p <a and b> c" is not a tag.
_TAG = re.compile(
    r"</?(?i:p|br|div|a|td|tr|th|table|span|script|style|li|ul|img|font|h[1-6]|sup|sub|b|i)(?:\s[^<>]*=[^<>]*|\s*/?)>"
)
_ENTITY = re.compile(r"&(?:nbsp|amp|lt|gt|quot|#\d+);")


class TextStats:
    """Detailed statistics. Documents are added one by one; the statistics of several processes can be merged."""

    def __init__(self) -> None:
        self.documents = self.characters = 0
        self.counts = np.zeros(256, np.int64)  # by code point, up to the largest one seen
        self.lines = FrequentLines()
        self.shapes = FrequentLines(MAX_SHAPES)  # of lines with digits
        self.with_markup: list[Any] = [0, []]  # documents with HTML tags or entities; some names
        self.shares = np.zeros((3, SHARE_BINS), np.int64)  # histograms: documents by share of letters, digits, symbols
        self.fewest_letters: list[tuple[float, str]] = []  # heap of (-share, name)
        self.scripts: dict[str, list[Any]] = {}  # main script -> number of documents, some names
        self.damaged: list[tuple[int, str, str]] = []  # heap of (traces of mojibake, name, an example)
        self.damaged_above = np.zeros(len(MOJIBAKE_LIMITS), np.int64)  # documents above each limit
        self.damaged_documents = self.traces = self.hyphens = 0
        self._pending: list[tuple[str, str]] = []  # (name, text) whose characters are not counted yet
        self._pending_length = 0  # in characters

    def add(self, name: str, text: str) -> None:
        self.documents += 1
        self.characters += len(text)
        self._count_script(main_script(text), 1, [name])
        if traces := characters.count_mojibake(text):
            self.traces += traces
            self.damaged_documents += 1
            self.damaged_above += [traces > share * len(text) for share in MOJIBAKE_LIMITS]
            keep_largest(self.damaged, (traces, name, _around(text)))
        self.hyphens += text.count("-\n")
        self.lines.add(text)
        self.shapes.count(line_shapes(text))
        if ("<" in text and _TAG.search(text)) or ("&" in text and _ENTITY.search(text)):
            self._count_markup(1, [name])
        for start in range(0, len(text), FLUSH):
            self._pending.append((name, text[start : start + FLUSH]))
            self._pending_length += len(self._pending[-1][1])
            if self._pending_length >= FLUSH:
                self.flush()

    def flush(self) -> None:
        """Counts the characters of the pending documents."""
        if not self._pending:
            return
        points = characters.code_points("".join(text for _, text in self._pending))
        self._count(np.bincount(points))
        kinds = characters.classes()[points]
        starts = np.cumsum([0, *(len(text) for _, text in self._pending[:-1])])
        letters, digits, spaces = (
            np.add.reduceat(kinds == kind, starts, dtype=np.int64)
            for kind in (characters.LETTER, characters.DIGIT, characters.WHITE_SPACE)
        )
        visible = np.maximum(1, np.diff(starts, append=points.size) - spaces)
        for row, shares in zip(self.shares, (letters, digits, visible - letters - digits), strict=True):
            row += np.bincount(np.clip(shares * SHARE_BINS // visible, 0, SHARE_BINS - 1), minlength=SHARE_BINS)
        for number in np.argsort(letters / visible, kind="stable")[:EXAMPLES].tolist():
            keep_largest(self.fewest_letters, (-float(letters[number] / visible[number]), self._pending[number][0]))
        self._pending, self._pending_length = [], 0

    def merge(self, other: TextStats) -> None:
        self.flush()
        other.flush()
        for name in ("documents", "characters", "damaged_documents", "traces", "hyphens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for script, (documents, names) in other.scripts.items():
            self._count_script(script, documents, names)
        for damage in other.damaged:
            keep_largest(self.damaged, damage)
        for item in other.fewest_letters:
            keep_largest(self.fewest_letters, item)
        self.shares += other.shares
        self.damaged_above += other.damaged_above
        self._count_markup(*other.with_markup)
        self._count(other.counts)
        self.lines.merge(other.lines)
        self.shapes.merge(other.shapes)

    def _count(self, times: np.ndarray) -> None:
        """Adds counts by code point."""
        if times.size > self.counts.size:
            self.counts = np.pad(self.counts, (0, times.size - self.counts.size))
        self.counts[: times.size] += times

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        present = np.flatnonzero(self.counts)  # a few thousand of a million code points
        return self.__dict__ | {"counts": (self.counts.size, present, self.counts[present])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        size, present, counts = state["counts"]
        self.__dict__.update(state | {"counts": np.zeros(size, np.int64)})
        self.counts[present] = counts

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as numbers, lists and strings for report.json, under `looked_at`."""
        self.flush()
        self._count(np.zeros(0x110000, np.int64))  # extends the table to all code points
        classes = np.bincount(characters.classes(), weights=self.counts, minlength=len(characters.CLASSES))
        return {
            "documents": self.documents,
            "characters": self.characters,
            "classes": {name: int(count) for name, count in zip(characters.CLASSES, classes, strict=True)},
            "shares": dict(zip(("letters", "digits", "symbols"), self.shares.tolist(), strict=True)),
            "fewest_letters": [
                {"name": name, "share": round(-share, 4)} for share, name in sorted(self.fewest_letters, reverse=True)
            ],
            "unusual": self._unusual(),
            "scripts": self._scripts(),
            "mojibake": {
                "documents": self.damaged_documents,
                "traces": self.traces,
                "above": dict(zip(map(str, MOJIBAKE_LIMITS), self.damaged_above.tolist(), strict=True)),
                "examples": [
                    {"name": name, "traces": traces, "text": text}
                    for traces, name, text in sorted(self.damaged, reverse=True)
                ],
            },
            "high_controls": int(self.counts[0x80:0xA0].sum()),
            "markup": dict(zip(("documents", "examples"), self.with_markup, strict=True)),
            "hyphens": self.hyphens,
            "lines": self.lines.most(12),
            "lines_missed": self.lines.missed,
            "shapes": self._shapes(),
        }

    def _unusual(self) -> list[dict[str, Any]]:
        """Returns the most frequent invisible, control and replacement characters."""
        strange = np.isin(characters.classes(), (characters.CONTROL, characters.INVISIBLE))
        strange[0xFFFD] = True
        counts = np.where(strange, self.counts, 0)
        return [
            {"code": f"U+{point:04X}", "name": character_name(chr(point)), "times": int(counts[point])}
            for point in np.argsort(-counts, kind="stable")[:8].tolist()
            if counts[point]
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
        times, kinds = Counter[str](), Counter[str]()
        for point in np.flatnonzero((characters.classes() == characters.LETTER) & (self.counts > 0)).tolist():
            script = characters.script_of(chr(point))
            times[script] += int(self.counts[point])
            kinds[script] += 1
        return [
            {
                "script": script,
                "letters": count,
                "different": kinds[script],
                "documents": self.scripts.get(script, (0, []))[0],  # whose main script it is
                "examples": self.scripts.get(script, (0, []))[1],
            }
            for script, count in times.most_common()
        ]

    def _count_markup(self, documents: int, names: list[str]) -> None:
        self.with_markup = [self.with_markup[0] + documents, (self.with_markup[1] + names)[:EXAMPLES]]

    def _count_script(self, script: str, documents: int, names: list[str]) -> None:
        entry = self.scripts.setdefault(script, [0, []])
        entry[0] += documents
        entry[1] = (entry[1] + names)[:EXAMPLES] if len(entry[1]) < EXAMPLES else entry[1]


def line_shapes(text: str) -> list[str]:
    """Returns the shapes of lines with many digits, such as identifiers: the lines with `#` for each run of digits.

    Leaves out long lines, which are prose or tables.
    """
    content = text.encode(errors="replace").translate(_DIGITS_TO_NUL)  # bytes: fast in any script
    lines, stop = [], 0
    while match := _DIGITS.search(content, stop):
        start = content.rfind(b"\n", 0, match.start()) + 1
        stop = content.find(b"\n", match.end())
        stop = len(content) if stop < 0 else stop
        if stop - start <= MAX_LINE:
            lines.append(content[start:stop].strip())
    return re.sub(rb"\0+", b"#", b"\n".join(lines)).decode().split("\n") if lines else []


def main_script(text: str) -> str:
    """Returns the script of most letters in a sample of the document's characters; "none" without letters."""
    if text.isascii():
        return "Latin"
    sampled = text[:: max(1, len(text) // SCRIPT_SAMPLE)]
    counts = Counter(characters.script_of(letter) for letter in sampled if letter.isalpha())
    return counts.most_common(1)[0][0] if counts else "none"


def character_name(character: str) -> str:
    """Returns the Unicode name of a character, or a description if it has none."""
    return unicodedata.name(character, "control character" if ord(character) < 0xA0 else "unassigned or private")


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
