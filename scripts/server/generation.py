"""What completions and chat share: settings of a request, tokens as they come, log-probabilities in OpenAI's shape."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import math
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from model.inference.engine import EngineClosed, EngineRequest, Ticket
from model.inference.generate import NewToken, overflow
from model.inference.sampling import SamplingConfig

from .bodies import ApiError, Fields, Json, write_answer
from .models import Served
from .streaming import EventStream, unless_gone

MOST_CHOICES = 16  # n
MOST_STOPS, LONGEST_STOP = 16, 1000
MOST_ALTERNATIVES = 20
FLOOR = -9999.0  # what stands for the logarithm of 0, which JSON cannot write
NUMBERS = (
    *("temperature", "top_p", "min_p", "typical_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
SETTINGS = (*NUMBERS, "top_k", "stop", "seed", "n", "stream", "stream_options", "model")

Entry = tuple[int, float | None, list[tuple[int, float]]]  # id, log-probability, the best ids with theirs


def sampling_of(fields: Fields) -> SamplingConfig:
    """The settings of the distribution; SamplingConfig checks their ranges. The defaults are the model's own."""
    given: dict[str, Any] = {name: fields.number(name) for name in NUMBERS if name in fields.values}
    stop = tuple(fields.texts("stop", most=MOST_STOPS, longest=LONGEST_STOP))
    sampling = SamplingConfig(**given, top_k=fields.integer("top_k", None, low=1), stop=stop)
    if errors := sampling.validate():
        name = errors[0].partition("=")[0]
        raise ApiError(errors[0], param=name)
    return sampling


def seed_of(fields: Fields) -> int:
    """The seed, or one that nobody chose: without a seed, each answer is another."""
    return fields.integer("seed", secrets.randbits(48), low=-(2**63))


def includes_usage(fields: Fields) -> bool:
    """Whether a stream ends with the counts of tokens."""
    options = fields.get("stream_options", dict, default={})
    return Fields(options, ["include_usage"], place="stream_options").flag("include_usage")


def check_length(ids: Sequence[int], max_new_tokens: int, served: Served) -> None:
    if excess := overflow(len(ids), max_new_tokens, context=served.context):
        excess = excess.replace("max_new_tokens=", "max_tokens=")
        raise ApiError(f"{excess}; shorten one of them", param="prompt", code="context_length_exceeded")


