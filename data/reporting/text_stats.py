"""The texture of a corpus: scripts, kinds of characters, repeated lines, traces of damage, in bounded memory."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from heapq import heappush, heappushpop, nlargest
from typing import Any

import numpy as np

from ..curation import characters

FLUSH = 1_000_000  # characters that are counted together
LINE = 160  # characters by which a line is known
SHORT_LINE = 10  # characters: shorter lines repeat anyway
LINES = 10_000  # different lines that are kept
SAMPLE = 256  # characters of a document from which its script is judged
EXAMPLES = 5
SHARES = 100  # bins of the histograms of shares
DAMAGE = (0.001, 0.01)  # traces of a wrong decoding a character: documents above these are counted
SHAPES = 2_000  # different shapes of lines that are kept
_DIGITS = re.compile(
    rb"\0" + 4 * rb"[^\0\n]{0,2}+\0"
)  # five or more close together: an identifier, a telephone, a date
_HOLES = bytes.maketrans(b"0123456789", bytes(10))
# Two patterns that begin with one character each, which is fast. Not "p <a and b> c", hardly ever.
_TAG = re.compile(
    r"</?(?i:p|br|div|a|td|tr|th|table|span|script|style|li|ul|img|font|h[1-6]|sup|sub|b|i)(?:\s[^<>]*=[^<>]*|\s*/?)>"
)
_ENTITY = re.compile(r"&(?:nbsp|amp|lt|gt|quot|#\d+);")


class FrequentLines:
    """Counts the frequent lines among any number with a table of bounded size (Misra and Gries 1982).

    A line's count is at most `missed` too small, and never too large; tables can be merged (Agarwal et al. 2012).
    """

    def __init__(self, capacity: int = LINES) -> None:
        self.capacity, self.missed, self.counts = capacity, 0, Counter[str]()

    def add(self, text: str) -> None:
        self.count([line[:LINE] for line in text.split("\n")])

    def count(self, lines: list[str]) -> None:
        self.counts.update(lines)
        self.prune(5 * self.capacity)

    def merge(self, other: FrequentLines) -> None:
        self.counts.update(other.counts)
        self.missed += other.missed
        self.prune(self.capacity)

    def prune(self, limit: int) -> None:
        """In a table over the limit, takes the count of the first line beyond the capacity from all lines: as if it
        and others had cancelled out."""
        if len(self.counts) > limit:
            values = np.fromiter(self.counts.values(), np.int64, len(self.counts))
            least = int(np.partition(values, -self.capacity - 1)[-self.capacity - 1])
            self.missed += least
            self.counts = Counter({line: count - least for line, count in self.counts.items() if count > least})

    def most(self, number: int) -> list[dict[str, Any]]:
        """The lines that take the most bytes, and half as many that are the most frequent, indented or not."""
        together: Counter[str] = Counter()
        for line, count in self.counts.items():
            if len(bare := line.strip()) >= SHORT_LINE:
                together[bare] += count
        rows = [(n * len(line.encode(errors="replace")), line, n) for line, n in together.items() if n > 1]
        found = {*nlargest(number, rows), *nlargest(number // 2, rows, key=lambda row: (row[2], row[1]))}
        return [{"line": line, "times": n, "bytes": n_bytes} for n_bytes, line, n in sorted(found, reverse=True)]


class Texture:
    """What a close look at documents shows. They are added one by one; what several processes saw is merged."""

    def __init__(self) -> None:
        self.documents = self.characters = 0
        self.counts = np.zeros(256, np.int64)  # of each character, up to the last that occurred
        self.lines = FrequentLines()
        self.shapes = FrequentLines(SHAPES)  # of lines with digits, `#` for each run of them
        self.marked_up: list[Any] = [0, []]  # documents with tags or entities of HTML, names of some
        self.shares = np.zeros((3, SHARES), np.int64)  # documents by their share of letters, digits, symbols
        self.fewest_letters: list[tuple[float, str]] = []  # heap of (minus the share, name)
        self.scripts: dict[str, list[Any]] = {}  # a document's main script -> documents, names of some
        self.damaged: list[tuple[int, str, str]] = []  # heap of (traces, name, what one of them looks like)
        self.damaged_above = np.zeros(len(DAMAGE), np.int64)  # documents
        self.damaged_documents = self.traces = self.hyphens = 0
        self._waiting: list[tuple[str, str]] = []  # name, text: not counted yet
        self._length = 0  # characters of these

    def add(self, name: str, text: str) -> None:
        self.documents += 1
        self.characters += len(text)
        self._count_script(main_script(text), 1, [name])
        if traces := characters.mojibake(text):
            self.traces += traces
            self.damaged_documents += 1
            self.damaged_above += [traces > share * len(text) for share in DAMAGE]
            keep(self.damaged, (traces, name, _around(text)))
        self.hyphens += text.count("-\n")
        self.lines.add(text)
        self.shapes.count(shapes(text))
        if ("<" in text and _TAG.search(text)) or ("&" in text and _ENTITY.search(text)):
            self._count_marked_up(1, [name])
        for start in range(0, len(text), FLUSH):
            self._waiting.append((name, text[start : start + FLUSH]))
            self._length += len(self._waiting[-1][1])
            if self._length >= FLUSH:
                self.flush()

    def flush(self) -> None:
        """Counts the characters of the documents that are waiting."""
        if not self._waiting:
            return
        points = characters.code_points("".join(text for _, text in self._waiting))
        self._count(np.bincount(points))
        kinds = characters.classes()[points]
        starts = np.cumsum([0, *(len(text) for _, text in self._waiting[:-1])])
        letters, digits, spaces = (
            np.add.reduceat(kinds == kind, starts, dtype=np.int64)
            for kind in (characters.LETTER, characters.DIGIT, characters.WHITE_SPACE)
        )
        visible = np.maximum(1, np.diff(starts, append=points.size) - spaces)
        for row, shares in zip(self.shares, (letters, digits, visible - letters - digits), strict=True):
            row += np.bincount(np.clip(shares * SHARES // visible, 0, SHARES - 1), minlength=SHARES)
        few = np.argsort(letters / visible, kind="stable")[:EXAMPLES].tolist()
        for number in few:
            keep(self.fewest_letters, (-float(letters[number] / visible[number]), self._waiting[number][0]))
        self._waiting, self._length = [], 0

    def merge(self, other: Texture) -> None:
        self.flush()
        other.flush()
        for name in ("documents", "characters", "damaged_documents", "traces", "hyphens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for script, (documents, names) in other.scripts.items():
            self._count_script(script, documents, names)
        for damage in other.damaged:
            keep(self.damaged, damage)
        for few in other.fewest_letters:
            keep(self.fewest_letters, few)
        self.shares += other.shares
        self.damaged_above += other.damaged_above
        self._count_marked_up(*other.marked_up)
        self._count(other.counts)
        self.lines.merge(other.lines)
        self.shapes.merge(other.shapes)

    def _count(self, times: np.ndarray) -> None:
        """Adds how often each character occurred, by code point."""
        if times.size > self.counts.size:
            self.counts = np.pad(self.counts, (0, times.size - self.counts.size))
        self.counts[: times.size] += times

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        present = np.flatnonzero(self.counts)  # of a million code points a text has a few thousand at most
        return self.__dict__ | {"counts": (self.counts.size, present, self.counts[present])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        size, present, counts = state["counts"]
        self.__dict__.update(state | {"counts": np.zeros(size, np.int64)})
        self.counts[present] = counts

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, lists and strings."""
        self.flush()
        self._count(np.zeros(0x110000, np.int64))  # all there are
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
                "above": dict(zip(map(str, DAMAGE), self.damaged_above.tolist(), strict=True)),
                "examples": [
                    {"name": name, "traces": traces, "text": text}
                    for traces, name, text in sorted(self.damaged, reverse=True)
                ],
            },
            "high_controls": int(self.counts[0x80:0xA0].sum()),
            "markup": dict(zip(("documents", "examples"), self.marked_up, strict=True)),
            "hyphens": self.hyphens,
            "lines": self.lines.most(12),
            "lines_missed": self.lines.missed,
            "shapes": self._shapes(),
        }

    def _unusual(self) -> list[dict[str, Any]]:
        """The most frequent of the characters that one does not see, or that stand for lost ones."""
        strange = np.isin(characters.classes(), (characters.CONTROL, characters.INVISIBLE))
        strange[0xFFFD] = True
        counts = np.where(strange, self.counts, 0)
        return [
            {"code": f"U+{point:04X}", "name": character_name(chr(point)), "times": int(counts[point])}
            for point in np.argsort(-counts, kind="stable")[:8].tolist()
            if counts[point]
        ]

    def _shapes(self) -> list[dict[str, Any]]:
        """The most frequent shapes of lines with words, but for those that are mostly one line again and again."""
        same: Counter[str] = Counter()
        for line, times in self.lines.counts.items():
            for shape in shapes(line):
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
                "documents": self.scripts.get(script, (0, []))[0],  # those of which it is the main script
                "examples": self.scripts.get(script, (0, []))[1],
            }
            for script, count in times.most_common()
        ]

    def _count_marked_up(self, documents: int, names: list[str]) -> None:
        self.marked_up = [self.marked_up[0] + documents, (self.marked_up[1] + names)[:EXAMPLES]]

    def _count_script(self, script: str, documents: int, names: list[str]) -> None:
        entry = self.scripts.setdefault(script, [0, []])
        entry[0] += documents
        entry[1] = (entry[1] + names)[:EXAMPLES] if len(entry[1]) < EXAMPLES else entry[1]


