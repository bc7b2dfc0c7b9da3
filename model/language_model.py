"""LanguageModel: a model with its tokenizer in one hand, from text to text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from .device import Compute
from .generate import generate
from .gpt import GPT
from .sampling import SamplingConfig, checked, probabilities
from .seeds import hash_seed
from .vocabulary import Vocabulary


class Tokenizer(Protocol):
    """What is needed of a tokenizer; those of data/ have it."""

    vocab_size: int
    end_id: int
    special_tokens: dict[str, int]

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def token_bytes(self, token: int) -> bytes: ...


@dataclass(frozen=True)
class TokenProbability:
    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class Completion:
    """One continuation of ids."""

    text: str  # without what follows a stop string, nor that itself
    tokens: list[int]  # without the end token
    log_probabilities: list[float]  # natural, of each token, in the distribution that was sampled
    model_log_probabilities: list[float]  # of each token, as the model gave it: before penalties and filters
    ended: str  # end (the end token) | stop (a stop string) | length (max_new_tokens)


@dataclass(frozen=True)
class Generation(Completion):
    """One continuation of text."""

    prompt: str


@dataclass(frozen=True)
class LanguageModel:
    """A model with its tokenizer in one hand; what sample.load returns."""

    model: GPT
    tokenizer: Tokenizer
    compute: Compute
    directory: Path  # the step directory it was read from

    @cached_property
    def vocabulary(self) -> Vocabulary:
        special = {token: name for name, token in self.tokenizer.special_tokens.items()}
        tokens = (b"" if i in special else self.tokenizer.token_bytes(i) for i in range(self.tokenizer.vocab_size))
        return Vocabulary(tuple(tokens), special, self.tokenizer.end_id)

    def encode(self, prompt: str) -> list[int]:
        """The ids that a prompt stands for; an empty prompt is the start of a document."""
        return self.tokenizer.encode(prompt) or [self.tokenizer.end_id]

    @torch.no_grad()
    def next_tokens(
        self, prompt: str, *, top: int = 20, sampling: SamplingConfig | None = None
    ) -> list[TokenProbability]:
        """The most probable next tokens after `prompt` (its last `context` tokens), best first."""
        ids = torch.tensor([self.encode(prompt)[-self.model.config.context :]], device=self.compute.device)
        with self.compute.autocast():
            logits = self.model.head(self.model.hidden(ids)[:, -1])  # (1, V)
        probs = probabilities(logits, checked(sampling))[0]
        best = probs.topk(min(top, len(probs)))
        return [
            TokenProbability(i, self.tokenizer.token_bytes(i).decode("utf-8", "backslashreplace"), p)
            for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def generate(
        self, prompts: list[str], *, max_new_tokens: int = 200, sampling: SamplingConfig | None = None, seed: int = 1
    ) -> list[Generation]:
        """Continues each prompt until its end token or max_new_tokens; row i depends on (prompts[i], seed, i) alone.

        A prompt longer than the context counts by its end.
        """
        ids = [self.encode(prompt) for prompt in prompts]
        made = self.complete(ids, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
        return [Generation(**vars(one), prompt=prompt) for prompt, one in zip(prompts, made, strict=True)]

    def complete(
        self,
        prompts: list[list[int]],
        *,
        max_new_tokens: int | Sequence[int] = 200,
        sampling: SamplingConfig | None = None,
        seed: int | Sequence[int] = 1,
        indices: Sequence[int] | None = None,
    ) -> list[Completion]:
        """As generate, on ids. Row i depends on its prompt, limit, seed and index alone; by default its index is i."""
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
        numbers = range(len(prompts)) if indices is None else indices
        made = []
        for prompt, limit, row_seed, index in zip(prompts, limits, seeds, numbers, strict=True):
            tokens, logs, ended = [], [], "length"
            own = hash_seed(row_seed, index)
            for (token,), (log,) in self.steps([prompt], max_new_tokens=limit, sampling=sampling, seed=own):
                if token == self.tokenizer.end_id:
                    ended = "end"
                elif token is not None:
                    tokens.append(token)
                    logs.append(log)
            made.append(Completion(self.tokenizer.decode(tokens), tokens, logs, logs, ended))
        return made

    def stream(
        self, prompt: str, *, max_new_tokens: int = 200, sampling: SamplingConfig | None = None, seed: int = 1
    ) -> Iterator[str]:
        """Yields the text of one continuation as it comes, never half a character."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for (token,), _ in self.steps(
            [self.encode(prompt)], max_new_tokens=max_new_tokens, sampling=sampling, seed=hash_seed(seed, 0)
        ):
            if token is not None and token != self.tokenizer.end_id:
                yield decoder.decode(self.tokenizer.token_bytes(token))
        yield decoder.decode(b"", final=True)

    def steps(
        self, prompts: list[list[int]], *, max_new_tokens: int, sampling: SamplingConfig | None, seed: int
    ) -> Iterator[tuple[list[int | None], list[float]]]:
        """generate()'s steps on this model: new ids and their log-probabilities, a list entry a prompt."""
        return generate(
            self.model,
            prompts,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            end_id=self.tokenizer.end_id,
            compute=self.compute,
        )
