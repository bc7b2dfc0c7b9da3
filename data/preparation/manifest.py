"""The manifest: the settings that identify a prepared corpus, the check of its files, its own part of report.md."""

from __future__ import annotations

import glob
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import InputError
from ..corpus.reading import Skipped
from ..corpus.sources import STDIN, licence_notes
from ..files import sha256_of
from ..reporting.report import table
from ..tokenizers import build as tokenizers
from ..tokenizers.build import TokenizerConfig
from ..tokenizers.unknown import NEW_MODEL, unknown_note
from .shards import open_split
from .splitting import HASH, NAMES, NONE, POSITION, Totals

MISSING = "missing"


def corpus_name(corpus: str | list[str]) -> str:
    """Returns a folder name for a corpus: letters, digits, underscores, dots and dashes."""
    sources = [corpus] if isinstance(corpus, str) else corpus
    sources = ["stdin" if source == STDIN else source for source in sources]
    paths = [Path(source).expanduser().resolve().parts for source in sources]
    stems = [[part for part in parts if not glob.has_magic(part)][-1].split(".")[0] for parts in paths]
    return re.sub(r"[^\w.-]+", "-", "-".join(stems)).strip("-.")[:40] or "corpus"


def tokenizer_settings(config: TokenizerConfig) -> dict[str, Any]:
    """Returns what a tokenizer depends on, besides the text. An existing tokenizer is identified by its content."""
    if config.path is not None:
        return {"tokenizer": tokenizers.load(Path(config.path).expanduser()).fingerprint}
    settings: dict[str, Any] = {"tokenizer": asdict(config)}
    if not config.allow_special:  # so that corpora keep the fingerprint that they had before there was this setting
        del settings["tokenizer"]["allow_special"]
    ranks = Path(config.encoding).expanduser()
    if config.kind == "tiktoken" and ranks.is_file():
        settings["ranks_sha256"] = sha256_of(ranks)
    return settings


def find_damage(target: Path, *, verify: bool) -> str | None:
    """Returns the first problem of a prepared corpus: MISSING, or an error message; None if it is complete.

    verify: also compare the sha256 of every file.
    """
    if not target.exists():
        return MISSING
    try:
        for split in json.loads((target / "index.json").read_text(encoding="utf-8"))["splits"]:
            open_split(target, split, verify=verify)
        tokenizers.load(target / "tokenizer")
    except (InputError, OSError, ValueError, KeyError, TypeError) as error:
        return str(error) or repr(error)
    return None


def notes(splits: dict[str, dict[str, Any]]) -> list[str]:
    """Returns what the tokens do not say about the text, one line each. splits: of index.json."""
    found = []
    for split, figures in splits.items():
        place = f"the {split} split" if len(splits) > 1 else "the corpus"
        if unknown := figures["unknown_characters"]:
            found.append(f"note: {unknown_note(unknown, place, fix=NEW_MODEL)}")
        if names := figures["special_tokens_as_text"]:
            counts = ", ".join(f"{name!r} {count:,} times" for name, count in names.items())
            found.append(
                f"note: tokenizer.special_tokens in {place} ({counts}) are ordinary text; "
                "tokenizer.allow_special=true makes them tokens"
            )
    return found


def report_head(index: dict[str, Any]) -> list[str]:
    """Returns the first lines of report.md: fingerprint, split, vocabulary."""
    kinds = {
        NAMES: "by name (`val_include=`)",
        HASH: "by a hash of each document's text",
        POSITION: "by position: the last part of each document, because whole documents would miss `val_fraction=`",
        NONE: "no validation split",
    }
    lines = [f"Fingerprint: {index['fingerprint']}. Split: {kinds[index['split']]}.", ""]
    lines += [f"Vocabulary: {index['vocab_size']:,} tokens, stored as {index['dtype']}."]
    if index["tokenizer_share"] < 1:
        lines += ["", f"The tokenizer was trained on {index['tokenizer_share']:.2%} of the training documents."]
    return lines


def report_tail(index: dict[str, Any], totals: Totals, skipped: Skipped) -> str:
    """Returns the last section of report.md: validation documents, skipped or repaired documents, settings."""
    lines = ["", "## Sources and settings", ""]
    lines += [f"{note}\n" for note in licence_notes(index["settings"]["corpus"])]
    if index["split"] in (NAMES, HASH):
        names = _some(totals.candidate_names, totals.candidates)
        lines += [f"Validation documents: {totals.candidates}: {names}", ""]
    if skipped.counts:
        rows = ([reason, f"{count:,}", f"{size:,}"] for reason, (count, size) in skipped.counts.items())
        lines += ["Skipped or repaired while reading:", "", *table("reason|> documents|> bytes", rows), ""]
        lines += [_some(skipped.examples, sum(count for count, _ in skipped.counts.values())), ""]
    lines += ["Settings:", "", "```json", json.dumps(index["settings"], indent=1), "```", ""]
    return "\n".join(lines)


def _some(names: list[str], total: int) -> str:
    return ", ".join(names) + (", ..." if total > len(names) else "")
