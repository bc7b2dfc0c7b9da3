"""What a text copies: its maximal verbatim spans in the training text, rare ones apart, beside those of human text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..preparation.shards import Split
from .accuracy import ratio_interval
from .suffix_array import Index

MOST_SOURCES = 3  # documents named per span


@dataclass(frozen=True)
class Span:
    """A run of ids of a text that occurs in the corpus, and does not if it is extended to either side."""

    start: int  # first token in the text
    length: int  # tokens
    count: int  # occurrences in the corpus
    sources: list[str]  # documents of the first occurrences
    positions: list[int]  # token positions of these in the training split


@dataclass(frozen=True)
class Copied:
    """The spans of one text with at least `min_tokens` tokens, the longest first."""

    tokens: int
    spans: list[Span]
    longest: int  # tokens of the longest run that occurs in the corpus, however short
    covered: int  # tokens inside spans
    rare: int  # tokens inside spans that occur at most `rare_count` times


def maximal_spans(lengths: np.ndarray, *, min_tokens: int) -> list[tuple[int, int]]:
    """lengths (m,): of the longest match from each position -> (start, length) of the maximal ones.

    A match can be extended to the left exactly if the one before reaches as far.
    """
    ends = np.arange(len(lengths)) + lengths
    before = np.concatenate(([-1], ends[:-1]))
    starts = np.flatnonzero((lengths >= max(1, min_tokens)) & (ends > before))
    return [(int(start), int(lengths[start])) for start in starts]


def find_copies(
    index: Index, text: np.ndarray, split: Split | None = None, *, min_tokens: int = 8, rare_count: int = 2
) -> Copied:
    """text (m,): ids, without end tokens. split: names the documents; the index is over its first tokens.

    Every reported occurrence was compared with the text id by id.
    """
    lengths = index.match_lengths(text)
    spans, covered, rare = [], np.zeros(len(text), bool), np.zeros(len(text), bool)
    for start, length in maximal_spans(lengths, min_tokens=min_tokens):
        run = text[start : start + length]
        places = index.places(run)
        for place in places[:MOST_SOURCES]:
            assert np.array_equal(index.ids[place : place + length], run), (start, length)
        covered[start : start + length] = True
        rare[start : start + length] |= len(places) <= rare_count
        positions = places[:MOST_SOURCES].tolist()
        names = list(dict.fromkeys(split.document_at(place) for place in positions)) if split else []
        spans.append(Span(start, length, len(places), names, positions))
    spans.sort(key=lambda span: (-span.length, span.count, span.start))
    return Copied(len(text), spans, int(lengths.max(initial=0)), int(covered.sum()), int(rare.sum()))


def held_out_windows(split: Split, sizes: Sequence[int]) -> list[np.ndarray]:
    """Returns runs of the split's tokens of these sizes, spread evenly over it, none with an end token in it.

    Fewer or shorter ones if the documents are too short: a run ends with its document.
    """
    starts = split.document_offsets
    ends = np.append(starts[1:], split.n_tokens) - 1  # of the documents, at their end tokens
    room = np.maximum(ends - starts, 0)
    found = []
    for number, size in enumerate(sizes):
        if not room.sum():
            break
        long_enough = np.where(room >= size, room, 0)
        weights = np.cumsum(long_enough if long_enough.any() else room)  # documents by their length
        target = (number + 0.5) / len(sizes) * weights[-1]
        document = int(np.searchsorted(weights, target, side="right"))
        inside = int(target - (weights[document - 1] if document else 0))
        start = int(starts[document]) + max(0, min(inside, int(room[document]) - size))
        found.append(np.asarray(split.tokens[start : min(start + size, int(ends[document]))]))
    return found


def statistics(copied: Sequence[Copied], *, seed: int = 1) -> dict[str, Any]:
    """Returns the figures of several texts together: shares of tokens with 95 % intervals over texts.

    `longest` is the mean over texts of the longest run: with equal sizes it can be compared between authors.
    """
    tokens = np.array([one.tokens for one in copied])
    figures: dict[str, Any] = {"texts": len(copied), "tokens": int(tokens.sum())}
    for name in ("covered", "rare"):
        inside = np.array([getattr(one, name) for one in copied])
        low, high = ratio_interval(inside, tokens, seed=seed) if len(copied) > 1 else (None, None)
        figures[name] = {"share": float(inside.sum() / max(1, tokens.sum())), "low": low, "high": high}
    figures["longest"] = max((one.longest for one in copied), default=0)
    figures["mean_longest"] = float(np.mean([one.longest for one in copied])) if copied else 0.0
    figures["spans"] = sum(len(one.spans) for one in copied)
    return figures


def compared(texts: Sequence[Copied], human: Sequence[Copied], *, seed: int = 1) -> dict[str, dict[str, float]]:
    """Returns how much larger each share is in `texts` than in `human`, with 95 % bootstrap intervals.

    The texts of each side are resampled on their own.
    """
    random, differences = np.random.default_rng(seed), {}
    for name in ("covered", "rare"):
        sides = []
        for side in (texts, human):
            inside, tokens = (np.array([getattr(one, key) for one in side]) for key in (name, "tokens"))
            drawn = random.integers(len(side), size=(2000, len(side)))
            sides.append((inside.sum() / tokens.sum(), inside[drawn].sum(1) / np.maximum(1, tokens[drawn].sum(1))))
        (a, resampled_a), (b, resampled_b) = sides
        low, high = np.quantile(resampled_a - resampled_b, [0.025, 0.975])
        differences[name] = {"difference": float(a - b), "low": float(low), "high": float(high)}
    return differences
