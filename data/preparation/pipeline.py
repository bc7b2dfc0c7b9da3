"""The passes over one corpus, divided among processes: scan, decide the split, build the tokenizer, encode."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .. import InputError
from ..corpus.corpora import Corpus
from ..corpus.reading import Skipped
from ..curation.removals import Removals
from ..pool import Pool, available_cpus
from ..reporting.advice import plural, unmatched_patterns
from ..reporting.statistics import Statistics
from ..tokenizers import build as tokenizers
from ..tokenizers.build import Tokenizer
from . import passes
from .config import PrepareConfig
from .inventory import Inventory
from .manifest import tokenizer_settings
from .passes import Rules, Task
from .shards import DTYPES, FORMAT, SplitWriter
from .splitting import NONE, POSITION, TRAIN, VAL, Splitting

SMALL = 8 << 20  # bytes; a smaller corpus is not worth starting processes for
Result = TypeVar("Result")


class Progress(Protocol):
    """Shows the progress of a pass over the corpus."""

    def begin(self, what: str, total: int) -> None:
        """Starts a pass over `total` bytes."""

    def advance(self, n_bytes: int) -> None: ...
    def end(self) -> None: ...


class Pipeline:
    """The passes over one corpus. Call scan(), decide_split(), build_tokenizer() and encode(), in this order.

    All that is kept about each document is in temporary files, so memory does not grow with the corpus.
    """

    def __init__(
        self, config: PrepareConfig, corpus: Corpus, say: Callable[[str], None], progress: Progress | None
    ) -> None:
        self.config, self.corpus, self.say, self.progress = config, corpus, say, progress
        self.rules = Rules(corpus.options, config.curate, Splitting(config.val_include, config.val_fraction))
        self.skipped, self.removals = Skipped(), Removals()
        self.fingerprint = ""

    def __enter__(self) -> Pipeline:
        self.disk_bytes = self.corpus.n_bytes()
        self.inventory = Inventory(Path(self.config.datasets).expanduser())
        self.pool = Pool(self.config.workers or (available_cpus() if self.disk_bytes > SMALL else 1))
        return self

    def __exit__(self, *_: Any) -> None:
        self.inventory.close()
        self.pool.close()

    def map_blocks(
        self, what: str, function: Callable[[Any], Result], items: Iterable[Any]
    ) -> Iterator[tuple[Any, Result]]:
        """Runs one pass: yields (item, function(item)) for each block or task, in order, and shows progress."""
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
        """Reads all documents: fills the inventory, applies the rules on single documents, computes the fingerprint."""
        settings = {"val_include": self.config.val_include, "val_fraction": self.config.val_fraction}
        self.settings = settings | tokenizer_settings(self.config.tokenizer) | {"sample": self.config.tokenizer_sample}
        self.settings["curate"] = asdict(self.config.curate)
        digest = hashlib.sha256(json.dumps([FORMAT, self.settings], sort_keys=True).encode())
        documents_per_source = [0] * len(self.corpus.sources)
        for block, found in self.map_blocks("reading", partial(passes.scan, self.rules), self.corpus.blocks()):
            self.skipped.merge(found.skipped, max_bad_lines=self.config.max_bad_lines)
            self.removals.merge(found.removals)
            digest.update(found.identities)
            self.inventory.add(found.rows, found.names, found.signatures)
            documents_per_source[block.source] += self.inventory.counts[-1]
        self.skipped.merge(self.corpus.left_out, max_bad_lines=self.config.max_bad_lines)
        self.say(self.corpus.describe_formats())
        self.corpus.check_not_empty(self.inventory.documents, self.skipped)
        if line := str(self.skipped):
            self.say(line)
        for line in self.corpus.unused_options(self.skipped):
            self.say(line)
        if unmatched := self.removals.unmatched_patterns(self.config.curate):
            self.say(unmatched_patterns(unmatched))
        self.inventory.finish()
        digest.update(json.dumps(documents_per_source).encode())
        self.fingerprint = digest.hexdigest()

    def decide_split(self) -> None:
        """Decides the split (splitting.py) and removes copies; both need all documents."""
        totals, read = self.inventory.totals(), self.inventory.documents
        if not totals.documents:
            rules = ", ".join(f"{rule} {entry['documents']:,}" for rule, entry in self.removals.to_dict().items())
            reason = f"curation removed all of its {plural(read, 'document')} ({rules})"
            raise InputError(f"corpus={self.config.corpus!r}: {reason}; relax the curate.* rules")
        self.rules = replace(self.rules, splitting=self.rules.splitting.decide(totals))
        if self.rules.splitting.kind == POSITION:
            last = f"the last {100 * self.config.val_fraction:g}% of each document"
            self.say(f"too few documents to hold out whole ones: validation is {last}")
        self.inventory.remove_copies(self.rules.splitting, self.config.curate, self.removals)
        self.totals = self.inventory.totals()
        if removed := read - self.totals.documents:
            self.say(f"curation removed {removed:,} of {plural(read, 'document')}; report.md says which rules did")

    def tasks(self) -> Iterator[Task]:
        """Yields the blocks again, each with its rows from the scan."""
        start, counts = 0, iter(self.inventory.counts)
        for block in self.corpus.blocks():
            if (count := next(counts, None)) is None:
                raise InputError("the corpus grew during the preparation; run the command again")
            yield Task(block, self.inventory.rows[start : start + count].copy())
            start += count
        if next(counts, None) is not None:
            raise InputError("documents disappeared during the preparation; run the command again")

    def build_tokenizer(self) -> tuple[Tokenizer, float]:
        """Returns the tokenizer, and the fraction of the training documents that it was trained on."""
        config, rules, fraction = self.config.tokenizer, self.rules, 1.0
        if config.path is not None or config.kind in ("byte", "tiktoken"):
            return tokenizers.build(config, (), cache=self.corpus.cache), fraction
        if config.kind != "char":  # which needs all characters, or it could not encode the validation text
            fraction = min(1.0, self.config.tokenizer_sample / max(1.0, rules.splitting.train_bytes(self.totals)))
        if fraction < 1:
            self.say(f"training the tokenizer on {fraction:.1%} of the training documents (tokenizer_sample=)")
        if config.kind == "bpe":
            counts: Counter[str] = Counter()
            count = partial(passes.pretoken_counts, rules, fraction, config)
            for _, more in self.map_blocks("tokenizer", count, self.tasks()):
                counts.update(more)
            tokenizer = tokenizers.build(config, (), counts=counts)
        else:
            sample = partial(passes.training_text, rules, fraction)
            read = partial(passes.characters, rules, config) if config.kind == "char" else sample
            found = self.map_blocks("tokenizer", read, self.tasks())
            tokenizer = tokenizers.build(config, (text for _, texts in found for text in texts))
        if line := tokenizers.shortfall(config, tokenizer):
            self.say(line)
        return tokenizer, fraction

    def encode(
        self, folder: Path, tokenizer: Tokenizer, dtype: str
    ) -> tuple[dict[str, dict[str, Any]], dict[str, Statistics]]:
        """Writes the shards. Returns each split's entry for index.json, and its statistics."""
        splits = [TRAIN] if self.rules.splitting.kind == NONE else [TRAIN, VAL]
        fraction = report_sample_fraction(self.totals.documents, self.totals.n_bytes)
        sources, fingerprint = self.corpus.sources, tokenizer.fingerprint
        encode = partial(passes.encode, self.rules, folder / "tokenizer", fingerprint, DTYPES[dtype], sources, fraction)
        statistics = {split: Statistics(tokenizer.vocab_size, sample_fraction=fraction) for split in splits}
        with ExitStack() as stack:
            writer = partial(SplitWriter, folder, sources=sources, dtype=dtype, end_id=tokenizer.end_id)
            writers = {split: stack.enter_context(writer(split)) for split in splits}
            for task, found in self.map_blocks("encoding", encode, self.tasks()):
                for split, encoded in found.items():
                    writers[split].add(encoded.ids, encoded.documents, source=task.block.source)
                    statistics[split].merge(encoded.statistics)
            return {split: writer.close() | statistics[split].lost() for split, writer in writers.items()}, statistics


def report_sample_fraction(documents: int, n_bytes: int) -> float:
    """Returns the fraction of the documents whose characters and lines the report analyses.

    The analysis costs as much as encoding, so the fraction is a tenth, but at least about 32 MB and at most about
    64 MB of text, and at least ten documents.
    """
    return min(1.0, max(32e6, min(0.1 * n_bytes, 64e6), 10 * n_bytes / max(1, documents)) / max(1, n_bytes))
