"""Statistics of a split: sizes, lengths, token counts, in memory that does not grow with the split."""

from __future__ import annotations

import math
from collections import Counter
from heapq import nlargest
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from ..corpus.corpora import Document
from .text_stats import TextStats, keep_largest

if TYPE_CHECKING:
    from ..tokenizers.build import Tokenizer

BINS_PER_OCTAVE = 4  # of the histogram of document lengths


class Statistics:
    """Statistics of one split. Documents are added one by one; the statistics of several processes can be merged.

    sample_fraction: fraction of the documents, sampled by a hash of their names, that get the detailed statistics
    (text_stats.py), which cost about as much as encoding. Everything else covers all documents.
    """

    def __init__(self, vocab_size: int, *, sample_fraction: float = 1.0) -> None:
        self.sample_fraction = sample_fraction
        self.documents = self.bytes = self.tokens = 0
        self.sources: dict[str, np.ndarray] = {}  # name -> documents, bytes, tokens
        self.lengths = np.zeros((2, 64 * BINS_PER_OCTAVE), np.int64)  # documents and tokens, by log2 of tokens
        self.longest: list[tuple[int, str]] = []  # heap of (bytes, name)
        self.shortest: list[tuple[int, str]] = []  # heap of (-bytes, name)
        self.token_counts = np.zeros(vocab_size, np.int64)
        self.text_stats = TextStats()
        self.unknown = Counter[str]()  # characters that the tokenizer does not know
        self.special = Counter[str]()  # names of special tokens that are ordinary text

    def add(self, document: Document, ids: np.ndarray, *, source: str = "") -> None:
        """Adds a document and its ids (n,), without the end token; source: the corpus that it comes from."""
        text, ids = document.text, np.asarray(ids)
        n_bytes = len(text) if text.isascii() else len(text.encode(errors="replace"))
        self.documents += 1
        self.bytes += n_bytes
        self.tokens += ids.size
        np.add.at(self.token_counts, ids, 1)
        self._count_source(source, np.array([1, n_bytes, ids.size]))
        self.lengths[:, int(BINS_PER_OCTAVE * math.log2(max(1, ids.size)))] += 1, ids.size
        keep_largest(self.longest, (n_bytes, document.name))
        keep_largest(self.shortest, (-n_bytes, document.name))
        if self.sample_fraction >= 1 or crc32(document.name.encode(errors="replace")) < self.sample_fraction * 2**32:
            self.text_stats.add(document.name, text)

    def count_lost(self, document: Document, tokenizer: Tokenizer) -> None:
        """Counts what a document's ids do not say about its text."""
        if not tokenizer.knows_all:
            self.unknown.update(tokenizer.unknown(document.text))
        if not tokenizer.allow_special:
            self.special.update(tokenizer.special_names(document.text))

    def lost(self) -> dict[str, dict[str, int]]:
        """Returns these counts for index.json and report.json, the most frequent first."""
        return {
            "unknown_characters": dict(self.unknown.most_common()),
            "special_tokens_as_text": dict(self.special.most_common()),
        }

    def merge(self, other: Statistics) -> None:
        """Adds another process's statistics of the same split."""
        self.documents += other.documents
        self.bytes += other.bytes
        self.tokens += other.tokens
        for source, sizes in other.sources.items():
            self._count_source(source, sizes)
        for item in other.longest:
            keep_largest(self.longest, item)
        for item in other.shortest:
            keep_largest(self.shortest, item)
        self.lengths += other.lengths
        self.token_counts += other.token_counts
        self.text_stats.merge(other.text_stats)
        self.unknown.update(other.unknown)
        self.special.update(other.special)

    def to_dict(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """Returns everything as numbers, lists and strings for report.json."""
        names = ("documents", "bytes", "tokens")
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "sources": {name: dict(zip(names, sizes.tolist(), strict=True)) for name, sizes in self.sources.items()},
            "lengths": [
                {"at_least": 2 ** (place / BINS_PER_OCTAVE), "documents": documents, "tokens": tokens}
                for place, (documents, tokens) in enumerate(self.lengths.T.tolist())
                if documents
            ],
            "longest": [{"name": name, "bytes": n_bytes} for n_bytes, name in sorted(self.longest, reverse=True)],
            "shortest": [{"name": name, "bytes": -n_bytes} for n_bytes, name in sorted(self.shortest, reverse=True)],
            "vocabulary": self._vocabulary(tokenizer),
            "looked_at": self.text_stats.to_dict(),
        } | self.lost()

    def _vocabulary(self, tokenizer: Tokenizer) -> dict[str, Any]:
        counts = self.token_counts
        used = int((counts > 0).sum())
        spelled = {id: tokenizer.token_bytes(id) for id in np.flatnonzero(counts).tolist()}
        longest = nlargest(10, spelled, key=lambda id: (len(spelled[id]), -id))
        return {
            "size": counts.size,
            "used": used,
            "under_100": int(((counts > 0) & (counts < 100)).sum()),
            "longest": [
                {"text": spelled[id].decode("utf-8", "backslashreplace"), "times": int(counts[id])} for id in longest
            ],
        }

    def _count_source(self, source: str, sizes: np.ndarray) -> None:
        self.sources[source] = self.sources.get(source, 0) + sizes
