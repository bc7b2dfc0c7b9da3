"""Ranks files: a BPE vocabulary in tiktoken's text format, one token per line."""

from __future__ import annotations

import base64

from .. import InputError
from .bpe import MAX_VOCABULARY, SINGLE_BYTES


def format_ranks(ranks: dict[bytes, int]) -> bytes:
    """Returns the file's content: on each line a token's bytes in base64, a space, its rank."""
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


def parse_ranks(content: bytes, *, place: str) -> dict[bytes, int]:
    """Parses a ranks file, ours or another program's. Raises InputError, which names the place and the line."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
            if not 0 <= int(rank) < 2 * MAX_VOCABULARY:
                raise ValueError(rank)
        except ValueError:
            raise InputError(f"{place}:{number}: {line[:60]!r} is not a token in base64 and its rank") from None
        if len(ranks) != number:
            raise InputError(f"{place}:{number}: the token {line[:60]!r} is a duplicate")
    if not ranks.keys() >= SINGLE_BYTES.keys() or b"" in ranks or len(set(ranks.values())) != len(ranks):
        raise InputError(f"{place}: not a ranks file: a single byte has no token, or two tokens have the same rank")
    return ranks
