"""Token shards on disk: one split of a prepared corpus, written document by document, read memory-mapped."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from . import InputError
from .corpora import Document, sha256_of
from .tokenizer import Tokenizer

FORMAT = 1
SHARD_TOKENS = 100_000_000  # the most tokens in one file


class SplitWriter:
    """Writes one split: END, then each document followed by END, cut into shards; beside them where documents begin."""

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer) -> None:
        self.folder, self.split = folder, split
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 65_536 else "<u4")
        self.vocab_size = tokenizer.vocab_size
        self.end = np.array([tokenizer.end_id])
        self.tokens = self.n_bytes = self.documents = 0
        self.shards: list[dict[str, Any]] = []
        self.names = (folder / f"{split}_documents.jsonl").open("w", encoding="utf-8")
        self._append(self.end)

    def add(self, document: Document, ids: np.ndarray) -> None:
        n_bytes = len(document.text.encode())
        self.names.write(json.dumps([self.tokens, n_bytes, document.name]) + "\n")
        self._append(np.asarray(ids))
        self._append(self.end)
        self.n_bytes += n_bytes
        self.documents += 1

    def _append(self, ids: np.ndarray) -> None:
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise InputError(
                f"the tokenizer gave the id {ids.max()}, beyond its {self.vocab_size} tokens; it would not fit "
                f"{self.dtype.name} shards: its vocab_size is wrong"
            )
        ids = ids.astype(self.dtype)
        while ids.size:
            if not self.shards or self.shards[-1]["tokens"] == SHARD_TOKENS:
                self._close_shard()
                name = f"{self.split}_{len(self.shards):05d}.bin"
                self.shards.append({"file": name, "tokens": 0})
                self.file, self.digest = (self.folder / name).open("wb"), hashlib.sha256()
            piece = ids[: SHARD_TOKENS - self.shards[-1]["tokens"]]
            content = piece.tobytes()
            self.file.write(content)
            self.digest.update(content)
            self.shards[-1]["tokens"] += piece.size
            self.tokens += piece.size
            ids = ids[piece.size :]

    def _close_shard(self) -> None:
        if self.shards:
            self.file.close()
            self.shards[-1]["sha256"] = self.digest.hexdigest()

    def close(self) -> dict[str, Any]:
        """The split's part of the index."""
        self._close_shard()
        self.names.close()
        figures = {"tokens": self.tokens, "bytes": self.n_bytes, "documents": self.documents, "shards": self.shards}
        return figures | {"names_sha256": sha256_of(Path(self.names.name))}


class Tokens:
    """The tokens of all shards as one read-only sequence: len() and slices, which may cross shards."""

    def __init__(self, shards: list[np.ndarray]) -> None:
        self.shards = shards
        self.starts = np.cumsum([0, *(shard.size for shard in shards)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, window: slice) -> np.ndarray:
        start, stop, stride = window.indices(len(self))
        if stride != 1:
            raise ValueError(f"tokens are read in slices without a stride, not {stride}")
        pieces = []
        shard = bisect_right(self.starts, start) - 1
        while start < stop:
            piece = self.shards[shard][start - self.starts[shard] : stop - self.starts[shard]]
            pieces.append(piece)
            start, shard = start + piece.size, shard + 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else self.shards[0][:0]


@dataclass(frozen=True)
class Part:
    """What one source of a corpus gave to a split: the tokens from start to before stop; the parts fill the split."""

    name: str
    start: int
    stop: int


class Split:
    """One split: `tokens` (END, document, END, document, END...), `parts` of them by source, and the bytes of the
    documents' text.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        tokens: Tokens,
        *,
        n_bytes: int,
        fingerprint: str,
        parts: Sequence[Part] = (),
    ) -> None:
        self.directory, self.name, self.fingerprint = directory, name, fingerprint
        self.tokens, self.n_tokens, self.n_bytes = tokens, len(tokens), n_bytes
        self.parts = list(parts) or [Part("", 0, self.n_tokens)]

    @cached_property
    def _documents(self) -> tuple[list[int], list[int], list[str]]:
        lines = (self.directory / f"{self.name}_documents.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]

    @property
    def document_offsets(self) -> list[int]:
        """Position of each document's first token."""
        return self._documents[0]

    @property
    def document_bytes(self) -> list[int]:
        return self._documents[1]

    @property
    def document_names(self) -> list[str]:
        return self._documents[2]

    def document_at(self, position: int) -> str:
        """The name of the document that the token at this position belongs to; the END after it is part of it."""
        return self.document_names[max(0, bisect_right(self.document_offsets, position) - 1)]


def open_split(directory: str | Path, split: str, *, verify: bool = False) -> Split:
    """Opens a split of a prepared corpus; InputError if its files are not what its index says.

    Sizes are always checked; verify=True reads every byte and compares sha256 too.
    """
    directory = Path(directory)
    again = "delete the folder and prepare the corpus again"
    try:
        index = json.loads((directory / "index.json").read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise InputError(f"{directory}: format {index['format']!r}, not {FORMAT}; prepare the corpus again")
        dtype = np.dtype({"uint16": "<u2", "uint32": "<u4"}[index["dtype"]])
        if split not in index["splits"]:
            has = ", ".join(index["splits"])
            raise InputError(f"{directory} has no {split} split (only {has}); prepare it with val_fraction above 0")
        figures, shards = index["splits"][split], []
        for shard in figures["shards"]:
            path, size = directory / shard["file"], shard["tokens"] * dtype.itemsize
            if path.stat().st_size != size:
                raise InputError(f"{path}: {path.stat().st_size} bytes, not {size} as its index says; {again}")
            if verify and sha256_of(path) != shard["sha256"]:
                raise InputError(f"{path}: its content is not what its index says; {again}")
            shards.append(np.asarray(np.memmap(path, dtype=dtype, mode="r")))
        names = directory / f"{split}_documents.jsonl"
        if verify and sha256_of(names) != figures["names_sha256"]:
            raise InputError(f"{names}: its content is not what its index says; {again}")
        opened = Split(
            directory,
            split,
            Tokens(shards),
            n_bytes=figures["bytes"],
            fingerprint=index["fingerprint"],
            parts=[Part(**part) for part in figures.get("parts", [])],
        )
        if opened.n_tokens != figures["tokens"]:
            raise InputError(f"{directory}: {opened.n_tokens} tokens, not {figures['tokens']} as indexed; {again}")
        return opened
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; {directory} is no complete prepared corpus") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{directory / 'index.json'} is damaged ({error!r}); {again}") from None
