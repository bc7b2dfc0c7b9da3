"""The manifest: what a prepared corpus was made of, as a fingerprint and a report; whether it is whole."""

from __future__ import annotations

import glob
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import InputError
from ..corpus.reading import Skipped
from ..corpus.sources import STDIN
from ..files import sha256_of
from ..reporting.report import table
from ..tokenizers import build as tokenizers
from ..tokenizers.build import TokenizerConfig
from .shards import open_split
from .splitting import HASH, NAMES, NONE, POSITION, Seen


def corpus_name(corpus: str | list[str]) -> str:
    """A folder name for a corpus: letters, digits, dots, dashes."""
    sources = [corpus] if isinstance(corpus, str) else corpus
    sources = ["stdin" if source == STDIN else source for source in sources]
    parts = [Path(source).expanduser().resolve().parts for source in sources]
    stems = [[part for part in path if not glob.has_magic(part)][-1].split(".")[0] for path in parts]
    return re.sub(r"[^\w.-]+", "-", "-".join(stems)).strip("-.")[:40] or "corpus"


def tokenizer_settings(config: TokenizerConfig) -> dict[str, Any]:
    """What a tokenizer depends on besides the text. One that is named by a path counts by its content."""
    if config.path is not None:
        return {"tokenizer": tokenizers.load(Path(config.path).expanduser()).fingerprint}
    settings: dict[str, Any] = {"tokenizer": asdict(config)}
    ranks = Path(config.encoding).expanduser()
    if config.kind == "tiktoken" and ranks.is_file():
        settings["ranks_sha256"] = sha256_of(ranks)
    return settings


def whole_or_why(target: Path, *, verify: bool) -> str | None:
    """None for a prepared corpus that is whole, else what is wrong with it; empty if there is nothing."""
    if not target.exists():
        return ""
    try:
        for split in json.loads((target / "index.json").read_text(encoding="utf-8"))["splits"]:
            open_split(target, split, verify=verify)
        tokenizers.load(target / "tokenizer")
    except (InputError, OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return None


def about(index: dict[str, Any]) -> list[str]:
    """What the report says first."""
    kinds = {
        NAMES: "by val_include",
        HASH: "by a hash of each document's content",
        POSITION: "by position, the last part of each document: whole ones would miss val_fraction",
        NONE: "no validation split",
    }
    lines = [f"Fingerprint {index['fingerprint']}. Split: {kinds[index['split']]}.", ""]
    lines += [f"Vocabulary: {index['vocab_size']:,} tokens, stored as {index['dtype']}."]
    if index["tokenizer_share"] < 1:
        lines += ["", f"The tokenizer was trained on {index['tokenizer_share']:.2%} of the training documents."]
    return lines


def provenance(index: dict[str, Any], seen: Seen, left_out: Skipped) -> str:
    """What the report says last: what is held out, what could not be read, the settings."""
    lines = ["", "## Where it is from", ""]
    if index["split"] in (NAMES, HASH):
        lines += [f"Validation documents: {seen.val_documents}: {_some(seen.val_names, seen.val_documents)}", ""]
    if left_out.counts:
        rows = ([reason, f"{count:,}", f"{size:,}"] for reason, (count, size) in left_out.counts.items())
        lines += ["Left out or mended as it was read:", "", *table("reason|> documents|> bytes", rows), ""]
        lines += [_some(left_out.examples, sum(count for count, _ in left_out.counts.values())), ""]
    lines += ["Settings:", "", "```json", json.dumps(index["settings"], indent=1), "```", ""]
    return "\n".join(lines)


def _some(names: list[str], total: int) -> str:
    return ", ".join(names) + (", ..." if total > len(names) else "")
