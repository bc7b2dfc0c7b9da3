"""Merges as other programs list them, and the proof that ranks give the same ids.

There, a vocabulary has a list of pairs, and only a listed pair is merged, the first of the list first. Here, any two
neighbours merge if their bytes together are a token, the token of the lowest rank first (data/tokenizers/bpe.py). Both
are the same if the list is what training gives: then the tokens of a part of a text, once both its borders are borders
of tokens, depend on that part alone. So a token can only come from the two tokens that its own bytes lead to, and if
the list has this pair, at the token's place, both ways merge it at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise

Pair = tuple[str, str]  # texts in which a character stands for a byte
MOST_WORK = 300_000_000  # of the proof: the sum of the squares of the tokens' lengths


def encode_by_list(word: str, places: Mapping[Pair, int], *, stop_at: int = 1) -> list[str]:
    """Merges a word by the definition, one pair at a time, until `stop_at` parts are left or no pair is listed.

    places: the place of each pair in the list. Slow; the import compares with it.
    """
    parts = list(word)
    while len(parts) > stop_at:
        found = [places.get(pair, math.inf) for pair in pairwise(parts)]
        place = min(found)
        if place == math.inf:
            break
        at = found.index(place)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def needed_pairs(tokens: Iterable[str]) -> tuple[list[Pair], list[str]]:
    """Returns the one pair that merges into each token of more than one byte, and the tokens that have none.

    tokens: in the order of their ranks. A token has none if its bytes lead to other tokens: no text contains it, except
    as a whole pretoken.
    """
    places: dict[Pair, int] = {}
    unreachable = []
    for token in tokens:
        if len(token) > 1:
            parts = encode_by_list(token, places, stop_at=2)
            if len(parts) == 2:
                places[parts[0], parts[1]] = len(places)
            else:
                unreachable.append(token)
    return list(places), unreachable


def why_not_ranks(merges: list[Pair], ids: Mapping[str, int]) -> str | None:
    """Returns why ranks might give other ids than this list, or None if they give the same for every text."""
    first: dict[str, int] = {}
    for place, (left, right) in enumerate(merges):
        first.setdefault(left + right, place)
    if sum(len(token) ** 2 for token in first) > MOST_WORK:
        return "the tokens are too long to check"
    in_order = sorted(first, key=ids.__getitem__)
    if in_order != list(first):
        wrong = next(token for token, other in zip(first, in_order, strict=True) if token != other)
        return f"{wrong[:40]!r} has another place among the merges than among the ids"
    pairs, unreachable = needed_pairs(in_order)
    if unreachable:
        return f"the merges do not lead to {unreachable[0][:40]!r}"
    listed = {pair: place for place, pair in enumerate(merges)}
    borders = [*first.values(), len(merges)]
    for (left, right), (start, stop) in zip(pairs, pairwise(borders), strict=True):
        if not start <= listed.get((left, right), -1) < stop:
            return f"the merge of {left[:40]!r} and {right[:40]!r} is missing, or has another place than its token"
    return None
