"""Frequent lines: counts lines in a table of bounded size, whatever the number of different lines."""

from __future__ import annotations

from collections import Counter
from heapq import nlargest
from typing import Any

import numpy as np

MAX_LINE = 160  # characters: longer lines are cut here
MIN_LINE = 10  # characters: shorter lines are not reported, since they repeat in any text
CAPACITY = 10_000  # different lines


class FrequentLines:
    """Counts of the most frequent lines (Misra and Gries 1982).

    A count is at most `missed` too small, and never too large. Tables can be merged (Agarwal et al. 2012).
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity, self.missed, self.counts = capacity, 0, Counter[str]()

    def add(self, text: str) -> None:
        self.count([line[:MAX_LINE] for line in text.split("\n")])

    def count(self, lines: list[str]) -> None:
        self.counts.update(lines)
        self.prune(5 * self.capacity)

    def merge(self, other: FrequentLines) -> None:
        self.counts.update(other.counts)
        self.missed += other.missed
        self.prune(self.capacity)

    def prune(self, limit: int) -> None:
        """If the table has more than `limit` lines, shrinks it to its capacity.

        Subtracts the count of the most frequent line that does not fit from all counts.
        """
        if len(self.counts) > limit:
            values = np.fromiter(self.counts.values(), np.int64, len(self.counts))
            smallest = int(np.partition(values, -self.capacity - 1)[-self.capacity - 1])
            self.missed += smallest
            self.counts = Counter({line: count - smallest for line, count in self.counts.items() if count > smallest})

    def most(self, number: int) -> list[dict[str, Any]]:
        """Returns the `number` repeated lines with the most bytes and number // 2 of the most frequent.

        Leading and trailing white space does not count.
        """
        together: Counter[str] = Counter()
        for line, count in self.counts.items():
            if len(stripped := line.strip()) >= MIN_LINE:
                together[stripped] += count
        rows = [(n * len(line.encode(errors="replace")), line, n) for line, n in together.items() if n > 1]
        found = {*nlargest(number, rows), *nlargest(number // 2, rows, key=lambda row: (row[2], row[1]))}
        return [{"line": line, "times": n, "bytes": n_bytes} for n_bytes, line, n in sorted(found, reverse=True)]
