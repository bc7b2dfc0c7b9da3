"""The distribution of the next word with certified bounds: a lower and an upper bound for each word, and the mass left.

A model gives the distribution of the next token, and a word may be one token, several, or part of one. The search in
search.py walks the tree of token paths, the most probable first, until the bounds prove the order of the top words.

Token healing: the tokenizer might cut the prompt differently if it saw the next letters. So the prompt's last token is
removed, and only paths that reproduce its bytes count. For "The Duke of" the model reads "The Duke", and the next
tokens may be " of", or " o" then "f", or a longer token such as " often"; the distribution is conditional on those.
Paths that continue the prompt's last word ("often") are reported apart, as `continues`, and the probabilities of the
words are conditional on a new outcome beginning.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from .. import InputError
from ..device import Compute
from ..gpt import GPT
from ..inference.sampling import SamplingConfig, checked
from ..inference.vocabulary import opened
from .search import Child, OutcomeId, Search
from .tree import TreePredictor
from .word_table import Tables
from .words import State

TIE = 1e-9  # probabilities this close count as equal


@dataclass(frozen=True)
class Outcome:
    """A possible next word, or what comes in its place. Its probability lies between lower and upper."""

    word: str  # a special token's name; invalid UTF-8 as \\xff
    kind: str  # word | character | punctuation | space | special | byte
    lower: float
    upper: float
    tokenisations: int  # token paths found that spell it
    spaced: float  # the fraction of `lower` that follows a space


@dataclass(frozen=True)
class NextWords:
    """The most probable outcomes, best first, and limits for all others."""

    words: list[Outcome]
    # a lower bound of the probability that the prompt's last word continues; `words` are conditional on the opposite
    continues: float
    unexplored: float  # the open mass, shared by all outcomes
    unseen: float  # the most that an outcome which was not found can have
    # certified: the order is proven | tolerance: unexplored is at most that | max_tokens: a limit was hit | searching
    stopped: str
    evaluated: int  # tokens that the model read after the prompt


def next_word_distribution(
    model: GPT, tables: Tables, prompt: str, *, encode: Callable[[str], list[int]], top: int = 20,
    tolerance: float = 0.001, max_expansions: int = 1024, ignore_trailing_spaces: bool = True,
    sampling: SamplingConfig | None = None, compute: Compute | None = None,
) -> NextWords:  # fmt: skip
    """Returns the `top` most probable outcomes after a prompt, with bounds.

    The search stops when the order is proven (probabilities within 1e-9 count as equal), when the unexplored mass is at
    most `tolerance`, or after `max_expansions` tokens. ignore_trailing_spaces=False keeps spaces at the end of
    the prompt, which otherwise do not matter; its last token is healed either way. `sampling` applies its filters
    (temperature, top_k, top_p...) to every token after the prompt. A prompt that leaves no room in the model's context
    is truncated on the left. Raises InputError for invalid settings.
    """
    steps = next_word_steps(
        model, tables, prompt, encode=encode, top=top, tolerance=tolerance, max_expansions=max_expansions,
        ignore_trailing_spaces=ignore_trailing_spaces, sampling=sampling, compute=compute,
    )  # fmt: skip
    for _, table in steps:
        last = table
    return last()


def next_word_steps(
    model: GPT, tables: Tables, prompt: str, *, encode: Callable[[str], list[int]], top: int = 20,
    tolerance: float = 0.001, max_expansions: int = 1024, ignore_trailing_spaces: bool = True,
    sampling: SamplingConfig | None = None, compute: Compute | None = None,
) -> Iterator[tuple[str, Callable[[], NextWords]]]:  # fmt: skip
    """As next_word_distribution, step by step: yields, after each forward pass, (stopped, the table so far).

    The table is a function to call, because it costs time; `stopped` is "searching" except at the last step. Bounds
    only tighten from step to step. Whoever stops asking for steps stops the search.
    """
    limits = {"top": top, "max_expansions": max_expansions}
    problems = [f"{name}={value} must be at least 1" for name, value in limits.items() if value < 1]
    if not 0 <= tolerance < 1:
        problems.append(f"tolerance={tolerance} must be at least 0 and below 1")
    if problems:
        raise InputError(*problems)
    compute = compute or Compute(model.embed.weight.device, torch.float32, compile=False)
    ids, healed, start = split_prompt(prompt, tables, encode=encode, ignore_trailing_spaces=ignore_trailing_spaces)
    room = min(32, model.config.context // 2)  # for a word
    predictor = TreePredictor(model, ids[room - model.config.context :], compute=compute)
    search = Search(predictor, tables, start=start, healed=healed, sampling=checked(sampling))
    batch = 32 if top <= 32 else 128  # small batches choose better, large ones cost less per token
    for stopped, evaluated in expansions(
        search, top=top, tolerance=tolerance, max_expansions=max_expansions, batch=batch
    ):
        yield stopped, partial(table_of, search, top, stopped, evaluated)


def table_of(search: Search, top: int, stopped: str, evaluated: int) -> NextWords:
    """The table that a search has led to."""
    if search.total <= 1e-12 * search.continued_mass:  # no new outcome can begin
        return NextWords([], continues=1.0, unexplored=0.0, unseen=0.0, stopped="certified", evaluated=evaluated)
    return NextWords(
        words=outcomes(search, top),
        continues=search.continued_mass / (search.continued_mass + search.total),
        unexplored=search.open_mass / search.total,
        unseen=search.max_unseen()[0] / search.certain_total,
        stopped=stopped,
        evaluated=evaluated,
    )


def split_prompt(
    prompt: str, tables: Tables, *, encode: Callable[[str], list[int]], ignore_trailing_spaces: bool = True
) -> tuple[list[int], bytes, State]:
    """Returns the ids to read, the bytes of the removed last token, and the word machine's state after those bytes."""
    text = prompt.rstrip(" ") if ignore_trailing_spaces else prompt
    vocabulary, ids = tables.vocabulary, encode(text)
    start = tables.rule.start(text, spaced=text.endswith(" "))
    healed = vocabulary.tokens[ids[-1]] if ids else b""  # empty for a special token, which no text can continue
    read = opened(ids[:-1] if healed else ids, start_id=vocabulary.start_id, end_id=vocabulary.end_id)
    return read, healed, start


