"""The texts on which two programs' tokenizers are compared, and encoding with special tokens as they do it."""

from __future__ import annotations

from typing import Any

from ..tokenizers.base import Tokenizer, any_of
from .mixed_text import fuzz_strings, mixed_text

TEXT_BYTES, N_STRINGS = 1_000_000, 10_000
PROMPT = "Listen to your"


def proof_texts(tokenizer: Tokenizer, *, known_only: bool = False) -> dict[str, Any]:
    """Returns texts in which special tokens are ordinary text, texts in which they are tokens, and a prompt's ids.

    known_only: without the characters that the tokenizer does not know, around which programs differ.
    """
    plain = [mixed_text(TEXT_BYTES), *fuzz_strings(N_STRINGS, 1)]
    special = [mixed_text(TEXT_BYTES // 10, special=tuple(tokenizer.special_tokens))]
    if known_only:
        lost = str.maketrans(dict.fromkeys(tokenizer.unknown("".join((*plain, *special)))))
        plain, special = ([text.translate(lost) for text in texts] for texts in (plain, special))
    return {"plain": plain, "special": special, "prompt": tokenizer.encode(PROMPT)}


def encode(tokenizer: Tokenizer, text: str, special: bool) -> list[int]:
    """Returns the ids of a text. special: the names of special tokens in it are these tokens, as in other programs."""
    parts = any_of(tokenizer.special_tokens).split(text) if special else [text]
    ordinary = iter(tokenizer.encode_ordinary(parts[::2]))
    ids: list[int] = []
    for index, part in enumerate(parts):
        ids += [tokenizer.special_tokens[part]] if index % 2 else next(ordinary).tolist()
    return ids
