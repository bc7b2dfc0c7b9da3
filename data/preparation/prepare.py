"""Preparation: a corpus and a tokenizer -> token shards with an index, published whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .. import InputError
from ..corpus.corpora import Corpus
from ..corpus.reading import ReadOptions, Skipped
from ..curation.curate import CurateConfig
from ..curation.removals import Ledger
from ..files import lock, publish, remove_leftovers
from ..pool import Pool, available_cpus
from ..reporting.advice import Summary, findings, idle_patterns
from ..reporting.references import sample
from ..reporting.report import report, summarise
from ..reporting.statistics import Statistics
from ..reporting.yardsticks import MOST, yardsticks
from ..tokenizers import build as tokenizers
from ..tokenizers.build import Tokenizer, TokenizerConfig
from . import memory, passes
from .inventory import Inventory
from .manifest import about, corpus_name, provenance, tokenizer_settings, whole_or_why
from .passes import Encoding, Rules, Task
from .shards import DTYPES, FORMAT, SplitWriter, open_split
from .splitting import NONE, POSITION, TRAIN, VAL, Splitting

SMALL = 8 << 20  # bytes of a corpus for which processes are not worth starting
PICTURE = "report.png"
__all__ = ["PrepareConfig", "Progress", "corpus_name", "open_split", "prepare"]
Result = TypeVar("Result")

PATTERNS = {"kind": "pattern", "list": True}
TEXT = {"kind": "text"}
ADVANCED = {"group": "advanced"}


@dataclass
class PrepareConfig:
    """What to prepare: the keys of `python -m scripts.prepare`."""

    # a built-in name, a file, a folder, a glob pattern, - (standard input); or a list
    corpus: Any = field(default="shakespeare", metadata={"kind": "path", "list": True})
    # a pattern on the names of documents or files, or a list of patterns
    include: Any = field(default=None, metadata=PATTERNS)
    exclude: Any = field(default=None, metadata=PATTERNS)  # likewise: what to leave out
    # the documents that make up the validation split; null: val_fraction decides
    val_include: Any = field(default=None, metadata=PATTERNS)
    val_fraction: float = 0.1  # 0: no validation split
    text_field: str = field(default="text", metadata=TEXT)  # in .jsonl and .parquet files
    # a line equal to it stands between the documents of one file of text
    document_separator: str | None = field(default=None, metadata=TEXT)
    # skip | replace | refuse documents that are not UTF-8; auto: refuse in a file named
    invalid_utf8: str = field(default="auto", metadata=ADVANCED)
    # so many broken lines of .jsonl files are left out; one more is an error
    max_bad_lines: int = field(default=0, metadata=ADVANCED)
    # bytes of training text that a tokenizer is trained on, of a corpus with more
    tokenizer_sample: float = field(default=64e6, metadata=ADVANCED)
    workers: int = field(default=0, metadata=ADVANCED)  # processes; 0: one for each CPU, none for a small corpus
    # where downloads and prepared corpora are kept
    datasets: str = field(default="datasets", metadata={"kind": "path"})
    # of a corpus that is prepared already, read every byte and compare its sha256
    verify: bool = field(default=False, metadata=ADVANCED)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    # what is left out: data/curate.py
    curate: CurateConfig = field(default_factory=CurateConfig, metadata={"group": "curation"})
    debug: bool = field(default=False, metadata={"group": "run"})  # show the traceback of a user's mistake

    def validate(self) -> list[str]:
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
        found += self.reading.validate()
        for name, least in (("max_bad_lines", 0), ("workers", 0), ("tokenizer_sample", 1)):
            if getattr(self, name) < least:
                found.append(f"{name}={getattr(self, name)} must be at least {least}")
        return found + self.tokenizer.validate() + self.curate.validate()

    @property
    def reading(self) -> ReadOptions:
        return ReadOptions(self.include, self.exclude, self.text_field, self.document_separator, self.invalid_utf8)


class Progress(Protocol):
    """Shows how far a pass over the corpus has come."""

    def begin(self, what: str, total: int) -> None:
        """A pass over so many bytes begins."""

    def advance(self, n_bytes: int) -> None: ...
    def end(self) -> None: ...


def prepare(
    config: PrepareConfig,
    *,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
    show: Callable[[Summary, Path], None] | None = None,
) -> Path:
    """Tokenises a corpus into `datasets/NAME-FINGERPRINT/` and returns that folder; after reading and hashing the
    corpus alone if it is there already.

    The fingerprint covers the names and text of all documents and the settings, so a changed corpus never meets a
    stale folder. Processes that start together prepare once. The folder appears by a rename when it is complete.
    show: called with what report.json holds and where its picture may be drawn, if the corpus is prepared anew.
    """
    if problems := config.validate():
        raise InputError("; ".join(problems))
    folder, name = Path(config.datasets).expanduser(), corpus_name(config.corpus)
    try:
        with ExitStack() as held:
            corpus = held.enter_context(Corpus(config.corpus, config.reading, cache=folder))
            work = held.enter_context(Preparation(config, corpus, say, progress))
            work.scan()
            target = folder / f"{name}-{work.fingerprint[:12]}"
            if (wrong := whole_or_why(target, verify=config.verify)) is not None:
                folder.mkdir(parents=True, exist_ok=True)
                wait = partial(say, f"waiting for another process that prepares this corpus ({name})")
                held.enter_context(lock(folder / f".lock-{name}", on_wait=wait))
                if (wrong := whole_or_why(target, verify=config.verify)) is not None:
                    if wrong:
                        say(f"{wrong.partition('; delete')[0]}; preparing it again")
                    remove_leftovers(folder)
                    _write(work, target, show or (lambda summary, picture: None))
                    return target
    except KeyboardInterrupt:
        say(f"interrupted: nothing of {name} was kept in {folder}; the same command begins anew")
        raise
    except OSError as error:
        raise InputError(
            f"datasets={config.datasets} cannot be written in ({error.filename or folder}: "
            f"{error.strerror or error}); see to it, or choose another folder"
        ) from None
    say(f"{target} is already prepared: {counted(sum(work.inventory.counts))} read, unchanged")
    return target


def counted(documents: int) -> str:
    return f"{documents:,} document" + ("s" if documents != 1 else "")


class Preparation:
    """The passes over one corpus, shared out over processes. What must be kept of each document lies on the disk."""

    def __init__(
        self, config: PrepareConfig, corpus: Corpus, say: Callable[[str], None], progress: Progress | None
    ) -> None:
        self.config, self.corpus, self.say, self.progress = config, corpus, say, progress
        self.rules = Rules(corpus.options, config.curate, Splitting(config.val_include, config.val_fraction))
        self.left_out, self.ledger = Skipped(), Ledger()
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
        settings = {"val_include": self.config.val_include, "val_fraction": self.config.val_fraction}
        self.settings = settings | tokenizer_settings(self.config.tokenizer) | {"sample": self.config.tokenizer_sample}
        self.settings["curate"] = asdict(self.config.curate)
        digest = hashlib.sha256(json.dumps([FORMAT, self.settings], sort_keys=True).encode())
        self.inventory = self._held.enter_context(closing(Inventory(Path(self.config.datasets).expanduser())))
        of_source = [0] * len(self.corpus.sources)  # documents
        for block, found in self.over("reading", partial(passes.scan, self.rules), self.corpus.blocks()):
            self.left_out.merge(found.left_out, max_bad_lines=self.config.max_bad_lines)
            self.ledger.merge(found.ledger)
            digest.update(found.identities)
            self.inventory.add(rows=found.rows, names=found.names, signatures=found.signatures)
            of_source[block.source] += self.inventory.counts[-1]
        self.corpus.check_not_empty(sum(of_source), self.left_out)
        if line := str(self.left_out):
            self.say(line)
        if idle := self.ledger.idle(self.config.curate):
            self.say(idle_patterns(idle))
        self.inventory.finish()
        digest.update(json.dumps(of_source).encode())
        self.fingerprint = digest.hexdigest()

    def split_and_remove_copies(self) -> None:
        """What needs to know all documents: the kind of the split, and which of them are copies."""
        seen, read = self.inventory.seen(), sum(self.inventory.counts)
        if not seen.documents:
            rules = ", ".join(f"{rule} {entry['documents']:,}" for rule, entry in self.ledger.to_dict().items())
            raise InputError(
                f"corpus={self.config.corpus!r}: none of its {counted(read)} is left ({rules}); add text, or loosen "
                "the rules of curate"
            )
        self.rules = replace(self.rules, splitting=self.rules.splitting.decided(seen))
        self.inventory.remove_copies(self.rules.splitting, self.config.curate, self.ledger)
        self.seen = self.inventory.seen()
        if removed := read - self.seen.documents:
            self.say(f"curation leaves out {counted(removed)} of {read:,}; report.md says which rules did")

    def tasks(self) -> Iterator[Task]:
        """The blocks again, each with what the scan found in it."""
        number, start, counts = -1, 0, self.inventory.counts
        for number, block in enumerate(self.corpus.blocks()):
            if number == len(counts):
                raise InputError("the corpus grew while it was being prepared; start again")
            yield Task(block, self.inventory.of_block(number, start))
            start += counts[number]
        if number + 1 != len(counts):
            raise InputError("documents vanished while the corpus was being prepared; start again")

    def build_tokenizer(self) -> tuple[Tokenizer, float]:
        """The tokenizer, and the share of the training documents that it was trained on."""
        wanted, rules = self.config.tokenizer, self.rules
        if wanted.path is not None or wanted.kind in ("byte", "tiktoken"):
            return tokenizers.build(wanted, ()), 1.0
        if wanted.kind == "char":  # sees all, else it could not write the validation text
            found = self.over("tokenizer", partial(passes.characters, rules), self.tasks())
            return tokenizers.build(wanted, (text for _, texts in found for text in texts)), 1.0
        share = min(1.0, self.config.tokenizer_sample / max(1.0, rules.splitting.train_bytes(self.seen)))
        if share < 1:
            self.say(f"the tokenizer is trained on {share:.1%} of the training documents (tokenizer_sample=)")
        if wanted.kind == "bpe":
            counts: defaultdict[str, int] = defaultdict(int)
            count = partial(passes.pieces, rules, share, wanted.pattern)
            for _, more in self.over("tokenizer", count, self.tasks()):
                for piece, number in more.items():
                    counts[piece] += number
            tokenizer = tokenizers.build(wanted, (), counts=counts)
        else:
            read = partial(passes.training_text, rules, share)
            found = self.over("tokenizer", read, self.tasks())
            tokenizer = tokenizers.build(wanted, (text for _, texts in found for text in texts))
        if line := tokenizers.shortfall(wanted, tokenizer):
            self.say(line)
        return tokenizer, share

    def encode(
        self, folder: Path, tokenizer: Tokenizer, dtype: str
    ) -> tuple[dict[str, dict[str, Any]], dict[str, Statistics]]:
        """Writes the shards; the index's figures of each split, and the report's."""
        splits = [TRAIN] if self.rules.splitting.kind == NONE else [TRAIN, VAL]
        place = (str(folder / "tokenizer"), tokenizer.fingerprint)
        share = looked_at(self.seen.documents, self.seen.n_bytes)
        encoding = Encoding(place, DTYPES[dtype], self.corpus.sources, share)
        statistics = {split: Statistics(tokenizer.vocab_size, looked_at=share) for split in splits}
        with ExitStack() as held:
            writers = {
                split: held.enter_context(SplitWriter(folder, split, dtype=dtype, end_id=tokenizer.end_id))
                for split in splits
            }
            begun = 0  # sources
            for task, found in self.over("encoding", partial(passes.encode, self.rules, encoding), self.tasks()):
                begun = self._begin_parts(writers, begun, task.block.source + 1)
                for split, encoded in found.items():
                    writers[split].add(encoded.ids, tokens=encoded.tokens, n_bytes=encoded.n_bytes, names=encoded.names)
                    statistics[split].merge(encoded.statistics)
            self._begin_parts(writers, begun, len(self.corpus.sources))
            return {split: writer.close() for split, writer in writers.items()}, statistics

    def _begin_parts(self, writers: dict[str, SplitWriter], begun: int, wanted: int) -> int:
        for source in self.corpus.sources[begun:wanted]:
            for writer in writers.values():
                writer.begin_part(source)
        return wanted


def looked_at(documents: int, n_bytes: int) -> float:
    """The share of the documents whose characters and lines the report looks at, for that costs as much as encoding: a
    tenth, but at least some 32 MB and ten documents, and at most some 64 MB where ten documents are not more.
    """
    return min(1.0, max(32e6, min(0.1 * n_bytes, 64e6), 10 * n_bytes / max(1, documents)) / max(1, n_bytes))


def _write(work: Preparation, target: Path, show: Callable[[Summary, Path], None]) -> None:
    config, say = work.config, work.say
    name = corpus_name(config.corpus)
    work.split_and_remove_copies()
    seen, kind = work.seen, work.rules.splitting.kind
    # One temporary name a corpus: we hold its lock, so what lies there was left by a process that was killed.
    temporary = target.parent / f".tmp-{name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        say(f"{name}: {counted(seen.documents)}, {seen.n_bytes:,} bytes; building the tokenizer")
        tokenizer, share = work.build_tokenizer()
        memory.give_back()  # millions of small objects lived there
        tokenizer.save(temporary / "tokenizer")
        say(f"{name}: encoding, vocabulary of {tokenizer.vocab_size:,}")
        dtype = "uint16" if tokenizer.vocab_size <= 65_536 else "uint32"
        splits, statistics = work.encode(temporary, tokenizer, dtype)
        work.pool.close()  # the report takes memory too
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
            "split": kind,
            "splits": splits,
        }
        (temporary / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        pieces = {split: sample(open_split(temporary, split), most=MOST) for split in splits}
        measured = yardsticks(pieces[TRAIN], pieces.get(VAL), tokenizer)
        settings = asdict(config.curate)
        summary = summarise(
            statistics, work.ledger, tokenizer, settings=settings, yardsticks=measured, documents=seen.documents,
            left_out=work.left_out,
        )  # fmt: skip
        (temporary / "report.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        show(summary, temporary / PICTURE)
        picture = PICTURE if (temporary / PICTURE).exists() else None
        text = report(summary, title=name, about=about(index), picture=picture) + provenance(index, seen, work.left_out)
        (temporary / "report.md").write_text(text, encoding="utf-8", errors="replace")
        if wrong := whole_or_why(temporary, verify=True):
            raise OSError(None, f"what was written reads back otherwise: {wrong}", str(target))
        publish(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for split, figures in splits.items():
        say(f"{target}: {split} {counted(figures['documents'])}, {figures['tokens']:,} tokens")
    if kind == POSITION:
        say(f"too few documents to hold some out: the last {config.val_fraction:g} of each is the validation split")
    if number := len(findings(summary)):
        also = f", {picture}" if picture else ""
        need = "findings need" if number > 1 else "finding needs"
        say(f"{number} {need} a decision: {target / 'report.md'}{also}")
