"""Baselines: the loss of models that only count tokens, and the size of compressed text, to compare a network with."""

from __future__ import annotations

import gzip
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
    losses = ngram_losses(pieces, targets, vocab_size=vocab_size, order=2)
    return dict(zip(("unigram", "bigram"), losses, strict=True))


def ngram_losses(
    pieces: Sequence[np.ndarray], targets: Sequence[np.ndarray], *, vocab_size: int, order: int
) -> list[float]:
    """Returns the losses, nats/token, of models that read 0 to order - 1 previous tokens.

    Counted on `pieces` and scored on `targets`, lists of ids (n,), without the first token of each. Every model is
    interpolated with the one before it (Witten and Bell 1991); the first one adds one to each count.
    """
    ids, scored = np.concatenate(pieces), np.concatenate(targets)
    inside, wanted = _follows(pieces), _follows(targets)
    counts = np.bincount(ids, minlength=vocab_size) + 1
    p = (counts / counts.sum())[scored]  # of each token to score
    losses = [float(-np.log(p[wanted]).mean())]
    # The number of the context that ends at each token, or -1 if training text does not have it.
    context, other = ids, scored
    for length in range(1, order):
        before, other_before = (np.append(-1, numbers[:-1]) for numbers in (context, other))
        before[~inside] = other_before[~wanted] = -1
        grams, at, times = np.unique(before * vocab_size + ids, return_inverse=True, return_counts=True)
        known = grams >= 0
        n_contexts = int(max(before.max(initial=0), other_before.max(initial=0))) + 1
        total = np.bincount(grams[known] // vocab_size, weights=times[known], minlength=n_contexts)
        different = np.bincount(grams[known] // vocab_size, minlength=n_contexts)  # different followers

        key = other_before * vocab_size + scored
        place = np.minimum(np.searchsorted(grams, key), len(grams) - 1)
        seen = (grams[place] == key) & (other_before >= 0)
        all_of, kinds = (np.where(other_before >= 0, sums[other_before], 0) for sums in (total, different))
        mixed = (np.where(seen, times[place], 0) + kinds * p) / np.maximum(all_of + kinds, 1)
        p = np.where(all_of > 0, mixed, p)
        losses.append(float(-np.log(p[wanted]).mean()))
        if length + 1 < order:
            context, other = np.where(before >= 0, at, -1), np.where(seen, place, -1)
    return losses


def _follows(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Returns whether each token of the pieces follows another one of its piece, (n,) bool."""
    found = np.ones(sum(map(len, pieces)), bool)
    found[np.cumsum([0, *(len(piece) for piece in pieces if len(piece))])[:-1]] = False
    return found


def sample(split: TokenStream, *, max_tokens: int) -> list[np.ndarray]:
    """Returns a split's ids, or PIECES evenly spaced pieces if it has more than max_tokens."""
    if split.n_tokens <= max_tokens:
        return [split.tokens[:].astype(np.int64)]
    length = max_tokens // PIECES
    starts = np.linspace(0, split.n_tokens - length, PIECES).astype(int).tolist()
    return [split.tokens[start : start + length].astype(np.int64) for start in starts]


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
    train_size = xz_size(first)
    found["xz"] = 8 * train_size / max(1, len(first))
    if held_out:
        found["xz_val"] = 8 * xz_size(held_out) / len(held_out)
        found["xz_val_after"] = 8 * (xz_size(first + held_out) - train_size) / len(held_out)
        found["val_verbatim"] = verbatim(val_text, train_text)
    return found


def verbatim(text: bytes, other: bytes) -> float:
    """Returns the fraction of evenly spaced passages of `text`, each of VERBATIM_BYTES, that `other` contains too."""
    starts = np.linspace(0, max(0, len(text) - VERBATIM_BYTES), VERBATIM_PIECES).astype(int).tolist()
    return sum(text[start : start + VERBATIM_BYTES] in other for start in starts) / VERBATIM_PIECES


def xz_size(content: bytes, *, preset: int = 6) -> int:
    """Returns the size after xz, with a dictionary as large as the content, from 4 MiB to 1 GiB."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": min(max(len(content), 1 << 22), 1 << 30)}]
    return len(lzma.compress(content, filters=filters))


def text_baselines(text: bytes) -> dict[str, float]:
    """Returns the bits/byte of a text after gzip -9 and after xz -9e, each of the text alone."""
    sizes = {"gzip -9": len(gzip.compress(text, 9)), "xz -9e": xz_size(text, preset=9 | lzma.PRESET_EXTREME)}
    return {name: 8 * size / max(1, len(text)) for name, size in sizes.items()}
