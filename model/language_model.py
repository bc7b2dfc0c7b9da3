"""LanguageModel: a model with its tokenizer in one hand, from text to text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from .device import Compute
from .generate import NewToken, generate, overflow, per_row
from .gpt import GPT
from .sampling import SamplingConfig, checked, probabilities
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
    """One continuation of ids. The lists have an entry a token; log-probabilities are natural."""

    text: str  # less the stop string and what follows it, and less a character that max_new_tokens cut in half
    tokens: list[int]  # less the end token; the token that completed a stop string is the last
    log_probabilities: list[float]  # in the distribution that was sampled
    model_log_probabilities: list[float]  # in the model's own: before constraints, penalties and filters
    ended: str  # end (the end token) | stop (a stop string) | length (max_new_tokens)
    alternatives: list[list[TokenProbability]]  # on request: the model's most probable tokens at each place
    explanation: list[NewToken]  # on request: rank and what each filter did
    forgotten: int  # how many of the oldest tokens of prompt and text the model did not see at the end
    drafted: int  # how many tokens needed no forward of their own (speculative)


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
        return [self.named(*pair) for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)]

    def named(self, token: int, probability: float) -> TokenProbability:
        return TokenProbability(
            token, self.tokenizer.token_bytes(token).decode("utf-8", "backslashreplace"), probability
        )

    def overflow(self, prompt: str, max_new_tokens: int) -> str | None:
        """In words, where prompt and new text may outgrow the context and the oldest be forgotten; else None."""
        return overflow(len(self.encode(prompt)), max_new_tokens, context=self.model.config.context)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int | Sequence[int] = 200,
        sampling: SamplingConfig | None = None,
        seed: int | Sequence[int] = 1,
        beyond: str = "slide",
        alternatives: int = 0,
        explain: bool = False,
        speculative: bool = False,
    ) -> list[Generation]:
        """Continues each prompt until its end token, a stop string or max_new_tokens; see model/generate.py.

        Row i depends on its prompt, its limit, its seed and i alone. beyond: what happens at the end of the model's
        context, slide (the oldest half is forgotten) or refuse. alternatives: how many to list at each place.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        completions = self.complete(
            [self.encode(prompt) for prompt in prompts],
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            beyond=beyond,
            alternatives=alternatives,
            explain=explain,
            speculative=speculative,
        )
        return [Generation(**vars(made), prompt=prompt) for prompt, made in zip(prompts, completions, strict=True)]

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | Sequence[int] = 200,
        sampling: SamplingConfig | None = None,
        seed: int | Sequence[int] = 1,
        indices: Sequence[int] | None = None,
        beyond: str = "slide",
        alternatives: int = 0,
        explain: bool = False,
        speculative: bool = False,
    ) -> list[Completion]:
        """As generate, on ids. A row's noise is a function of its seed and index; by default the index of row i is i.

        speculative: the rows go one by one, each faster where its text repeats itself; the result is the same.
        """
        everyone = range(len(prompts))
        limits = per_row("max_new_tokens", max_new_tokens, len(prompts))
        seeds = per_row("seed", seed, len(prompts))
        numbers = everyone if indices is None else indices
        rows: list[list[NewToken]] = [[] for _ in prompts]
        for group in [[i] for i in everyone] if speculative else [everyone]:
            for step in generate(
                self.model,
                [prompts[i] for i in group],
                max_new_tokens=[limits[i] for i in group],
                sampling=sampling,
                seed=[seeds[i] for i in group],
                indices=[numbers[i] for i in group],
                vocabulary=self.vocabulary,
                compute=self.compute,
                beyond=beyond,
                alternatives=alternatives,
                explain=explain,
                speculative=speculative,
            ):
                for i, new in zip(group, step, strict=True):
                    if new is not None:
                        rows[i].append(new)
        return [self.completion(row, explain=explain) for row in rows]

    def completion(self, row: Sequence[NewToken], *, explain: bool) -> Completion:
        """What the new tokens of a row make up."""
        written = [new for new in row if new.ended != "end"]
        return Completion(
            text="".join(new.text for new in row),
            tokens=[new.id for new in written],
            log_probabilities=[new.log_probability for new in written],
            model_log_probabilities=[new.model_log_probability for new in written],
            ended=row[-1].ended or "length",
            alternatives=[[self.named(*pair) for pair in new.alternatives] for new in written if new.alternatives],
            explanation=written if explain else [],
            forgotten=row[-1].forgotten,
            drafted=sum(new.drafted for new in row),
        )

    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 200,
        sampling: SamplingConfig | None = None,
        seed: int = 1,
        beyond: str = "slide",
        speculative: bool = False,
    ) -> Iterator[str]:
        """Yields the text of generate(prompt) as it comes: whole characters, nothing that a stop string may cut off."""
        for [new] in generate(
            self.model,
            [self.encode(prompt)],
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            vocabulary=self.vocabulary,
            compute=self.compute,
            beyond=beyond,
            speculative=speculative,
        ):
            if new is not None and new.text:
                yield new.text
