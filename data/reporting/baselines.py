"""Baselines: the loss of models that only count tokens, and the size of compressed text, to compare a network with."""

from __future__ import annotations

import gzip
import lzma
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import regex

from ..tokenizers.build import Tokenizer

MAX_TOKENS = 4_000_000  # of a split that are counted
REPORT_TOKENS = 300_000  # of a split that the report's baselines use
PIECES = 64  # that a sample of a split consists of
MAX_BYTES = 400_000  # of text to compress: xz takes about a fifth of a second for them
VERBATIM_BYTES, VERBATIM_PIECES = 200, 400  # length and number of the validation passages to look for in training text
_WORD = regex.compile(r"[\p{L}\p{M}]+")


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
    pieces = sample(train)
    losses = counting_losses(pieces, pieces if val is None else sample(val), vocab_size=vocab_size)
    return {"uniform": math.log(vocab_size)} | losses


def counting_losses(
    pieces: Sequence[np.ndarray], targets: Sequence[np.ndarray], *, vocab_size: int
) -> dict[str, float]:
    """Returns the losses of `unigram` and `bigram`, counted on `pieces` and scored on `targets`: lists of ids (n,)."""
    counts = np.bincount(np.concatenate(pieces), minlength=vocab_size) + 1
    unigram = counts / counts.sum()
    counted = np.concatenate([pair_ids(piece, vocab_size) for piece in pieces])
    pairs, pair_counts = np.unique(counted, return_counts=True)
    firsts = pairs // vocab_size
    n_followers = np.bincount(firsts, weights=pair_counts, minlength=vocab_size)
    n_different = np.bincount(firsts, minlength=vocab_size)  # different followers

    scored = np.concatenate([pair_ids(piece, vocab_size) for piece in targets])
    index = np.minimum(np.searchsorted(pairs, scored), len(pairs) - 1)
    times = np.where(pairs[index] == scored, pair_counts[index], 0)
    first, second = scored // vocab_size, scored % vocab_size
    total = n_followers[first] + n_different[first]
    interpolated = (times + n_different[first] * unigram[second]) / np.maximum(total, 1)
    bigram = np.where(total > 0, interpolated, unigram[second])
    return {
        "unigram": float(-np.log(unigram[second]).mean()),
        "bigram": float(-np.log(bigram).mean()),
    }


def sample(split: TokenStream, *, max_tokens: int | None = None) -> list[np.ndarray]:
    """Returns a split's ids, or PIECES evenly spaced pieces if it has more than max_tokens (None: MAX_TOKENS)."""
    max_tokens = max_tokens or MAX_TOKENS
    if split.n_tokens <= max_tokens:
        return [split.tokens[:].astype(np.int64)]
    length = max_tokens // PIECES
    starts = np.linspace(0, split.n_tokens - length, PIECES).astype(int).tolist()
    return [split.tokens[start : start + length].astype(np.int64) for start in starts]


def pair_ids(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Returns each pair of adjacent ids as one number, (n - 1,)."""
    return ids[:-1] * vocab_size + ids[1:]


def corpus_baselines(
    train: Sequence[np.ndarray], val: Sequence[np.ndarray] | None, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Returns baselines in bits/byte for samples of the training and the validation tokens: lists of ids (n,).

    gzip, xz: compressed training text. xz_val: compressed validation text. xz_val_after: the bits that validation text
    adds when it is compressed after training text. unigram, bigram: see baseline_losses(). Also `val_verbatim`: see
    verbatim(); and `word_tokens`: the number of tokens that are whole words of the text.
    """
    train_text, val_text = (_text(pieces, tokenizer) for pieces in (train, val or []))
    first, held_out = train_text[:MAX_BYTES], val_text[: MAX_BYTES // 4]
    with ThreadPoolExecutor() as threads:  # compressors release the interpreter lock
        gzipped = threads.submit(gzip.compress, first, 9)
        sizes = threads.map(_xz_size, (first, held_out, first + held_out))
        targets, n_bytes = (train, len(train_text)) if val is None else (val, len(val_text))
        losses = counting_losses(train, targets, vocab_size=tokenizer.vocab_size)
    to_bits_per_byte = max(1, sum(piece.size - 1 for piece in targets)) / max(1, n_bytes) / math.log(2)
    found: dict[str, Any] = {"train_bytes": len(train_text), "val_bytes": len(val_text)}
    found |= {name: losses[name] * to_bits_per_byte for name in ("unigram", "bigram")}
    found |= {"compressed_bytes": min(len(train_text), MAX_BYTES)}
    train_size, val_size, both_size = sizes
    found["gzip"] = 8 * len(gzipped.result()) / max(1, len(first))
    found["xz"] = 8 * train_size / max(1, len(first))
    if held_out:
        found["xz_val"] = 8 * val_size / len(held_out)
        found["xz_val_after"] = 8 * (both_size - train_size) / len(held_out)
        found["val_verbatim"] = verbatim(val_text, train_text)
    words = set(_WORD.findall((train_text + val_text).decode("utf-8", "replace")))
    tokens = [tokenizer.token_bytes(id).decode("utf-8", "replace").strip(" ▁") for id in range(tokenizer.vocab_size)]
    found["word_tokens"] = sum(token in words for token in tokens)
    return found


def verbatim(text: bytes, other: bytes) -> float:
    """Returns the fraction of evenly spaced passages of `text`, each of VERBATIM_BYTES, that `other` contains too."""
    starts = np.linspace(0, max(0, len(text) - VERBATIM_BYTES), VERBATIM_PIECES).astype(int).tolist()
    return sum(text[start : start + VERBATIM_BYTES] in other for start in starts) / VERBATIM_PIECES


def _text(pieces: Sequence[np.ndarray], tokenizer: Tokenizer) -> bytes:
    return b"".join(tokenizer.decode_bytes(piece[piece != tokenizer.end_id]) for piece in pieces)


def _xz_size(content: bytes) -> int:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 22}]  # 4 MiB: covers all of the text
    return len(lzma.compress(content, filters=filters))
