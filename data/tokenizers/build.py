"""Builds a tokenizer from settings and text, or loads one from its folder. Import tokenizers from here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from .. import InputError
from . import gpt2_files
from .base import END, FORMAT, UNKNOWN, Tokenizer, TokenizerConfig, digest, read_file, replace_surrogates
from .kinds import KINDS, BytePairTokenizer

__all__ = ["END", "UNKNOWN", "Tokenizer", "TokenizerConfig", "build", "load", "shortfall"]


def build(
    config: TokenizerConfig,
    texts: Iterable[str],
    *,
    workers: int = 0,
    counts: dict[str, int] | None = None,
    cache: Path = Path("datasets"),
) -> Tokenizer:
    """Trains the tokenizer that config describes on texts, or loads the one at config.path.

    Texts are read once, and counted by `workers` processes if the kind supports it (0: one per CPU).
    counts: the number of occurrences of each pretoken, if already known (kind bpe); texts are then ignored.
    cache: the folder in whose `downloads` the files of GPT-2's tokenizer are kept.
    Raises InputError if the settings are wrong or the text is not enough.
    """
    if problems := config.validate():
        raise InputError("; ".join(problems))
    if config.path is not None:
        return load(Path(config.path).expanduser())
    if config.kind == "tiktoken" and config.encoding == gpt2_files.ENCODING:
        gpt2_files.provide(cache)
    if counts is not None:
        tokenizer: Tokenizer = BytePairTokenizer.from_counts(config, counts)
    else:
        ordinary = config.ordinary_text(map(replace_surrogates, texts))
        tokenizer = KINDS[config.kind].train(config, ordinary, workers=workers)
    tokenizer.allow_special = config.allow_special
    return tokenizer


def shortfall(config: TokenizerConfig, tokenizer: Tokenizer) -> str | None:
    """Returns a message if the text gave fewer tokens than config asks for, otherwise None."""
    size, has_size = tokenizer.vocab_size, config.path is None and config.kind in ("bpe", "sentencepiece")
    if not has_size or size >= config.vocab_size:
        return None
    return f"tokenizer.vocab_size={config.vocab_size} is lowered to {size}: the text gives no more tokens"


def load(directory: Path) -> Tokenizer:
    """Loads a folder that Tokenizer.save wrote. Raises InputError if it is missing, damaged or of another format."""
    place = Path(directory) / "tokenizer.json"
    try:
        about = json.loads(read_file(place))
        if about["format"] != FORMAT:
            raise InputError(f"{place} has format {about['format']!r}; this program reads format {FORMAT}")
        if about["kind"] not in KINDS:
            raise InputError(f"{place} is of kind {about['kind']!r}, not one of {', '.join(KINDS)}")
        if not all(isinstance(about.get(key, ""), str) for key in ("pattern", "characters")):
            raise TypeError("pattern and characters must be text")
        kind = KINDS[about["kind"]]
        content = read_file(Path(directory) / kind.model_file) if kind.model_file else b""
        if about.pop("sha256") != digest(about, content):
            raise InputError(f"{directory} is damaged: its content does not match the sha256 in tokenizer.json")
        tokenizer = kind.restore(about, content)
        if type(allow_special := about.get("allow_special", False)) is not bool:
            raise TypeError("allow_special must be true or false")
        tokenizer.allow_special = allow_special
        tokenizer.start_id = start = about.get("start_id")
        tokenizer.end_name = about.get("end_name", END)
        if start is not None and (type(start) is not int or start not in tokenizer.special_tokens.values()):
            raise ValueError(f"start_id is {start!r}, not the id of a special token")
        if not isinstance(tokenizer.end_name, str) or tokenizer.end_name in tokenizer.special_tokens.keys() - {END}:
            raise ValueError(f"end_name is {tokenizer.end_name!r}: it must be text, and no other special token's name")
        if tokenizer.vocab_size != about["vocab_size"]:
            raise ValueError(f"vocab_size is {about['vocab_size']!r}, but there are {tokenizer.vocab_size} tokens")
        return tokenizer
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # RuntimeError: sentencepiece's
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{place} is damaged: {type(error).__name__}: {reason}; copy it again") from None
