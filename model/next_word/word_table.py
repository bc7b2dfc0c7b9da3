"""The effect of every token of a vocabulary on a state of the word machine, as tensors, computed once per state."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from ..inference.vocabulary import Vocabulary
from .words import State, Step, WordRule


@dataclass(frozen=True)
class Closing:
    """An outcome that tokens close. `certain` as in Step; `name` is that of a special token."""

    kind: str
    certain: bytes
    spaced: bool
    name: str = ""


class Table:
    """The n tokens that leave a state's outcome open and the m tokens that close it.

    Open token i, `token_ids[i]`, leads to `next_states[i]`, skips a space if `spaced[i]`, may yet continue the prompt's
    last word if `ambiguous[i]`, and adds the certain bytes `texts[text_of[i]]`. The distinct `texts` are sorted, so
    that the extensions of a text directly follow it: a prefix tree stored as a list. Closing token j,
    `closing_tokens[j]`, closes the outcome `closings[closing_index[j]]`. Tokens in neither list contradict the bytes
    that token healing asks for.
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
                closed.append((token, Closing(step.kind, step.certain, step.spaced, name)))
        open_steps.sort(key=lambda pair: pair[1].certain)
        self.token_ids = [token for token, _ in open_steps]
        self.open_tokens = torch.tensor(self.token_ids, dtype=torch.int64)  # (n,)
        self.next_states = [step.state or state for _, step in open_steps]
        self.spaced = [step.spaced for _, step in open_steps]
        ambiguous = [next_.phase == "prompt" and next_.pending != b"" for next_ in self.next_states]
        self.ambiguous = torch.tensor(ambiguous, dtype=torch.bool)  # (n,)

        self.texts = sorted({step.certain for _, step in open_steps})
        self._index = {text: index for index, text in enumerate(self.texts)}
        self.text_of = [self._index[step.certain] for _, step in open_steps]
        self._positions: list[list[int]] = [[] for _ in self.texts]  # the open tokens of each text
        for position, index in enumerate(self.text_of):
            self._positions[index].append(position)
        # For each open token the range of `texts` that extend its own.
        extensions = [self.extensions(text) for text in self.texts]
        self.ranges = [extensions[index] for index in self.text_of]
        self._first, self._end = torch.tensor(self.ranges, dtype=torch.int64).reshape(-1, 2).unbind(1)  # each (n,)

        numbers: dict[Closing, int] = {}
        indices = [numbers.setdefault(closing, len(numbers)) for _, closing in closed]
        self.closing_index = torch.tensor(indices, dtype=torch.int64)  # (m,)
        self.closing_tokens = torch.tensor([token for token, _ in closed], dtype=torch.int64)  # (m,)
        self.closings = list(numbers)

    def extensions(self, text: bytes) -> tuple[int, int]:
        """Returns the range of `texts` that begin with these bytes."""
        above = text + b"\xff"  # 0xFF does not occur in UTF-8, so this sorts after every extension
        return bisect_left(self.texts, text), bisect_left(self.texts, above)

    def positions(self, text: bytes) -> list[int]:
        """Returns the open tokens that add exactly these bytes."""
        index = self._index.get(text)
        return [] if index is None else self._positions[index]

    def longest_prefix(self, text: bytes) -> int:
        """Returns the index of the longest of `texts` that these bytes begin with; -1 if there is none."""
        prefixes = (text[:length] for length in range(len(text), -1, -1))
        return next((self._index[prefix] for prefix in prefixes if prefix in self._index), -1)

    def prefix_sums(self, masses: Tensor) -> Tensor:
        """Masses (rows, n) of open tokens -> for each text the sum over it and all its prefixes: (rows, texts).

        A token's mass counts in the whole range of texts that extend its own, so it is added where the range begins,
        subtracted where it ends, and summed up.
        """
        columns = masses.T.contiguous()  # whole rows are added faster than columns
        changes = columns.new_zeros(len(self.texts) + 1, columns.shape[1])
        changes.index_add_(0, self._first, columns).index_add_(0, self._end, columns, alpha=-1)
        return changes.cumsum(0)[:-1].T.contiguous()


def _steps(state: State, vocabulary: Vocabulary, rule: WordRule, start: State) -> list[tuple[int, Step]]:
    """Returns (token, effect) for each possible token. After healing the machine is in the state `start`."""
    pending, found = state.pending, []
    if state.phase == "healing":
        for token, text in enumerate(vocabulary.tokens):
            if text and text.startswith(pending):
                found.append((token, rule.read(start, text[len(pending) :])))
            elif text and pending.startswith(text):
                found.append((token, Step(None, b"", State("healing", pending[len(text) :]))))
        return found
    first_bytes = {text[:1] for text in vocabulary.tokens}  # b"" of a special token
    by_first_byte = {byte: rule.read(state, byte) if byte else rule.end(state) for byte in first_bytes}
    for token, text in enumerate(vocabulary.tokens):
        step = by_first_byte[text[:1]]
        if text and step.kind is None:  # the first byte does not close the outcome, so read on
            step = rule.read(state, text)
        found.append((token, step))
    return found


class Tables:
    """The tables of a vocabulary under a word rule, built on demand and shared by all prompts."""

    def __init__(self, vocabulary: Vocabulary, rule: WordRule | None = None) -> None:
        self.vocabulary, self.rule = vocabulary, rule or WordRule()
        self._table = lru_cache(maxsize=256)(partial(Table, vocabulary=self.vocabulary, rule=self.rule))

    def table(self, state: State, start: State) -> Table:
        """Returns the table of a state. `start` is the state in which the outcome begins, after token healing."""
        return self._table(state, start=start if state.phase == "healing" else state)
