"""LanguageModel: a model with its tokenizer in one hand, from text to text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from . import InputError
from .device import Compute
from .gpt import GPT
from .inference.generate import NewToken, generate, overflow, per_row
from .inference.quantize import QualityLoss, quality_loss
from .inference.sampling import SamplingConfig, checked, probabilities
from .inference.score import OptionScore, Score, score_options, score_texts
from .inference.vocabulary import Vocabulary
from .next_word.distribution import NextWords, next_word_distribution
from .next_word.word_table import Tables
from .next_word.words import WordRule


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
class Continuation:
    """A next word in a tree of them: its text with the space before it, its probability and that of the whole path."""

    text: str
    kind: str
    probability: float  # at least
    cumulative: float  # the product along the path: each word taken with the space, or without it, as it mostly comes
    children: list[Continuation]


@dataclass(frozen=True, repr=False)
class LanguageModel:
    """A model with its tokenizer in one hand; what sample.load returns."""

    model: GPT
    tokenizer: Tokenizer
    compute: Compute
    directory: Path  # the step directory it was read from

    def __repr__(self) -> str:
        size = sum(weight.numel() for weight in self.model.parameters())
        return f"<LanguageModel {self.directory}: {size:,} parameters, {self.tokenizer.vocab_size:,} tokens>"

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
        if top < 1:
            raise InputError(f"top={top} must be at least 1")
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

    def next_words(
        self,
        prompt: str,
        *,
        top: int = 20,
        tolerance: float = 0.001,
        max_expansions: int = 1024,
        token_healing: bool = True,
        rule: WordRule | None = None,
        sampling: SamplingConfig | None = None,
    ) -> NextWords:
        """The most probable next words (or what comes in a word's place), each with a lower and an upper bound.

        See model/next_word.py: the search stops when the order of the `top` is proven, when all that is unexplored is
        at most `tolerance`, or after `max_expansions` tokens. Spaces at the prompt's end change nothing, unless
        token_healing=False. `rule` says what a word is.
        """
        rule = rule or WordRule()
        if rule not in self._tables:
            self._tables[rule] = Tables(self.vocabulary, rule)
        return next_word_distribution(
            self.model,
            self._tables[rule],
            prompt,
            encode=self.tokenizer.encode,
            top=top,
            tolerance=tolerance,
            max_expansions=max_expansions,
            token_healing=token_healing,
            sampling=sampling,
            compute=self.compute,
        )

    def continuations(
        self, prompt: str, *, branches: int = 3, depth: int = 3, rule: WordRule | None = None
    ) -> list[Continuation]:
        """A tree of the most probable next words and of what follows each, `depth` words deep."""
        if branches < 1 or depth < 1:
            raise InputError(f"branches={branches} and depth={depth} must be at least 1")
        return self._continuations(prompt, True, 1.0, branches, depth, rule)

    def _continuations(
        self, text: str, token_healing: bool, before: float, branches: int, depth: int, rule: WordRule | None
    ) -> list[Continuation]:
        text, found = text.rstrip(" ") if token_healing else text, []
        for outcome in self.next_words(text, top=branches, token_healing=token_healing, rule=rule).words:
            piece = " " * (outcome.spaced > 0.5) + outcome.word
            cumulative = before * outcome.lower
            ends = depth == 1 or outcome.kind in ("special", "byte")
            # Exact bytes from here on: a space that is a node of the tree is not taken back.
            children = [] if ends else self._continuations(text + piece, False, cumulative, branches, depth - 1, rule)
            found.append(Continuation(piece, outcome.kind, outcome.lower, cumulative, children))
        return found

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
        on_overflow: str = "slide",
        top_logprobs: int = 0,
        explain: bool = False,
        speculative: bool = False,
    ) -> list[Generation]:
        """Continues each prompt until its end token, a stop string or max_new_tokens; see model/generate.py.

        Row i depends on its prompt, its limit, its seed and i alone. beyond: what happens at the end of the model's
        context, slide (the oldest half is forgotten) or refuse. alternatives: how many to list at each place.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if not prompts:
            return []
        completions = self.complete(
            [self.encode(prompt) for prompt in prompts],
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            on_overflow=on_overflow,
            top_logprobs=top_logprobs,
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
        on_overflow: str = "slide",
        top_logprobs: int = 0,
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
                on_overflow=on_overflow,
                top_logprobs=top_logprobs,
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
        index: int = 0,
        on_overflow: str = "slide",
        speculative: bool = False,
    ) -> Iterator[str]:
        """Yields the text of generate(prompt) as it comes: whole characters, nothing that a stop string may cut off."""
        for [new] in generate(
            self.model,
            [self.encode(prompt)],
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            indices=[index],
            vocabulary=self.vocabulary,
            compute=self.compute,
            on_overflow=on_overflow,
            speculative=speculative,
        ):
            if new is not None and new.text:
                yield new.text

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
        if isinstance(options, str) or len(set(options)) < len(options):
            raise InputError(f"options={options!r} must be a list of texts, no two alike")
        return score_options(self, [(prompt, options)], method=method, neutral=neutral)[0]

    def explained(self, sample: Completion) -> list[dict[str, Any]]:
        """How each token of a completion made with explain=True was chosen: its rank, what every filter did, others."""
        others = sample.alternatives or [[]] * len(sample.explanation)
        return [
            {
                "text": self.named(new.id, 0.0).text,
                "rank": new.rank,
                "probability": math.exp(new.model_log_probability),
                "filters": [asdict(step) for step in new.filters],
                "alternatives": [asdict(other) for other in alternatives],
            }
            for new, alternatives in zip(sample.explanation, others, strict=True)
        ]

    def quality_loss(self, exact: LanguageModel, prompt: str) -> QualityLoss:
        """How far this model's numbers are from exact ones: both read the prompt and 64 greedy tokens behind it."""
        ids = self.encode(prompt)
        [made] = self.complete([ids], max_new_tokens=64, sampling=SamplingConfig(temperature=0))
        text = torch.tensor([[*ids, *made.tokens][-self.model.config.context :]], device=self.compute.device)
        return quality_loss(exact.model, self.model, text, compute=self.compute)
