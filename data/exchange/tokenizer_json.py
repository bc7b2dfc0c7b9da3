"""Exports a byte-level tokenizer to tokenizer.json, the format of Hugging Face's libraries.

Two differences remain. There, the name of a special token in plain text is that token; here only with
tokenizer.allow_special=true, and never <|endoftext|>. And only here are very long runs cut (see Pattern.segments), so
their tokens can differ.
"""

from __future__ import annotations

from typing import Any

from .. import InputError
from ..tokenizers.base import Tokenizer
from ..tokenizers.bpe import SINGLE_BYTES
from ..tokenizers.kinds import BytePairTokenizer, ByteTokenizer

# The character that GPT-2 writes for each byte: itself if it is visible, else the next one from U+0100 on.
VISIBLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
HIDDEN = sorted({*range(256)} - VISIBLE)
BYTE_CHARS = [chr(byte if byte in VISIBLE else 0x100 + HIDDEN.index(byte)) for byte in range(256)]


def _spell(token: bytes) -> str:
    return "".join(BYTE_CHARS[byte] for byte in token)


def to_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the content of tokenizer.json. Raises InputError for a kind that is not byte-level."""
    cut: list[dict[str, Any]] = []
    if isinstance(tokenizer, BytePairTokenizer):
        ranks, pattern = tokenizer.ranks, {"Regex": tokenizer.pattern.source}
        cut = [{"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}]
    elif isinstance(tokenizer, ByteTokenizer):
        ranks = SINGLE_BYTES
    else:
        raise InputError(f"a tokenizer of kind {tokenizer.kind} cannot be exported; only bpe, tiktoken and byte can")
    level: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    vocabulary = {_spell(token): rank for token, rank in ranks.items()} | tokenizer.special_tokens
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": token, "content": name, **special} for name, token in tokenizer.special_tokens.items()],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cut, level]},
        "decoder": level,
        "model": {
            "type": "BPE",
            "ignore_merges": True,  # a pretoken that is a token needs no merges
            "vocab": vocabulary,
            "merges": _merge_pairs(ranks),
        },
    }


def _merge_pairs(ranks: dict[bytes, int]) -> list[list[str]]:
    """Returns each pair of tokens whose bytes together are a token, in the order of that token's rank.

    In tokenizer.json a merge is one pair of tokens. Here any two neighbours merge if their bytes together are a token.
    """
    pairs = []
    for token in sorted(ranks, key=ranks.__getitem__):
        for place in range(len(token) - 1, 0, -1):
            left, right = token[:place], token[place:]
            if left in ranks and right in ranks:
                pairs.append([_spell(left), _spell(right)])
    return pairs
