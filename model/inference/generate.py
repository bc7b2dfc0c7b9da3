"""generate(): continues prompts token by token, an iterator over steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import InputError
from ..device import Compute
from ..gpt import GPT
from ..seeds import hash_seed
from .constraints import Matcher, Rules, Text
from .decode import Decoder
from .sampling import SamplingConfig, checked, draw, filtered, penalize, probabilities
from .speculate import Speculator
from .vocabulary import Vocabulary


@dataclass
class Filtering:
    """What one filter did to the chosen token, and to the others."""

    name: str  # constraints | penalties | temperature | top_k | top_p | min_p | typical_p
    before: float  # the chosen token's probability
    after: float
    removed: float  # the probability of all tokens that the filter excluded


@dataclass
class NewToken:
    """A row's new token and what is known about it. Log-probabilities are natural."""

    id: int
    log_probability: float  # in the distribution that was sampled
    model_log_probability: float  # in the model's own: before constraints, penalties and filters
    text: str = ""  # what is certain of the text since the token before: whole characters, nothing that may be cut off
    ended: str | None = None  # None: the row goes on; end (this is the end token) | stop (a stop string) | length
    forgotten: int = 0  # how many of the oldest tokens of prompt and new text the model no longer saw
    drafted: bool = False  # speculative: its distribution came with an earlier token's
    alternatives: list[tuple[int, float]] = field(default_factory=list)  # the model's likeliest ids, probabilities
    rank: int | None = None  # with explain: among all tokens by the model's own probability, 1 the best
    filters: list[Filtering] = field(default_factory=list)  # with explain, in the order in which they apply


class Row:
    """A prompt, what it has become, and how it may go on."""

    def __init__(self, prompt: Sequence[int], *, context: int, key: tuple[int, int], limit: int, text: Text) -> None:
        self.window = list(prompt[-context:])  # the tokens that the model sees, and the newest one
        self.forgotten = max(0, len(prompt) - context)  # how many there are before these
        self.key = key  # seed and index
        self.limit = limit
        self.text = text
        self.made = 0
        self.ended: str | None = None

    def add(self, new: NewToken, vocabulary: Vocabulary, *, least: int) -> None:
        """Takes the token and completes it: its text, whether the row ends. least: min_new_tokens."""
        if new.id == vocabulary.end_id:
            self.ended = "end"
        else:
            new.text = self.text.add(vocabulary.text(new.id), may_stop=self.made >= least)
            if self.text.stopped:
                self.ended = "stop"
            elif self.made + 1 == self.limit:
                self.ended = "length"
        if self.ended in ("end", "length"):
            new.text += self.text.end(whole=self.ended == "end")
        new.ended, new.forgotten = self.ended, self.forgotten
        self.made += 1
        self.window.append(new.id)

    def slide(self, context: int) -> None:
        """Forgets the older half of a window that has outgrown the context."""
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
    """Continues each prompt; yields, a step at a time, the new token of each row, None for a row that has ended.

    A row ends with the end token, a stop string, or after max_new_tokens. Its token number t is drawn with noise that
    is a function of the row's (seed, index, t) alone, so that rows do not depend on their neighbours; by default the
    rows have one seed, and their numbers as indices.

    speculative: one prompt, faster where its text repeats itself; the same text (see speculate.py).
    on_overflow="slide": when a row has filled the model's context, its oldest half is dropped and the rest read again; of a
    prompt longer than the context its end is read. on_overflow="error": InputError where that could happen. Without a
    vocabulary there is no end token and no text. compute: the number format of model and cache; None: float32.
    """
    sampling = checked(sampling)
    compute = compute or Compute(model.embed.weight.device, torch.float32, compile=False)
    context, n_rows = model.config.context, len(prompts)
    limits, seeds = per_row("max_new_tokens", max_new_tokens, n_rows), per_row("seed", seed, n_rows)
    check(prompts, limits, sampling, context=context, on_overflow=on_overflow, speculative=speculative)
    if vocabulary is None:
        vocabulary = Vocabulary((b"",) * model.config.vocab_size, {}, end_id=-1)
    stops = Matcher([(text, 1) for text in sampling.stop])
    keys = zip(seeds, range(n_rows) if indices is None else indices, strict=True)
    rows = [
        Row(prompt, context=context, key=key, limit=limit, text=Text(stops))
        for prompt, key, limit in zip(prompts, keys, limits, strict=True)
    ]
    plain = Decoder(model, rows=n_rows, capacity=max(map(len, prompts)) + max(limits), compute=compute)
    decoder = Speculator(plain) if speculative else plain
    logits = decoder.read([row.window for row in rows])
    chooser = Chooser(prompts, sampling, vocabulary, room=min(limits), like=logits)
    batch = list(enumerate(rows))  # the rows that the decoder has, and their numbers
    while True:
        ids, chosen = chooser.choose(logits, [row for _, row in batch], top_logprobs=top_logprobs, explain=explain)
        step: list[NewToken | None] = [None] * n_rows
        for (number, row), new in zip(batch, chosen, strict=True):
            if row.ended is None:
                new.drafted = isinstance(decoder, Speculator) and decoder.drafted
                row.add(new, vocabulary, least=sampling.min_new_tokens)
                step[number] = new
        yield step
        going_on = [place for place, (_, row) in enumerate(batch) if row.ended is None]
        if not going_on:
            return
        if len(going_on) <= len(batch) // 2 and isinstance(decoder, Decoder) and not decoder.compiled:
            batch, ids = [batch[place] for place in going_on], ids[going_on]
            decoder.keep(going_on)
            chooser.keep(going_on)
        if any(len(row.window) > context for _, row in batch):
            for _, row in batch:
                row.slide(context)
            logits = decoder.read([row.window for _, row in batch])
        else:
            logits = decoder.step(ids)


