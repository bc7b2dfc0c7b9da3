"""The ledger of a curation: what each rule removed, put right or only noticed, with a few examples."""

from __future__ import annotations

from typing import Any

from ..corpus.corpora import Document
from .curate import Cleaned, CurateConfig, matching
from .duplicates import Copy

EXAMPLES = 5


class Ledger:
    """By rule: documents, lines or characters, bytes. What several processes wrote is merged."""

    def __init__(self) -> None:
        self.rules: dict[str, dict[str, Any]] = {}
        self.matched: set[str] = set()  # patterns of drop_lines

    def drop(self, rule: str, document: Document) -> None:
        """A document that refuse() named a rule for."""
        self._count(rule, 1, 0, size(document), [document.name])

    def copy(self, copy: Copy, name: str, *, n_bytes: int, of: str) -> None:
        """A document of this name and size that duplicates() found to be a copy of the one named `of`; it may stay
        nevertheless."""
        rule = copy.rule if copy.removed else f"{copy.rule}, kept"
        self._count(rule, 1, 0, n_bytes, [f"{name} (of {of})"])

    def cleaned(self, cleaned: Cleaned, read: Document, config: CurateConfig) -> None:
        """What clean() removed from within a document that was read, or put right there."""
        for rule, (count, n_bytes) in cleaned.items():
            self._count(rule, 1, count, n_bytes, [read.name])
        if "drop_lines" in cleaned and (idle := self.idle(config)):
            self.matched |= matching(read.text, idle, config)

    def idle(self, config: CurateConfig) -> list[str]:
        """The patterns of drop_lines that matched no line so far."""
        return [pattern for pattern in config.patterns() if pattern not in self.matched]

    def merge(self, other: Ledger) -> None:
        for rule, entry in other.rules.items():
            self._count(rule, entry["documents"], entry["count"], entry["bytes"], entry["examples"])
        self.matched |= other.matched

    def to_dict(self) -> dict[str, Any]:
        return {rule: dict(entry) for rule, entry in sorted(self.rules.items())}

    def _count(self, rule: str, documents: int, count: int, n_bytes: int, examples: list[str]) -> None:
        entry = self.rules.setdefault(rule, {"documents": 0, "count": 0, "bytes": 0, "examples": []})
        entry["documents"] += documents
        entry["count"] += count  # of lines or characters, where a rule removes these; else 0
        entry["bytes"] += n_bytes
        entry["examples"] = (entry["examples"] + examples)[:EXAMPLES]


def size(document: Document) -> int:
    """Bytes of its text."""
    return len(document.text.encode(errors="replace"))
