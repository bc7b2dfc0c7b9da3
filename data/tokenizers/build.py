"""The tokenizer's front door: build one from settings and text, load one from its directory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from .. import InputError
from .base import END, FORMAT, UNKNOWN, Tokenizer, TokenizerConfig, digest, read, well_formed
from .kinds import KINDS, BytePairTokenizer

__all__ = ["END", "UNKNOWN", "Tokenizer", "TokenizerConfig", "build", "load", "shortfall"]


def build(
    config: TokenizerConfig, texts: Iterable[str], *, workers: int = 0, counts: dict[str, int] | None = None
) -> Tokenizer:
    """Train the tokenizer that config describes on texts, or open the one that it names.

    Texts are read once. Where a kind can, it learns from them on `workers` processes; 0: as many as there are CPUs.
    counts: of kind bpe, how often each piece of the text occurs, where that is known already; texts are not read then.
    """
    if problems := config.validate():
        raise InputError("; ".join(problems))
    if config.path is not None:
        return load(Path(config.path).expanduser())
    if counts is not None:
        return BytePairTokenizer.learn(config, counts)
    return KINDS[config.kind].train(config, map(well_formed, texts), workers=workers)


def shortfall(config: TokenizerConfig, tokenizer: Tokenizer) -> str | None:
    """The line that says so where the text did not give as many tokens as the config asks for."""
    if config.path is not None or config.kind not in ("bpe", "sentencepiece"):
        return None
    if tokenizer.vocab_size >= config.vocab_size:
        return None
    size = tokenizer.vocab_size
    return f"tokenizer.vocab_size={config.vocab_size} is lowered to {size}: the text has no more to give"


def load(directory: Path) -> Tokenizer:
    """Read a directory that Tokenizer.save wrote. InputError if it is missing, damaged or of another format."""
    place = Path(directory) / "tokenizer.json"
    try:
        about = json.loads(read(place))
        if about["format"] != FORMAT:
            raise InputError(f"{place} has format {about['format']!r}; this program reads format {FORMAT}")
        if about["kind"] not in KINDS:
            raise InputError(f"{place} is of kind {about['kind']!r}, not one of {', '.join(KINDS)}")
        if not all(isinstance(about.get(key, ""), str) for key in ("pattern", "characters")):
            raise TypeError("pattern and characters must be text")
        kind = KINDS[about["kind"]]
        content = read(Path(directory) / kind.file) if kind.file else b""
        if about.pop("sha256") != digest(about, content):
            raise InputError(f"{directory} is damaged: its content has not the sha256 that tokenizer.json names")
        tokenizer = kind.restore(about, content)
        if tokenizer.vocab_size != about["vocab_size"]:
            raise ValueError(f"vocab_size is {about['vocab_size']!r}, the tokens are {tokenizer.vocab_size}")
        return tokenizer
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # RuntimeError: sentencepiece's
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{place} is damaged: {type(error).__name__}: {reason}") from None
