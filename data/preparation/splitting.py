"""The split: which documents, or which part of each, are held out for validation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .. import InputError
from ..corpus.reading import matches

TRAIN, VAL = "train", "val"
NONE, NAMES, HASH, POSITION = "none", "names", "hash", "position"


@dataclass(frozen=True)
class Splitting:
    """How a corpus is split. While it is scanned `kind` is open, for it depends on what there is."""

    val_include: str | list[str] | None
    val_fraction: float
    kind: str = ""

    def chooses(self, name: str, digest: bytes) -> bool:
        """Whether a document is for validation, if whole documents are: by its name or by its content's hash."""
        if self.val_include:
            return matches(name, self.val_include, default=False)
        # By content: a document keeps its side whatever is added around it, and equal documents are on one side.
        return int.from_bytes(digest[:8], "big") < self.val_fraction * 2**64

    def decided(self, seen: Seen) -> Splitting:
        """With its kind: none, names, hash, or position where hashes would miss val_fraction by more than half."""
        if self.val_include:
            if seen.val_documents in (0, seen.documents):
                raise InputError(
                    f"val_include={self.val_include!r} matches {'all' if seen.val_documents else 'none'} of the "
                    f"{seen.documents} documents, such as {seen.example!r}; choose some for validation and leave some "
                    "for training"
                )
            return replace(self, kind=NAMES)
        if self.val_fraction == 0:
            return replace(self, kind=NONE)
        share = seen.val_bytes / seen.n_bytes
        by_hash = self.val_fraction / 2 <= share <= 2 * self.val_fraction and seen.val_documents < seen.documents
        return replace(self, kind=HASH if by_hash else POSITION)

    def sides(self, text: str, *, chosen: bool) -> list[tuple[str, str]]:
        """(split, text) of a document, or of both its parts; none of them empty."""
        if self.kind != POSITION:
            return [(VAL if chosen and self.kind != NONE else TRAIN, text)]
        cut = int(len(text) * (1 - self.val_fraction))
        return [(side, part) for side, part in ((TRAIN, text[:cut]), (VAL, text[cut:])) if part]

    def train_bytes(self, seen: Seen) -> float:
        """About how many bytes of text there are to train on."""
        held_out = {NONE: 0.0, POSITION: self.val_fraction * seen.n_bytes}
        return seen.n_bytes - held_out.get(self.kind, seen.val_bytes)


@dataclass
class Seen:
    """What a corpus holds."""

    documents: int = 0
    n_bytes: int = 0
    val_documents: int = 0  # if whole documents are chosen
    val_bytes: int = 0
    example: str = ""  # a document's name
    val_names: list[str] = field(default_factory=list)  # the first of them
