"""Mixtures: the part of the corpus that each row of the endless sequence of rows comes from, in exact proportions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any


def whole_numbers(weights: Sequence[float]) -> list[int]:
    """Returns the smallest integers in the same ratio. Decimals are taken as written: [0.3, 0.1] -> [3, 1]."""
    fractions = [Fraction(repr(weight)) for weight in weights]
    unit = Fraction(math.gcd(*(f.numerator for f in fractions)), math.lcm(*(f.denominator for f in fractions)))
    return [int(fraction / unit) for fraction in fractions]


def rows_per_part(rows: int, weights: Sequence[int]) -> list[int]:
    """Returns how many of the first `rows` rows come from each part.

    Part 0 gets its proportion, rows * weight // total, part 1 its proportion of the rows that remain, and so on. After
    every multiple of sum(weights) rows the proportions are exact; in between they are off by a few rows at most.
    """
    total, counts = sum(weights), []
    for weight in weights:
        counts.append(rows * weight // total)
        rows, total = rows - counts[-1], total - weight
    return counts


def interleave(row: int, weights: Sequence[int]) -> tuple[int, int]:
    """Returns (part that a row comes from, number of earlier rows from that part). Rows are counted from 0.

    Deterministic: the parts take turns as evenly as possible. With weights [3, 1] they are 1, 0, 0, 0, 1, 0, 0, 0, ...
    """
    before, after = rows_per_part(row, weights), rows_per_part(row + 1, weights)
    part = next(part for part, count in enumerate(before) if after[part] > count)
    return part, before[part]


def validate(weights: Any, corpus: Any) -> list[str]:
    """Returns the errors in the setting mixture_weights for this corpus, one line each."""
    if weights is None:
        return []
    n_sources = len(corpus) if isinstance(corpus, list) else 1
    if not isinstance(weights, list) or len(weights) != n_sources:
        given = f"{len(weights)} numbers" if isinstance(weights, list) else "not a list"
        example = "give one number per source: corpus=[a,b] mixture_weights=[3,1]"
        return [f"mixture_weights={weights} is {given} for {n_sources} sources; {example}"]
    are_numbers = [isinstance(weight, (int, float)) and 0 < weight < math.inf for weight in weights]
    return [] if all(are_numbers) else [f"mixture_weights={weights}: each must be a number above 0"]
