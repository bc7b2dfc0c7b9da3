"""POST /v1/attention and /v1/lens: what heads read and what layers would predict, as scripts/inspect.py writes it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.requests import Request

from model.inspection.rows import attention_rows, lens_rows, token_rows

from .bodies import ApiError, Fields, Json, in_thread, read_body, read_json
from .generation import spelled
from .models import Models, Served
from .streaming import unless_gone

MOST_TOKENS = 128  # that are inspected: attention weights grow with the square


async def attention(request: Request) -> Json:
    """The weights of every head, [layer][head][query][key]; rows sum to 1."""
    fields = Fields(await read_json(request), ["model", "prompt", "last"])
    served, ids, found = await read_body(request, partial(read, request, fields))
    return await look(request, served, found, partial(attention_rows, served.lm.model, ids))


async def lens(request: Request) -> Json:
    """The next tokens as read from the residual stream after the embedding and after each block."""
    fields = Fields(await read_json(request), ["model", "prompt", "last", "top"])
    top = fields.integer("top", 5, low=1, high=50)
    served, ids, found = await read_body(request, partial(read, request, fields))
    work = partial(lens_rows, served.lm.model, ids, top=top, text_of=partial(spelled, served))
    return await look(request, served, found, work)


def read(request: Request, fields: Fields) -> tuple[Served, list[int], dict[str, Any]]:
    """The model, the ids to look at, and what both answers begin with. Raises ApiError for too many tokens.

    With `last`, the model reads only that many tokens from the end of the prompt.
    """
    served = Models.here(request).of(fields)
    ids, most = served.ids(fields), min(MOST_TOKENS, served.context)
    last = fields.integer("last", None, low=1, high=MOST_TOKENS)
    if last is None and len(ids) > most:
        raise fields.error(
            "prompt", f"has {len(ids):,} tokens; at most {most} can be inspected: send last={most} for the end"
        )
    some = ids[-min(last or most, most) :]
    request.scope["tokens"][0] = len(some)
    start = {"object": request.url.path.rpartition("/")[2], "model": served.name, "omitted": len(ids) - len(some)}
    return served, some, start | {"tokens": token_rows(some, partial(spelled, served))}


async def look(request: Request, served: Served, found: dict[str, Any], work: Callable[[], Any]) -> Json:
    """Adds the result of one forward pass between two steps of the engine, which a client that is gone does not get."""
    found[found["object"]] = await unless_gone(request, served.alone(work))
    return await in_thread(partial(finite_json, found))


def finite_json(found: dict[str, Any]) -> Json:
    if not is_finite(found):
        raise ApiError("the model's weights or logits are not finite numbers", status=500)
    return Json(found)


def is_finite(value: Any) -> bool:
    """Whether all numbers in lists and dictionaries are finite: JSON has no others."""
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, list):
        return all(map(is_finite, value))
    return not isinstance(value, float) or abs(value) < float("inf")
