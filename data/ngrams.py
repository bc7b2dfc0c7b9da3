"""Counts of n-grams, interpolated: the distribution of the next token behind each context that a text has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .references import sample
from .shards import Split

TOKENS_PER_CONTEXT = 64  # a length of context is used only where the text has so many tokens for each, on average
MOST_BYTES = 64 * 2**20  # of all distributions together


@dataclass(frozen=True)
class NGrams:
    """Distributions of the next token, a row for each context of 0 to `length` tokens.

    A context is a number whose digits in base V are a 1 and then its tokens, the newest first. So the contexts of all
    lengths differ, dropping the oldest token is a division by V, and 1 is the empty context, always the first row.
    """

    length: int
    tokens: int  # that were counted
    keys: np.ndarray  # (contexts,) int64, rising
    log_p: np.ndarray  # (contexts, V) float16: off by at most 1 part in 256, and half the size


def count(split: Split, *, vocab_size: int, length: int) -> NGrams | None:
    """Counts contexts of up to `length` tokens; None where not even one token of context is worth counting.

    Each distribution is mixed with that of the context without its oldest token, the empty one's with the uniform, as
    far as the followers vary (Witten and Bell 1991): with c of n followers being w, of k kinds,
    p(w) = (c + k * p_shorter(w)) / (n + k). Of a large split an even part is counted, as for the reference losses. A
    length is left out, and so are longer ones, where TOKENS_PER_CONTEXT or MOST_BYTES speaks against it.
    """
    pieces = sample(split)
    tokens = sum(map(len, pieces))
    befores = [np.ones(len(piece), np.int64) for piece in pieces]  # of each token the context that it follows
    keys, tables = [np.array([0])], [np.full((1, vocab_size), 1 / vocab_size, np.float32)]  # what nothing says
    for size in range(length + 1):
        if 2 * vocab_size ** (size + 1) >= 2**63:  # no room for a context and its follower in one number
            break
        if size:
            befores = [
                before[1:] * vocab_size + piece[: max(0, len(before) - 1)]
                for before, piece in zip(befores, pieces, strict=True)
            ]
        pairs = [before * vocab_size + piece[size:] for before, piece in zip(befores, pieces, strict=True)]
        grams, times = np.unique(np.concatenate(pairs), return_counts=True)
        contexts, row = np.unique(grams // vocab_size, return_inverse=True)
        rows = sum(map(len, keys)) + len(contexts)
        if not 0 < TOKENS_PER_CONTEXT * len(contexts) <= tokens or 2 * vocab_size * rows > MOST_BYTES:
            break
        kinds = np.bincount(row)
        total = np.bincount(row, weights=times) + kinds
        shorter = np.searchsorted(keys[-1], contexts // vocab_size)
        table = tables[-1][shorter] * (kinds / total).astype(np.float32)[:, None]
        table[row, grams % vocab_size] += (times / total[row]).astype(np.float32)
        keys.append(contexts)
        tables.append(table)
    longest = len(keys) - 2
    if longest < 1:
        return None
    return NGrams(longest, tokens, np.concatenate(keys[1:]), np.log(np.concatenate(tables[1:])).astype(np.float16))