class Chooser:
    """Chooses each row's next token from its logits; keeps what penalties and constraints need to know of the text."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        vocabulary: Vocabulary,
        *,
        room: int,
        like: Tensor,
    ) -> None:
        """room: how many new tokens every row may have; like: logits (B, V)."""
        self.sampling = sampling
        self.rules = None
        if sampling.bad_words or sampling.force_words or sampling.min_new_tokens:
            self.rules = Rules(vocabulary, sampling, room=room)
            self.states = [self.rules.start] * len(prompts)
        if sampling.penalizes:
            self.counts = torch.zeros_like(like, dtype=torch.float32)  # (B, V): of tokens in the new text
            self.seen = torch.zeros_like(like, dtype=torch.bool)  # in the prompt or the new text
            for seen, prompt in zip(self.seen, prompts, strict=True):
                seen[torch.tensor(prompt, device=like.device)] = True

    def choose(
        self, logits: Tensor, rows: Sequence[Row], *, top_logprobs: int, explain: bool
    ) -> tuple[Tensor, list[NewToken]]:
        """logits (B, V) -> the ids (B,) and what there is to say about each. Rows that have ended get any token."""
        stages = [("model", logits := logits.float())]
        if self.rules is not None:
            logits = logits.masked_fill(~self.allowed(rows, self.rules).to(logits.device), float("-inf"))
            stages.append(("constraints", logits))
        if self.sampling.penalizes:
            logits = penalize(logits, self.sampling, seen=self.seen, counts=self.counts)
            stages.append(("penalties", logits))
        if self.sampling.temperature == 0:
            ids = logits.argmax(dim=-1)
            log_probs = torch.zeros(len(rows), device=logits.device)
        else:
            probs = probabilities(logits, self.sampling)
            ids = draw(probs, [hash_seed(*row.key, row.made) for row in rows], candidates=self.sampling.top_k)
            log_probs = probs.gather(-1, ids[:, None])[:, 0].log()
        self.remember(ids)
        model_logits = stages[0][1]
        model_log_probs = model_logits.gather(-1, ids[:, None])[:, 0] - model_logits.logsumexp(dim=-1)
        numbers = zip(ids.tolist(), *torch.stack((log_probs, model_log_probs)).tolist(), strict=True)
        chosen = [NewToken(*three) for three in numbers]
        if top_logprobs:
            best = model_logits.softmax(dim=-1).topk(min(top_logprobs, logits.shape[-1]))
            for new, *pair in zip(chosen, best.indices.tolist(), best.values.tolist(), strict=True):
                new.alternatives = list(zip(*pair, strict=True))
        if explain:
            self.explain(stages, ids, chosen)
        return ids, chosen

    def keep(self, places: Sequence[int]) -> None:
        """Goes on with these rows alone."""
        if self.rules is not None:
            self.states = [self.states[place] for place in places]
        if self.sampling.penalizes:
            self.counts, self.seen = self.counts[places], self.seen[places]

    def allowed(self, rows: Sequence[Row], rules: Rules) -> Tensor:
        """Which tokens the rules leave each row, (B, V), bool."""
        anything = torch.tensor(True).expand(rules.V)
        return torch.stack(
            [
                anything if row.ended else rules.allowed(state, made=row.made, left=row.limit - row.made)
                for row, state in zip(rows, self.states, strict=True)
            ]
        )

    def remember(self, ids: Tensor) -> None:
        """Counts the new tokens in."""
        if self.rules is not None:
            self.states = [self.rules.after(state, i) for state, i in zip(self.states, ids.tolist(), strict=True)]
        if self.sampling.penalizes:
            self.counts.scatter_add_(-1, ids[:, None], torch.ones_like(self.counts[:, :1]))
            self.seen.scatter_(-1, ids[:, None], True)

    def explain(self, stages: list[tuple[str, Tensor]], ids: Tensor, chosen: Sequence[NewToken]) -> None:
        """Adds to each new token its rank and what every filter did."""
        column = ids[:, None]
        before = stages[0][1].softmax(dim=-1)
        for new, rank in zip(chosen, (before > before.gather(-1, column)).sum(dim=-1).tolist(), strict=True):
            new.rank = rank + 1
        after_logits = [(name, logits.softmax(dim=-1)) for name, logits in stages[1:]]
        for name, after in [*after_logits, *filtered(stages[-1][1], self.sampling)]:
            removed = before.masked_fill(after > 0, 0).sum(dim=-1)
            table = torch.stack((before.gather(-1, column)[:, 0], after.gather(-1, column)[:, 0], removed))  # (3, B)
            for new, numbers in zip(chosen, table.T.tolist(), strict=True):
                new.filters.append(Filtering(name, *numbers))
            before = after


def per_row(name: str, value: int | Sequence[int], count: int) -> list[int]:
    """One number for each of `count` rows."""
    values = [value] * count if isinstance(value, int) else list(value)
    if len(values) != count:
        raise InputError(f"{name} has {len(values)} values for {count} prompts; give one, or one for each")
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
    """Raises InputError for what cannot be generated."""
    if not prompts or not all(prompts):
        raise InputError("an empty prompt has no last token to continue; start with the tokenizer's end_id")
    if min(limits) < max(1, sampling.min_new_tokens):
        raise InputError(
            f"max_new_tokens={min(limits)} must be at least 1"
            if min(limits) < 1
            else f"min_new_tokens={sampling.min_new_tokens} is more than max_new_tokens={min(limits)}; change one"
        )
    if speculative and len(prompts) > 1:
        raise InputError(
            f"speculative=true continues one prompt at a time, not {len(prompts)}; give one, or leave it out"
        )
    if on_overflow not in ("slide", "error"):
        raise InputError(f"on_overflow={on_overflow!r} is not one of slide, error")
    for prompt, limit in zip(prompts, limits, strict=True):
        if on_overflow == "error" and (excess := overflow(len(prompt), limit, context=context)):
            raise InputError(f"{excess}; shorten one, or choose on_overflow=slide")


def overflow(prompt_length: int, max_new_tokens: int, *, context: int) -> str | None:
    """In words, where a text may outgrow the context; None where it cannot."""
    if prompt_length + max_new_tokens <= context:
        return None
    return f"{prompt_length} tokens of prompt and max_new_tokens={max_new_tokens} exceed the context of {context}"
