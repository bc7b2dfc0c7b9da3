"""Vocabulary: what the model's ids stand for, as far as searching and stopping need to know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """The bytes of every id, and which ids are no text."""

    tokens: tuple[bytes, ...]  # by id; often no whole character; empty for special tokens and ids that do not exist
    special: dict[int, str]  # the special tokens' names
    end_id: int  # the special token that ends a text

    def text(self, token: int) -> bytes:
        """The bytes that a token adds to a text: a special token's name; nothing for the end."""
        return b"" if token == self.end_id else self.special.get(token, "").encode() or self.tokens[token]
