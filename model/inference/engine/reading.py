"""Reading a prompt into a slot: in parts, so that a long one does not hold up the rows that are being decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ... import InputError
from ..sampling import NOT_FINITE
from .request import PromptScores, Ticket
from .slots import Slots


@dataclass
class Reading:
    """A prompt of which a free row has `done` tokens."""

    ticket: Ticket
    place: int
    done: int
    scores: PromptScores = field(default_factory=lambda: PromptScores([None], [[]]))

    @staticmethod
    def begin(ticket: Ticket, slots: Slots) -> Reading:
        """Chooses a row. With echo_scores all tokens are read, because tokens that are copied have no logits."""
        place, ticket.n_copied = slots.open(ticket.request.prompt, reuse=not ticket.request.echo_scores)
        return Reading(ticket, place, ticket.n_copied)

    def read(self, slots: Slots, count: int) -> Tensor | None:
        """Reads at most `count` more tokens; returns the logits (1, V) after the prompt once it is complete."""
        request, start = self.ticket.request, self.done
        ids = request.prompt[start : start + count]
        h = slots.read(self.place, ids)  # (T, D)
        self.done += len(ids)
        complete = self.done == len(request.prompt)
        if request.echo_scores:
            logits = slots.logits(h)
            self._score(logits, request.prompt[start + 1 : self.done + 1], request.top_logprobs)
            if complete:
                self.ticket.prompt_scores = self.scores
            return logits[-1:] if complete else None
        return slots.logits(h[-1:]) if complete else None

    def _score(self, logits: Tensor, targets: Sequence[int], top: int) -> None:
        """Adds the log-probabilities of the tokens that follow the first positions of logits (T, V)."""
        log_probs = logits[: len(targets)].log_softmax(-1)
        found = log_probs.gather(-1, torch.tensor(targets, dtype=torch.int64, device=logits.device)[:, None])[:, 0]
        if not found.isfinite().all():
            raise InputError(NOT_FINITE)
        best = log_probs.topk(min(top, log_probs.shape[-1]))
        self.scores.log_probabilities.extend(found.tolist())
        for ids, figures in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            self.scores.alternatives.append(list(zip(ids, figures, strict=True)))