def ranking(search: Search) -> list[OutcomeId]:
    """Returns the outcomes found so far, the largest lower bound first, ties by their bytes."""
    return sorted(search.closed, key=lambda outcome: (-search.closed[outcome].mass, str(outcome[1])))


def disputes(search: Search, top: int) -> list[tuple[bytes, float]]:
    """Returns the texts that keep the order of the top outcomes uncertain, and the open mass each may keep.

    The order is certain when no outcome can overtake the one before it, and none outside the list its last one.
    """
    slack = TIE * search.total
    ranked = ranking(search)
    lower = [search.closed[outcome].mass for outcome in ranked]
    last = lower[top - 1] if len(lower) >= top else 0.0
    unseen, text = search.max_unseen()
    found = [(text, last)] if unseen > last + slack else []
    for index, (outcome, mass) in enumerate(zip(ranked, lower, strict=True)):
        limit = lower[min(index, top) - 1] if index else float("inf")
        if index >= top and mass + unseen <= last + slack:
            break
        if mass + search.open_mass_of(_open_text(outcome)) > limit + slack:
            found.append((_open_text(outcome), limit - mass))
    return found


def _open_text(outcome: OutcomeId) -> bytes:
    """The text whose open prefixes may add to an outcome; a special token gains only before the first byte."""
    return outcome[1] if isinstance(outcome[1], bytes) else b""


def pick_disputed(search: Search, disputed: list[tuple[bytes, float]], count: int) -> list[Child]:
    """Returns up to `count` open children to expand for the disputed texts, the most probable first.

    For each text it takes the largest children until the rest is no more than the text may keep open.
    """
    picked: dict[Child, float] = {}
    for text, limit in disputed:
        children = sorted(search.open_children(text), reverse=True)
        rest = sum(mass for mass, _ in children)
        for mass, child in children:
            if rest <= limit or mass == 0:
                break
            picked[child] = mass
            rest -= mass
    return heapq.nlargest(count, picked, key=picked.__getitem__)


def expansions(
    search: Search, *, top: int, tolerance: float = 0.0, max_expansions: int, batch: int = 32
) -> Iterator[tuple[str, int]]:
    """Expands until the order of the top outcomes is certain or a limit is reached.

    Yields, before each forward pass and at the end, why it stopped (see NextWords) and the number of tokens evaluated.
    Half of each batch goes to the disputed texts, the other half to the most probable children.
    """
    evaluated = 0
    while True:
        disputed = disputes(search, top)
        if not disputed:
            yield "certified", evaluated
            return
        if search.open_mass <= tolerance * search.total:
            yield "tolerance", evaluated
            return
        count = min(batch, max_expansions - evaluated)
        children = pick_disputed(search, disputed, count - count // 2)
        children += search.most_probable(count - len(children), exclude=set(children))
        if not children:  # the limit or the end of the context is reached
            yield "max_tokens", evaluated
            return
        yield "searching", evaluated
        search.expand(children)
        evaluated += len(children)


def outcomes(search: Search, top: int) -> list[Outcome]:
    """Returns the most probable outcomes with their bounds, conditional on a new outcome beginning."""
    found = []
    for outcome in ranking(search)[:top]:
        (kind, text), closed = outcome, search.closed[outcome]
        lower = closed.mass / search.total
        upper = (closed.mass + search.open_mass_of(_open_text(outcome))) / search.certain_total
        word = text if isinstance(text, str) else text.decode("utf-8", "backslashreplace")
        spaced = closed.spaced_mass / closed.mass
        found.append(Outcome(word, kind, lower, min(1.0, max(upper, lower)), closed.tokenizations, spaced))
    return found
