"""The distribution of the next word, with a proof: a lower and an upper bound for each, and the mass not explored.

A model gives the distribution of the next token, and a word may be one token, several, or part of one. Here the tree of
token paths is walked, the most probable first. A path's mass is shared out by one forward pass: to tokens that prove
that the word ended (they close it), and to the others (open paths). So closed + open = 1 at every step, the closed mass
of a word (over all its tokenisations) is a lower bound for its probability, and what is open on paths whose bytes the
word begins with is all that may still be added.

The prompt's border: the last token of the prompt is taken back, since the text may go on within it, and what counts are
paths that repeat its bytes; the distribution is conditional on those. Paths that continue the prompt's last word are
reported apart (`continues`), and the words are conditional on a new outcome beginning.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .. import InputError
from ..device import Compute
from ..gpt import GPT
from ..inference.sampling import SamplingConfig, checked
from .search import Name, Search
from .tree import TreePredictor
from .word_table import Tables
from .words import State

TIE = 1e-9  # probabilities this close count as equal


@dataclass(frozen=True)
class Outcome:
    """What may come next. Its probability lies between lower and upper."""

    word: str  # of a special token, its name; bytes that are no UTF-8 as \\xff
    kind: str  # word | character | punctuation | space | special | byte
    lower: float
    upper: float
    tokenisations: int  # in how many ways of cutting it into tokens it was found
    spaced: float  # which part of `lower` stands behind a space


@dataclass(frozen=True)
class NextWords:
    """The most probable outcomes, best first, and what is known of all others."""

    words: list[Outcome]
    continues: float  # the probability that the prompt's last word goes on; the words are conditional on the contrary
    unexplored: float  # the open mass, shared by all outcomes
    unseen: float  # an outcome that was not found at all is at most this probable
    stopped: str  # certified: the order is proven | tolerance: unexplored is below it | max_expansions: it ran out
    evaluated: int  # tokens that the model read after the prompt


def next_word_distribution(
    model: GPT,
    tables: Tables,
    prompt: str,
    *,
    encode: Callable[[str], list[int]],
    top: int = 20,
    tolerance: float = 0.001,
    max_expansions: int = 1024,
    token_healing: bool = True,
    sampling: SamplingConfig | None = None,
    compute: Compute | None = None,
) -> NextWords:
    """The `top` most probable outcomes after a prompt, with bounds.

    The search stops when their order is certain (probabilities within 1e-9 count as equal), when the open mass is at
    most `tolerance`, or after max_expansions tokens. border="words" asks which outcome begins after the prompt, whether or
    not it ends in spaces; token_healing=False what follows its exact bytes. With `sampling` the tree is that of the filtered
    distribution (temperature, top_k, top_p...), but for the tokens that repeat the prompt. Of a prompt that leaves no
    room in the model's context the end is read. Raises InputError for settings that make no sense.
    """
    problems = [
        f"{name}={value} must be at least 1"
        for name, value in (("top", top), ("max_expansions", max_expansions))
        if value < 1
    ]
    problems += [] if 0 <= tolerance < 1 else [f"tolerance={tolerance} must be 0 or above and below 1"]
    if problems:
        raise InputError(*problems)
    search = search_behind(
        model, tables, prompt, encode=encode, token_healing=token_healing, sampling=sampling, compute=compute
    )
    batch = 32 if top <= 32 else 128  # small batches are aimed better, large ones cost less a token
    stopped, evaluated = run(search, top=top, tolerance=tolerance, max_expansions=max_expansions, batch=batch)
    if search.total <= 1e-12 * search.continued:  # nothing new begins: all that is left continues the prompt's word
        return NextWords([], continues=1.0, unexplored=0.0, unseen=0.0, stopped="certified", evaluated=evaluated)
    return NextWords(
        words=outcomes(search, top),
        continues=search.continued / (search.continued + search.total),
        unexplored=search.open / search.total,
        unseen=search.unseen()[0] / search.least,
        stopped=stopped,
        evaluated=evaluated,
    )


def search_behind(
    model: GPT,
    tables: Tables,
    prompt: str,
    *,
    encode: Callable[[str], list[int]],
    token_healing: bool = True,
    sampling: SamplingConfig | None = None,
    compute: Compute | None = None,
) -> Search:
    """The search behind a prompt, before its first step. Room is left in the context for the tokens of a word."""
    compute = compute or Compute(model.embed.weight.device, torch.float32, compile=False)
    ids, repeat, start = question(prompt, tables, encode=encode, token_healing=token_healing)
    room = min(32, model.config.context // 2)
    predictor = TreePredictor(model, ids[room - model.config.context :], compute=compute)
    return Search(predictor, tables, start=start, border=repeat, sampling=checked(sampling))


def question(
    prompt: str, tables: Tables, *, encode: Callable[[str], list[int]], token_healing: bool = True
) -> tuple[list[int], bytes, State]:
    """The ids to read, the prompt's bytes to be repeated after them, and the state behind those."""
    text = prompt.rstrip(" ") if token_healing else prompt
    vocabulary, ids = tables.vocabulary, encode(text)
    start = tables.rule.start(text, spaced=text.endswith(" "))
    repeat = vocabulary.tokens[ids[-1]] if ids else b""  # none for a special token: nothing goes on within one
    return (ids[:-1] if repeat else ids) or [vocabulary.end_id], repeat, start


