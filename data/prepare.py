"""Preparation: documents and a tokenizer -> token shards with an index, published whole or not at all."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import InputError
from . import tokenizer as tokenizers
from .corpora import Document, documents, left_out, matches, sha256_of
from .shards import FORMAT, SplitWriter, open_split
from .tokenizer import TokenizerConfig

GROUP_CHARACTERS = 4_000_000  # documents are encoded in groups of about this size
TRAIN, VAL = "train", "val"


@dataclass
class PrepareConfig:
    """What to prepare: the keys of `python -m scripts.prepare`."""

    corpus: Any = "shakespeare"  # a built-in name, a file, a folder, a glob pattern; or a list of these
    include: Any = None  # a pattern on document names, or a list of patterns
    exclude: Any = None  # likewise: what to leave out
    val_include: Any = None  # the documents that make up the validation split; null: val_fraction decides
    val_fraction: float = 0.1  # 0: no validation split
    text_field: str = "text"  # in .jsonl files
    datasets: str = "datasets"  # where downloads and prepared corpora are kept
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    debug: bool = False  # show the traceback of a user's mistake

    def problems(self) -> list[str]:
        """Everything that is wrong with the settings, one line each."""
        found = []
        for name in ("corpus", "include", "exclude", "val_include"):
            value = getattr(self, name)
            strings = [value] if isinstance(value, str) else value
            if value is None and name != "corpus":
                continue
            if not (isinstance(strings, list) and strings and all(isinstance(s, str) and s for s in strings)):
                found.append(f"{name}={value!r} must be a string or a list of strings, none of them empty")
        if not 0 <= self.val_fraction < 1:
            found.append(f"val_fraction={self.val_fraction} must be at least 0 and below 1")
        return found + self.tokenizer.problems()


def prepare(config: PrepareConfig, *, say: Callable[[str], None] = print) -> Path:
    """Tokenises a corpus into `datasets/NAME-FINGERPRINT/` and returns that folder; after reading and hashing the
    corpus alone if it is there already.

    The fingerprint covers the names and text of all documents and the settings, so a changed corpus never meets a
    stale folder. Processes that start together prepare once. The folder appears by a rename when it is complete.
    """
    if problems := config.problems():
        raise InputError("; ".join(problems))
    skipped: list[str] = []
    entries = [_Entry.of(document) for document in _read_corpus(config, skipped)]
    if skipped:
        say(left_out(skipped))
    fingerprint, name = _fingerprint(config, entries), corpus_name(config.corpus)
    target = Path(config.datasets).expanduser() / f"{name}-{fingerprint[:12]}"
    try:
        if not _is_complete(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _lock(target.parent / f".lock-{name}", say):
                if not _is_complete(target):
                    _write(config, target, entries, fingerprint=fingerprint, skipped=skipped, say=say)
                    return target
    except OSError as error:
        raise InputError(
            f"datasets={config.datasets} cannot be written in ({error.filename or target}: {error.strerror or error}); "
            "see to it, or choose another folder"
        ) from None
    say(f"{target} is already prepared: {counted(len(entries))}, unchanged")
    return target


def counted(documents: int) -> str:
    return f"{documents:,} document" + ("s" if documents != 1 else "")


def corpus_name(corpus: str | list[str]) -> str:
    """A folder name for a corpus: letters, digits, dots, dashes."""
    sources = [corpus] if isinstance(corpus, str) else corpus
    parts = [Path(source).expanduser().resolve().parts for source in sources]
    stems = [[part for part in path if not glob.has_magic(part)][-1].split(".")[0] for path in parts]
    return re.sub(r"[^\w.-]+", "-", "-".join(stems)).strip("-.")[:40] or "corpus"


@dataclass(frozen=True)
class _Entry:
    """What the first pass keeps of a document; the text itself is read again when it is needed."""

    name: str
    n_bytes: int
    digest: bytes

    @classmethod
    def of(cls, document: Document) -> _Entry:
        content = document.text.encode()
        return cls(document.name, len(content), hashlib.sha256(content).digest())


def _read_corpus(config: PrepareConfig, skipped: list[str] | None = None) -> Iterator[Document]:
    return documents(
        config.corpus,
        include=config.include,
        exclude=config.exclude,
        text_field=config.text_field,
        cache=Path(config.datasets).expanduser(),
        skipped=skipped,
    )


def _settings(config: PrepareConfig) -> dict[str, Any]:
    """What the result depends on besides the documents. A tokenizer named by a path counts by its content."""
    settings: dict[str, Any] = {"val_include": config.val_include, "val_fraction": config.val_fraction}
    if config.tokenizer.path is not None:
        return settings | {"tokenizer": tokenizers.load(Path(config.tokenizer.path).expanduser()).fingerprint}
    settings["tokenizer"] = asdict(config.tokenizer)
    ranks = Path(config.tokenizer.encoding).expanduser()
    if config.tokenizer.kind == "tiktoken" and ranks.is_file():
        settings["ranks_sha256"] = sha256_of(ranks)
    return settings


def _fingerprint(config: PrepareConfig, entries: list[_Entry]) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, _settings(config)], sort_keys=True).encode())
    for entry in entries:
        digest.update(hashlib.sha256(entry.name.encode(errors="surrogateescape")).digest() + entry.digest)
    return digest.hexdigest()


def _choose_split(config: PrepareConfig, entries: list[_Entry]) -> tuple[str, set[int]]:
    """(kind, indices of the validation documents). The kind is none, names, hash or position."""
    if config.val_include:
        chosen = {i for i, entry in enumerate(entries) if matches(entry.name, config.val_include, default=False)}
        if not chosen or len(chosen) == len(entries):
            extent = "all" if chosen else "none"
            raise InputError(
                f"val_include={config.val_include!r} matches {extent} of the {len(entries)} documents, such as "
                f"{entries[0].name!r}; choose some for validation and leave some for training"
            )
        return "names", chosen
    if config.val_fraction == 0:
        return "none", set()
    # By content: a document keeps its side whatever is added around it, and equal documents are on one side.
    chosen = {i for i, e in enumerate(entries) if int.from_bytes(e.digest[:8], "big") < config.val_fraction * 2**64}
    share = sum(entries[i].n_bytes for i in chosen) / sum(entry.n_bytes for entry in entries)
    if config.val_fraction / 2 <= share <= 2 * config.val_fraction and len(chosen) < len(entries):
        return "hash", chosen
    return "position", set()


def _parts(config: PrepareConfig, kind: str, chosen: set[int], entries: list[_Entry]) -> Iterator[tuple[str, Document]]:
    """(split, document) for each document, or for both parts of each; none of them empty."""
    position = -1
    for position, document in enumerate(_read_corpus(config)):
        if position >= len(entries) or _Entry.of(document) != entries[position]:
            raise InputError(f"document {document.name!r} changed while the corpus was being prepared; start again")
        if kind == "position":
            cut = int(len(document.text) * (1 - config.val_fraction))
            for split, text in ((TRAIN, document.text[:cut]), (VAL, document.text[cut:])):
                if text:
                    yield split, Document(document.name, text)
        else:
            yield VAL if position in chosen else TRAIN, document
    if position + 1 != len(entries):
        raise InputError("documents vanished while the corpus was being prepared; start again")


def _write(
    config: PrepareConfig,
    target: Path,
    entries: list[_Entry],
    *,
    fingerprint: str,
    skipped: list[str],
    say: Callable[[str], None],
) -> None:
    kind, chosen = _choose_split(config, entries)
    name = corpus_name(config.corpus)
    # One temporary name a corpus: we hold its lock, so what lies there was left by a process that was killed.
    temporary = target.parent / f".tmp-{name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        say(f"{name}: {counted(len(entries))}, {sum(e.n_bytes for e in entries):,} bytes; building the tokenizer")
        sees_all = config.tokenizer.kind == "char"  # else it could not write the validation text
        parts = _parts(config, kind, chosen, entries)
        tokenizer = tokenizers.build(config.tokenizer, (d.text for split, d in parts if sees_all or split == TRAIN))
        tokenizer.save(temporary / "tokenizer")
        say(f"{name}: encoding, vocabulary of {tokenizer.vocab_size:,}")
        writers = {TRAIN: SplitWriter(temporary, TRAIN, tokenizer)}
        if kind != "none":
            writers[VAL] = SplitWriter(temporary, VAL, tokenizer)
        for group in _groups(_parts(config, kind, chosen, entries)):
            encoded = tokenizer.encode_batch([document.text for _, document in group])
            for (split, document), ids in zip(group, encoded, strict=True):
                writers[split].add(document, ids)
        splits = {split: writer.close() for split, writer in writers.items()}
        index = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "settings": {"corpus": config.corpus, "include": config.include, "exclude": config.exclude}
            | _settings(config),
            "tokenizer": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "dtype": writers[TRAIN].dtype.name,
            "split": kind,
            "splits": splits,
        }
        for split, figures in splits.items():
            if not figures["documents"]:
                raise InputError(f"corpus={config.corpus!r} is too short: its {split} split is empty; add text")
        val_names = [entries[i].name for i in sorted(chosen)]
        (temporary / "report.md").write_text(
            _report(name, index, val_names, skipped), encoding="utf-8", errors="replace"
        )
        (temporary / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        _publish(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for split, figures in splits.items():
        say(f"{target}: {split} {counted(figures['documents'])}, {figures['tokens']:,} tokens")
    if kind == "position":
        say(f"too few documents to hold some out: the last {config.val_fraction:g} of each is the validation split")


def _groups(parts: Iterable[tuple[str, Document]]) -> Iterator[list[tuple[str, Document]]]:
    group: list[tuple[str, Document]] = []
    characters = 0
    for part in parts:
        group.append(part)
        characters += len(part[1].text)
        if characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _report(name: str, index: dict[str, Any], val_names: list[str], skipped: list[str]) -> str:
    kinds = {
        "names": "by val_include",
        "hash": "by a hash of each document's content",
        "position": "by position, the last part of each document: whole ones would miss val_fraction",
        "none": "no validation split",
    }
    lines = [f"# {name}", "", f"Fingerprint {index['fingerprint']}. Split: {kinds[index['split']]}.", ""]
    lines += ["| split | documents | bytes | tokens | bytes/token |", "|---|---|---|---|---|"]
    for split, figures in index["splits"].items():
        n_bytes, tokens = figures["bytes"], figures["tokens"]
        lines.append(f"| {split} | {figures['documents']:,} | {n_bytes:,} | {tokens:,} | {n_bytes / tokens:.3f} |")
    lines += ["", f"Vocabulary: {index['vocab_size']:,} tokens, stored as {index['dtype']}."]
    for title, names in (("Validation documents", val_names), ("Left out", skipped)):
        if names:
            shown = ", ".join(names[:50]) + (", ..." if len(names) > 50 else "")
            lines += ["", f"{title}: {len(names)}: {shown}"]
    lines += ["", "Settings:", "", "```json", json.dumps(index["settings"], indent=1), "```", ""]
    return "\n".join(lines)


def _is_complete(target: Path) -> bool:
    if not target.exists():
        return False
    try:
        for split in json.loads((target / "index.json").read_text(encoding="utf-8"))["splits"]:
            open_split(target, split)
        tokenizers.load(target / "tokenizer")
    except (InputError, OSError, ValueError, KeyError, TypeError):
        return False
    return True


@contextmanager
def _lock(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """An exclusive lock that ends with the process that holds it, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that prepares this corpus ({path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _publish(temporary: Path, target: Path) -> None:
    """Makes the finished folder appear under its name: all on the disk first, then one rename."""
    for path in [*temporary.rglob("*"), temporary]:
        _fsync(path)
    if target.exists():  # incomplete or damaged, or we would not be here
        shutil.rmtree(target)
    os.rename(temporary, target)
    _fsync(target.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
