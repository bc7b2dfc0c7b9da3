"""The log-probability of given text, token by token, and the choice among options after a prompt."""

from __future__ import annotations

import codecs
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import InputError
from ..device import Compute
from ..gpt import GPT

METHODS = ("raw", "normalised", "pmi")
TOKENS_PER_FORWARD = 8192  # padding included
LOGITS_AT_ONCE = 2**24  # numbers: 64 MiB in float32

Ids = tuple[int, ...]
TokenFigures = tuple[float, int, float]  # log-probability (nats), rank (1: the most probable), entropy (nats)


class TextModel(Protocol):
    """A model with its tokenizer; language_model.LanguageModel is one."""

    @property
    def model(self) -> GPT: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def compute(self) -> Compute: ...

    def encode(self, prompt: str) -> list[int]: ...


@dataclass(frozen=True)
class TokenScore:
    """One token of a scored text. `text` is what it completes: empty while a character has bytes to come."""

    id: int
    text: str
    log_probability: float  # nats, given all before it
    rank: int  # 1: the model's first choice
    entropy: float  # nats, of the distribution that it was one outcome of


@dataclass(frozen=True)
class Score:
    """A text as the model sees it: how probable, token by token and in all, given the prompt."""

    prompt: str
    text: str
    tokens: list[TokenScore]
    log_probability: float  # nats, of the whole text
    bits_per_byte: float


@dataclass(frozen=True)
class OptionScore:
    """One option after a prompt, by three measures in nats."""

    option: str
    log_probability: float  # raw: log p(option | prompt); favours short options
    per_byte: float  # normalised: the same over the option's bytes
    pmi: float  # log p(option | prompt) - log p(option | neutral): not how common it is, but how much it gains
    probability: float  # softmax over the options of the measure that `method` named


def border(prompt: str, text: str) -> tuple[str, str]:
    """Spaces at the prompt's end as the text's beginning.

    Prompt and text are made into tokens apart, and most tokenizers join a space with the word behind it: after
    "Answer: " the tokens of "yes" are ones that the model never saw there, those of " yes" after "Answer:" are.
    """
    bare = prompt.rstrip(" ")
    return bare, prompt[len(bare) :] + text


def score_texts(lm: TextModel, pairs: Sequence[tuple[str, str]]) -> list[Score]:
    """The Score of each (prompt, text), `border` applied; an empty prompt is the start of a document.

    Texts longer than the model's context are read in overlapping windows, see `log_probabilities`.
    Raises InputError for an empty text.
    """
    if empty := [prompt for prompt, text in pairs if not text]:
        raise InputError(f"there is no text to score after the prompt {empty[0]!r}; give at least one character")
    pairs = [border(prompt, text) for prompt, text in pairs]
    ids = [(lm.encode(prompt), lm.tokenizer.encode(text)) for prompt, text in pairs]
    scores = []
    for (prompt, text), (_, tokens), figures in zip(
        pairs, ids, log_probabilities(lm.model, ids, compute=lm.compute), strict=True
    ):
        total = math.fsum(log_probability for log_probability, _, _ in figures)
        pieces = texts_of(lm, tokens)
        rows = [TokenScore(token, piece, *row) for token, piece, row in zip(tokens, pieces, figures, strict=True)]
        n_bytes = len(text.encode("utf-8", "replace"))
        scores.append(Score(prompt, text, rows, total, -total / math.log(2) / n_bytes))
    return scores


