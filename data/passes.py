"""The passes over a corpus: what is done to a block of its documents to scan, to train a tokenizer, to encode.

These functions run in worker processes. What they give back is bytes and arrays, a fixed number of them a block, for
objects for each document would cost more to send than to compute. Here is the place for whatever looks at one document
at a time: a rule that changes or drops it in `_documents`, figures about it and its tokens in `encode`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import InputError
from .corpora import Block
from .reading import Document, LeftOut, Reading, documents_of
from .splitting import TRAIN, Splitting

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

# What the scan keeps of a document, on the disk: 16 bytes of its text's sha256, bytes of its text, whether it is for
# validation if whole documents are.
ROW = struct.Struct("<16sIB")
VAL_NAMES = 50  # how many the report shows


@dataclass(frozen=True)
class Task:
    """A block with the rows that the scan made of it."""

    block: Block
    rows: bytes


@dataclass
class Scanned:
    rows: bytes  # ROW for each document
    identities: bytes  # 32 bytes for each, of its name and text
    left_out: LeftOut
    first: str  # the name of its first document
    val_names: list[str]


def scan(reading: Reading, splitting: Splitting, block: Block) -> Scanned:
    """What there is."""
    left_out, rows, identities, first = LeftOut(), [], [], ""
    val_names: list[str] = []
    for document, content, digest in _documents(block, reading, left_out):
        chosen = splitting.chooses(document.name, digest)
        rows.append(ROW.pack(digest[:16], len(content), chosen))
        identities.append(hashlib.sha256(_name(document) + b"\0" + digest).digest())
        first = first or document.name
        if chosen and len(val_names) < VAL_NAMES:
            val_names.append(document.name)
    return Scanned(b"".join(rows), b"".join(identities), left_out, first, val_names)


def training_text(reading: Reading, splitting: Splitting, share: float, task: Task) -> list[str]:
    """The training part of about this share of the documents, chosen by a hash of their content."""
    texts = []
    for document, chosen, digest in _checked(reading, task):
        if int.from_bytes(digest[8:16], "big") < share * 2**64:
            texts += [text for side, text in splitting.sides(document.text, chosen=chosen) if side == TRAIN]
    return texts


def pieces(reading: Reading, splitting: Splitting, share: float, pattern: str, task: Task) -> dict[str, int]:
    """The same, as the pieces that byte pairs are learned from, each with how often it occurs."""
    from .pretokenize import Counting, Pattern

    counting = Counting(Pattern(pattern))
    return counting.add(training_text(reading, splitting, share, task)) or counting.finish()


def characters(reading: Reading, task: Task) -> list[str]:
    """Which characters the documents have, as one string."""
    return ["".join(sorted(set().union(*(set(document.text) for document, _, _ in _checked(reading, task)))))]


@dataclass
class Encoded:
    """What a block adds to one split."""

    ids: bytearray = field(default_factory=bytearray)  # each document followed by END
    tokens: list[int] = field(default_factory=list)  # of each document, END included
    n_bytes: list[int] = field(default_factory=list)  # of its text
    names: list[bytes] = field(default_factory=list)


def encode(
    reading: Reading, splitting: Splitting, place: tuple[str, str], dtype: str, task: Task
) -> dict[str, Encoded]:
    """The tokens of a block's documents, by split. place: the tokenizer's folder and fingerprint."""
    tokenizer = _tokenizer(*place)
    end = np.array([tokenizer.end_id], dtype).tobytes()
    texts = [
        (side, document, text)
        for document, chosen, _ in _checked(reading, task)
        for side, text in splitting.sides(document.text, chosen=chosen)
    ]
    found: dict[str, Encoded] = {}
    ids_of = (tokenizer.encode_batch([text])[0] for _, _, text in texts)  # one by one: no threads beside processes
    for (side, document, text), ids in zip(texts, ids_of, strict=True):
        encoded = found.setdefault(side, Encoded())
        encoded.ids += _narrow(ids, tokenizer, dtype) + end
        encoded.tokens.append(ids.size + 1)
        encoded.n_bytes.append(len(text.encode()))
        encoded.names.append(_name(document))
    return found


def _documents(block: Block, reading: Reading, left_out: LeftOut) -> Iterator[tuple[Document, bytes, bytes]]:
    """(document, its text in UTF-8, the sha256 of that)"""
    for piece in block.pieces:
        for document in documents_of(piece, reading, left_out):
            content = document.text.encode()
            yield document, content, hashlib.sha256(content).digest()


def _checked(reading: Reading, task: Task) -> Iterator[tuple[Document, bool, bytes]]:
    """(document, whether it is chosen for validation, digest); InputError if it is not what was scanned."""
    rows = ROW.iter_unpack(task.rows)
    for document, _, digest in _documents(task.block, reading, LeftOut()):
        expected, _, chosen = next(rows, (b"", 0, 0))
        if digest[:16] != expected:
            raise InputError(f"document {document.name!r} changed while the corpus was being prepared; start again")
        yield document, bool(chosen), digest
    if next(rows, None):
        where = task.block.pieces[0].path
        raise InputError(f"documents in or after {where} vanished while the corpus was being prepared; start again")


def _name(document: Document) -> bytes:
    return document.name.encode(errors="surrogateescape")


@lru_cache(maxsize=1)
def _tokenizer(folder: str, fingerprint: str) -> Tokenizer:
    """The tokenizer in a folder, read once; the folder may hold another one the next time."""
    from . import tokenizer  # not where nothing is encoded: each process pays for it

    return tokenizer.load(Path(folder))


def _narrow(ids: np.ndarray, tokenizer: Tokenizer, dtype: str) -> bytes:
    if ids.size and int(ids.max()) >= tokenizer.vocab_size:
        raise InputError(
            f"the tokenizer gave the id {ids.max()}, beyond its {tokenizer.vocab_size} tokens; it would not fit "
            f"{dtype} shards: its vocab_size is wrong"
        )
    return ids.astype(dtype).tobytes()
