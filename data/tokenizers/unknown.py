"""Says in one line which characters a tokenizer does not know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

NEW_MODEL = "only a new model with another tokenizer, such as tokenizer=bpe, can tell them apart"


class CharacterSet(Protocol):
    """The part of a tokenizer that is used here."""

    def unknown(self, text: str) -> Counter[str]: ...


def unknown_in(texts: Iterable[str], tokenizer: CharacterSet) -> Counter[str]:
    """Returns the characters that the tokenizer does not know, with their counts."""
    total = Counter[str]()
    for text in texts:
        total.update(tokenizer.unknown(text))
    return total


def unknown_note(unknown: Mapping[str, int], place: str, *, fix: str = "") -> str:
    """Returns the message that these characters, with their counts, are not in the vocabulary.

    place: where they are. fix: what to do about it.
    """
    top = Counter(unknown).most_common(3)
    most = [f"{character!r}" + (f" {count:,} times" if count > 1 else "") for character, count in top]
    number = sum(unknown.values())
    return (
        f"the tokenizer does not know {number:,} character{'s' * (number != 1)} in {place} ({', '.join(most)}"
        f"{', ...' if len(unknown) > len(most) else ''}): to the model, all unknown characters are the same token"
        + (f"; {fix}" if fix else "")
    )
