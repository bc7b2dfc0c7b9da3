"""What each token of a vocabulary does to a state of the word machine, as tensors: computed once a state."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

from ..inference.vocabulary import Vocabulary
from .words import State, Step, WordRule, checked


@dataclass(frozen=True)
class Closing:
    """An outcome that tokens close: what it is, and its bytes (inside a word those that come on top)."""

    kind: str
    head: bytes
    spaced: bool
    name: str = ""  # of a special token


class Table:
    """The tokens that leave a state's outcome open, and those that close it.

    open_tokens (n,) lead to the states `next_states` with `spaced`; each belongs to an entry: the distinct bytes
    `heads` of the outcome, sorted, so that all extensions of a string are neighbours. `unsure` (n,) tells which
    may yet turn out to continue the prompt's last word. closed_tokens (m,) belong to the `closings`. Tokens in neither
    are impossible: at a border, those that do not repeat the prompt.
    """

    def __init__(self, state: State, vocabulary: Vocabulary, rule: WordRule, start: State) -> None:
        self.state = state
        open_steps: list[tuple[int, Step]] = []
        closed: list[tuple[int, Closing]] = []
        for token, step in _steps(state, vocabulary, rule, start):
            if step.kind is None:
                open_steps.append((token, step))
            else:
                name = vocabulary.special.get(token, f"<unused {token}>") if step.kind == "special" else ""
                closed.append((token, Closing(step.kind, step.head, step.spaced, name)))
        open_steps.sort(key=lambda pair: pair[1].head)
        self.open_tokens = torch.tensor([token for token, _ in open_steps], dtype=torch.int64)
        self.token_ids = self.open_tokens.tolist()
        self.next_states = [step.state or state for _, step in open_steps]
        self.spaced = [step.spaced for _, step in open_steps]
        self.heads = sorted({step.head for _, step in open_steps})
        self.entry_of = {head: entry for entry, head in enumerate(self.heads)}
        self.entries = [self.entry_of[step.head] for _, step in open_steps]  # of each open token
        self.members: list[list[int]] = [[] for _ in self.heads]  # of each entry: its places in open_tokens
        for place, entry in enumerate(self.entries):
            self.members[entry].append(place)
        unsure = [state.phase in ("edge", "edge_inner") and state.pending != b"" for state in self.next_states]
        self.unsure, self.any_unsure = torch.tensor(unsure, dtype=torch.bool), any(unsure)
        self.entry_index = torch.tensor(self.entries, dtype=torch.int64)
        self.subtrees = [self.subtree(head) for head in self.heads]
        self.levels = self._levels()
        self.closings = list(dict.fromkeys(closing for _, closing in closed))
        numbers = {closing: number for number, closing in enumerate(self.closings)}
        self.closed_tokens = torch.tensor([token for token, _ in closed], dtype=torch.int64)
        self.closing_index = torch.tensor([numbers[closing] for _, closing in closed], dtype=torch.int64)

    def subtree(self, head: bytes) -> tuple[int, int]:
        """The range of the entries that begin with these bytes."""
        above = head + b"\xff"  # no UTF-8 has this byte, so it sorts behind all extensions
        return bisect_left(self.heads, head), bisect_left(self.heads, above)

    def places(self, head: bytes) -> list[int]:
        """Which of the open tokens give just these bytes."""
        entry = self.entry_of.get(head)
        return [] if entry is None else self.members[entry]

    def longest_prefix(self, head: bytes) -> int:
        """The entry whose bytes are the longest that these begin with; -1 if there is none."""
        for length in range(len(head), -1, -1):
            entry = self.entry_of.get(head[:length])
            if entry is not None:
                return entry
        return -1

    def chain(self, masses: Tensor) -> Tensor:
        """Masses (n, open tokens) -> for each entry, the sum over all entries its bytes begin with: (n, entries)."""
        rows = masses.T.contiguous()  # whole rows are added faster than columns
        sums = rows.new_zeros(len(self.heads), rows.shape[1]).index_add_(0, self.entry_index, rows)
        for entries, parents in self.levels:
            sums.index_add_(0, entries, sums.index_select(0, parents))
        return sums.T.contiguous()

    def _levels(self) -> list[tuple[Tensor, Tensor]]:
        """For each depth of nesting from 1 on: the entries there and the entry that each extends."""
        levels: list[tuple[list[int], list[int]]] = []
        stack: list[int] = []  # the entries that the present one extends
        for entry, head in enumerate(self.heads):
            while stack and not head.startswith(self.heads[stack[-1]]):
                stack.pop()
            if stack:
                if len(levels) < len(stack):
                    levels.append(([], []))
                levels[len(stack) - 1][0].append(entry)
                levels[len(stack) - 1][1].append(stack[-1])
            stack.append(entry)
        return [(torch.tensor(entries), torch.tensor(parents)) for entries, parents in levels]


def _steps(state: State, vocabulary: Vocabulary, rule: WordRule, start: State) -> list[tuple[int, Step]]:
    """(token, what it does) for all possible tokens. Behind a border the machine begins in the state `start`."""
    found = []
    settled: dict[bytes, Step] = {}  # what closes the outcome by its first byte alone: then the rest does not matter
    if state.phase != "border":
        steps = {bytes([byte]): rule.read(state, bytes([byte])) for byte in range(256)}
        settled = {first: step for first, step in steps.items() if step.kind is not None}
    for token, text in enumerate(vocabulary.tokens):
        if state.phase != "border":
            step = settled.get(text[:1]) or (rule.read(state, text) if text else rule.end(state))
            found.append((token, step))
        elif text and text.startswith(state.pending):
            found.append((token, rule.read(start, text[len(state.pending) :])))
        elif text and state.pending.startswith(text):
            found.append((token, Step(None, b"", State("border", state.pending[len(text) :]))))
    return found


class Tables:
    """The tables of a vocabulary under a word rule, made when needed and kept: they serve any prompt."""

    def __init__(self, vocabulary: Vocabulary, rule: WordRule | None = None) -> None:
        self.vocabulary, self.rule = vocabulary, checked(rule)
        self._made: dict[tuple[State, State | None], Table] = {}

    def of(self, state: State, start: State) -> Table:
        """The table of a state, in a search whose words begin in the state `start`."""
        key = state, start if state.phase == "border" else None
        if key not in self._made:
            if len(self._made) >= 256:  # borders differ from prompt to prompt
                self._made = {key: table for key, table in self._made.items() if key[1] is None and not key[0].pending}
            self._made[key] = Table(state, self.vocabulary, self.rule, start)
        return self._made[key]
