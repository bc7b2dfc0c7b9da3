"""Preparation: a corpus and a tokenizer to token shards, published as one folder when it is complete."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from .. import InputError
from ..corpus.corpora import Corpus
from ..corpus.sources import licence_notes
from ..files import lock, publish, remove_leftovers
from ..reporting.advice import Summary, findings, plural
from ..reporting.baselines import REPORT_TOKENS, corpus_baselines, sample
from ..reporting.report import report, summarize
from ..reporting.statistics import Statistics
from ..tokenizers.build import Tokenizer
from .config import PrepareConfig
from .manifest import MISSING, corpus_name, find_damage, notes, report_head, report_tail
from .pipeline import Pipeline, Progress
from .shards import FORMAT, open_split
from .splitting import TRAIN, VAL

PICTURE = "report.png"
Show = Callable[[Summary, Path], None]


def prepare(
    config: PrepareConfig,
    *,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
    show: Show | None = None,
) -> Path:
    """Tokenizes a corpus into `datasets/NAME-FINGERPRINT/` and returns that folder.

    The fingerprint covers the settings and the names and text of all documents. So the corpus is always read and
    hashed; if its folder exists and is complete, nothing else is done. Processes that start together prepare it once.
    The folder appears by a rename when it is complete: an interrupted preparation leaves no partial corpus.

    show: called with the content of report.json and the path for its picture when a corpus is prepared.
    Raises InputError for wrong settings, unreadable text, or a folder that cannot be written.
    """
    if problems := config.validate():
        raise InputError("; ".join(problems))
    folder, name = Path(config.datasets).expanduser(), corpus_name(config.corpus)
    try:
        with ExitStack() as stack:
            corpus = stack.enter_context(Corpus(config.corpus, config.reading, cache=folder))
            pipeline = stack.enter_context(Pipeline(config, corpus, say, progress))
            pipeline.scan()
            target = folder / f"{name}-{pipeline.fingerprint[:12]}"
            if find_damage(target, verify=config.verify):
                folder.mkdir(parents=True, exist_ok=True)
                wait = partial(say, f"waiting for another process that prepares this corpus ({name})")
                stack.enter_context(lock(folder / f".lock-{name}", on_wait=wait))
                if damage := find_damage(target, verify=config.verify):  # else another process has just prepared it
                    if damage != MISSING:
                        say(f"{damage.partition('; delete')[0]}; preparing it again")
                    remove_leftovers(folder)
                    _prepare_anew(pipeline, target, show or (lambda summary, picture: None))
                    return target
    except KeyboardInterrupt:
        say(f"interrupted: nothing of {name} was kept in {folder}; run the command again to start over")
        raise
    except OSError as error:
        failed = f"cannot write {error.filename or folder}: {error.strerror or error}"
        raise InputError(f"datasets={config.datasets}: {failed}; free some space or choose another folder") from None
    for line in notes(json.loads((target / "index.json").read_text(encoding="utf-8"))["splits"]):
        say(line)
    say(f"{target} is already prepared: {plural(pipeline.inventory.documents, 'document')} read, unchanged")
    return target


def _prepare_anew(pipeline: Pipeline, target: Path, show: Show) -> None:
    """Writes everything into a temporary folder, reads it back, and renames the folder to `target`."""
    config, say, name = pipeline.config, pipeline.say, corpus_name(pipeline.config.corpus)
    pipeline.decide_split()
    # One temporary name per corpus. We hold its lock, so an existing folder was left by a killed process.
    temporary = target.parent / f".tmp-{name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        totals = pipeline.totals
        building = "" if config.tokenizer.path else "; building the tokenizer"
        say(f"{name}: {plural(totals.documents, 'document')}, {totals.n_bytes:,} bytes{building}")
        tokenizer, tokenizer_fraction = pipeline.build_tokenizer()
        tokenizer.save(temporary / "tokenizer")
        say(f"{name}: encoding, vocabulary of {tokenizer.vocab_size:,}")
        dtype = "uint16" if tokenizer.vocab_size <= 65_536 else "uint32"
        splits, statistics = pipeline.encode(temporary, tokenizer, dtype)
        pipeline.pool.close()  # the report needs memory too
        for split, figures in splits.items():
            if not figures["documents"]:
                hint = ", or set val_fraction=0 to train without validation" if split == VAL else ""
                raise InputError(f"corpus={config.corpus!r} is too short: its {split} split is empty; add text{hint}")
        index = {
            "format": FORMAT,
            "fingerprint": pipeline.fingerprint,
            "settings": {key: getattr(config, key) for key in ("corpus", "include", "exclude")} | pipeline.settings,
            "tokenizer": tokenizer.fingerprint,
            "tokenizer_share": tokenizer_fraction,
            "vocab_size": tokenizer.vocab_size,
            "dtype": dtype,
            "split": pipeline.rules.splitting.kind,
            "splits": splits,
        }
        _write_json(temporary / "index.json", index)
        summary = _write_report(pipeline, temporary, name, index, tokenizer, statistics, show)
        publish(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for line in [*licence_notes(config.corpus), *notes(splits)]:
        say(line)
    for split, figures in splits.items():
        tokens = f"{figures['tokens']:,} tokens, including end tokens"
        part = f"{split} " if len(splits) > 1 else ""
        say(f"{target}: {part}{plural(figures['documents'], 'document')}, {tokens}")
    if number := len(findings(summary)):
        also = f" ({PICTURE} shows plots)" if (target / PICTURE).exists() else ""
        each = "with a suggestion" if number == 1 else "each with a suggestion"
        say(f"{plural(number, 'finding')} about the text, {each}: {target / 'report.md'}{also}")


def _write_report(
    pipeline: Pipeline,
    folder: Path,
    name: str,
    index: dict[str, Any],
    tokenizer: Tokenizer,
    statistics: dict[str, Statistics],
    show: Show,
) -> Summary:
    """Writes report.json, report.md and, if `show` draws it, the picture. Returns the content of report.json."""
    pieces = {split: sample(open_split(folder, split), max_tokens=REPORT_TOKENS) for split in index["splits"]}
    known = not any(split.unknown for split in statistics.values())  # else there are no bits/byte of the text
    summary = summarize(
        statistics,
        pipeline.removals,
        tokenizer,
        settings=asdict(pipeline.config.curate),
        baselines=corpus_baselines(pieces[TRAIN], pieces.get(VAL), tokenizer) if known else None,
        documents=pipeline.totals.documents,
        skipped=pipeline.skipped,
    )
    _write_json(folder / "report.json", summary)
    show(summary, folder / PICTURE)
    picture = PICTURE if (folder / PICTURE).exists() else None
    text = report(summary, title=name, head=report_head(index), picture=picture)
    text += report_tail(index, pipeline.totals, pipeline.skipped)
    (folder / "report.md").write_text(text, encoding="utf-8", errors="replace")
    return summary


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
