"""Corpora: sources -> blocks of file chunks, which worker processes turn into documents. Start reading here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import InputError
from .chunks import Chunk
from .formats import chunks_of
from .reading import Document, ReadOptions, Skipped, documents_of, matches
from .sources import BUILT_IN, File, StdinSpool, files_of, name_prefix

__all__ = ["BUILT_IN", "Block", "Corpus", "Document", "documents", "matches"]

BLOCK = 1 << 20  # bytes of text in a block
MAX_CHUNKS = 500  # in a block of very small files


@dataclass(frozen=True)
class Block:
    """Consecutive chunks of one source: the amount of work that a worker process gets at a time."""

    source: int  # its index
    chunks: list[Chunk]
    n_bytes: int  # on the disk


class Corpus:
    """The files of one or several sources. Can be read many times, in the same order each time; close it after use.

    sources: built-in names, files, folders, glob patterns, or "-" for standard input. Write `./name` for a file or
    folder that has the name of a built-in corpus. Document names are relative to the folder; with several sources they
    start with the source's name.
    """

    def __init__(self, sources: str | list[str], options: ReadOptions, *, cache: Path) -> None:
        self.sources = [sources] if isinstance(sources, str) else list(sources)
        self.given, self.options, self.cache = sources, options, cache
        self.stdin = StdinSpool(cache)

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stdin.close()

    def files(self) -> Iterator[tuple[int, File]]:
        """Yields (index of the source, file)."""
        for index, source in enumerate(self.sources):
            prefix = name_prefix(source) if len(self.sources) > 1 else ""
            for file in files_of(source, self.cache, self.stdin):
                named = replace(file, name=f"{prefix}/{file.name}") if prefix else file
                if not matches(named.name, self.options.exclude, default=False):  # excluded files are never opened
                    yield index, named

    def n_bytes(self) -> int:
        """Size of all files on the disk."""
        return sum(file.n_bytes for _, file in self.files())

    def blocks(self) -> Iterator[Block]:
        """Yields the corpus in blocks of about BLOCK bytes."""
        source = n_bytes = size = 0  # size: bytes in memory, more than on the disk if a file is compressed
        chunks: list[Chunk] = []
        for index, file in self.files():
            for chunk in chunks_of(file, text_field=self.options.text_field, separator=self.options.separator):
                more = max(chunk.n_bytes, len(chunk.content or b""))
                if chunks and (index != source or size + more > BLOCK or len(chunks) == MAX_CHUNKS):
                    yield Block(source, chunks, n_bytes)
                    chunks, n_bytes, size = [], 0, 0
                source = index
                chunks.append(chunk)
                n_bytes, size = n_bytes + chunk.n_bytes, size + more
        if chunks:
            yield Block(source, chunks, n_bytes)

    def check_not_empty(self, n_documents: int, skipped: Skipped) -> None:
        """Raises InputError with the reason if no document was read."""
        options = self.options
        if n_documents:
            return
        if (skipped.n_found and options.include) or options.exclude:
            raise InputError(
                f"corpus={self.given!r}: none of its {skipped.n_found} documents is left after "
                f"include={options.include!r}, exclude={options.exclude!r} and dropping empty ones; a pattern must "
                "match the whole name, like 'comedies/*'"
            )
        reason = str(skipped) or ("its files are empty" if any(self.files()) else "there are no files")
        raise InputError(f"corpus={self.given!r} has no text: {reason}; name text files in UTF-8")


def documents(
    corpus: str | list[str],
    *,
    include: str | list[str] | None = None,
    exclude: str | list[str] | None = None,
    text_field: str = "text",
    document_separator: str | None = None,
    invalid_utf8: str = "auto",
    max_bad_lines: int = 0,
    cache: str | Path = "datasets",
    skipped: Skipped | None = None,
) -> Iterator[Document]:
    """Yields the documents of a corpus, read in this process, always in the same order.

    corpus: see Corpus. A .jsonl file holds one document per line, in its `text_field`, and a .parquet file one per row;
    .gz and .zst files are decompressed; in other files, a line that equals document_separator ends a document.
    include, exclude: patterns on the names of documents or files, in which `*` also matches "/". Hidden and binary
    files in folders are skipped, as are empty documents; `skipped` counts them. invalid_utf8 and max_bad_lines are
    explained in PrepareConfig. Raises InputError if no document is left.
    """
    options = ReadOptions(include, exclude, text_field, document_separator, invalid_utf8)
    skipped, n_documents = skipped or Skipped(), 0
    with Corpus(corpus, options, cache=Path(cache)) as opened:
        for block in opened.blocks():
            for chunk in block.chunks:
                skipped_here = Skipped()
                for document in documents_of(chunk, options, skipped_here):
                    n_documents += 1
                    yield document
                skipped.merge(skipped_here, max_bad_lines=max_bad_lines)
        opened.check_not_empty(n_documents, skipped)