def shapes(text: str) -> list[str]:
    """The lines with digits like an identifier's, `#` for each run; without long lines, which are prose or tables."""
    content = text.encode(errors="replace").translate(_HOLES)  # of bytes, for that is fast in any script
    lines, stop = [], 0
    while match := _DIGITS.search(content, stop):
        start = content.rfind(b"\n", 0, match.start()) + 1
        stop = content.find(b"\n", match.end())
        stop = len(content) if stop < 0 else stop
        if stop - start <= LINE:
            lines.append(content[start:stop].strip())
    return re.sub(rb"\0+", b"#", b"\n".join(lines)).decode().split("\n") if lines else []


def main_script(text: str) -> str:
    """The script of most of a document's letters, judged by some of its characters; "none" without letters there."""
    if text.isascii():
        return "Latin"
    some = text[:: max(1, len(text) // SAMPLE)]
    counts = Counter(characters.script_of(letter) for letter in some if letter.isalpha())
    return counts.most_common(1)[0][0] if counts else "none"


def character_name(character: str) -> str:
    """Unicode's name of a character, or what it is where it has none."""
    return unicodedata.name(character, "control character" if ord(character) < 0xA0 else "unassigned or private")


def _around(text: str) -> str:
    """The first trace of damage with what stands around it."""
    match = characters.MOJIBAKE.search(text)
    return " ".join(text[max(0, match.start() - 20) : match.end() + 20].split()) if match else ""


def keep(heap: list[Any], item: tuple[Any, ...]) -> None:
    """Keeps the largest few items."""
    if len(heap) < EXAMPLES:
        heappush(heap, item)
    else:
        heappushpop(heap, item)
