"""POST /v1/chat/completions: answers messages, encoded by the chat template of the checkpoint."""

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

from .bodies import Fields, joined_text, read_body, read_json
from .generation import (
    MOST_ALTERNATIVES,
    MOST_CHOICES,
    SETTINGS,
    Generation,
    answer,
    chat_logprobs,
    check_length,
    entry,
    finish_reason,
    head,
    sampling_of,
    seed_of,
    usage,
)
from .models import Models, Served

KNOWN = (
    *SETTINGS, "messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "tools", "tool_choice",
    "functions", "response_format", "logit_bias", "modalities", "user", "store", "metadata",
)  # fmt: skip
MOST_MESSAGES = 1000


@dataclass(frozen=True)
class Asked:
    """A checked request."""

    served: Served
    ids: list[int]
    logprobs: bool
    requests: list[EngineRequest]
    suffix: str  # text at the end of an answer that is no part of it


async def chat_completions(request: Request) -> Response | ASGIApp:
    fields = Fields(await read_json(request), KNOWN)
    asked = await read_body(request, partial(read, fields, Models.here(request).of(fields)))
    chunks = partial(stream, asked)
    return await answer(request, fields, asked.served, asked.requests, whole=partial(whole, asked), chunks=chunks)


def whole(asked: Asked, generation: Generation, rows: list[list[NewToken]]) -> dict[str, Any]:
    """The body of an answer in one piece."""
    choices = []
    for index, new in enumerate(rows):
        text = Trimmed(asked.suffix).add("".join(one.text for one in new), last=True)
        message = {"role": "assistant", "content": text, "refusal": None}
        choices.append({"index": index, "message": message} | details(asked, new))
    counts = usage(len(asked.ids), sum(map(len, rows)))
    return head(asked.served, "chat.completion", "chatcmpl") | {"choices": choices, "usage": counts}


def read(fields: Fields, served: Served) -> Asked:
    """Checks the fields of a request. Raises ApiError."""
    for name in ("tools", "functions"):
        fields.refuse(name, lambda value: value == [], "are not supported: the model only writes text")
    fields.refuse("logit_bias", lambda value: value == {})
    fields.refuse("response_format", lambda value: isinstance(value, dict) and value.get("type") == "text")
    fields.refuse("modalities", lambda value: value == ["text"])
    n = fields.integer("n", 1, low=1, high=MOST_CHOICES)
    logprobs = fields.flag("logprobs")
    top_logprobs = fields.integer("top_logprobs", 0, high=MOST_ALTERNATIVES)
    if top_logprobs and not logprobs:
        raise fields.error("top_logprobs", "needs logprobs=true")
    sampling, seed = sampling_of(fields), seed_of(fields)
    ids = served.chat_ids(read_messages(fields, served))
    room = max(1, served.context + 1 - len(ids))  # the last new token is not read
    max_tokens = fields.integer("max_tokens", room, low=1)
    max_tokens = fields.integer("max_completion_tokens", max_tokens, low=1)
    check_length(ids, max_tokens, served)
    suffix, ends = served.chat_ends()
    requests = [
        EngineRequest(
            prompt=ids,
            max_new_tokens=max_tokens,
            sampling=sampling,
            seed=seed,
            index=index,
            top_logprobs=top_logprobs,
            ends=ends,
        )
        for index in range(n)
    ]
    return Asked(served, ids, logprobs, requests, suffix)


def read_messages(fields: Fields, served: Served) -> list[dict[str, str]]:
    """The messages as the template takes them: role and text."""
    found = []
    chat = served.task.chat
    for message in fields.objects("messages", ["role", "content", "name"], least=1, most=MOST_MESSAGES):
        role = message.text("role")
        role = "system" if role == "developer" else role
        if chat is not None and role not in chat.roles:
            raise message.error("role", f"must be one of {', '.join(chat.roles)}")
        text = joined_text(message.get("content", str, list), ["text"], message, "content")
        found.append({"role": role, "content": text})
    return found


class Trimmed:
    """A text that comes in pieces, without a suffix at its end: what may be the suffix's beginning is held back."""

    def __init__(self, suffix: str) -> None:
        self.suffix, self.held = suffix, ""

    def add(self, piece: str, *, last: bool) -> str:
        text = self.held + piece
        if last:
            self.held = ""
            return text.removesuffix(self.suffix) if self.suffix else text
        length = next((n for n in range(len(self.suffix), 0, -1) if text.endswith(self.suffix[:n])), 0)
        self.held = text[len(text) - length :]
        return text[: len(text) - length]


def details(asked: Asked, new: list[NewToken]) -> dict[str, Any]:
    logprobs = chat_logprobs(asked.served, [entry(one) for one in new]) if asked.logprobs else None
    return {"logprobs": logprobs, "finish_reason": finish_reason(new[-1]) if new else None}


async def stream(
    asked: Asked, generation: Generation, counted: list[int], *, with_usage: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """Yields the chunks of a stream: the role of each answer, what each token made certain, the counts of tokens."""
    start, empty = head(asked.served, "chat.completion.chunk", "chatcmpl"), {"usage": None} if with_usage else {}
    texts, new_tokens = [Trimmed(asked.suffix) for _ in asked.requests], 0

    def chunk(index: int, delta: dict[str, Any], new: list[NewToken]) -> dict[str, Any]:
        return start | {"choices": [{"index": index, "delta": delta} | details(asked, new)]} | empty

    for index in range(len(texts)):
        role = chunk(index, {"role": "assistant", "content": "", "refusal": None}, [])
        role["choices"][0]["logprobs"] = None
        yield role
    async for index, new in generation.tokens():
        new_tokens += 1
        counted[0] = len(asked.ids) + new_tokens
        text = texts[index].add(new.text, last=new.ended is not None)
        if text or asked.logprobs or new.ended:
            yield chunk(index, {"content": text} if text or not new.ended else {}, [new])
    if with_usage:
        yield start | {"choices": [], "usage": usage(len(asked.ids), new_tokens)}
