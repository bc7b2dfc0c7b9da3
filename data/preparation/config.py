"""The settings of preparation."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from ..corpus.reading import ReadOptions
from ..curation.curate import CurateConfig
from ..tokenizers.build import TokenizerConfig

PATTERNS = {"kind": "pattern", "list": True}
TEXT = {"kind": "text"}
ADVANCED = {"group": "advanced"}
TRAINED = ("tokenizer.path=null", "tokenizer.kind=bpe|sentencepiece")


@dataclass
class PrepareConfig:
    """What to prepare: the settings of `python -m scripts.prepare`."""

    # a built-in name, a file, a folder, a glob pattern or - (standard input); or a list of these
    corpus: Any = field(default="shakespeare", metadata={"kind": "path", "list": True})
    # use only documents whose name, or file name, matches this pattern (or one of a list)
    include: Any = field(default=None, metadata=PATTERNS)
    exclude: Any = field(default=None, metadata=PATTERNS)  # leave out documents whose name, or file name, matches
    # hold out the documents whose name matches; null: val_fraction decides
    val_include: Any = field(default=None, metadata=PATTERNS)
    # fraction of the text to hold out for validation; 0: no validation split
    val_fraction: float = field(default=0.1, metadata={"needs": ("val_include=null",)})
    text_field: str = field(default="text", metadata=TEXT)  # the field with the text in .jsonl and .parquet files
    # the line that separates documents within a text file
    document_separator: str | None = field(default=None, metadata=TEXT)
    # text that is not UTF-8: skip | replace | refuse; auto: refuse in a file that corpus= names, skip in a folder
    invalid_utf8: str = field(default="auto", metadata=ADVANCED)
    # number of broken lines to skip in .jsonl files; one more is an error
    max_bad_lines: int = field(default=0, metadata=ADVANCED)
    # train the tokenizer on at most about this many bytes of training text
    tokenizer_sample: float = field(default=64e6, metadata=ADVANCED | {"needs": TRAINED})
    workers: int = field(default=0, metadata=ADVANCED)  # processes; 0: one per CPU, a single one for a small corpus
    # the folder for downloads and prepared corpora
    datasets: str = field(default="datasets", metadata={"kind": "path"})
    # also check the sha256 of every file if the corpus is already prepared
    verify: bool = field(default=False, metadata=ADVANCED)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    # what to remove from the corpus: data/curation/curate.py
    curate: CurateConfig = field(default_factory=CurateConfig, metadata={"group": "curation"})
    debug: bool = field(default=False, metadata={"group": "run"})  # show the traceback of a user's mistake

    def validate(self) -> list[str]:
        """Returns the errors in the settings, one line each."""
        found = []
        for name in ("corpus", "include", "exclude", "val_include"):
            value = getattr(self, name)
            strings = [value] if isinstance(value, str) else value
            if value is None and name != "corpus":
                continue
            if not (isinstance(strings, list) and strings and all(isinstance(s, str) and s for s in strings)):
                found.append(f"{name}={json.dumps(value)} must be a non-empty string or a list of them")
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
