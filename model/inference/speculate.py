"""Speculator: a Decoder that guesses the next tokens from the text itself and reads them ahead, several in one forward.

Prompt-lookup decoding (Saxena 2023), a form of speculative decoding (Leviathan et al. 2023) without a second model:
where the last few tokens stood before in the text, what followed them then is likely to follow now. One forward over
the guess gives the logits after each of its tokens; those after a token that turns out wrong are thrown away. The
logits handed out are those of the true text, and a token's noise depends on its position alone, so the text is the same
as without: greedy or sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .decode import Decoder


class Speculator:
    """Stands for a Decoder of one row: read() and step() give the same logits, with fewer forwards of the model."""

    def __init__(self, decoder: Decoder, *, draft: int = 8, lookup: Sequence[int] = (4, 3, 2)) -> None:
        """draft: how many tokens to guess at most; lookup: how many of the last tokens to look for, in this order."""
        self.decoder, self.draft, self.lookup = decoder, draft, lookup
        self.drafted = False  # whether the logits handed out last came with earlier ones

    def read(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """As Decoder.read, of one text; the logits (1, V)."""
        self.text: list[int] = []
        self.followers: dict[tuple[int, ...], int] = {}  # a few tokens in a row -> where what followed them stands
        self.guess: list[int] = []  # tokens that the decoder has read and that the text may not have
        self.ahead = torch.empty(0)  # the logits after each of them
        for token in texts[0]:
            self.append(token)
        self.drafted = False
        return self.decoder.read(texts)

    def step(self, ids: Tensor) -> Tensor:
        """As Decoder.step: one more token (1,) -> logits (1, V)."""
        token = int(ids)
        self.append(token)
        self.drafted = self.guess[:1] == [token]
        if self.drafted:
            logits, self.ahead, self.guess = self.ahead[:1], self.ahead[1:], self.guess[1:]
            return logits
        self.decoder.length.sub_(len(self.guess))  # the rest of a wrong guess is taken back
        self.guess = self.predict()
        if not self.guess:
            return self.decoder.step(ids)
        logits = self.decoder.extend(torch.tensor([[token, *self.guess]], device=ids.device))[0]  # (1 + guess, V)
        self.ahead = logits[1:]
        return logits[:1]

    def append(self, token: int) -> None:
        for n in self.lookup:
            self.followers[tuple(self.text[-n:])] = len(self.text)
        self.text.append(token)

    def predict(self) -> list[int]:
        """The tokens that followed the last few where these stood before, the newest place; none if they are new."""
        room = self.decoder.capacity - len(self.text)
        for n in self.lookup:
            place = self.followers.get(tuple(self.text[-n:]))
            if place is not None:
                guess: list[int] = []
                while len(guess) < min(self.draft, room):  # at the end of the text the guess goes on with itself
                    behind = place + len(guess) - len(self.text)
                    guess.append(self.text[behind] if behind < 0 else guess[behind])
                return guess
        return []
