"""Yardsticks: what compressors and models that only count make of a corpus, and what windows make of its documents."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import log
from typing import Any

import numpy as np
import regex

from ..tokenizers.build import Tokenizer
from .references import counted_losses

MOST = 300_000  # tokens of each split to give to yardsticks(); sample() of data/references.py takes them evenly
MOST_BYTES = 400_000  # of text that is compressed: xz takes about a fifth of a second for them
VERBATIM_BYTES, PIECES = 200, 400  # so many pieces of validation text, of this length, are sought in training text
CONTEXTS = (128, 256, 512, 1024, 2048)
_WORD = regex.compile(r"[\p{L}\p{M}]+")


def yardsticks(train: Sequence[np.ndarray], val: Sequence[np.ndarray] | None, tokenizer: Tokenizer) -> dict[str, Any]:
    """Bits per byte, to hold a model's against, of pieces of the training tokens and of the validation tokens.

    gzip, xz: of the training text; xz_val, xz_val_after: of the validation text, by itself and after the training text;
    val_verbatim: the share of short pieces of the validation text that the training text has too;
    unigram, bigram: the validation text (the training text where there is none) by counts of training tokens.
    """
    train_text, val_text = (_text(pieces, tokenizer) for pieces in (train, val or []))
    first, held_out = train_text[:MOST_BYTES], val_text[: MOST_BYTES // 4]
    with ThreadPoolExecutor() as threads:  # compressors run beside the interpreter, and beside each other
        zipped = threads.submit(gzip.compress, first, 9)
        packed = threads.map(_xz, (first, held_out, first + held_out))
        targets, n_bytes = (train, len(train_text)) if val is None else (val, len(val_text))
        losses = counted_losses(train, targets, vocab_size=tokenizer.vocab_size)
    nats = max(1, sum(piece.size - 1 for piece in targets)) / max(1, n_bytes) / log(2)  # a token -> bits a byte
    found: dict[str, Any] = {"train_bytes": len(train_text), "val_bytes": len(val_text)}
    found |= {name: losses[name] * nats for name in ("unigram", "bigram")}
    found |= {"compressed_bytes": min(len(train_text), MOST_BYTES)}
    alone, of_val, together = packed
    found["gzip"] = 8 * len(zipped.result()) / max(1, len(first))
    found["xz"] = 8 * alone / max(1, len(first))
    if held_out:
        found["xz_val"] = 8 * of_val / len(held_out)
        found["xz_val_after"] = 8 * (together - alone) / len(held_out)
        found["val_verbatim"] = verbatim(val_text, train_text)
    words = set(_WORD.findall((train_text + val_text).decode("utf-8", "replace")))
    spelled = [
        tokenizer.token_bytes(number).decode("utf-8", "replace").strip(" ▁") for number in range(tokenizer.vocab_size)
    ]
    found["word_tokens"] = sum(token in words for token in spelled)
    return found


def windows(n_tokens: int, lengths: Sequence[dict[str, Any]], context: int) -> dict[str, Any]:
    """What windows of `context` tokens, side by side, make of a split: how many an epoch has, the share of the tokens
    that an epoch leaves out, and the share of the documents, and of their tokens, that are longer than one window.

    lengths: the histogram of Statistics; it is exact where `context` is a power of two.
    """
    count = max(1, (n_tokens - 1) // context - 1)  # one less than fit: each epoch shifts the grid (data/batches.py)
    longer = [row for row in lengths if row["at_least"] >= context]
    return {
        "context": context,
        "windows": count,
        "lost": max(0.0, 1 - count * context / max(1, n_tokens - 1)),
        "documents_longer": sum(r["documents"] for r in longer) / max(1, sum(r["documents"] for r in lengths)),
        "tokens_in_longer": sum(r["tokens"] for r in longer) / max(1, sum(r["tokens"] for r in lengths)),
    }


def epochs(n_tokens: int, *, context: int, batch_size: int, steps: int) -> float:
    """How often training sees each window of a split."""
    return steps * batch_size / max(1, (n_tokens - 1) // context - 1)


def verbatim(text: bytes, other: bytes) -> float:
    """The share of PIECES pieces of VERBATIM_BYTES, spread over a text evenly, that stand in another one too."""
    starts = np.linspace(0, max(0, len(text) - VERBATIM_BYTES), PIECES).astype(int).tolist()
    return sum(text[start : start + VERBATIM_BYTES] in other for start in starts) / PIECES


def _text(pieces: Sequence[np.ndarray], tokenizer: Tokenizer) -> bytes:
    return b"".join(tokenizer.decode_bytes(piece[piece != tokenizer.end_id]) for piece in pieces)


def _xz(content: bytes) -> int:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 22}]  # 4 MiB reach over all that is given
    return len(lzma.compress(content, filters=filters))
