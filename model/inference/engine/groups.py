"""Choosing the next tokens: rows with equal settings form a group, whose rows are sampled together."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from ... import InputError
from ..constraints import STOP, Constraints, StringMatcher, TextStream
from ..generate import NewToken, Row, Sampler
from ..inspect import most_probable
from ..sampling import NOT_FINITE, SamplingConfig
from ..vocabulary import Vocabulary
from .request import EngineRequest, Ticket


@dataclass(eq=False)
class Active:
    """A row that is being decoded."""

    ticket: Ticket
    place: int  # in the cache, and in the batch
    row: Row
    vocabulary: Vocabulary

    @staticmethod
    def begin(ticket: Ticket, place: int, vocabulary: Vocabulary) -> Active:
        """The row of a request whose prompt has been read."""
        request = ticket.request
        text = TextStream(StringMatcher([(stop, STOP) for stop in request.sampling.stop]))
        row = Row(place, list(request.prompt), 0, (request.seed, request.index), request.max_new_tokens, text)
        return Active(ticket, place, row, replace(vocabulary, ends=(*vocabulary.ends, *request.ends)))


@dataclass
class Group:
    """The rows that one sampler serves, in its order."""

    sampler: Sampler
    members: list[Active]


Outcome = tuple[Active, NewToken | Exception]


class Groups:
    """All active rows by their sampling settings. A row with constraints, whose state is its own, is alone."""

    def __init__(self, vocabulary: Vocabulary, device: torch.device) -> None:
        self.vocabulary, self.device = vocabulary, device
        self._groups: dict[Active | SamplingConfig, Group] = {}
        self._constraints = lru_cache(maxsize=32)(self._make_constraints)

    def constraints(self, request: EngineRequest) -> Constraints | None:
        """The constraints of a request; raises InputError if they cannot be met. For any thread."""
        if not request.sampling.has_constraints:
            return None
        limit = request.max_new_tokens if request.sampling.force_words else 0  # only forced words depend on it
        return self._constraints(replace(request.sampling, stop=self._stop(request)), request.ends, limit)

    def _make_constraints(self, sampling: SamplingConfig, ends: tuple[int, ...], limit: int) -> Constraints | None:
        vocabulary = replace(self.vocabulary, ends=(*self.vocabulary.ends, *ends))
        return Constraints.of(vocabulary, sampling, max_new_tokens=limit)

    @staticmethod
    def _stop(request: EngineRequest) -> tuple[str, ...]:
        """Stop strings end a row's text; they matter to sampling only where forced words must come before them."""
        return request.sampling.stop if request.sampling.force_words else ()

    def add(self, active: Active) -> None:
        request = active.ticket.request
        constraints = self.constraints(request)
        sampling = replace(request.sampling, stop=self._stop(request))
        key = sampling if constraints is None else active
        if key not in self._groups:
            size = len(self.vocabulary.tokens)
            self._groups[key] = Group(Sampler(sampling, constraints, vocab_size=size, device=self.device), [])
        self._groups[key].members.append(active)
        self._groups[key].sampler.add_rows([request.prompt])

    def remove(self, leaving: Container[Active]) -> None:
        for key, group in list(self._groups.items()):
            staying = [i for i, active in enumerate(group.members) if active not in leaving]
            if not staying:
                del self._groups[key]
            elif len(staying) < len(group.members):
                group.members = [group.members[i] for i in staying]
                group.sampler.select_rows(staying)

    def choose(self, logits: Tensor) -> list[Outcome]:
        """logits (A, V) by place -> for each row its new token, which has been appended to its text, or its error."""
        found: list[Outcome] = []
        for group in self._groups.values():
            try:
                found += sample(group, logits)
            except Exception as error:
                found += [(active, error) for active in group.members]
        return found


def sample(group: Group, logits: Tensor) -> list[Outcome]:
    """Draws the next token of each row of a group from the logits (A, V) of all rows."""
    members = group.members
    ids, log_probs, stages = group.sampler.sample(logits[[a.place for a in members]], [a.row for a in members])
    counts = [active.ticket.request.top_logprobs for active in members]
    alternatives: list[list[tuple[int, float]]] = [[]] * len(members)
    if longest := max(counts):
        alternatives = most_probable(stages["model"].softmax(-1), longest)
    found: list[Outcome] = []
    drawn = zip(members, ids.tolist(), *log_probs.tolist(), alternatives, counts, strict=True)
    for active, token, log_p, model_log_p, others, count in drawn:
        if not math.isfinite(model_log_p):
            found.append((active, InputError(NOT_FINITE)))
            continue
        text = active.row.append(token, active.vocabulary, min_new_tokens=group.sampler.sampling.min_new_tokens)
        new = NewToken(token, log_p, model_log_p, text, active.row.ended, 0, others[:count], None, [])
        found.append((active, new))
    return found