class Generation:
    """Several requests to one engine, whose tokens arrive as they are made. All are accepted, or none.

    Raises QueueFull, and InputError for a request that cannot be met. Whoever stops reading must call cancel().
    """

    def __init__(self, served: Served, requests: Sequence[EngineRequest]) -> None:
        self.tickets: list[Ticket] = []
        self.arrived: asyncio.Queue[tuple[int, NewToken | None]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        try:
            for request in requests:
                self.tickets.append(served.engine.submit(request))
        except BaseException:
            self.cancel()
            raise
        for number, ticket in enumerate(self.tickets):

            def arrive(new: NewToken | None, number: int = number) -> None:
                loop.call_soon_threadsafe(self.arrived.put_nowait, (number, new))

            ticket.on_token(arrive)

    async def tokens(self) -> AsyncIterator[tuple[int, NewToken]]:
        """Yields (number of the request, its next token) until all have ended."""
        left = len(self.tickets)
        while left:
            number, new = await self.arrived.get()
            if new is not None:
                yield number, new
                continue
            left -= 1
            ticket = self.tickets[number]
            if ticket.error is not None:
                raise ticket.error
            if ticket.finish == "cancelled":
                raise EngineClosed("the engine is closed")

    async def all(self) -> list[list[NewToken]]:
        """The tokens of each request, when all have ended."""
        found: list[list[NewToken]] = [[] for _ in self.tickets]
        async for number, new in self.tokens():
            found[number].append(new)
        return found

    def cancel(self) -> None:
        for ticket in self.tickets:
            ticket.cancel()


async def answer(
    request: Request,
    fields: Fields,
    served: Served,
    requests: Sequence[EngineRequest],
    *,
    whole: Callable[[Generation, list[list[NewToken]]], dict[str, Any]],
    chunks: Callable[..., AsyncGenerator[dict[str, Any], None]],
) -> Response | ASGIApp:
    """Generates, and answers in one piece or, with stream=true, in chunks. What the client does not wait for ends.

    whole(generation, rows) is the body, with usage; chunks(generation, counted, with_usage=) the events of a stream,
    which note in counted[0] how many tokens there were.
    """
    counted, streamed, with_usage = request.scope["tokens"], fields.flag("stream"), includes_usage(fields)
    generation = Generation(served, requests)  # every path from here on must cancel it
    if streamed:
        return EventStream(chunks(generation, counted, with_usage=with_usage), on_end=generation.cancel)
    try:
        rows = await unless_gone(request, generation.all())
    finally:
        generation.cancel()

    def body() -> Json:
        found = whole(generation, rows)
        counted[0] = found["usage"]["total_tokens"]
        return Json(found)

    figures = sum((len(one.prompt) + one.max_new_tokens) * (1 + one.top_logprobs) for one in requests)
    return await write_answer(body, figures=figures)


def finish_reason(new: NewToken) -> str | None:
    """OpenAI's word for why a text ended with this token: stop (also the end token) or length; None: it goes on."""
    return {"end": "stop", None: None}.get(new.ended, new.ended)


def entry(new: NewToken) -> Entry:
    """A new token with the model's own log-probability, before temperature and filters, and the alternatives'.

    The token's figure is exactly the same among the alternatives.
    """
    best = [(token, math.log(p) if p > 0 else FLOOR) for token, p in new.alternatives]
    own = new.model_log_probability
    return new.id, own, [(token, own if token == new.id else log_p) for token, log_p in best]


def prompt_entries(ticket: Ticket) -> list[Entry]:
    """The prompt's own tokens. The first has no log-probability: nothing comes before it."""
    scores = ticket.prompt_scores
    assert scores is not None
    return list(zip(ticket.request.prompt, scores.log_probabilities, scores.alternatives, strict=True))


def token_bytes(served: Served, token: int) -> bytes:
    """The bytes of a token: often not whole characters; the name of a special one."""
    return served.lm.vocabulary.special.get(token, "").encode() or served.lm.vocabulary.tokens[token]


def spelled(served: Served, token: int) -> str:
    """A token as text; bytes that are no text as bytes:\\xe2\\x80, so that two such tokens have different names."""
    raw = token_bytes(served, token)
    with contextlib.suppress(UnicodeDecodeError):
        return raw.decode()
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def number_of(log_probability: float | None) -> float | None:
    return log_probability if log_probability is None or math.isfinite(log_probability) else FLOOR


class CompletionLogprobs:
    """Log-probabilities as /v1/completions has them. The offsets count characters, and go on from call to call."""

    def __init__(self, served: Served, *, offset: int) -> None:
        self.served, self.offset = served, offset
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, entries: Sequence[Entry]) -> dict[str, Any]:
        offsets, tops = [], []
        for token, log_probability, alternatives in entries:
            offsets.append(self.offset)
            self.offset += len(self.decoder.decode(token_bytes(self.served, token)))
            top: dict[str, float | None] = {}
            for other, log_p in [*alternatives, *([(token, log_probability)] if alternatives else [])]:
                top.setdefault(spelled(self.served, other), number_of(log_p))
            tops.append(top if log_probability is not None else None)
        return {
            "tokens": [spelled(self.served, token) for token, _, _ in entries],
            "token_logprobs": [number_of(log_probability) for _, log_probability, _ in entries],
            "top_logprobs": tops,
            "text_offset": offsets,
        }


def chat_logprobs(served: Served, entries: Sequence[Entry]) -> dict[str, Any]:
    """Log-probabilities as /v1/chat/completions has them."""

    def one(token: int, log_probability: float | None) -> dict[str, Any]:
        raw = None if token in served.lm.vocabulary.special else list(token_bytes(served, token))
        return {"token": spelled(served, token), "logprob": number_of(log_probability), "bytes": raw}

    content = [
        one(token, log_probability) | {"top_logprobs": [one(other, log_p) for other, log_p in alternatives]}
        for token, log_probability, alternatives in entries
    ]
    return {"content": content, "refusal": None}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The counts of tokens; the end token is one."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def head(served: Served, kind: str, prefix: str) -> dict[str, Any]:
    """What every answer, and every chunk of a stream, begins with."""
    made = {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time())}
    return made | {"model": served.name}
