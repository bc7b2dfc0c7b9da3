"""generate(): continues prompts token by token. Prefill, then sample, append and stop until every row has ended."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import InputError
from ..device import Compute
from ..gpt import GPT
from ..seeds import hash_seed
from .constraints import STOP, Constraints, State, StringMatcher, TextStream
from .decode import Decoder
from .inspect import FilterStep, explained, most_probable
from .sampling import NOT_FINITE, SamplingConfig, checked, draw, penalize, probabilities
from .speculate import SpeculativeDecoder
from .vocabulary import Vocabulary


@dataclass
class NewToken:
    """One new token of a row. Log-probabilities are in nats."""

    id: int
    log_probability: float  # in the distribution that was sampled
    model_log_probability: float  # in the model's own distribution, before constraints, penalties and filters
    text: str  # the text that became certain with this token: whole characters that no stop string can cut off
    ended: str | None  # None: the row continues; end (this is the end token) | stop (a stop string) | length
    forgotten: int  # how many of the row's oldest tokens were outside the context
    alternatives: list[tuple[int, float]]  # with top_logprobs: the model's most probable ids, best first
    rank: int | None  # with explain: by the model's own probability; 1: the most probable
    filters: list[FilterStep]  # with explain: in the order in which they apply


@dataclass
class Row:
    """State of one sequence being generated."""

    number: int
    window: list[int]  # the tokens in the model's context, and the newest token
    forgotten: int  # the number of tokens before these
    noise_key: tuple[int, int]  # seed and index
    max_new_tokens: int
    text: TextStream
    n_generated: int = 0
    ended: str | None = None

    def append(self, token: int, vocabulary: Vocabulary, *, min_new_tokens: int) -> str:
        """Appends a token and sets `ended` if the row ends with it; returns the text that became certain."""
        text = ""
        if vocabulary.is_end(token):
            self.ended = "end"
        else:
            text = self.text.add(vocabulary.text(token), may_stop=self.n_generated >= min_new_tokens)
            if self.text.stopped:
                self.ended = "stop"
            elif self.n_generated + 1 == self.max_new_tokens:
                self.ended = "length"
        if self.ended in ("end", "length"):
            text += self.text.end(complete=self.ended == "end")
        self.n_generated += 1
        self.window.append(token)
        return text

    def slide(self, context: int) -> None:
        """Drops the older half of a window that has outgrown the context."""
        if len(self.window) > context:
            self.forgotten += len(self.window) - (context // 2 + 1)
            self.window = self.window[-(context // 2 + 1) :]


@torch.no_grad()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    sampling: SamplingConfig | None = None,
    seed: int | Sequence[int] = 1,
    indices: Sequence[int] | None = None,
    vocabulary: Vocabulary | None = None,
    compute: Compute | None = None,
    on_overflow: str = "slide",
    top_logprobs: int = 0,
    explain: bool = False,
    speculative: bool = False,
) -> Iterator[list[NewToken | None]]:
    """Continues each prompt. Yields one list per step: each row's new token, or None for a row that has ended.

    A row ends with the end token, a stop string, or after max_new_tokens. The noise for its token number t is a
    function of the row's (seed, index, t), so rows do not depend on their neighbours. Indices are 0, 1, ... by default.

    vocabulary: None means no end token and no text. compute: device and dtype of model and cache; None means float32.
    on_overflow: when a row has filled the model's context, "slide" drops its older half and prefills again, and prompts
    longer than the context are truncated on the left; "error" raises InputError where that could happen.
    top_logprobs, explain: see NewToken. speculative: for a single prompt; faster on repetitive text, the same output.
    Raises InputError, before the first step, if the arguments do not fit together.
    """
    sampling = checked(sampling)
    compute = compute or Compute(model.embed.weight.device, torch.float32, compile=False)
    context, n_rows = model.config.context, len(prompts)
    limits, seeds = per_row("max_new_tokens", max_new_tokens, n_rows), per_row("seed", seed, n_rows)
    check(prompts, limits, sampling, context=context, on_overflow=on_overflow, speculative=speculative)
    if vocabulary is None:
        vocabulary = Vocabulary((b"",) * model.config.vocab_size, {}, end_id=-1)
    constraints = Constraints.of(vocabulary, sampling, max_new_tokens=min(limits))
    sampler = Sampler(sampling, constraints, vocab_size=len(vocabulary.tokens), device=compute.device)
    sampler.add_rows(prompts)
    stops = StringMatcher([(text, STOP) for text in sampling.stop])
    noise_keys = zip(seeds, range(n_rows) if indices is None else indices, strict=True)
    rows = [
        Row(number, list(prompt[-context:]), max(0, len(prompt) - context), key, limit, TextStream(stops))
        for number, (prompt, key, limit) in enumerate(zip(prompts, noise_keys, limits, strict=True))
    ]
    plain = Decoder(model, rows=n_rows, capacity=max(map(len, prompts)) + max(limits), compute=compute)
    decoder = SpeculativeDecoder(plain) if speculative else plain
    logits = decoder.prefill([row.window for row in rows])
    while True:
        ids, log_probs, stages = sampler.sample(logits, rows)
        ranks: Sequence[int | None] = [None] * len(rows)
        alternatives: Sequence[list[tuple[int, float]]] = [[]] * len(rows)
        filters: Sequence[list[FilterStep]] = [[]] * len(rows)
        if top_logprobs:
            alternatives = most_probable(stages["model"].softmax(-1), top_logprobs)
        if explain:
            ranks, filters = explained(stages, ids, sampling)
        drawn = zip(rows, ids.tolist(), *log_probs.tolist(), alternatives, ranks, filters, strict=True)
        step: list[NewToken | None] = [None] * n_rows
        for row, token, log_p, model_log_p, *details in drawn:
            if row.ended is None:
                if not math.isfinite(model_log_p):
                    raise InputError(NOT_FINITE)
                text = row.append(token, vocabulary, min_new_tokens=sampling.min_new_tokens)
                step[row.number] = NewToken(token, log_p, model_log_p, text, row.ended, row.forgotten, *details)
        yield step
        unfinished = [place for place, row in enumerate(rows) if row.ended is None]
        if not unfinished:
            return
        if len(unfinished) <= len(rows) // 2 and not plain.compiled:  # half have ended: go on with a smaller batch
            rows, ids = [rows[place] for place in unfinished], ids[unfinished]
            plain.select_rows(unfinished)
            sampler.select_rows(unfinished)
        if any(len(row.window) > context for row in rows):
            for row in rows:
                row.slide(context)
            logits = decoder.prefill([row.window for row in rows])
        else:
            logits = decoder.step(ids)


class Sampler:
    """Draws each row's next token from its logits; tracks the text for constraints and penalties."""

    def __init__(
        self, sampling: SamplingConfig, constraints: Constraints | None, *, vocab_size: int, device: torch.device
    ) -> None:
        """Has no rows at first. device: of the logits."""
        self.sampling, self.constraints = sampling, constraints
        self.states: list[State] = []  # of each row, for the constraints
        if sampling.has_penalties:
            self.counts = torch.zeros(0, vocab_size, device=device)  # of each token in the new text
            self.seen = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)  # in prompt or new text

    def add_rows(self, prompts: Sequence[Sequence[int]]) -> None:
        """Appends rows, whose new text is empty."""
        if self.constraints is not None:
            self.states += [self.constraints.start] * len(prompts)
        if self.sampling.has_penalties:
            seen = self.seen.new_zeros(len(prompts), self.seen.shape[1])
            for row, prompt in zip(seen, prompts, strict=True):
                row[torch.tensor(prompt, device=row.device)] = True
            self.seen = torch.cat((self.seen, seen))
            self.counts = torch.cat((self.counts, torch.zeros_like(seen, dtype=self.counts.dtype)))

    def sample(self, logits: Tensor, rows: Sequence[Row]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Draws one token per row from logits (B, V), meaningless for rows that have ended.

        Returns the ids (B,), their log-probabilities (2, B) in the sampled distribution and in the model's own, and
        the logits (B, V) by stage: "model", and "constraints" and "penalties" if there are any.
        """
        logits = logits.float()
        stages = {"model": logits}
        if self.constraints is not None:
            mask = self.allowed(rows, self.constraints).to(logits.device)
            stages["constraints"] = logits = logits.masked_fill(~mask, float("-inf"))
        if self.sampling.has_penalties:
            stages["penalties"] = logits = penalize(logits, self.sampling, seen=self.seen, counts=self.counts)
        if self.sampling.temperature == 0:
            ids, log_probs = logits.argmax(dim=-1), torch.zeros(len(rows), device=logits.device)
        else:
            probs = probabilities(logits, self.sampling)
            keys = [hash_seed(*row.noise_key, row.n_generated) for row in rows]
            ids = draw(probs, keys, max_nonzero=self.sampling.top_k)
            log_probs = probs.gather(-1, ids[:, None])[:, 0].log()
        self.update(ids[:, None])
        model_log_probs = stages["model"].gather(-1, ids[:, None])[:, 0] - stages["model"].logsumexp(dim=-1)
        return ids, torch.stack((log_probs, model_log_probs)), stages

    def allowed(self, rows: Sequence[Row], constraints: Constraints) -> Tensor:
        """The mask (B, V), bool, of the tokens that the constraints allow."""
        anything = torch.tensor(True).expand(constraints.V)
        masks = [
            anything if row.ended else constraints.allowed(state, row.n_generated, max_new_tokens=row.max_new_tokens)
            for row, state in zip(rows, self.states, strict=True)
        ]
        return torch.stack(masks)

    def update(self, ids: Tensor) -> None:
        """Adds the new tokens (B, 1) to what is known of the text."""
        if self.constraints is not None:
            pairs = zip(self.states, ids[:, 0].tolist(), strict=True)
            self.states = [self.constraints.advance(state, token) for state, token in pairs]
        if self.sampling.has_penalties:
            self.counts.scatter_add_(-1, ids, torch.ones_like(self.counts[:, :1]))
            self.seen.scatter_(-1, ids, True)

    def select_rows(self, places: Sequence[int]) -> None:
        """Keeps only these rows, renumbered in this order."""
        if self.constraints is not None:
            self.states = [self.states[place] for place in places]
        if self.sampling.has_penalties:
            self.counts, self.seen = self.counts[places], self.seen[places]


def per_row(name: str, value: int | Sequence[int], count: int) -> list[int]:
    """One number for each of `count` rows, from a number or a sequence of them."""
    values = [value] * count if isinstance(value, int) else list(value)
    if len(values) != count:
        raise InputError(f"{name} has {len(values)} values for {count} prompts; give one, or one per prompt")
    return values


def check(
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    sampling: SamplingConfig,
    *,
    context: int,
    on_overflow: str,
    speculative: bool,
) -> None:
    """Raises InputError if these arguments of generate() do not fit together."""
    if not prompts or not all(prompts):
        raise InputError("an empty prompt has no last token to continue; start with the tokenizer's end_id")
    if (limit := min(limits)) < 1:
        raise InputError(f"max_new_tokens={limit} must be at least 1")
    if limit < sampling.min_new_tokens:
        raise InputError(f"min_new_tokens={sampling.min_new_tokens} is more than max_new_tokens={limit}; change one")
    if speculative and len(prompts) > 1:
        raise InputError(f"speculative=true continues one prompt at a time, not {len(prompts)}; give one")
    if on_overflow not in ("slide", "error"):
        raise InputError(f"on_overflow={on_overflow!r} is not one of slide, error")
    for prompt, limit in zip(prompts, limits, strict=True):
        if on_overflow == "error" and (excess := overflow(len(prompt), limit, context=context)):
            raise InputError(f"{excess}; shorten one, or choose on_overflow=slide")


def overflow(prompt_length: int, max_new_tokens: int, *, context: int) -> str | None:
    """A sentence saying that prompt and new text may exceed the context, or None. The last new token is not read."""
    if prompt_length + max_new_tokens - 1 <= context:
        return None
    return f"{prompt_length} tokens of prompt and max_new_tokens={max_new_tokens} exceed the context of {context}"
