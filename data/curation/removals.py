"""What curation removed, repaired or only found: counts by rule, with a few examples."""

from __future__ import annotations

from typing import Any

from ..corpus.reading import Document
from .curate import Cleaned, CurateConfig, matching_patterns
from .duplicates import Copy

EXAMPLES = 5


class Removals:
    """Documents, lines or characters, and bytes, by rule. The counts of several processes can be merged."""

    def __init__(self) -> None:
        self.rules: dict[str, dict[str, Any]] = {}
        self.matched: set[str] = set()  # patterns of drop_lines that matched a line

    def add_document(self, rule: str, document: Document) -> None:
        """Counts a document that refuse() dropped."""
        self._count(rule, 1, 0, size(document), [document.name])

    def add_copy(self, copy: Copy, name: str, *, n_bytes: int, original: str) -> None:
        """Counts a document that duplicates() found to be a copy of the one named `original`, removed or not."""
        rule = copy.rule if copy.removed else f"{copy.rule}, kept"
        self._count(rule, 1, 0, n_bytes, [f"{name} (of {original})"])

    def add_cleaned(self, cleaned: Cleaned, document: Document, config: CurateConfig) -> None:
        """Counts what clean() removed or repaired in a document; `document` is the uncleaned one."""
        for rule, (count, n_bytes) in cleaned.items():
            self._count(rule, 1, count, n_bytes, [document.name])
        if "drop_lines" in cleaned and (unmatched := self.unmatched_patterns(config)):
            self.matched |= matching_patterns(document.text, unmatched, config)

    def unmatched_patterns(self, config: CurateConfig) -> list[str]:
        """Returns the patterns of drop_lines that have matched no line."""
        return [pattern for pattern in config.patterns() if pattern not in self.matched]

    def merge(self, other: Removals) -> None:
        for rule, entry in other.rules.items():
            self._count(rule, entry["documents"], entry["count"], entry["bytes"], entry["examples"])
        self.matched |= other.matched

    def to_dict(self) -> dict[str, Any]:
        return {rule: dict(entry) for rule, entry in sorted(self.rules.items())}

    def _count(self, rule: str, documents: int, count: int, n_bytes: int, examples: list[str]) -> None:
        entry = self.rules.setdefault(rule, {"documents": 0, "count": 0, "bytes": 0, "examples": []})
        entry["documents"] += documents
        entry["count"] += count  # lines or characters; 0 if the rule drops documents
        entry["bytes"] += n_bytes
        entry["examples"] = (entry["examples"] + examples)[:EXAMPLES]


def size(document: Document) -> int:
    """Returns the bytes of a document's text."""
    return len(document.text.encode(errors="replace"))
