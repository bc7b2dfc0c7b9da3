"""The passes over a corpus: what is done to a block of its documents to scan, to train a tokenizer, to encode.

These functions run in worker processes. What they give back is bytes and arrays, a fixed number of them a block, for
objects for each document would cost more to send than to compute. Here is the place for whatever looks at one document
at a time: what the rules of curation make of it, figures about it and its tokens.
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
from ..curation.removals import Ledger
from ..reporting.statistics import Statistics
from .inventory import CHOSEN, GONE, ROW, states
from .splitting import TRAIN, Splitting

if TYPE_CHECKING:
    from ..tokenizers.build import Tokenizer


@dataclass(frozen=True)
class Rules:
    """How documents are read, what is made of them, and how they are split."""

    reading: ReadOptions
    curate: CurateConfig
    splitting: Splitting


@dataclass(frozen=True)
class Task:
    """A block with the rows that the scan made of it (data/inventory.py)."""

    block: Block
    rows: bytes


@dataclass
class Scanned:
    rows: bytes  # ROW for each document
    names: bytes
    signatures: bytes  # of those that are not dropped, if near copies are sought
    identities: bytes  # 32 bytes for each, of its name and text as they were read
    left_out: Skipped
    ledger: Ledger


def scan(rules: Rules, block: Block) -> Scanned:
    """What there is, and what the rules on single documents remove."""
    left_out, ledger, curate = Skipped(), Ledger(), rules.curate
    rows, names, signatures, identities = [], [], [], []
    for read, document, removed in _documents(block, rules, left_out):
        content, name = document.text.encode(), _name(document)
        digest = hashlib.sha256(content).digest()
        state = CHOSEN if rules.splitting.chooses(document.name, digest) else 0
        ledger.cleaned(removed, read, curate)
        if rule := refuse(document.text, curate):
            ledger.drop(rule, document)
            state |= GONE
        elif (sketch := signature(document.text, curate)) is not None:
            signatures.append(sketch)
        rows.append(ROW.pack(digest[:16], len(content), len(name), state))
        names.append(name)
        as_read = digest if read is document else hashlib.sha256(read.text.encode()).digest()
        identities.append(hashlib.sha256(name + b"\0" + as_read).digest())
    return Scanned(
        b"".join(rows), b"".join(names), b"".join(signatures), b"".join(identities), left_out=left_out, ledger=ledger
    )


def training_text(rules: Rules, share: float, task: Task) -> list[str]:
    """The training part of about this share of the documents, chosen by a hash of their content."""
    texts = []
    for document, chosen, digest in _checked(rules, task):
        if int.from_bytes(digest[8:16], "big") < share * 2**64:
            texts += [text for side, text in rules.splitting.sides(document.text, chosen=chosen) if side == TRAIN]
    return texts


def pieces(rules: Rules, share: float, pattern: str, task: Task) -> dict[str, int]:
    """The same, as the pieces that byte pairs are learned from, each with how often it occurs."""
    from ..tokenizers.pretokenize import Pattern, PretokenCounter

    counting = PretokenCounter(Pattern(pattern))
    return counting.add(training_text(rules, share, task)) or counting.finish()


def characters(rules: Rules, task: Task) -> list[str]:
    """Which characters the documents have, as one string."""
    return ["".join(sorted(set().union(*(set(document.text) for document, _, _ in _checked(rules, task)))))]


@dataclass
class Encoded:
    """What a block adds to one split."""

    statistics: Statistics
    ids: bytearray = field(default_factory=bytearray)  # each document followed by END
    tokens: list[int] = field(default_factory=list)  # of each document, END included
    n_bytes: list[int] = field(default_factory=list)  # of its text
    names: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class Encoding:
    """What documents are encoded with, and how closely they are looked at."""

    tokenizer: tuple[str, str]  # its folder and fingerprint
    dtype: str
    sources: list[str]
    looked_at: float  # share of the documents: see Statistics


def encode(rules: Rules, encoding: Encoding, task: Task) -> dict[str, Encoded]:
    """The tokens of a block's documents, and figures about them, by split."""
    tokenizer, dtype = _tokenizer(*encoding.tokenizer), encoding.dtype
    end = np.array([tokenizer.end_id], dtype).tobytes()
    parts = [
        (side, Document(document.name, text))
        for document, chosen, _ in _checked(rules, task)
        for side, text in rules.splitting.sides(document.text, chosen=chosen)
    ]
    found: dict[str, Encoded] = {}
    batch = tokenizer.encode_batch([part.text for _, part in parts])
    for (side, part), ids in zip(parts, batch, strict=True):
        if side not in found:
            found[side] = Encoded(Statistics(tokenizer.vocab_size, looked_at=encoding.looked_at))
        encoded = found[side]
        encoded.ids += _narrow(ids, tokenizer, dtype) + end
        encoded.tokens.append(ids.size + 1)
        encoded.n_bytes.append(len(part.text.encode()))
        encoded.names.append(_name(part))
        encoded.statistics.add(part, ids, source=encoding.sources[task.block.source])
    return found


def _documents(block: Block, rules: Rules, left_out: Skipped) -> Iterator[tuple[Document, Document, Cleaned]]:
    """(document as it was read, as the rules leave it, what they removed from within it)"""
    for chunk in block.chunks:
        for document in documents_of(chunk, rules.reading, left_out):
            text, removed = clean(document.text, rules.curate)
            yield document, Document(document.name, text) if removed else document, removed


def _checked(rules: Rules, task: Task) -> Iterator[tuple[Document, bool, bytes]]:
    """(document, whether it is chosen for validation, digest) of those that are not gone; InputError if one is not
    what was scanned.
    """
    rows = states(task.rows)
    for _, document, _ in _documents(task.block, rules, Skipped()):
        expected, chosen, gone = next(rows, (b"", False, False))
        digest = hashlib.sha256(document.text.encode()).digest()
        if digest[:16] != expected:
            raise InputError(f"document {document.name!r} changed while the corpus was being prepared; start again")
        if not gone:
            yield document, chosen, digest
    if next(rows, None):
        where = task.block.chunks[0].path
        raise InputError(f"documents in or after {where} vanished while the corpus was being prepared; start again")


def _name(document: Document) -> bytes:
    return document.name.encode(errors="surrogateescape")


@lru_cache(maxsize=1)
def _tokenizer(folder: str, fingerprint: str) -> Tokenizer:
    """The tokenizer in a folder, read once; the folder may hold another one the next time."""
    from ..tokenizers import build

    return build.load(Path(folder))


def _narrow(ids: np.ndarray, tokenizer: Tokenizer, dtype: str) -> bytes:
    if ids.size and int(ids.max()) >= tokenizer.vocab_size:
        raise InputError(
            f"the tokenizer gave the id {ids.max()}, beyond its {tokenizer.vocab_size} tokens; it would not fit "
            f"{dtype} shards: its vocab_size is wrong"
        )
    return ids.astype(dtype).tobytes()
