"""Ranks files: a round trip, and an error for every kind of damage."""

from __future__ import annotations

import pytest

from data import InputError
from data.tokenizers import bpe
from data.tokenizers.bpe import format_ranks, parse_ranks


def test_ranks_survive_their_file() -> None:
    ranks = bpe.train(["some text, some more text"], vocab_size=270)
    assert parse_ranks(format_ranks(ranks), place="here") == ranks


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda lines: lines[:5], "here: not a ranks file"),
        (lambda lines: [*lines, b"YWI= 3"], "here: not a ranks file"),
        (lambda lines: [*lines, lines[0]], "here:257: .* is a duplicate"),
        (lambda lines: [*lines, b"YWI="], "here:257: .* is not a token"),
        (lambda lines: [*lines, b"!!! 256"], "here:257: .* is not a token"),
        (lambda lines: [*lines, b"YWI= -1"], "here:257: .* is not a token"),
        (lambda lines: [*lines, b"YWI= 99999999"], "here:257: .* is not a token"),
        (lambda lines: [*lines[:7], b"", *lines[7:]], "here:8: .* is not a token"),
    ],
)
def test_a_damaged_ranks_file_names_the_line(damage, complaint: str) -> None:
    lines = format_ranks(bpe.SINGLE_BYTES).splitlines()
    with pytest.raises(InputError, match=complaint):
        parse_ranks(b"\n".join(damage(lines)), place="here")
