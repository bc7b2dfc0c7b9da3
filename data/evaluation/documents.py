"""How well a model predicts a text, by document: bits/byte and perplexity with intervals, and two models compared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..preparation.shards import Split
from .accuracy import ratio_interval


@dataclass(frozen=True)
class DocumentLosses:
    """The losses of a split's documents, whose end tokens count as theirs. Each array is (documents,)."""

    nats: np.ndarray
    tokens: np.ndarray
    n_bytes: np.ndarray
    words: np.ndarray  # runs of characters other than white space

    @staticmethod
    def of(nats: np.ndarray, split: Split, text: list[bytes]) -> DocumentLosses:
        """nats (n_tokens - 1,): of every token of the split but the first. text: of each document."""
        first = split.document_offsets - 1  # of each document among the targets
        return DocumentLosses(
            np.add.reduceat(nats.astype(float), first),
            np.diff(first, append=len(nats)),
            np.asarray(split.documents[:, 1]),
            np.array([len(document.decode("utf-8", "replace").split()) for document in text]),
        )

    def figures(self, *, seed: int, known: bool = True) -> dict[str, Any]:
        """Returns loss (nats/token), bits/byte with its 95 % interval over documents, and perplexities.

        known: whether the tokens hold all of the text; otherwise nothing is known per byte or word. A single document
        has no interval.
        """
        total, tokens, n_bytes, words = (float(x.sum()) for x in (self.nats, self.tokens, self.n_bytes, self.words))
        low = high = None
        if known and len(self.nats) > 1:
            low, high = ratio_interval(self.nats / math.log(2), self.n_bytes, seed=seed)
        return {
            "loss": total / tokens,
            "bits_per_byte": total / math.log(2) / max(1, n_bytes) if known else None,
            "bits_per_byte_low": low,
            "bits_per_byte_high": high,
            "perplexity_per_token": exponential(total / tokens),
            "perplexity_per_word": exponential(total / words) if known and words else None,
            "tokens": int(tokens),
            "bytes": int(n_bytes),
            "words": int(words),
            "documents": len(self.nats),
        }


def exponential(value: float) -> float | None:
    return math.exp(value) if value < 700 else None


def bits_difference(before: np.ndarray, after: np.ndarray, n_bytes: np.ndarray, *, seed: int) -> dict[str, float]:
    """Returns the bits/byte of two models on the same documents, and `difference` with its 95 % interval, paired.

    before, after (documents,): nats; n_bytes (documents,): of their text. Documents are resampled as a whole.
    """
    change, total = (after - before) / math.log(2), math.log(2) * n_bytes.sum()
    low, high = ratio_interval(change, n_bytes, seed=seed)
    found = {"before": before.sum() / total, "after": after.sum() / total, "difference": change.sum() / n_bytes.sum()}
    figures = {name: float(value) for name, value in found.items()}
    return {**figures, "low": low, "high": high, "documents": len(before)}


def texts_of(split: Split, tokenizer: Any) -> list[bytes]:
    """Returns the text of each document."""
    ids, end_id = split.tokens[:], split.end_id
    pieces = np.split(ids, split.document_offsets[1:])
    return [tokenizer.decode_bytes(piece[piece != end_id]) for piece in pieces]
