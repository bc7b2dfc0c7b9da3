"""Corpora: one or several sources -> blocks of pieces to share out over processes, and the documents in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import InputError
from .formats import Piece, pieces
from .reading import Document, LeftOut, Reading, documents_of, matches
from .sources import BUILT_IN, File, Spool, files_of, own_name

__all__ = ["BUILT_IN", "Block", "Corpus", "Document", "documents", "matches"]

BLOCK = 1 << 20  # bytes of files that are worked on together
MOST_PIECES = 500  # of very small files


@dataclass(frozen=True)
class Block:
    """Pieces of one source that follow each other."""

    source: int
    pieces: list[Piece]
    n_bytes: int  # on the disk


class Corpus:
    """The sources of a corpus, which can be read again and again, in the same order; to be closed after use.

    sources: built-in names, files, folders, glob patterns, or "-" for standard input. `./name` is the file or folder
    where a built-in has its name. Names of documents are relative to the folder; those of several sources begin with
    the name of theirs.
    """

    def __init__(self, sources: str | list[str], reading: Reading, *, cache: Path) -> None:
        self.sources = [sources] if isinstance(sources, str) else list(sources)
        self.given, self.reading, self.cache = sources, reading, cache
        self.spool = Spool(cache)

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, *_: Any) -> None:
        self.spool.close()

    def files(self) -> Iterator[tuple[int, File]]:
        """(number of the source, file) of each file."""
        for number, source in enumerate(self.sources):
            prefix = own_name(source) if len(self.sources) > 1 else ""
            for file in files_of(source, self.cache, self.spool):
                named = replace(file, name=f"{prefix}/{file.name}") if prefix else file
                if not matches(named.name, self.reading.exclude, default=False):  # need not even be readable
                    yield number, named

    def n_bytes(self) -> int:
        """How much there is to read from the disk."""
        return sum(file.n_bytes for _, file in self.files())

    def blocks(self) -> Iterator[Block]:
        """The corpus in blocks of about BLOCK bytes."""
        source = n_bytes = size = 0  # size: in memory, where what is packed takes more
        held: list[Piece] = []
        for number, file in self.files():
            for piece in pieces(file, text_field=self.reading.text_field, separator=self.reading.separator):
                more = max(piece.n_bytes, len(piece.content or b""))
                if held and (number != source or size + more > BLOCK or len(held) == MOST_PIECES):
                    yield Block(source, held, n_bytes)
                    held, n_bytes, size = [], 0, 0
                source = number
                held.append(piece)
                n_bytes, size = n_bytes + piece.n_bytes, size + more
        if held:
            yield Block(source, held, n_bytes)

    def check_not_empty(self, n_documents: int, left_out: LeftOut) -> None:
        """InputError if nothing was read, with the reason."""
        reading = self.reading
        if n_documents:
            return
        if (left_out.found and reading.include) or reading.exclude:
            raise InputError(
                f"corpus={self.given!r}: none of its {left_out.found} documents is left after "
                f"include={reading.include!r}, exclude={reading.exclude!r} and dropping empty ones; see that a pattern "
                "matches whole names, like 'comedies/*'"
            )
        why = str(left_out) or ("there is nothing in its files" if any(self.files()) else "there are no files")
        raise InputError(f"corpus={self.given!r} has no text: {why}; name text files in UTF-8")


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
    left_out: LeftOut | None = None,
) -> Iterator[Document]:
    """Yields the documents of a corpus in this process, always in the same order; see Corpus.

    A .jsonl file holds one document a line, in its `text_field`, a .parquet file one a row; .gz and .zst are unpacked;
    a line equal to document_separator ends a document in other files. include, exclude: patterns on the names of
    documents or files, in which `*` also crosses "/". What was left out is noted in `left_out`. In folders and glob
    patterns hidden files are passed over, and so are binary ones; empty documents always are. invalid_utf8 and
    max_bad_lines as in PrepareConfig (prepare.py).
    Raises InputError if nothing is left.
    """
    reading = Reading(include, exclude, text_field, document_separator, invalid_utf8)
    left_out, kept = left_out or LeftOut(), 0
    with Corpus(corpus, reading, cache=Path(cache)) as opened:
        for block in opened.blocks():
            for piece in block.pieces:
                noted = LeftOut()
                for document in documents_of(piece, reading, noted):
                    kept += 1
                    yield document
                left_out.merge(noted, max_bad_lines=max_bad_lines)
        opened.check_not_empty(kept, left_out)
