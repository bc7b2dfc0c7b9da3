"""POST /v1/next_words: the distribution of the next word, with bounds; streamed, they tighten while one watches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from model.inference.sampling import SamplingConfig
from model.next_word.distribution import NextWords, next_word_steps
from model.next_word.words import RULES, WordRule

from .bodies import Fields, Json, read_body, read_json
from .generation import sampling_of
from .models import Models, Served
from .streaming import EventStream, unless_gone

KNOWN = (
    "model", "prompt", "top", "tolerance", "max_expansions", "ignore_trailing_spaces", "word_rule", "stream",
    "temperature", "top_p", "top_k", "min_p", "typical_p",
)  # fmt: skip
MOST_WORDS = 100  # the cost of a step grows with the number of words whose order it proves
MOST_EXPANSIONS, MOST_MASSES = 10_000, 2**26  # tokens that one search may read; numbers that it keeps: 512 MB
Steps = Iterator[tuple[str, Callable[[], NextWords]]]


async def next_words(request: Request) -> Response | ASGIApp:
    fields = Fields(await read_json(request), KNOWN)
    served = Models.here(request).of(fields)
    steps = await read_body(request, partial(begin, fields, served))
    streamed = fields.flag("stream")
    tables = search(served, steps, request.scope["tokens"], all_tables=streamed)
    if streamed:
        return EventStream(tables)
    async with aclosing(tables):
        return Json(await unless_gone(request, anext(tables)))


def begin(fields: Fields, served: Served) -> Steps:
    """Checks the fields of a request; the search starts with the first step. Raises ApiError."""
    prompt = fields.text("prompt", "")
    top = fields.integer("top", 20, low=1, high=MOST_WORDS)
    tolerance = fields.number("tolerance", 0.001)
    if not 0 <= tolerance < 1:
        raise fields.error("tolerance", "must be at least 0 and below 1")
    most = max(1, min(MOST_EXPANSIONS, MOST_MASSES // served.lm.tokenizer.vocab_size))  # each keeps up to V masses
    max_expansions = fields.integer("max_expansions", min(1024, most), low=1, high=most)
    rule = fields.text("word_rule", "unicode")
    if rule not in RULES:
        raise fields.error("word_rule", f"must be one of {', '.join(RULES)}")
    spaces = fields.get("ignore_trailing_spaces", bool, default=True)
    sampling: SamplingConfig = sampling_of(fields)
    lm = served.lm
    # Encoded here and not in the worker, where a long prompt would stop all others.
    text = prompt.rstrip(" ") if spaces else prompt
    ids = lm.tokenizer.encode(text)

    def steps() -> Steps:  # tables of a word rule are made in the worker too
        return next_word_steps(
            lm.model,
            lm.tables(WordRule(rule)),
            text,
            encode=lambda _: ids,
            top=top,
            tolerance=tolerance,
            max_expansions=max_expansions,
            ignore_trailing_spaces=False,
            sampling=sampling,
            compute=lm.compute,
        )

    return lazily(steps)


def lazily(make: Callable[[], Steps]) -> Steps:
    yield from make()


async def search(
    served: Served, steps: Steps, counted: list[int], *, all_tables: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """Yields the table after each forward pass, or only the last one. Whoever stops asking stops the search.

    Other requests go on between two passes. A few searches run at a time, since each keeps its tree in memory.
    """
    stopped = "searching"
    async with served.searches:
        while stopped == "searching":
            stopped, table = await served.alone(partial(advance, steps, always=all_tables))
            if table is not None:
                counted[0] = table["evaluated"]
                yield {"object": "next_words", "model": served.name} | table


def advance(steps: Steps, *, always: bool) -> tuple[str, dict[str, Any] | None]:
    """One more forward pass. Returns why the search stopped, and the table if it did, or always."""
    stopped, table = next(steps)
    return stopped, asdict(table()) if always or stopped != "searching" else None
