"""A byte-level tokenizer as the tokenizer.json of Hugging Face's libraries.

Special tokens' names in plain text are special tokens there, as with allowed_special=True here. Long runs without a
border are cut here and not there (see Pattern.segments), so their tokens can differ.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from .. import InputError
from .base import Tokenizer
from .kinds import BytePairTokenizer, ByteTokenizer


def _letters() -> list[str]:
    """The character that GPT-2 writes for each byte: itself where it can be seen, else one from U+0100 on."""
    visible = {*chain(range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100))}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]


LETTERS = _letters()


def written(token: bytes) -> str:
    return "".join(LETTERS[byte] for byte in token)


def exported(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of tokenizer.json. InputError for a kind that is not byte-level."""
    cut: list[dict[str, Any]] = []
    if isinstance(tokenizer, BytePairTokenizer):
        ranks = tokenizer.ranks
        cut = [
            {"type": "Split", "pattern": {"Regex": tokenizer.pattern.source}, "behavior": "Isolated", "invert": False}
        ]
    elif isinstance(tokenizer, ByteTokenizer):
        ranks = {bytes([byte]): byte for byte in range(256)}
    else:
        raise InputError(
            f"a tokenizer of kind {tokenizer.kind} cannot be exported to tokenizer.json; those of kind bpe, tiktoken "
            "and byte can"
        )
    level: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    vocabulary = {written(token): rank for token, rank in ranks.items()} | tokenizer.special_tokens
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": name, **special} for name, token in tokenizer.special_tokens.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cut, level]},
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a piece that is a token needs no merges
            "vocab": vocabulary,
            "merges": merges(ranks),
        },
    }


def merges(ranks: dict[bytes, int]) -> list[list[str]]:
    """Each pair of tokens that together are a token, in the order of these.

    There a merge is a pair, here it is any two neighbours whose bytes together are a token: hence all pairs.
    """
    found = []
    for token in sorted(ranks, key=ranks.__getitem__):
        for place in range(len(token) - 1, 0, -1):
            left, right = token[:place], token[place:]
            if left in ranks and right in ranks:
                found.append([written(left), written(right)])
    return found