def texts_of(lm: TextModel, tokens: Iterable[int]) -> Iterator[str]:
    """What each token adds to the text, never half a character; bytes that are no UTF-8 become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        yield decoder.decode(lm.tokenizer.token_bytes(token))


def score_options(
    lm: TextModel,
    questions: Sequence[tuple[str, Sequence[str]]],
    *,
    method: str = "raw",
    neutral: str = "",
) -> list[list[OptionScore]]:
    """Of each (prompt, options) the options' scores, in their order; the best is the one of highest probability.

    neutral is the prompt of pmi that says nothing about the options ("domain premise", Holtzman et al. 2021, "Surface
    form competition"), by default the start of a document. Raises InputError for an unknown method, no or empty
    options.
    """
    if method not in METHODS:
        raise InputError(f"method={method!r} is not one of {', '.join(METHODS)}")
    pairs: list[tuple[str, str]] = []
    for prompt, options in questions:
        if not options or not all(options):
            raise InputError(f"options={list(options)} after {prompt!r}: at least one, none of them empty, is needed")
        pairs += [border(prompt, option) for option in options]
    unconditional = dict.fromkeys((neutral.rstrip(" "), option) for _, option in pairs)  # many questions share options
    everything = [*pairs, *unconditional]
    ids = [(lm.encode(prompt), lm.tokenizer.encode(text)) for prompt, text in everything]
    totals = [math.fsum(p for p, _, _ in row) for row in log_probabilities(lm.model, ids, compute=lm.compute)]
    base = dict(zip(unconditional, totals[len(pairs) :], strict=True))
    rows = zip(pairs, totals, strict=False)  # an iterator; the rest of totals is base's
    results = []
    for _, options in questions:
        found = []
        for option, ((_, text), raw) in zip(options, itertools.islice(rows, len(options)), strict=True):
            n_bytes = len(text.encode("utf-8", "replace"))
            found.append((option, raw, raw / n_bytes, raw - base[neutral.rstrip(" "), text]))
        column = 1 + METHODS.index(method)
        shares = torch.tensor([row[column] for row in found], dtype=torch.float64).softmax(0).tolist()
        results.append([OptionScore(*row, share) for row, share in zip(found, shares, strict=True)])
    return results


@torch.no_grad()
def log_probabilities(
    model: GPT, texts: Sequence[tuple[Sequence[int], Sequence[int]]], *, compute: Compute
) -> list[list[TokenFigures]]:
    """Of each (prefix, targets) the figures of every target given all before it; neither may be empty.

    One forward a window: where prefix and targets exceed the context, windows of a full context follow each other by
    half of one, so that each target but those at the very beginning sees at least half a context before it. Rows are
    padded on the right, which no token before can see. Texts that begin alike share a row: a text whose inputs begin
    another's is read off that, so options of one token after one prompt cost one row.
    """
    context = model.config.context
    stride = max(1, context // 2)
    wanted: dict[Ids, list[tuple[int, int, int]]] = {}  # inputs -> (position, text, index of the target)
    for number, (prefix, targets) in enumerate(texts):
        kept = max(context - context // 2, context + 1 - len(targets))  # of the prefix: what fits, at least half
        ids = (*prefix[-kept:], *targets)
        n_prefix = len(ids) - len(targets)
        start, done = 0, n_prefix  # of the window; the ids before `done` need no score or have one
        while done < len(ids):
            inputs = ids[start : start + context][: len(ids) - 1 - start]
            stop = start + len(inputs) + 1
            positions = wanted.setdefault(inputs, [])
            positions += [(place - start - 1, number, place - n_prefix) for place in range(done, stop)]
            start, done = start + stride, stop
    rows = _merged(wanted)
    figures: list[list[TokenFigures]] = [[(0.0, 0, 0.0)] * len(targets) for _, targets in texts]
    for batch in _batches(sorted(rows, key=len)):
        longest = len(batch[-1])
        ids_in = torch.tensor([[*row, *[0] * (longest - len(row))] for row in batch], device=compute.device)
        places = [(row, *where) for row, inputs in enumerate(batch) for where in rows[inputs]]
        index = torch.tensor([place[:2] for place in places], device=compute.device)  # (N, 2): row, position
        chosen = torch.tensor([texts[text][1][at] for _, _, text, at in places], device=compute.device)  # (N,)
        with compute.autocast():
            h = model.hidden(ids_in)[index[:, 0], index[:, 1]]  # (N, D)
        at_once = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
        for some in torch.arange(len(places)).split(at_once):
            with compute.autocast():
                logits = model.head(h[some])  # (n, V)
            for which, row in zip(some.tolist(), _figures(logits.float(), chosen[some]), strict=True):
                figures[places[which][2]][places[which][3]] = row
    return figures


def _figures(logits: Tensor, targets: Tensor) -> list[TokenFigures]:
    """logits (N, V), targets (N,)"""
    log_p = torch.log_softmax(logits, dim=-1)
    chosen = log_p.gather(-1, targets[:, None])  # (N, 1)
    rank = (log_p > chosen).sum(-1) + 1
    entropy = -(log_p.exp() * log_p.nan_to_num(neginf=0.0)).sum(-1)  # 0 log 0 is 0
    return list(zip(chosen[:, 0].tolist(), rank.tolist(), entropy.tolist(), strict=True))


def _merged(wanted: dict[Ids, list[tuple[int, int, int]]]) -> dict[Ids, list[tuple[int, int, int]]]:
    """Rows of which none is the beginning of another; what is wanted of a dropped one is wanted of that other."""
    merged: dict[Ids, list[tuple[int, int, int]]] = {}
    host: Ids = ()
    for inputs in sorted(wanted, reverse=True):  # all that begin with a text stand right before it
        if host[: len(inputs)] != inputs:
            host = inputs
        merged.setdefault(host, []).extend(wanted[inputs])
    return merged


def _batches(rows: Sequence[Ids]) -> Iterator[list[Ids]]:
    """Cuts rows, in rising length, into batches of at most TOKENS_PER_FORWARD, padding included; at least one row."""
    batch: list[Ids] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row) > TOKENS_PER_FORWARD:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
