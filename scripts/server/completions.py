"""POST /v1/completions: continues prompts, texts or ids, as OpenAI's API does; scores them with echo and logprobs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from model.inference.engine import EngineRequest
from model.inference.generate import NewToken

from .bodies import Fields, is_ids, read_body, read_json
from .generation import (
    MOST_ALTERNATIVES,
    MOST_CHOICES,
    SETTINGS,
    CompletionLogprobs,
    Generation,
    answer,
    check_length,
    entry,
    finish_reason,
    head,
    prompt_entries,
    sampling_of,
    seed_of,
    usage,
)
from .models import Models, Served

KNOWN = (*SETTINGS, "prompt", "max_tokens", "echo", "logprobs", "best_of", "suffix", "logit_bias", "user")
MOST_PROMPTS = 64  # times n


@dataclass(frozen=True)
class Asked:
    """A checked request."""

    served: Served
    prompts: list[tuple[str, list[int]]]  # text and ids
    n: int
    max_tokens: int
    echo: bool
    logprobs: int | None
    requests: list[EngineRequest]  # n for each prompt, in the order of the choices


async def completions(request: Request) -> Response | ASGIApp:
    fields = Fields(await read_json(request), KNOWN)
    asked = await read_body(request, partial(read, fields, Models.here(request).of(fields)))
    chunks = partial(stream, asked)
    return await answer(request, fields, asked.served, asked.requests, whole=partial(whole, asked), chunks=chunks)


def whole(asked: Asked, generation: Generation, rows: list[list[NewToken]]) -> dict[str, Any]:
    """The body of an answer in one piece."""
    choices = [Choice(asked, generation, index).add(new) for index, new in enumerate(rows)]
    counts = usage(sum(len(ids) for _, ids in asked.prompts), sum(map(len, rows)) if asked.max_tokens else 0)
    return head(asked.served, "text_completion", "cmpl") | {"choices": choices, "usage": counts}


def read(fields: Fields, served: Served) -> Asked:
    """Checks the fields of a request. Raises ApiError."""
    n = fields.integer("n", 1, low=1, high=MOST_CHOICES)
    if fields.integer("best_of", n, low=1) != n:
        raise fields.error("best_of", "must equal n: all answers are returned")
    fields.refuse("suffix", lambda value: value == "")
    fields.refuse("logit_bias", lambda value: value == {})
    echo = fields.flag("echo")
    max_tokens = fields.integer("max_tokens", 16, low=0 if echo else 1)
    logprobs = fields.integer("logprobs", None, high=MOST_ALTERNATIVES)
    prompts = read_prompts(fields, served)
    if len(prompts) * n > MOST_PROMPTS:
        raise fields.error(
            "prompt", f"asks for {len(prompts) * n} answers with n={n}; at most {MOST_PROMPTS} are allowed"
        )
    sampling, seed = sampling_of(fields), seed_of(fields)
    for _, ids in prompts:
        check_length(ids, max(1, max_tokens), served)
    requests = [
        EngineRequest(
            prompt=ids,
            max_new_tokens=max(1, max_tokens),
            sampling=sampling,
            seed=seed,
            index=index,
            top_logprobs=logprobs or 0,
            echo_scores=echo and logprobs is not None and index == 0,
        )
        for _, ids in prompts
        for index in range(n)
    ]
    return Asked(served, prompts, n, max_tokens, echo, logprobs, requests)


def read_prompts(fields: Fields, served: Served) -> list[tuple[str, list[int]]]:
    """The prompts: a text, a list of texts, a list of ids, or a list of such lists. Without one, a document starts."""
    value, vocab_size = fields.get("prompt", str, list, default=""), served.lm.tokenizer.vocab_size
    if value == []:
        raise fields.error("prompt", "is an empty list; an empty text starts a document")
    several = value if isinstance(value, list) and not is_ids(value, vocab_size) else [value]
    if len(several) > MOST_PROMPTS:
        raise fields.error("prompt", f"has {len(several)} entries; at most {MOST_PROMPTS} are allowed")
    found = []
    for one in several:
        if isinstance(one, str):
            found.append((one, served.encode(one)))
        elif is_ids(one, vocab_size):
            found.append((served.lm.tokenizer.decode(one), served.lm.encode(one)))
        else:
            raise fields.error("prompt", f"must be texts, or lists of ids below {vocab_size}")
    return found


class Choice:
    """One answer, whole or in parts."""

    def __init__(self, asked: Asked, generation: Generation, index: int) -> None:
        self.asked, self.index = asked, index
        self.text, _ = asked.prompts[index // asked.n]
        self.scored = generation.tickets[index - index % asked.n]  # the first of those with this prompt has its scores
        self.echo = asked.echo  # what is to come first
        offset = 0 if asked.echo else len(self.text)
        self.logprobs = None if asked.logprobs is None else CompletionLogprobs(asked.served, offset=offset)

    def add(self, new: list[NewToken]) -> dict[str, Any]:
        """The next tokens as a choice of an answer or of a chunk, with the prompt before the first if it is echoed."""
        new = new if self.asked.max_tokens else new[:0]
        text, entries = "".join(one.text for one in new), [entry(one) for one in new]
        if self.echo:
            text = self.text + text
            entries = (prompt_entries(self.scored) if self.logprobs else []) + entries
            self.echo = False
        return {
            "text": text,
            "index": self.index,
            "logprobs": None if self.logprobs is None else self.logprobs.of(entries),
            "finish_reason": finish_reason(new[-1]) if new else None if self.asked.max_tokens else "length",
        }


async def stream(
    asked: Asked, generation: Generation, counted: list[int], *, with_usage: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """Yields the chunks of a stream: what each token made certain, then, if asked for, the counts of tokens."""
    start, empty = head(asked.served, "text_completion", "cmpl"), {"usage": None} if with_usage else {}
    choices = [Choice(asked, generation, index) for index in range(len(asked.requests))]
    prompt_tokens, new_tokens = sum(len(ids) for _, ids in asked.prompts), 0
    async for index, new in generation.tokens():
        new_tokens += asked.max_tokens > 0
        counted[0] = prompt_tokens + new_tokens
        part = choices[index].add([new])
        if part["text"] or part["logprobs"] or part["finish_reason"]:
            yield start | {"choices": [part]} | empty
    if with_usage:
        yield start | {"choices": [], "usage": usage(prompt_tokens, new_tokens)}
