"""Preparation: a corpus and a tokenizer -> token shards with an index, published whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from . import InputError, passes
from . import tokenizer as tokenizers
from .corpora import Corpus
from .files import lock, publish, sweep
from .manifest import corpus_name, report, tokenizer_settings, whole_or_why
from .passes import ROW, VAL_NAMES, Task
from .pool import Pool, available_cpus
from .reading import INVALID, LeftOut, Reading
from .shards import DTYPES, FORMAT, SplitWriter, open_split
from .splitting import NONE, POSITION, TRAIN, VAL, Seen, Splitting
from .tokenizer import Tokenizer, TokenizerConfig

SMALL = 8 << 20  # bytes of a corpus for which processes are not worth starting
__all__ = ["PrepareConfig", "Progress", "corpus_name", "open_split", "prepare"]
Result = TypeVar("Result")


@dataclass
class PrepareConfig:
    """What to prepare: the keys of `python -m scripts.prepare`."""

    corpus: Any = "shakespeare"  # a built-in name, a file, a folder, a glob pattern, - (standard input); or a list
    include: Any = None  # a pattern on the names of documents or files, or a list of patterns
    exclude: Any = None  # likewise: what to leave out
    val_include: Any = None  # the documents that make up the validation split; null: val_fraction decides
    val_fraction: float = 0.1  # 0: no validation split
    text_field: str = "text"  # in .jsonl and .parquet files
    document_separator: str | None = None  # a line equal to it stands between the documents of one file of text
    invalid_utf8: str = "auto"  # skip | replace | refuse documents that are not UTF-8; auto: refuse in a file named
    broken_lines: int = 0  # so many broken lines of .jsonl files are left out; one more is an error
    tokenizer_sample: float = 64e6  # bytes of training text that a tokenizer is trained on, of a corpus with more
    workers: int = 0  # processes; 0: one for each CPU, none for a small corpus
    datasets: str = "datasets"  # where downloads and prepared corpora are kept
    verify: bool = False  # of a corpus that is prepared already, read every byte and compare its sha256
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
        if self.invalid_utf8 not in INVALID:
            found.append(f"invalid_utf8={self.invalid_utf8!r} is not one of {', '.join(INVALID)}")
        if self.document_separator is not None and (not self.document_separator or "\n" in self.document_separator):
            found.append(f"document_separator={self.document_separator!r} must be a line of text, without its end")
        for name, least in (("broken_lines", 0), ("workers", 0), ("tokenizer_sample", 1)):
            if getattr(self, name) < least:
                found.append(f"{name}={getattr(self, name)} must be at least {least}")
        return found + self.tokenizer.problems()


class Progress(Protocol):
    """Shows how far a pass over the corpus has come."""

    def begin(self, what: str, total: int) -> None:
        """A pass over so many bytes begins."""

    def advance(self, n_bytes: int) -> None: ...
    def end(self) -> None: ...


def prepare(config: PrepareConfig, *, say: Callable[[str], None] = print, progress: Progress | None = None) -> Path:
    """Tokenises a corpus into `datasets/NAME-FINGERPRINT/` and returns that folder; after reading and hashing the
    corpus alone if it is there already.

    The fingerprint covers the names and text of all documents and the settings, so a changed corpus never meets a
    stale folder. Processes that start together prepare once. The folder appears by a rename when it is complete.
    """
    if problems := config.problems():
        raise InputError("; ".join(problems))
    folder, name = Path(config.datasets).expanduser(), corpus_name(config.corpus)
    reading = Reading(config.include, config.exclude, config.text_field, config.document_separator, config.invalid_utf8)
    try:
        with ExitStack() as held:
            corpus = held.enter_context(Corpus(config.corpus, reading, cache=folder))
            work = held.enter_context(Preparation(config, corpus, say, progress))
            work.scan()
            target = folder / f"{name}-{work.fingerprint[:12]}"
            if (wrong := whole_or_why(target, verify=config.verify)) is not None:
                folder.mkdir(parents=True, exist_ok=True)
                wait = partial(say, f"waiting for another process that prepares this corpus ({name})")
                held.enter_context(lock(folder / f".lock-{name}", waiting=wait))
                if (wrong := whole_or_why(target, verify=config.verify)) is not None:
                    if wrong:
                        say(f"{wrong.partition('; delete')[0]}; preparing it again")
                    sweep(folder)
                    _write(work, target)
                    return target
    except KeyboardInterrupt:
        say(f"interrupted: nothing of {name} was kept in {folder}; the same command begins anew")
        raise
    except OSError as error:
        raise InputError(
            f"datasets={config.datasets} cannot be written in ({error.filename or folder}: "
            f"{error.strerror or error}); see to it, or choose another folder"
        ) from None
    say(f"{target} is already prepared: {counted(work.seen.documents)}, unchanged")
    return target


def counted(documents: int) -> str:
    return f"{documents:,} document" + ("s" if documents != 1 else "")


class Preparation:
    """The passes over one corpus, shared out over processes. What must be kept of each document lies on the disk."""

    def __init__(
        self, config: PrepareConfig, corpus: Corpus, say: Callable[[str], None], progress: Progress | None
    ) -> None:
        self.config, self.corpus, self.say, self.progress = config, corpus, say, progress
        self.splitting = Splitting(config.val_include, config.val_fraction)
        self.seen, self.left_out = Seen(of_source=[0] * len(corpus.sources)), LeftOut()
        self.fingerprint = ""

    def __enter__(self) -> Preparation:
        self.disk_bytes = self.corpus.n_bytes()
        self._held = ExitStack()
        cpus = self.config.workers or (available_cpus() if self.disk_bytes > SMALL else 1)
        self.pool = self._held.enter_context(Pool(cpus))
        return self

    def __exit__(self, *_: Any) -> None:
        self._held.close()

    def over(self, what: str, function: Callable[[Any], Result], items: Iterable[Any]) -> Iterator[tuple[Any, Result]]:
        """One pass: (item, function(item)) of blocks or tasks."""
        if self.progress:
            self.progress.begin(what, self.disk_bytes)
        try:
            for item, result in self.pool.map(function, items):
                yield item, result
                if self.progress:
                    self.progress.advance((item.block if isinstance(item, Task) else item).n_bytes)
        finally:
            if self.progress:
                self.progress.end()

    def scan(self) -> None:
        """Reads all documents: what there is, how it is split, the fingerprint."""
        seen, settings = self.seen, {"val_include": self.config.val_include, "val_fraction": self.config.val_fraction}
        self.settings = settings | tokenizer_settings(self.config.tokenizer) | {"sample": self.config.tokenizer_sample}
        digest = hashlib.sha256(json.dumps([FORMAT, self.settings], sort_keys=True).encode())
        self.rows = self._held.enter_context(_without_a_name(Path(self.config.datasets).expanduser()))
        self.counts: list[int] = []  # of documents in each block
        action = partial(passes.scan, self.corpus.reading, self.splitting)
        for block, found in self.over("reading", action, self.corpus.blocks()):
            self.left_out.merge(found.left_out, broken_lines=self.config.broken_lines)
            digest.update(found.identities)
            self.rows.write(found.rows)
            self.counts.append(len(found.rows) // ROW.size)
            for _, n_bytes, chosen in ROW.iter_unpack(found.rows):
                seen.n_bytes += n_bytes
                seen.val_documents += chosen
                seen.val_bytes += n_bytes * chosen
            seen.documents += self.counts[-1]
            seen.of_source[block.source] += self.counts[-1]
            seen.example = seen.example or found.first
            seen.val_names += found.val_names[: VAL_NAMES - len(seen.val_names)]
        self.corpus.check_not_empty(seen.documents, self.left_out)
        if line := str(self.left_out):
            self.say(line)
        digest.update(json.dumps(seen.of_source).encode())
        self.fingerprint = digest.hexdigest()

    def tasks(self) -> Iterator[Task]:
        """The blocks again, each with what the scan found in it."""
        self.rows.seek(0)
        number = -1
        for number, block in enumerate(self.corpus.blocks()):
            if number == len(self.counts):
                raise InputError("the corpus grew while it was being prepared; start again")
            yield Task(block, self.rows.read(self.counts[number] * ROW.size))
        if number + 1 != len(self.counts):
            raise InputError("documents vanished while the corpus was being prepared; start again")

    def build_tokenizer(self) -> tuple[Tokenizer, float]:
        """The tokenizer, and the share of the training documents that it was trained on."""
        wanted, reading, splitting = self.config.tokenizer, self.corpus.reading, self.splitting
        if wanted.path is not None or wanted.kind in ("byte", "tiktoken"):
            return tokenizers.build(wanted, ()), 1.0
        if wanted.kind == "char":  # sees all, else it could not write the validation text
            found = self.over("tokenizer", partial(passes.characters, reading), self.tasks())
            return tokenizers.build(wanted, (text for _, texts in found for text in texts)), 1.0
        share = min(1.0, self.config.tokenizer_sample / max(1.0, splitting.train_bytes(self.seen)))
        if share < 1:
            self.say(f"the tokenizer is trained on {share:.1%} of the training documents (tokenizer_sample=)")
        if wanted.kind == "bpe":
            counts: defaultdict[str, int] = defaultdict(int)
            count = partial(passes.pieces, reading, splitting, share, wanted.pattern)
            for _, more in self.over("tokenizer", count, self.tasks()):
                for piece, number in more.items():
                    counts[piece] += number
            tokenizer = tokenizers.build(wanted, (), counts=counts)
        else:
            read = partial(passes.training_text, reading, splitting, share)
            found = self.over("tokenizer", read, self.tasks())
            tokenizer = tokenizers.build(wanted, (text for _, texts in found for text in texts))
        if tokenizer.vocab_size < wanted.vocab_size:
            self.say(
                f"tokenizer.vocab_size={wanted.vocab_size} is more than this text can give: it has "
                f"{tokenizer.vocab_size:,} tokens"
            )
        return tokenizer, share

    def encode(self, folder: Path, tokenizer: Tokenizer, dtype: str) -> dict[str, dict[str, Any]]:
        """Writes the shards; the figures of each split."""
        splits = [TRAIN] if self.splitting.kind == NONE else [TRAIN, VAL]
        place = (str(folder / "tokenizer"), tokenizer.fingerprint)
        action = partial(passes.encode, self.corpus.reading, self.splitting, place, DTYPES[dtype])
        with ExitStack() as held:
            writers = {
                split: held.enter_context(SplitWriter(folder, split, dtype=dtype, end_id=tokenizer.end_id))
                for split in splits
            }
            begun = 0  # sources
            for task, found in self.over("encoding", action, self.tasks()):
                begun = self._begin_parts(writers, begun, task.block.source + 1)
                for split, encoded in found.items():
                    writers[split].add(encoded.ids, tokens=encoded.tokens, n_bytes=encoded.n_bytes, names=encoded.names)
            self._begin_parts(writers, begun, len(self.corpus.sources))
            return {split: writer.close() for split, writer in writers.items()}

    def _begin_parts(self, writers: dict[str, SplitWriter], begun: int, wanted: int) -> int:
        for source in self.corpus.sources[begun:wanted]:
            for writer in writers.values():
                writer.begin_part(source)
        return wanted


def _write(work: Preparation, target: Path) -> None:
    config, say, seen = work.config, work.say, work.seen
    name = corpus_name(config.corpus)
    work.splitting = work.splitting.decided(seen)
    # One temporary name a corpus: we hold its lock, so what lies there was left by a process that was killed.
    temporary = target.parent / f".tmp-{name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        say(f"{name}: {counted(seen.documents)}, {seen.n_bytes:,} bytes; building the tokenizer")
        tokenizer, share = work.build_tokenizer()
        tokenizer.save(temporary / "tokenizer")
        say(f"{name}: encoding, vocabulary of {tokenizer.vocab_size:,}")
        dtype = "uint16" if tokenizer.vocab_size <= 65_536 else "uint32"
        splits = work.encode(temporary, tokenizer, dtype)
        for split, figures in splits.items():
            if not figures["documents"]:
                raise InputError(
                    f"corpus={config.corpus!r} is too short: its {split} split is empty; add text"
                    + (", or set val_fraction=0 to do without validation" if split == VAL else "")
                )
        index = {
            "format": FORMAT,
            "fingerprint": work.fingerprint,
            "settings": {"corpus": config.corpus, "include": config.include, "exclude": config.exclude} | work.settings,
            "tokenizer": tokenizer.fingerprint,
            "tokenizer_share": share,
            "vocab_size": tokenizer.vocab_size,
            "dtype": dtype,
            "split": work.splitting.kind,
            "splits": splits,
        }
        text = report(name, index, seen, work.left_out)
        (temporary / "report.md").write_text(text, encoding="utf-8", errors="replace")
        (temporary / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        if wrong := whole_or_why(temporary, verify=True):
            raise OSError(None, f"what was written reads back otherwise: {wrong}", str(target))
        publish(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for split, figures in splits.items():
        say(f"{target}: {split} {counted(figures['documents'])}, {figures['tokens']:,} tokens")
    if work.splitting.kind == POSITION:
        say(f"too few documents to hold some out: the last {config.val_fraction:g} of each is the validation split")


def _without_a_name(folder: Path) -> IO[bytes]:
    """A file that vanishes with the process: in `folder` if one can write there, for it may become large."""
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError:
        return tempfile.TemporaryFile()
