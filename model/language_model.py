"""LanguageModel: a model with its tokenizer in one hand, from text to text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from . import InputError
from .device import Compute
from .generate import generate
from .gpt import GPT
from .next_word import NextWords, next_word_distribution
from .sampling import SamplingConfig, checked, probabilities
from .vocabulary import Vocabulary
from .word_table import Tables
from .words import WordRule


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
class Continuation:
    """A next word in a tree of them: its text with the space before it, its probability and that of the whole path."""

    text: str
    kind: str
    probability: float  # at least; so is `cumulative`
    cumulative: float
    children: list[Continuation]


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

    @cached_property
    def _tables(self) -> dict[WordRule, Tables]:
        """What is known of the vocabulary under each word rule so far: kept from prompt to prompt."""
        return {}

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

    def next_words(
        self,
        prompt: str,
        *,
        top: int = 20,
        tolerance: float = 0.001,
        max_tokens: int = 1024,
        border: str = "words",
        rule: WordRule | None = None,
        sampling: SamplingConfig | None = None,
    ) -> NextWords:
        """The most probable next words (or what comes in a word's place), each with a lower and an upper bound.

        See model/next_word.py: the search stops when the order of the `top` is proven, when all that is unexplored is
        at most `tolerance`, or after `max_tokens` tokens. Spaces at the prompt's end change nothing, unless
        border="bytes". `rule` says what a word is.
        """
        tables = self._tables.setdefault(rule or WordRule(), Tables(self.vocabulary, rule))
        return next_word_distribution(
            self.model,
            tables,
            prompt,
            encode=self.tokenizer.encode,
            top=top,
            tolerance=tolerance,
            max_tokens=max_tokens,
            border=border,
            sampling=sampling,
            compute=self.compute,
        )

    def continuations(
        self, prompt: str, *, branches: int = 3, depth: int = 3, rule: WordRule | None = None
    ) -> list[Continuation]:
        """A tree of the most probable next words and what follows each: `branches` at each place, `depth` words deep."""
        if branches < 1 or depth < 1:
            raise InputError(f"branches={branches} and depth={depth} must be at least 1")
        return self._continuations(prompt.rstrip(" "), 1.0, branches, depth, rule)

    def _continuations(
        self, text: str, before: float, branches: int, depth: int, rule: WordRule | None
    ) -> list[Continuation]:
        found = []
        border = "words" if before == 1.0 else "bytes"  # a space that is a node of the tree is not taken back
        for outcome in self.next_words(text, top=branches, border=border, rule=rule).words:
            piece = " " * (outcome.spaced > 0.5) + outcome.word
            cumulative = before * outcome.lower
            ends = depth == 1 or outcome.kind in ("special", "byte")
            children = [] if ends else self._continuations(text + piece, cumulative, branches, depth - 1, rule)
            found.append(Continuation(piece, outcome.kind, outcome.lower, cumulative, children))
        return found

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
