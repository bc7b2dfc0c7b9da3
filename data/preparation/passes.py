"""The work on one block of documents in each pass: scan it, collect tokenizer training text, encode it.

These functions run in worker processes. For each block they return a few byte strings and arrays: sending an object
per document would cost more time than computing it. Anything that looks at one document at a time belongs here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import InputError
from ..corpus.corpora import Block
from ..corpus.reading import Document, ReadOptions, Skipped, documents_of
from ..curation.curate import Cleaned, CurateConfig, clean, refuse
from ..curation.duplicates import signature
from ..curation.removals import Removals
from ..reporting.statistics import Statistics
from .inventory import ROW
from .splitting import TRAIN, Splitting

if TYPE_CHECKING:
    from ..tokenizers.build import Tokenizer, TokenizerConfig


@dataclass(frozen=True)
class Rules:
    """How documents are read, curated and split."""

    reading: ReadOptions
    curate: CurateConfig
    splitting: Splitting


@dataclass(frozen=True)
class Task:
    """A block, with the rows that the scan recorded for it (inventory.py)."""

    block: Block
    rows: np.ndarray  # (documents,) of ROW


@dataclass
class Scanned:
    """The scan's record of a block."""

    rows: np.ndarray  # (documents,) of ROW
    names: bytes
    signatures: bytes  # of the documents that are not removed; empty unless near duplicates are removed
    identities: bytes  # 32 bytes per document: sha256 of its name and its text before cleaning
    skipped: Skipped
    removals: Removals


def scan(rules: Rules, block: Block) -> Scanned:
    """Records each document of a block, and applies the rules that look at single documents."""
    skipped, removals, curate = Skipped(), Removals(), rules.curate
    rows, names, signatures, identities = [], [], [], []
    for original, document, cleaned in _cleaned_documents(block, rules, skipped):
        content, name = document.text.encode(), _name(document)
        digest = hashlib.sha256(content).digest()
        candidate = rules.splitting.is_candidate(document.name, digest)
        removals.add_cleaned(cleaned, original, curate)
        if rule := refuse(document.text, curate):
            removals.add_document(rule, document)
        elif (sketch := signature(document.text, curate)) is not None:
            signatures.append(sketch)
        rows.append((digest[:16], len(content), len(name), candidate, bool(rule)))
        names.append(name)
        original_digest = digest if original is document else hashlib.sha256(original.text.encode()).digest()
        identities.append(hashlib.sha256(name + b"\0" + original_digest).digest())
    return Scanned(np.array(rows, ROW), b"".join(names), b"".join(signatures), b"".join(identities), skipped, removals)


def training_text(rules: Rules, fraction: float, task: Task) -> list[str]:
    """Returns the training text of about this fraction of the documents, sampled by a hash of their text."""
    texts = []
    for document, candidate, digest in _kept_documents(rules, task):
        if int.from_bytes(digest[8:16], "big") < fraction * 2**64:
            parts = rules.splitting.assign(document.text, candidate=candidate)
            texts += [text for split, text in parts if split == TRAIN]
    return texts


def pretoken_counts(rules: Rules, fraction: float, config: TokenizerConfig, task: Task) -> dict[str, int]:
    """Counts the pretokens of that training text: all that BPE training needs."""
    from ..tokenizers.pretokenize import count_batch

    return count_batch(config.pattern, config.ordinary_text(training_text(rules, fraction, task)))


def characters(rules: Rules, config: TokenizerConfig, task: Task) -> list[str]:
    """Returns the different characters of the documents, as one string."""
    texts = config.ordinary_text(document.text for document, _, _ in _kept_documents(rules, task))
    return ["".join(sorted(set().union(*map(set, texts))))]


@dataclass
class Encoded:
    """What a block adds to one split."""

    statistics: Statistics
    ids: bytearray = field(default_factory=bytearray)  # each document, followed by the end token
    documents: list[tuple[int, int, bytes]] = field(default_factory=list)  # see SplitWriter.add


def encode(
    rules: Rules, folder: Path, fingerprint: str, dtype: str, sources: list[str], sample_fraction: float, task: Task
) -> dict[str, Encoded]:
    """Returns the tokens and statistics of a block's documents, by split.

    folder, fingerprint: of the tokenizer. sample_fraction: of the documents, for the detailed statistics.
    """
    tokenizer = _tokenizer(folder, fingerprint)
    end = np.array([tokenizer.end_id], dtype).tobytes()
    parts = [
        (split, Document(document.name, text))
        for document, candidate, _ in _kept_documents(rules, task)
        for split, text in rules.splitting.assign(document.text, candidate=candidate)
    ]
    found: dict[str, Encoded] = {}
    batch = tokenizer.encode_batch([part.text for _, part in parts])
    for (split, part), ids in zip(parts, batch, strict=True):
        if split not in found:
            found[split] = Encoded(Statistics(tokenizer.vocab_size, sample_fraction=sample_fraction))
        encoded = found[split]
        if ids.size and ids.max() >= tokenizer.vocab_size:
            size = tokenizer.vocab_size
            raise InputError(f"token id {ids.max()} is not below vocab_size {size}, and may overflow {dtype} shards")
        encoded.ids += ids.astype(dtype).tobytes() + end
        encoded.documents.append((ids.size + 1, len(part.text.encode()), _name(part)))
        encoded.statistics.add(part, ids, source=sources[task.block.source])
        encoded.statistics.count_lost(part, tokenizer)
    return found


def _cleaned_documents(block: Block, rules: Rules, skipped: Skipped) -> Iterator[tuple[Document, Document, Cleaned]]:
    """Yields (document as read, document after cleaning, what cleaning removed)."""
    for chunk in block.chunks:
        for document in documents_of(chunk, rules.reading, skipped):
            text, removed = clean(document.text, rules.curate)
            yield document, Document(document.name, text) if removed else document, removed


def _kept_documents(rules: Rules, task: Task) -> Iterator[tuple[Document, bool, bytes]]:
    """Yields (document, is a validation candidate, digest) for the documents that are not removed.

    Raises InputError if a document differs from the scan.
    """
    rows = iter(task.rows.tolist())
    for _, document, _ in _cleaned_documents(task.block, rules, Skipped()):
        expected, _, _, candidate, removed = next(rows, (b"", 0, 0, False, False))
        digest = hashlib.sha256(document.text.encode()).digest()
        if digest[:16] != expected:
            raise InputError(f"document {document.name!r} changed during the preparation; run the command again")
        if not removed:
            yield document, candidate, digest
    if next(rows, None):
        path = task.block.chunks[0].path
        raise InputError(f"documents in or after {path} disappeared during the preparation; run the command again")


def _name(document: Document) -> bytes:
    return document.name.encode(errors="surrogateescape")


@lru_cache(maxsize=1)
def _tokenizer(folder: Path, fingerprint: str) -> Tokenizer:
    """Loads a tokenizer once. The fingerprint is a key: the folder may hold another tokenizer later."""
    from ..tokenizers import build

    return build.load(folder)
