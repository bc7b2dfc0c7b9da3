"""Corpora: sources -> blocks of file chunks, which worker processes turn into documents. Start reading here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import InputError
from .chunks import BINARY, JSON_LINES, ROWS, Chunk
from .compressed import without_suffix
from .formats import chunks_of
from .reading import Document, ReadOptions, Skipped, documents_of, is_excluded_folder, matches, may_be_selected
from .sources import BUILT_IN, StdinSpool, files_of, name_prefix
from .walk import File

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
        self.left_out = Skipped()  # what the latest pass over the files left out without opening it
        self.formats: Counter[str] = Counter()  # files in each format, in the latest pass
        self.format_examples: dict[str, list[str]] = {}

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stdin.close()

    def files(self) -> Iterator[tuple[int, File]]:
        """Yields (index of the source, file) of the files that include and exclude may keep."""
        self.left_out = Skipped()
        for index, source in enumerate(self.sources):
            prefix = f"{name}/" if len(self.sources) > 1 and (name := name_prefix(source)) else ""
            prune = partial(self._is_pruned, prefix)
            for file in files_of(source, self.cache, self.stdin, prune=prune):
                named = replace(file, name=prefix + file.name) if prefix else file
                if matches(named.name, self.options.exclude, default=False):
                    self.left_out.n_filtered += 1
                elif named.left_out:
                    self.left_out.add(named.name, named.left_out, named.n_bytes)
                elif may_be_selected(named.name, include=self.options.include):
                    yield index, named
                else:
                    self.left_out.n_found += 1

    def _is_pruned(self, prefix: str, folder: str) -> bool:
        excluded = is_excluded_folder(prefix + folder, exclude=self.options.exclude)
        self.left_out.n_filtered += excluded
        return excluded

    def n_bytes(self) -> int:
        """Size of all files on the disk."""
        return sum(file.n_bytes for _, file in self.files())

    def blocks(self) -> Iterator[Block]:
        """Yields the corpus in blocks of about BLOCK bytes."""
        source = n_bytes = size = 0  # size: bytes in memory, more than on the disk if a file is compressed
        chunks: list[Chunk] = []
        self.formats, self.format_examples = Counter(), {}
        for index, file in self.files():
            for number, chunk in enumerate(chunks_of(file, self.options)):
                if number == 0 and chunk.kind != BINARY:
                    self._count_format(chunk)
                more = max(chunk.n_bytes, len(chunk.content or b""))
                if chunks and (index != source or size + more > BLOCK or len(chunks) == MAX_CHUNKS):
                    yield Block(source, chunks, n_bytes)
                    chunks, n_bytes, size = [], 0, 0
                source = index
                chunks.append(chunk)
                n_bytes, size = n_bytes + chunk.n_bytes, size + more
        if chunks:
            yield Block(source, chunks, n_bytes)

    def _count_format(self, chunk: Chunk) -> None:
        format = {JSON_LINES: "JSON Lines", ROWS: "a table"}.get(chunk.kind, "text")
        if format == "text" and without_suffix(chunk.name).endswith(".json"):
            format = "text including the JSON syntax"
        self.formats[format] += 1
        examples = self.format_examples.setdefault(format, [])
        if len(examples) < 3:
            examples.append(chunk.name)

    def describe_formats(self) -> str:
        """One line: how many files were read in each format, with names of those that are not plain text."""
        parts = []
        for format, number in self.formats.most_common():
            names = self.format_examples[format]
            some = "" if format == "text" else f" ({', '.join(names)}{', ...' if number > len(names) else ''})"
            parts.append(f"{number:,} as {format}{some}")
        return f"files read: {', '.join(parts) or 'none'}"

    def unused_options(self, skipped: Skipped) -> list[str]:
        """Returns a message for each option that matched nothing in the latest pass."""
        options, found = self.options, []
        if options.separator is not None and not skipped.n_separators:
            found.append(f"document_separator={options.separator!r} equals no line of a text; write the whole line")
        if options.text_field != "text" and not self.formats.keys() & {"JSON Lines", "a table"}:
            found.append(f"text_field={options.text_field!r} has no effect: there are no JSON Lines and no tables")
        if options.exclude and not skipped.n_filtered:
            found.append(f"exclude={options.exclude!r} matches no name; a pattern must match the whole name")
        return [f"note: {message}" for message in found]

    def check_not_empty(self, n_documents: int, skipped: Skipped) -> None:
        """Raises InputError with the reason if no document was read."""
        if n_documents:
            return
        given = {"include": self.options.include, "exclude": self.options.exclude}
        if (skipped.n_found and given["include"]) or given["exclude"]:
            patterns = ", ".join(f"{name}={patterns!r}" for name, patterns in given.items() if patterns)
            raise InputError(
                f"corpus={self.given!r}: none of its {skipped.n_found} documents is left after {patterns} and dropping "
                "empty ones; a pattern must match the whole name, like 'comedies/*'"
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
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Document]:
    """Yields the documents of a corpus, read in this process, always in the same order.

    corpus: see Corpus. The settings are explained in PrepareConfig. `skipped` counts what was left out; say is called
    with a line about the formats of the files. Raises InputError if no document is left.
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
        skipped.merge(opened.left_out, max_bad_lines=max_bad_lines)
        say(opened.describe_formats())
        opened.check_not_empty(n_documents, skipped)
        for line in opened.unused_options(skipped):
            say(line)
