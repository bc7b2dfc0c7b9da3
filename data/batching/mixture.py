"""Mixtures: which part of a corpus each row of the endless row of batches comes from, in exact shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any


def whole_numbers(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in the same ratio, decimals taken as they are written: [0.3, 0.1] -> [3, 1]."""
    fractions = [Fraction(repr(weight)) for weight in weights]
    unit = Fraction(math.gcd(*(f.numerator for f in fractions)), math.lcm(*(f.denominator for f in fractions)))
    return [int(fraction / unit) for fraction in fractions]


def interleave(row: int, weights: Sequence[int]) -> tuple[int, int]:
    """(the part that a row comes from, how many rows of that part came before it), rows counted from 0.

    Nothing is drawn: the parts take turns as evenly as whole rows can. The first part gets its share of the rows, the
    second its share of what that leaves, and so on; each time a row is due when the share of the rows up to it passes
    a whole number. After any multiple of sum(weights) rows the shares are exact, before it within a few rows.
    """
    total = sum(weights)
    for part, weight in enumerate(weights):
        before, after = row * weight // total, (row + 1) * weight // total
        if after > before:
            return part, before
        row, total = row - before, total - weight
    raise AssertionError("the last part takes what is left")


def shares(rows: int, weights: Sequence[int]) -> list[int]:
    """How many of the first `rows` rows come from each part."""
    total, counts = sum(weights), []
    for weight in weights:
        counts.append(rows * weight // total)
        rows, total = rows - counts[-1], total - weight
    return counts


def validate(weights: Any, corpus: Any) -> list[str]:
    """What is wrong with `weights`, the setting, for this corpus, one line each."""
    if weights is None:
        return []
    sources = corpus if isinstance(corpus, list) else [corpus]
    if not isinstance(weights, list) or len(weights) != len(sources):
        given = f"{len(weights)} numbers" if isinstance(weights, list) else "no list"
        return [
            f"mixture_weights={weights} is {given} for {len(sources)} sources; give one for each: corpus=[a,b] mixture_weights=[3,1]"
        ]
    numbers = [isinstance(weight, (int, float)) and 0 < weight < math.inf for weight in weights]
    return [] if all(numbers) else [f"mixture_weights={weights}: each must be a number above 0"]
