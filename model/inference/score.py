"""The log-probability of given text, token by token, and the choice among several options after a prompt."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import InputError
from ..device import Compute
from ..gpt import GPT
from ..loss import IGNORE
from .sampling import NOT_FINITE
from .vocabulary import Tokenizer, prompt_ids

METHODS = ("raw", "normalised", "pmi")
TOKENS_PER_FORWARD = 8192  # including padding
LOGITS_AT_ONCE = 2**24  # elements: 64 MiB in float32

Ids = tuple[int, ...]


def joins_words(prompt: str, text: str) -> bool:
    """True if no space separates two letters, in a script that has capitals: such scripts have spaces too."""
    letters = prompt[-1:], text[:1]
    return all(letter.lower() != letter.upper() for letter in letters)


@dataclass(frozen=True)
class TokenScore:
    """One token of a scored text."""

    id: int
    text: str  # the characters that the token completes; "" if it ends inside one
    log_probability: float  # nats, given all tokens before it
    rank: int  # 1: the model's first choice
    entropy: float  # nats, of the distribution at this position


@dataclass(frozen=True)
class TextScore:
    """The probability of a text given a prompt, as a whole and token by token."""

    prompt: str
    text: str
    tokens: list[TokenScore]
    log_probability: float  # nats, of the whole text
    bits_per_byte: float | None  # None if the tokenizer does not know all of the text


@dataclass(frozen=True)
class OptionScore:
    """One option after a prompt, by three measures in nats."""

    option: str
    log_probability: float  # raw: log p(option | prompt); favours short options
    per_byte: float  # normalised: log_probability / bytes of the option
    pmi: float  # log p(option | prompt) - log p(option | neutral): the gain through the prompt, not how common it is
    probability: float  # softmax over the options of the measure that `method` names


def move_trailing_spaces(prompt: str, text: str) -> tuple[str, str]:
    """Moves spaces at the end of the prompt to the start of the text: most tokens of words begin with theirs."""
    stripped = prompt.rstrip(" ")
    return stripped, prompt[len(stripped) :] + text


def encode_pair(tokenizer: Tokenizer, prompt: str, text: str) -> tuple[list[int], list[int]]:
    return prompt_ids(tokenizer, prompt), tokenizer.encode(text, continued=bool(prompt))


def score_text(model: GPT, tokenizer: Tokenizer, prompt: str, text: str, *, compute: Compute) -> TextScore:
    """Scores a text after a prompt, trailing spaces moved. Raises InputError for an empty text."""
    if not text:
        raise InputError(f"there is no text to score after the prompt {prompt!r}; give at least one character")
    prompt, text = move_trailing_spaces(prompt, text)
    prefix, tokens = encode_pair(tokenizer, prompt, text)
    [figures] = log_probabilities(model, [(prefix, tokens)], compute=compute)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    parts = [decoder.decode(tokenizer.token_bytes(token)) for token in tokens]
    rows = [
        TokenScore(token, part, figure.log_probability, figure.rank, figure.entropy)
        for token, part, figure in zip(tokens, parts, figures, strict=True)
    ]
    total = math.fsum(figure.log_probability for figure in figures)
    bits_per_byte = None if tokenizer.unknown(text) else -total / math.log(2) / count_bytes(text)
    return TextScore(prompt, text, rows, total, bits_per_byte)


def count_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def score_options(
    model: GPT,
    tokenizer: Tokenizer,
    questions: Sequence[tuple[str, Sequence[str]]],
    *,
    method: str = "raw",
    neutral: str = "",
    compute: Compute,
) -> list[list[OptionScore]]:
    """Scores the options of each (prompt, options), in their order. The model's choice has the highest probability.

    neutral: pmi compares with this prompt, which should say nothing about the options (the "domain premise" of Holtzman
    et al. 2021, "Surface form competition"); by default the start of a document. Raises InputError for an unknown
    method, and for no options or an empty one.
    """
    if method not in METHODS:
        raise InputError(f"method={method!r} is not one of {', '.join(METHODS)}")
    moved: dict[tuple[str, str], tuple[str, str]] = {}  # (prompt, option) with the spaces where they belong
    for prompt, options in questions:
        if not options or not all(options):
            raise InputError(f"options={list(options)} after {prompt!r}: give at least one, none of them empty")
        moved |= {(prompt, option): move_trailing_spaces(prompt, option) for option in options}
    neutral = neutral.rstrip(" ")
    pairs = list(dict.fromkeys([*moved.values(), *((neutral, text) for _, text in moved.values())]))
    found = log_probabilities(model, [encode_pair(tokenizer, *pair) for pair in pairs], compute=compute)
    totals = dict(zip(pairs, (math.fsum(figure.log_probability for figure in row) for row in found), strict=True))
    results = []
    for prompt, options in questions:
        rows = []
        for option in options:
            raw, text = totals[moved[prompt, option]], moved[prompt, option][1]
            rows.append((option, raw, raw / count_bytes(text), raw - totals[neutral, text]))
        column = 1 + METHODS.index(method)
        softmax = torch.tensor([row[column] for row in rows], dtype=torch.float64).softmax(0).tolist()
        results.append([OptionScore(*row, probability) for row, probability in zip(rows, softmax, strict=True)])
    return results


class TokenFigures(NamedTuple):
    log_probability: float  # nats
    rank: int  # 1: the most probable
    entropy: float  # nats
    greedy: bool  # whether greedy decoding would write it: of equally probable tokens, only the first is


class Target(NamedTuple):
    """A token to score: target number `number` of text `text`; its logits are at `position` of a row."""

    position: int
    text: int
    number: int


@torch.no_grad()
def log_probabilities(
    model: GPT, texts: Sequence[tuple[Sequence[int], Sequence[int]]], *, compute: Compute
) -> list[list[TokenFigures]]:
    """For each (prefix, targets), the figures of every target given all tokens before it. Neither may be empty.

    Texts that exceed the context are cut into overlapping windows. Rows that are a prefix of another are read off that
    one, so options of one token after the same prompt cost one row.
    """
    rows: dict[Ids, list[Target]] = {}  # inputs -> what to score there
    for text, (prefix, targets) in enumerate(texts):
        for inputs, places in windows(prefix, targets, context=model.config.context):
            rows.setdefault(inputs, []).extend(Target(position, text, number) for position, number in places)
    rows = merge_prefixes(rows)
    figures = [[TokenFigures(0.0, 0, 0.0, False)] * len(targets) for _, targets in texts]
    for batch in batches(sorted(rows, key=len)):
        longest = len(batch[-1])
        ids = torch.tensor([[*inputs, *[0] * (longest - len(inputs))] for inputs in batch], device=compute.device)
        wanted = [(row, target) for row, inputs in enumerate(batch) for target in rows[inputs]]  # N of them
        where = torch.tensor([(row, target.position) for row, target in wanted], device=compute.device)  # (N, 2)
        tokens = torch.tensor([texts[target.text][1][target.number] for _, target in wanted], device=compute.device)
        with compute.autocast():
            h = model.hidden(ids)[where[:, 0], where[:, 1]]  # (B, T, D) -> (N, D)
        for some in torch.arange(len(wanted)).split(max(1, LOGITS_AT_ONCE // model.config.vocab_size)):
            with compute.autocast():
                logits = model.head(h[some])  # (n, V)
            for i, figure in zip(some.tolist(), token_figures(logits.float(), tokens[some]), strict=True):
                if not math.isfinite(figure.log_probability):
                    raise InputError(NOT_FINITE)
                target = wanted[i][1]
                figures[target.text][target.number] = figure
    return figures


def windows(
    prefix: Sequence[int], targets: Sequence[int], *, context: int
) -> Iterator[tuple[Ids, list[tuple[int, int]]]]:
    """Cuts a text into rows of at most `context` inputs; yields (inputs, [(position, number of the target)]).

    Windows advance by half a context, and each scores the targets that the one before did not reach. So every target
    sees at least half a context, or all tokens before it. A long prefix is truncated on the left.
    """
    kept = max(context - context // 2, context + 1 - len(targets))  # as much of the prefix as fits: at least half
    ids = (*prefix[-kept:], *targets)
    n_prefix = len(ids) - len(targets)
    start, scored = 0, n_prefix  # of the window; all ids before `scored` are done
    while scored < len(ids):
        inputs = ids[start : min(start + context, len(ids) - 1)]
        stop = start + len(inputs) + 1
        yield inputs, [(place - start - 1, place - n_prefix) for place in range(scored, stop)]
        start, scored = start + max(1, context // 2), stop


def merge_prefixes(rows: dict[Ids, list[Target]]) -> dict[Ids, list[Target]]:
    """Drops every row that is a prefix of another, and moves its targets there."""
    merged: dict[Ids, list[Target]] = {}
    longest: Ids = ()
    for inputs in sorted(rows, reverse=True):  # each row directly follows the rows that it is a prefix of
        if longest[: len(inputs)] != inputs:
            longest = inputs
        merged.setdefault(longest, []).extend(rows[inputs])
    return merged


def batches(rows: Sequence[Ids]) -> Iterator[list[Ids]]:
    """Splits rows, sorted by length, into batches of at most TOKENS_PER_FORWARD with padding, but at least one row."""
    batch: list[Ids] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row) > TOKENS_PER_FORWARD:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def token_figures(logits: Tensor, targets: Tensor) -> list[TokenFigures]:
    """logits (N, V), targets (N,) -> N figures."""
    log_p = torch.log_softmax(logits, dim=-1)
    chosen = log_p.gather(-1, targets[:, None])  # (N, 1)
    rank = (log_p > chosen).sum(-1) + 1
    entropy = -(log_p.exp() * log_p.nan_to_num(neginf=0.0)).sum(-1)  # 0 log 0 is 0
    greedy = logits.argmax(-1) == targets
    return list(map(TokenFigures, chosen[:, 0].tolist(), rank.tolist(), entropy.tolist(), greedy.tolist()))


@torch.no_grad()
def target_losses(model: GPT, inputs: Tensor, targets: Tensor, *, compute: Compute) -> Tensor:
    """inputs, targets (B, T) -> -ln p of each target that is not IGNORE, row by row, (N,) float32 on the CPU."""
    inputs, targets = inputs.to(compute.device), targets.to(compute.device)
    wanted = targets != IGNORE
    losses = []
    with compute.autocast():
        h = model.hidden(inputs)[wanted]  # (B, T, D) -> (N, D)
    at_once = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    for some, tokens in zip(h.split(at_once), targets[wanted].split(at_once), strict=True):
        with compute.autocast():
            logits = model.head(some)  # (n, V)
        losses.append(F.cross_entropy(logits.float(), tokens, reduction="none").cpu())
    return torch.cat(losses)
