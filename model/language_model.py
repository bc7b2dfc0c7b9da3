"""LanguageModel: a model with its tokenizer, text in and text out. sample.load(checkpoint) returns one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import InputError
from .device import Compute
from .gpt import GPT
from .inference.classify import LabelProbabilities, Labels, label_log_probabilities, label_probabilities
from .inference.generate import NewToken, generate, overflow, per_row
from .inference.inspect import most_probable
from .inference.quantize import QualityLoss, compare_logits
from .inference.sampling import NOT_FINITE, SamplingConfig, checked, probabilities
from .inference.score import OptionScore, TextScore, log_probabilities, score_options, score_text
from .inference.vocabulary import Tokenizer, Vocabulary, opened, prompt_ids
from .next_word.distribution import NextWords, next_word_distribution
from .next_word.word_table import Tables
from .next_word.words import WordRule

GREEDY_ROWS = 32  # prompts that greedy() continues together


@dataclass(frozen=True)
class TokenProbability:
    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class Completion:
    """One continuation. The lists have one entry per token; log-probabilities are in nats."""

    text: str  # without the stop string and what follows it, or half a character at the end
    tokens: list[int]  # without the end token; the token that completed a stop string is the last
    log_probabilities: list[float]  # in the distribution that was sampled
    model_log_probabilities: list[float]  # in the model's own, before constraints, penalties and filters
    ended: str  # end (the end token) | stop (a stop string) | length (max_new_tokens)
    alternatives: list[list[TokenProbability]]  # with top_logprobs: the model's most probable tokens
    explanation: list[dict[str, Any]]  # with explain: how each token was chosen, as rows of a table
    forgotten: int  # the number of oldest tokens that were outside the context at the end


@dataclass(frozen=True)
class Continuation:
    """A next word in a tree of next words."""

    text: str  # with the space before it, if it mostly comes with one
    kind: str
    probability: float  # lower bound, given the path to it
    cumulative: float  # the product of these along the path
    children: list[Continuation]


@dataclass(frozen=True, repr=False)
class LanguageModel:
    """A model with its tokenizer, on one device."""

    model: GPT
    tokenizer: Tokenizer
    compute: Compute
    directory: Path  # the checkpoint's step directory
    labels: Labels | None = None  # the label set that the checkpoint was fine-tuned on
    ends: tuple[int, ...] = ()  # special tokens that end a text, beside the end token

    def __repr__(self) -> str:
        with torch.device("meta"):  # the network as configured: prepare_for_decoding unties heads and packs weights
            size = sum(weight.numel() for weight in GPT(self.model.config).parameters())
        return f"<LanguageModel {self.directory}: {size:,} parameters, {self.tokenizer.vocab_size:,} tokens>"

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.tokenizer, self.ends)

    @cached_property
    def tables(self) -> Callable[[WordRule], Tables]:
        """The vocabulary's word tables by word rule, made on demand and shared by all prompts."""
        return cache(partial(Tables, self.vocabulary))

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """The ids of a prompt, text or ids already; an empty prompt is the start of a document."""
        if isinstance(prompt, str):
            return prompt_ids(self.tokenizer, prompt)
        return list(prompt) or opened([], start_id=self.tokenizer.start_id, end_id=self.tokenizer.end_id)

    @torch.no_grad()
    def next_tokens(
        self, prompt: str | Sequence[int], *, top: int = 20, sampling: SamplingConfig | None = None
    ) -> list[TokenProbability]:
        """The `top` most probable next tokens after `prompt`, best first. Only its last `context` tokens count."""
        if top < 1:
            raise InputError(f"top={top} must be at least 1")
        ids = torch.tensor([self.encode(prompt)[-self.model.config.context :]], device=self.compute.device)
        with self.compute.autocast():
            logits = self.model.head(self.model.hidden(ids)[:, -1])  # (1, V)
        if not logits.isfinite().all():
            raise InputError(NOT_FINITE)
        [best] = most_probable(probabilities(logits, checked(sampling)), top)
        return self._with_texts(best)

    def _with_texts(self, pairs: list[tuple[int, float]]) -> list[TokenProbability]:
        return [TokenProbability(token, self.token_text(token), p) for token, p in pairs]

    def token_text(self, token: int) -> str:
        return self.tokenizer.token_bytes(token).decode("utf-8", "backslashreplace")

    def next_words(
        self,
        prompt: str,
        *,
        top: int = 20,
        tolerance: float = 0.001,
        max_expansions: int = 1024,
        ignore_trailing_spaces: bool = True,
        rule: WordRule | None = None,
        sampling: SamplingConfig | None = None,
    ) -> NextWords:
        """The most probable next words (and other outcomes), each with a lower and an upper bound.

        The search stops when the order of the `top` is certain, when the unexplored mass is at most `tolerance`, or
        after `max_expansions` tokens. ignore_trailing_spaces: those of the prompt. `rule` defines words.
        """
        return next_word_distribution(
            self.model,
            self.tables(rule or WordRule()),
            prompt,
            encode=self.tokenizer.encode,
            top=top,
            tolerance=tolerance,
            max_expansions=max_expansions,
            ignore_trailing_spaces=ignore_trailing_spaces,
            sampling=sampling,
            compute=self.compute,
        )

    def continuations(
        self, prompt: str, *, branches: int = 3, depth: int = 3, rule: WordRule | None = None
    ) -> list[Continuation]:
        """A tree of the most probable next words, `branches` at each place and `depth` words deep."""
        if branches < 1 or depth < 1:
            raise InputError(f"branches={branches} and depth={depth} must be at least 1")

        def tree(text: str, parent: float, left: int) -> list[Continuation]:
            nodes = []
            # Below the root without token healing, which would remove a space that is a node of the tree.
            for found in self.next_words(text, top=branches, ignore_trailing_spaces=left == depth, rule=rule).words:
                word, cumulative = " " * (found.spaced > 0.5) + found.word, parent * found.lower
                is_leaf = left == 1 or found.kind in ("special", "byte")
                children = [] if is_leaf else tree(text + word, cumulative, left - 1)
                nodes.append(Continuation(word, found.kind, found.lower, cumulative, children))
            return nodes

        return tree(prompt.rstrip(" "), 1.0, depth)

    def overflow(self, prompt: str, max_new_tokens: int) -> str | None:
        """A sentence saying that prompt and new text may exceed the context, or None if they fit."""
        return overflow(len(self.encode(prompt)), max_new_tokens, context=self.model.config.context)

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
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
        """Continues texts or token ids until the end token, a stop string or max_new_tokens.

        A row depends only on its prompt, limit, seed and index; row i has index i by default. on_overflow: at the end
        of the context, "slide" drops the older half, "error" raises InputError if that could happen. top_logprobs: the
        number of alternatives to report for each token. explain: report each token's rank and the effect of every
        filter. speculative: one prompt after the other, each faster where its text repeats itself, with equal results.
        """
        texts = [prompts] if isinstance(prompts, str) else prompts
        ids = [self.encode(prompt) for prompt in texts]
        limits, seeds = per_row("max_new_tokens", max_new_tokens, len(ids)), per_row("seed", seed, len(ids))
        indices, rows = range(len(ids)) if indices is None else indices, [list[NewToken]() for _ in ids]
        for batch in [[i] for i in range(len(ids))] if speculative else [range(len(ids))]:
            for step in generate(
                self.model,
                [ids[i] for i in batch],
                max_new_tokens=[limits[i] for i in batch],
                sampling=sampling,
                seed=[seeds[i] for i in batch],
                indices=[indices[i] for i in batch],
                vocabulary=self.vocabulary,
                compute=self.compute,
                on_overflow=on_overflow,
                top_logprobs=top_logprobs,
                explain=explain,
                speculative=speculative,
            ):
                for i, new in zip(batch, step, strict=True):
                    if new is not None:
                        rows[i].append(new)
        return [self._completion(row) for row in rows]

    def _completion(self, row: Sequence[NewToken]) -> Completion:
        """Joins the new tokens of a row."""
        written = [new for new in row if new.ended != "end"]
        return Completion(
            text="".join(new.text for new in row),
            tokens=[new.id for new in written],
            log_probabilities=[new.log_probability for new in written],
            model_log_probabilities=[new.model_log_probability for new in written],
            ended=row[-1].ended or "length",
            alternatives=[self._with_texts(new.alternatives) for new in written if new.alternatives],
            explanation=[
                {
                    "text": self.token_text(new.id),
                    "probability": math.exp(new.model_log_probability),
                    "rank": new.rank,
                    "filters": [asdict(effect) for effect in new.filters],
                    "alternatives": [asdict(other) for other in self._with_texts(new.alternatives)],
                }
                for new in written
                if new.filters
            ],
            forgotten=row[-1].forgotten,
        )

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int = 200,
        sampling: SamplingConfig | None = None,
        seed: int = 1,
        index: int = 0,
        on_overflow: str = "slide",
        speculative: bool = False,
    ) -> Iterator[str]:
        """Yields the text of generate(prompt) piece by piece, in whole characters that no stop string can cut off."""
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

    def score(self, text: str, *, prompt: str = "") -> TextScore:
        """The probability of `text`, token by token, after `prompt`, or after the end token if there is no prompt.

        So score(a + b) is not score(a) + score(b, prompt=a). Spaces at the end of the prompt move to the text.
        """
        return score_text(self.model, self.tokenizer, prompt, text, compute=self.compute)

    def choose(
        self, prompt: str, options: Sequence[str], *, method: str = "raw", neutral: str = ""
    ) -> list[OptionScore]:
        """Zero-shot classification: scores each option after the prompt. The choice has the highest `probability`.

        method: the measure that `probability` is a softmax of: raw log-probability, normalised (per byte), or pmi (the
        gain over the log-probability after `neutral`). Options usually begin with a space.
        """
        if isinstance(options, str) or len(set(options)) < len(options):
            raise InputError(f"options={options!r} must be a list of different texts")
        return self.choose_each([(prompt, options)], method=method, neutral=neutral)[0]

    def choose_each(
        self, questions: Sequence[tuple[str, Sequence[str]]], *, method: str = "raw", neutral: str = ""
    ) -> list[list[OptionScore]]:
        """choose() for many (prompt, options) in few forwards."""
        return score_options(
            self.model, self.tokenizer, questions, method=method, neutral=neutral, compute=self.compute
        )

    def classify(self, texts: str | Sequence[str], labels: Labels | None = None) -> list[LabelProbabilities]:
        """The probability of every label for each text. labels: by default what the checkpoint was fine-tuned on."""
        texts, ask = [texts] if isinstance(texts, str) else texts, labels or self.labels
        if ask is None or not ask.labels:
            raise InputError(f"{self.directory} was not fine-tuned on a label set; give one with labels=")
        answers = [self.tokenizer.encode(ask.completion_of(label), continued=True) for label in ask.labels]
        ids = [[*answer, self.tokenizer.end_id] for answer in answers]
        scores = self.label_scores([self.encode(ask.prompt_of(text)) for text in texts], ids)
        return label_probabilities(texts, ask, scores)

    def label_scores(self, prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> Tensor:
        """log p (N, L) of whole labels, ids that end with the end token, after each prompt of ids."""
        return label_log_probabilities(self.model, prompts, labels, compute=self.compute)

    def greedy(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, ends: tuple[int, ...] = ()
    ) -> list[tuple[str, bool]]:
        """The most probable text after each prompt of ids, and whether it ended by itself. ends: see the attribute."""
        lm, sampling = replace(self, ends=ends), SamplingConfig(temperature=0)
        found: dict[int, tuple[str, bool]] = {}
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # similar lengths need little padding
        for rows in (order[start : start + GREEDY_ROWS] for start in range(0, len(order), GREEDY_ROWS)):
            answers = lm.generate([prompts[i] for i in rows], max_new_tokens=max_new_tokens, sampling=sampling)
            found |= {i: (answer.text, answer.ended == "end") for i, answer in zip(rows, answers, strict=True)}
        return [found[i] for i in range(len(prompts))]

    def losses(self, documents: Sequence[Sequence[int]]) -> list[float]:
        """The negative log-probability (nats) of each document, ids after the token that starts a stream."""
        pairs = [(self.encode(()), ids) for ids in documents]
        figures = log_probabilities(self.model, pairs, compute=self.compute)
        return [-math.fsum(figure.log_probability for figure in row) for row in figures]

    @torch.no_grad()
    def quality_loss(self, exact: LanguageModel, prompt: str) -> QualityLoss:
        """Compares this model's predictions with exact ones, on the prompt followed by 64 greedy tokens."""
        [greedy] = self.generate(prompt, max_new_tokens=64, sampling=SamplingConfig(temperature=0))
        text = [*self.encode(prompt), *greedy.tokens][-self.model.config.context :]
        ids = torch.tensor([text], device=self.compute.device)
        with self.compute.autocast():
            logits = self.model(ids)
        return compare_logits(exact.model(ids), logits)
