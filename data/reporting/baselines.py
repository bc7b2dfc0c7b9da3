"""Baselines: the loss of models that only count tokens, and the size of compressed text, to compare a network with."""

from __future__ import annotations

import lzma
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..tokenizers.build import Tokenizer

MAX_TOKENS = 4_000_000  # of a split that are counted
REPORT_TOKENS = 300_000  # of a split that the report's baselines use
PIECES = 64  # that a sample of a split consists of
MAX_BYTES = 400_000  # of text to compress: xz takes about a fifth of a second for them
VERBATIM_BYTES, VERBATIM_PIECES = 200, 400  # length and number of the validation passages to look for in training text


class TokenStream(Protocol):
    """The tokens of one split, such as preparation/shards.py's Split."""

    @property
    def n_tokens(self) -> int: ...

    @property
    def tokens(self) -> Any: ...  # a slice of it is an array of ids


def baseline_losses(train: TokenStream, val: TokenStream | None, *, vocab_size: int) -> dict[str, float]:
    """Returns losses in nats/token of three models, counted on `train` and scored on `val` (None: on `train` itself).

    uniform: all tokens equally likely, ln V. unigram: relative frequencies, with one added to each count. bigram:
    frequencies after the previous token, interpolated with the unigram (Witten and Bell 1991).
    """
    pieces = sample(train, max_tokens=MAX_TOKENS)
    targets = pieces if val is None else sample(val, max_tokens=MAX_TOKENS)
    return {"uniform": math.log(vocab_size)} | counting_losses(pieces, targets, vocab_size=vocab_size)


def counting_losses(
    pieces: Sequence[np.ndarray], targets: Sequence[np.ndarray], *, vocab_size: int
) -> dict[str, float]:
    """Returns the losses of `unigram` and `bigram`, counted on `pieces` and scored on `targets`: lists of ids (n,)."""
    counts = np.bincount(np.concatenate(pieces), minlength=vocab_size) + 1
    unigram = counts / counts.sum()
    pairs, pair_counts = np.unique(_pairs(pieces, vocab_size), return_counts=True)
    firsts = pairs // vocab_size
    n_followers = np.bincount(firsts, weights=pair_counts, minlength=vocab_size)
    n_different = np.bincount(firsts, minlength=vocab_size)  # different followers

    scored = _pairs(targets, vocab_size)
    index = np.minimum(np.searchsorted(pairs, scored), len(pairs) - 1)
    times = np.where(pairs[index] == scored, pair_counts[index], 0)
    first, second = scored // vocab_size, scored % vocab_size
    total = n_followers[first] + n_different[first]
    interpolated = (times + n_different[first] * unigram[second]) / np.maximum(total, 1)
    bigram = np.where(total > 0, interpolated, unigram[second])
    return {"unigram": float(-np.log(unigram[second]).mean()), "bigram": float(-np.log(bigram).mean())}


def sample(split: TokenStream, *, max_tokens: int) -> list[np.ndarray]:
    """Returns a split's ids, or PIECES evenly spaced pieces if it has more than max_tokens."""
    if split.n_tokens <= max_tokens:
        return [split.tokens[:].astype(np.int64)]
    length = max_tokens // PIECES
    starts = np.linspace(0, split.n_tokens - length, PIECES).astype(int).tolist()
    return [split.tokens[start : start + length].astype(np.int64) for start in starts]


def _pairs(pieces: Sequence[np.ndarray], vocab_size: int) -> np.ndarray:
    """Returns each pair of adjacent ids in the pieces as one number, (n,)."""
    return np.concatenate([piece[:-1] * vocab_size + piece[1:] for piece in pieces])


def corpus_baselines(
    train: Sequence[np.ndarray], val: Sequence[np.ndarray] | None, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Returns baselines in bits/byte for samples of the training and the validation tokens: lists of ids (n,).

    xz: compressed training text. xz_val: compressed validation text. xz_val_after: the bits that validation text adds
    when it is compressed after training text. unigram, bigram: see baseline_losses(). val_verbatim: see verbatim().
    """
    train_text, val_text = (
        b"".join(tokenizer.decode_bytes(piece[piece != tokenizer.end_id]) for piece in pieces)
        for pieces in (train, val or [])
    )
    targets, n_bytes = (train, len(train_text)) if val is None else (val, len(val_text))
    losses = counting_losses(train, targets, vocab_size=tokenizer.vocab_size)
    to_bits_per_byte = max(1, sum(piece.size - 1 for piece in targets)) / max(1, n_bytes) / math.log(2)
    found: dict[str, Any] = {name: loss * to_bits_per_byte for name, loss in losses.items()}
    first, held_out = train_text[:MAX_BYTES], val_text[: MAX_BYTES // 4]
    found |= {"train_bytes": len(train_text), "val_bytes": len(val_text), "compressed_bytes": len(first)}
    train_size = _xz_size(first)
    found["xz"] = 8 * train_size / max(1, len(first))
    if held_out:
        found["xz_val"] = 8 * _xz_size(held_out) / len(held_out)
        found["xz_val_after"] = 8 * (_xz_size(first + held_out) - train_size) / len(held_out)
        found["val_verbatim"] = verbatim(val_text, train_text)
    return found


def verbatim(text: bytes, other: bytes) -> float:
    """Returns the fraction of evenly spaced passages of `text`, each of VERBATIM_BYTES, that `other` contains too."""
    starts = np.linspace(0, max(0, len(text) - VERBATIM_BYTES), VERBATIM_PIECES).astype(int).tolist()
    return sum(text[start : start + VERBATIM_BYTES] in other for start in starts) / VERBATIM_PIECES


def _xz_size(content: bytes) -> int:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 22}]  # 4 MiB: covers all of the text
    return len(lzma.compress(content, filters=filters))
