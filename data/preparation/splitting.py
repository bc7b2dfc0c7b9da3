"""The split: decides which documents, or which part of each document, are held out for validation."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .. import InputError
from ..corpus.reading import matches
from ..reporting.advice import plural

TRAIN, VAL = "train", "val"
# The kind of split is the first of these that applies.
NAMES = "names"  # val_include= is set: hold out the documents whose names match
NONE = "none"  # val_fraction=0: no validation split
HASH = "hash"  # hold out the documents whose text hashes to less than val_fraction
POSITION = "position"  # if that is below half or above twice val_fraction of the text: the end of every document


@dataclass(frozen=True)
class Splitting:
    """How a corpus is split. `kind` is empty until decide(), since it depends on the whole corpus."""

    val_include: str | list[str] | None
    val_fraction: float
    kind: str = ""

    def is_candidate(self, name: str, digest: bytes) -> bool:
        """True if a document goes into the validation split when whole documents are held out.

        digest: sha256 of its text. A hash split keeps every document on its side when others are added or removed,
        and puts equal documents on the same side.
        """
        if self.val_include:
            return matches(name, self.val_include, default=False)
        return int.from_bytes(digest[:8], "big") < self.val_fraction * 2**64

    def decide(self, totals: Totals) -> Splitting:
        """Returns the splitting with its kind. Raises InputError if val_include matches all documents or none."""
        if self.val_include:
            if totals.candidates in (0, totals.documents):
                which = f"{'all' if totals.candidates else 'none'} of the {plural(totals.documents, 'document')}"
                raise InputError(f"val_include={self.val_include!r} matches {which}, such as {totals.example!r}")
            return replace(self, kind=NAMES)
        if self.val_fraction == 0:
            return replace(self, kind=NONE)
        fraction = totals.candidate_bytes / totals.n_bytes
        is_close = self.val_fraction / 2 <= fraction <= 2 * self.val_fraction
        return replace(self, kind=HASH if is_close and totals.candidates < totals.documents else POSITION)

    def assign(self, text: str, *, candidate: bool) -> list[tuple[str, str]]:
        """Returns (split, text) of a document, or of its two parts in a position split; no text is empty."""
        if self.kind != POSITION:
            return [(VAL if candidate and self.kind != NONE else TRAIN, text)]
        cut = int(len(text) * (1 - self.val_fraction))
        return [(split, part) for split, part in ((TRAIN, text[:cut]), (VAL, text[cut:])) if part]

    def train_bytes(self, totals: Totals) -> float:
        """Returns the bytes of training text: exact, except in a position split."""
        held_out = {NONE: 0.0, POSITION: self.val_fraction * totals.n_bytes}
        return totals.n_bytes - held_out.get(self.kind, totals.candidate_bytes)


@dataclass
class Totals:
    """Sizes of a corpus, and of the part that is held out if whole documents are (the candidates)."""

    documents: int
    n_bytes: int
    candidates: int
    candidate_bytes: int
    example: str  # the name of a document
    candidate_names: list[str]  # the first few
