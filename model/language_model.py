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
from .score import OptionScore, Score, score_options, score_texts
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
class Generation:
    """One continuation: its text and tokens without the end token, and each token's log-probability as sampled."""

    prompt: str
    text: str
    tokens: list[int]
    log_probabilities: list[float]
    ended: bool  # by the end token rather than by max_new_tokens


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
        return [
            Generation(prompt, self.tokenizer.decode(tokens), tokens, log_probabilities, ended)
            for prompt, (tokens, log_probabilities, ended) in zip(prompts, made, strict=True)
        ]

    def complete(
        self, prompts: list[list[int]], *, max_new_tokens: int, sampling: SamplingConfig | None = None, seed: int = 1
    ) -> list[tuple[list[int], list[float], bool]]:
        """As generate, on ids: of each prompt the new ids less the end token, their log-probabilities, if it ended."""
        tokens: list[list[int]] = [[] for _ in prompts]
        log_probabilities: list[list[float]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        for new, chosen in self.steps(prompts, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed):
            for row, token in enumerate(new):
                if token == self.tokenizer.end_id:
                    ended[row] = True
                elif token is not None:
                    tokens[row].append(token)
                    log_probabilities[row].append(chosen[row])
        return list(zip(tokens, log_probabilities, ended, strict=True))

    def stream(
        self, prompt: str, *, max_new_tokens: int = 200, sampling: SamplingConfig | None = None, seed: int = 1
    ) -> Iterator[str]:
        """Yields the text of one continuation as it comes, never half a character."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for (token,), _ in self.steps(
            [self.encode(prompt)], max_new_tokens=max_new_tokens, sampling=sampling, seed=seed
        ):
            if token is not None and token != self.tokenizer.end_id:
                yield decoder.decode(self.tokenizer.token_bytes(token))
        yield decoder.decode(b"", final=True)

    def score(self, text: str, *, prompt: str = "") -> Score:
        """How probable `text` is after `prompt` (default: at the start of a document), token by token and in all.

        Both are made into tokens apart; spaces at the prompt's end count as the text's beginning.
        """
        return score_texts(self, [(prompt, text)])[0]

    def choose(
        self, prompt: str, options: Sequence[str], *, method: str = "raw", neutral: str = ""
    ) -> list[OptionScore]:
        """Each option's log-probability after the prompt: raw, per byte, and its gain over that after `neutral`.

        A classifier without training: the option of the highest `probability`, a softmax of the measure that `method`
        names (raw, normalised, pmi), is the model's choice. Options usually begin with a space. For many questions
        at once see model.score.score_options.
        """
        return score_options(self, [(prompt, options)], method=method, neutral=neutral)[0]

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
