"""Reference losses: what simple models that only count would reach on a corpus, to hold a network's loss against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class TokenStream(Protocol):
    """The tokens of one split; those of data/preparation/shards.py are such."""

    @property
    def n_tokens(self) -> int: ...

    @property
    def tokens(self) -> Any: ...  # sliced, it gives an array of ids


MOST = 4_000_000  # tokens to count; of a larger split as many pieces as there are in PIECES, spread over it evenly
PIECES = 64


def reference_losses(train: TokenStream, val: TokenStream | None, *, vocab_size: int) -> dict[str, float]:
    """Losses in nats/token of three models counted on `train` and scored on `val` (None: on `train` itself).

    uniform: every token alike, ln V. unigram: each token's share of the text, one added to each count. bigram: given
    the token before, mixed with the unigram as far as that token's followers vary (Witten and Bell 1991).
    """
    pieces = sample(train)
    losses = counted_losses(pieces, pieces if val is None else sample(val), vocab_size=vocab_size)
    return {"uniform": math.log(vocab_size)} | losses


def counted_losses(pieces: Sequence[np.ndarray], targets: Sequence[np.ndarray], *, vocab_size: int) -> dict[str, float]:
    """The losses of `unigram` and `bigram`, counted on some pieces of a token stream (int64) and scored on others."""
    counts = np.bincount(np.concatenate(pieces), minlength=vocab_size) + 1
    unigram = counts / counts.sum()
    pairs, seen = np.unique(np.concatenate([pair_ids(piece, vocab_size) for piece in pieces]), return_counts=True)
    before = pairs // vocab_size
    followed = np.bincount(before, weights=seen, minlength=vocab_size)  # how often each token has a follower
    kinds = np.bincount(before, minlength=vocab_size)  # and how many different ones

    asked = np.concatenate([pair_ids(piece, vocab_size) for piece in targets])
    place = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
    times = np.where(pairs[place] == asked, seen[place], 0)
    first, second = asked // vocab_size, asked % vocab_size
    total = followed[first] + kinds[first]
    bigram = np.where(total > 0, (times + kinds[first] * unigram[second]) / np.maximum(total, 1), unigram[second])
    return {
        "unigram": float(-np.log(unigram[second]).mean()),
        "bigram": float(-np.log(bigram).mean()),
    }


def sample(split: TokenStream, *, most: int | None = None) -> list[np.ndarray]:
    """The tokens of a split in pieces; of one with more than `most` (None: MOST) an even part."""
    most = most or MOST
    if split.n_tokens <= most:
        return [split.tokens[:].astype(np.int64)]
    starts = np.linspace(0, split.n_tokens - most // PIECES, PIECES).astype(int).tolist()
    return [split.tokens[start : start + most // PIECES].astype(np.int64) for start in starts]


def pair_ids(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Each pair of neighbours as one number."""
    return ids[:-1] * vocab_size + ids[1:]
