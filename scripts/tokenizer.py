"""Works on tokenizers without a model: train one, compare several, show how they split a text, export one."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from conf import cli
from conf.display.tables import comparison_table, show_cuts
from data import InputError
from data.corpus.corpora import documents
from data.corpus.reading import ReadOptions, Skipped
from data.exchange.tokenizer_json import to_tokenizer_json
from data.tokenizers.base import ranks_path
from data.tokenizers.build import Tokenizer, TokenizerConfig, build, load, shortfall
from data.tokenizers.fertility import fertility, words_of
from data.tokenizers.unknown import unknown_in, unknown_note

MODES = ("train", "compare", "show", "export")
TRAINED: dict[str, dict[str, Any]] = {  # names that `tokenizers` takes; `name:8192` sets the vocabulary size
    "byte": {"kind": "byte"},
    "char": {"kind": "char"},
    "bpe": {"kind": "bpe", "pattern": "gpt2"},
    "bpe-gpt4": {"kind": "bpe", "pattern": "gpt4"},
    "unigram": {"kind": "sentencepiece", "algorithm": "unigram"},
    "sentencepiece-bpe": {"kind": "sentencepiece", "algorithm": "bpe"},
}
HELD_OUT = 10  # compare: tokenizers are trained on 9 of 10 documents, and compared on the others

PATHS = {"kind": "path", "list": True}
PATTERNS = {"kind": "pattern", "list": True}
TEXT = {"kind": "text"}
PATH = {"kind": "path"}
READS, COMPARES = {"needs": ("mode=train|compare|show",)}, {"needs": ("mode=compare",)}


@dataclass
class ToolConfig:
    """The keys of `python -m scripts.tokenizer`."""

    mode: str = "train"  # train | compare | show | export
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)  # the one to train
    # compare, show, export: folders, names such as bpe:8192 or char, encodings and ranks files of tiktoken
    tokenizers: Any = field(default=None, metadata=PATHS | {"needs": ("mode=compare|show|export",)})
    # train, compare, show: the text to train and compare on
    corpus: Any = field(default="shakespeare", metadata=PATHS | READS)
    include: Any = field(default=None, metadata=PATTERNS | READS)
    exclude: Any = field(default=None, metadata=PATTERNS | READS)
    # this and the next three as python -m scripts.prepare takes them (data/preparation/config.py)
    text_field: str = field(default="text", metadata=TEXT | READS)
    # the line that separates documents within a text file
    document_separator: str | None = field(default=None, metadata=TEXT | READS)
    # skip | replace | refuse documents that are not UTF-8; auto: refuse in a file named
    invalid_utf8: str = field(default="auto", metadata=READS)
    max_bad_lines: int = field(default=0, metadata=READS)  # broken lines of .jsonl files to tolerate
    datasets: str = field(default="datasets", metadata=PATH | READS)  # where downloads are kept
    # show: the text; null: standard input
    text: str | None = field(default=None, metadata=TEXT | {"needs": ("mode=show",)})
    # train: a new folder; export: the tokenizer.json to write
    out: str | None = field(default=None, metadata=PATH | {"needs": ("mode=train|export",)})
    workers: int = field(default=0, metadata=READS)  # training processes; 0: as many as there are CPUs
    max_bytes: int = field(default=20_000_000, metadata=COMPARES)  # compare: maximum size of the text
    json: str | None = field(default=None, metadata={"kind": "output"} | COMPARES)  # compare: a file for the figures
    debug: bool = False

    def validate(self) -> list[str]:
        found = [] if self.mode in MODES else [f"mode={self.mode!r} is not one of {', '.join(MODES)}"]
        names = self.names
        if not all(isinstance(name, str) and name for name in names):
            found.append(f"tokenizers={self.tokenizers!r} must be a name or a list of names")
        if self.mode in ("train", "export") and not self.out:
            what = "a new folder, such as out=out/tokenizer" if self.mode == "train" else "a file, out=tokenizer.json"
            found.append(f"out is required: {what}")
        if self.mode == "export" and len(names) != 1:
            found.append("tokenizers is required: the folder of the one to export, such as tokenizers=out/tokenizer")
        if self.mode in ("compare", "show") and not names:
            found.append("tokenizers is required: for example tokenizers=[bpe:4096,unigram:4096,out/tokenizer]")
        for name, minimum in (("workers", 0), ("max_bytes", 1), ("max_bad_lines", 0)):
            if getattr(self, name) < minimum:
                found.append(f"{name}={getattr(self, name)} must be at least {minimum}")
        return found + ReadOptions(separator=self.document_separator, invalid_utf8=self.invalid_utf8).validate()

    @property
    def names(self) -> list[Any]:
        if self.tokenizers is None:
            return []
        return self.tokenizers if isinstance(self.tokenizers, list) else [self.tokenizers]


def texts_of(cfg: ToolConfig) -> list[str]:
    """Reads the corpus; prints the formats of its files and what was left out."""
    skipped = Skipped()
    found = documents(
        cfg.corpus,
        include=cfg.include,
        exclude=cfg.exclude,
        text_field=cfg.text_field,
        document_separator=cfg.document_separator,
        invalid_utf8=cfg.invalid_utf8,
        max_bad_lines=cfg.max_bad_lines,
        cache=Path(cfg.datasets).expanduser(),
        skipped=skipped,
        say=print,
    )
    texts = [document.text for document in found]
    if line := str(skipped):
        print(line)
    return texts


def split(texts: list[str]) -> tuple[list[str], list[str]]:
    """Returns (training texts, texts to compare on): different documents if there are enough."""
    if len(texts) < HELD_OUT:
        return texts, texts
    numbered = list(enumerate(texts))
    return [text for n, text in numbered if n % HELD_OUT], [text for n, text in numbered if not n % HELD_OUT]


def trained_here(name: str) -> bool:
    """True if the name means a tokenizer to train; others exist already, and may have seen the text."""
    return name.partition(":")[0] in TRAINED and not os.path.exists(name)


def named(cfg: ToolConfig, name: str, texts: list[str] | None) -> Tokenizer:
    """Trains or loads the tokenizer of that name. texts: the training texts; None if training is not possible."""
    kind, _, size = name.partition(":")
    if trained_here(name):
        if size and not size.isdecimal():
            raise InputError(f"tokenizers: {name!r}: {size!r} is not a size; write {kind}:4096")
        if texts is None:
            raise InputError(
                f"tokenizers: train {name!r} first with mode=train out=FOLDER, then give tokenizers=FOLDER"
            )
        config = replace(cfg.tokenizer, path=None, vocab_size=int(size or cfg.tokenizer.vocab_size), **TRAINED[kind])
        return build(config, texts, workers=cfg.workers)
    path = Path(name).expanduser()
    for folder in (path, path / "tokenizer"):
        if (folder / "tokenizer.json").is_file():
            return load(folder)
    if path.is_dir():
        raise InputError(f"tokenizers: {name} contains no tokenizer.json; give the folder of a tokenizer or checkpoint")
    try:
        pattern = cfg.tokenizer.pattern if ranks_path(name) else "gpt2"  # an encoding has its own
        config = replace(cfg.tokenizer, kind="tiktoken", encoding=name, pattern=pattern, path=None)
        return build(config, [], cache=Path(cfg.datasets).expanduser())
    except InputError as error:
        raise InputError(f"tokenizers: {name!r} is neither a folder nor one of {', '.join(TRAINED)}; {error}") from None


def train(cfg: ToolConfig) -> None:
    folder = Path(cfg.out or "").expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"out={cfg.out} already exists; name a new folder")
    texts = texts_of(cfg)
    start = time.perf_counter()
    tokenizer = build(cfg.tokenizer, texts, workers=cfg.workers, cache=Path(cfg.datasets).expanduser())
    seconds = time.perf_counter() - start
    tokenizer.save(folder)
    n_bytes = sum(len(text.encode()) for text in texts)
    if line := shortfall(cfg.tokenizer, tokenizer):
        print(line)
    print(
        f"{folder}: kind {tokenizer.kind}, {tokenizer.vocab_size:,} tokens, from {n_bytes:,} bytes in {seconds:.1f} s"
    )


def compare(cfg: ToolConfig) -> None:
    texts = texts_of(cfg)
    learn, held = split(texts)
    held = first_bytes(held, cfg.max_bytes)
    n_bytes = sum(len(text.encode()) for text in held)
    words = [words_of(text) for text in held]
    rows = []
    for name in cfg.names:
        tokenizer = named(cfg, name, learn)
        start = time.perf_counter()
        encoded = tokenizer.encode_batch(held)
        seconds = time.perf_counter() - start
        if unknown := unknown_in(held, tokenizer):
            print(f"note: {name}: {unknown_note(unknown, 'this text')}")
        tokens = sum(map(len, encoded))
        rows.append(
            {
                "name": name,
                "kind": tokenizer.kind,
                "trained_here": trained_here(name),
                "vocab_size": tokenizer.vocab_size,
                "tokens": tokens,
                "unknown_characters": unknown.total(),
                "bytes_per_token": n_bytes / max(1, tokens),
                "used": len(np.unique(np.concatenate(encoded))) / tokenizer.vocab_size,
                "megabytes_per_second": n_bytes / 1e6 / seconds,
                "fertility": fertility(tokenizer, words, encoded),
            }
        )
    where = "the training text"
    if len(texts) >= HELD_OUT:
        where = f"{len(held):,} documents held out of training"
    comparison_table(rows, title=f"{n_bytes:,} bytes, {where}")
    if cfg.json:
        Path(cfg.json).write_text(json.dumps({"bytes": n_bytes, "tokenizers": rows}, indent=1) + "\n", encoding="utf-8")


def first_bytes(texts: list[str], max_bytes: int) -> list[str]:
    """As many of the first texts as fit into max_bytes, but at least one."""
    sizes = np.cumsum([len(text.encode()) for text in texts])
    return texts[: max(1, int(np.searchsorted(sizes, max_bytes, side="right")))]


def show(cfg: ToolConfig) -> None:
    try:
        text = sys.stdin.buffer.read().decode() if cfg.text is None else cfg.text
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 ({error}); convert it (iconv)") from None
    texts = texts_of(cfg) if any(map(trained_here, cfg.names)) else []
    for name in cfg.names:
        tokenizer = named(cfg, name, texts)
        ids = tokenizer.encode(text)
        if unknown := tokenizer.unknown(text):
            print(f"note: {name}: {unknown_note(unknown, 'this text')}")
        count = f"{len(ids):,} token" + ("s" if len(ids) != 1 else "")
        show_cuts(map(tokenizer.token_bytes, ids), title=f"{name}: {count} of {len(text.encode()):,} bytes")


def export(cfg: ToolConfig) -> None:
    path = Path(cfg.out or "").expanduser()
    if path.is_dir():
        path /= "tokenizer.json"
    content = to_tokenizer_json(named(cfg, cfg.names[0], None))
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{path}: {len(content['model']['vocab']):,} tokens; there, a special token's name in a text is that token")


def main(cfg: ToolConfig, overrides: cli.Overrides) -> None:
    {"train": train, "compare": compare, "show": show, "export": export}[cfg.mode](cfg)


if __name__ == "__main__":
    cli.run(main, ToolConfig, name="tokenize")
