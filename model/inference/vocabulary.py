"""The part of a tokenizer that the model's code uses, and Vocabulary: the bytes of every token id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class Tokenizer(Protocol):
    """A tokenizer as data/tokenizers builds and loads it."""

    vocab_size: int
    end_id: int
    start_id: int | None
    special_tokens: dict[str, int]

    def encode(self, text: str, *, continued: bool = False) -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def token_bytes(self, token: int) -> bytes: ...
    def unknown(self, text: str) -> Counter[str]: ...


def opened(ids: list[int], *, start_id: int | None, end_id: int) -> list[int]:
    """The ids of a text as the beginning of a stream: after the start token, or, if empty, an end token."""
    return (ids or [end_id]) if start_id is None else [start_id, *ids]


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a prompt; never empty."""
    return opened(tokenizer.encode(text), start_id=tokenizer.start_id, end_id=tokenizer.end_id)


@dataclass(frozen=True)
class Vocabulary:
    """The bytes of every id, and the ids that are special tokens."""

    tokens: tuple[bytes, ...]  # by id; may hold part of a character; empty for special tokens and unused ids
    special: dict[int, str]  # the special tokens' names
    end_id: int  # the special token that ends a text; -1: there is none
    ends: tuple[int, ...] = ()  # other special tokens that end one, as in a chat
    start_id: int | None = None  # the special token that stands before every text, in models that learned it so

    @staticmethod
    def of(tokenizer: Tokenizer, ends: tuple[int, ...] = ()) -> Vocabulary:
        special = {token: name for name, token in tokenizer.special_tokens.items()}
        tokens = (b"" if token in special else tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size))
        return Vocabulary(tuple(tokens), special, tokenizer.end_id, ends, tokenizer.start_id)

    def is_end(self, token: int) -> bool:
        return token == self.end_id or token in self.ends

    def text(self, token: int) -> bytes:
        """The bytes that a token adds to a text: nothing if it ends the text, the name of any other special token."""
        return b"" if self.is_end(token) else self.special.get(token, "").encode() or self.tokens[token]
