"""Speculative decoding by prompt lookup: guesses the next tokens from the text itself and verifies them in one forward.

Prompt-lookup decoding (Saxena 2023) is speculative decoding (Leviathan et al. 2023) without a draft model: if the last
few tokens occurred earlier in the text, whatever followed them then is the draft. One forward over the draft gives the
logits after each of its tokens; those after a wrong token are discarded. A token's noise depends only on its position,
so the text is the same as without speculation, greedy or sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .decode import Decoder


class SpeculativeDecoder:
    """Replaces a Decoder of one row: prefill() and step() return the same logits from fewer forwards."""

    def __init__(self, decoder: Decoder, *, max_draft: int = 8, ngram_sizes: Sequence[int] = (4, 3, 2)) -> None:
        """max_draft: the most tokens to guess. ngram_sizes: how many of the last tokens to look up, tried in order."""
        self.decoder, self.max_draft, self.ngram_sizes = decoder, max_draft, ngram_sizes

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Decoder.prefill for one prompt; returns the logits (1, V)."""
        self.text: list[int] = []
        self.followers: dict[tuple[int, ...], int] = {}  # n-gram -> index in the text of the token after its last one
        self.draft: list[int] = []  # guessed tokens that the decoder has read but the text does not have yet
        self.draft_logits = torch.empty(0)  # after each of them
        for token in prompts[0]:
            self.append(token)
        return self.decoder.prefill(prompts)

    def step(self, ids: Tensor) -> Tensor:
        """Decoder.step for one row: ids (1,) -> logits (1, V)."""
        token = int(ids)
        self.append(token)
        if self.draft[:1] == [token]:
            logits, self.draft_logits, self.draft = self.draft_logits[:1], self.draft_logits[1:], self.draft[1:]
            return logits
        self.decoder.cache.length.sub_(len(self.draft))  # drops the rest of a wrong draft from the cache
        self.draft = self.predict()
        if not self.draft:
            return self.decoder.step(ids)
        logits = self.decoder.extend(torch.tensor([[token, *self.draft]], device=ids.device))[0]  # (1 + draft, V)
        self.draft_logits = logits[1:]
        return logits[:1]

    def append(self, token: int) -> None:
        for n in self.ngram_sizes:
            self.followers[tuple(self.text[-n:])] = len(self.text)
        self.text.append(token)

    def predict(self) -> list[int]:
        """The tokens that followed the newest earlier occurrence of the last few tokens; [] if there is none."""
        size = min(self.max_draft, self.decoder.capacity - len(self.text))
        for n in self.ngram_sizes:
            start = self.followers.get(tuple(self.text[-n:]))
            if start is not None:
                text = list(self.text)
                for i in range(start, start + size):
                    text.append(text[i])  # i may reach the draft itself, which then repeats
                return text[len(self.text) :]
        return []
