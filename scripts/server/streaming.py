"""Server-sent events, and work that is cancelled when its client disconnects."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from .bodies import ApiError, as_api_error, as_json

Result = TypeVar("Result")
BUG = ApiError("internal error; see the server's log", status=500)
DONE = b"data: [DONE]\n\n"
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


async def disconnected(receive: Receive) -> None:
    """Returns when the client is gone. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of the work, which is cancelled at once when the client disconnects."""
    return await first_of(request.receive, work)


async def first_of(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of the work. If the client disconnects first, cancels it and raises ClientDisconnect."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class EventStream:
    """A response of server-sent events: each value as `data: JSON`, and [DONE] at the end.

    An error after the first byte can no longer have a status: it is an event of its own, and the last one.
    """

    def __init__(self, events: AsyncGenerator[Any, None], on_end: Callable[[], None] = lambda: None) -> None:
        """on_end is called in any case, also if the client is gone before the first event is asked for."""
        self.events, self.on_end = events, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(ClientDisconnect):
                await first_of(receive, self.send_all(send))
        finally:
            self.on_end()

    async def send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        async with contextlib.aclosing(self.events) as events:
            try:
                async for event in events:
                    await send(part(b"data: " + as_json(event) + b"\n\n"))
                await send(part(DONE))
            except Exception as error:
                known = as_api_error(error)
                await send(part(b"data: " + as_json((known or BUG).body) + b"\n\n"))
                if known is None:
                    raise
        await send(part(b"", more=False))


def part(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}