def ranking(search: Search) -> list[Name]:
    """The outcomes found so far, the largest lower bound first; equal ones by their bytes."""
    return sorted(search.closed, key=lambda outcome: (-search.closed[outcome][0], str(outcome[1])))


def disputes(search: Search, top: int) -> list[tuple[bytes, float]]:
    """What keeps the order of the top outcomes from being certain: texts, and the open mass each may keep.

    The order is certain when no outcome can overtake the one before it, and none outside the list its last one.
    """
    slack = TIE * search.total
    ranked = ranking(search)
    lower = [search.closed[outcome][0] for outcome in ranked]
    open_texts = [outcome[1] if isinstance(outcome[1], bytes) else b"" for outcome in ranked]
    last = lower[top - 1] if len(lower) >= top else 0.0
    most, text = search.unseen()
    found = [(text, last)] if most > last + slack else []
    for place, mass in enumerate(lower):
        limit = lower[min(place, top) - 1] if place else float("inf")
        if place >= top and mass + most <= last + slack:
            break
        if mass + search.reach(open_texts[place]) > limit + slack:
            found.append((open_texts[place], limit - mass))
    return found


def aim(search: Search, disputed: list[tuple[bytes, float]], count: int) -> list[tuple[int, int]]:
    """Up to `count` open children to expand for the disputed texts: the largest.

    Of each text only so many that the rest of its open mass may stay open.
    """
    wanted: dict[tuple[int, int], float] = {}
    for text, limit in disputed:
        children = sorted(search.along(text), reverse=True)
        rest = sum(mass for mass, _, _ in children)
        for mass, number, place in children:
            if rest <= limit or mass == 0:
                break
            wanted[number, place] = mass
            rest -= mass
    return heapq.nlargest(count, wanted, key=wanted.__getitem__)


def run(search: Search, *, top: int, tolerance: float = 0.0, max_expansions: int, batch: int = 32) -> tuple[str, int]:
    """Expands until the order of the top outcomes is certain or a limit is reached: which, and the tokens evaluated.

    Half of each batch goes to what is disputed, the other half to what is most probable.
    """
    evaluated = 0
    while True:
        disputed = disputes(search, top)
        if not disputed:
            return "certified", evaluated
        if search.open <= tolerance * search.total:
            return "tolerance", evaluated
        count = min(batch, max_expansions - evaluated)
        children = aim(search, disputed, count - count // 2)
        children += search.best(count - len(children), set(children))
        if not children:
            return "max_tokens", evaluated
        search.expand(children)
        evaluated += len(children)


def outcomes(search: Search, top: int) -> list[Outcome]:
    """The most probable outcomes with their bounds, conditional on a new outcome beginning."""
    found = []
    for outcome in ranking(search)[:top]:
        kind, text = outcome
        mass, tokenisations, spaced = search.closed[outcome]
        upper = (mass + search.reach(text if isinstance(text, bytes) else b"")) / search.least
        word = text if isinstance(text, str) else text.decode("utf-8", "backslashreplace")
        lower = mass / search.total
        found.append(Outcome(word, kind, lower, min(1.0, max(upper, lower)), int(tokenisations), spaced / mass))
    return found
