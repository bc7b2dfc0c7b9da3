"""Guard: checks that every request must pass first (host, origin, token, size of the body), and the log."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .bodies import ApiError

BODY_SECONDS = 30  # within which a body must have arrived

# No other page may load, frame or sniff an answer. Model text cannot become a script, even if it becomes HTML.
SECURITY = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Rules:
    """Who may send requests."""

    hosts: Collection[str] = ()  # names of this server besides localhost and, on loopback, loopback addresses
    any_address: bool = False  # a Host that is an IP address is one of ours: the server listens on several
    origins: Collection[str] = ()  # of other pages that may read answers, such as http://localhost:3000
    token: str | None = None
    max_body: int = 1_000_000  # bytes
    open_paths: Collection[str] = field(default=())  # need no token: the page itself


class Guard:
    """Pure ASGI, so that the endpoint sees its client disconnect."""

    def __init__(self, app: ASGIApp, rules: Rules, *, log: Any = None) -> None:
        self.app, self.rules, self.log = app, rules, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, started = Headers(scope=scope), time.perf_counter()
        scope["tokens"] = [0]  # the endpoint counts the tokens of prompt and answer here
        status = 499  # the client disconnected before there was an answer
        extra = SECURITY | self.cors(headers)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(name.encode(), value.encode("latin-1")) for name, value in extra.items()]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        try:
            answer = self.answer(scope, headers)
            if answer is None:
                await self.app(scope, bounded(receive, self.rules.max_body), send_with_headers)
            else:
                await answer(scope, receive, send_with_headers)
        except asyncio.CancelledError:  # the server is shutting down and has waited long enough
            if status == 499:
                await ApiError("the server is shutting down", status=503).response()(scope, receive, send_with_headers)
            raise
        finally:
            milliseconds = (time.perf_counter() - started) * 1000
            path = ascii(scope["path"])[1:-1][:100]  # one line, whatever was asked for
            line = f"{scope['method']} {path} {status} {milliseconds:.0f} ms"
            line += f" {tokens} token{'s' * (tokens > 1)}" if (tokens := scope["tokens"][0]) else ""
            with contextlib.suppress(OSError):
                print(line, file=self.log or sys.stderr, flush=True)

    def answer(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to a request that goes no further: a refusal, or a browser's preflight."""
        if not self.is_ours(headers.get("host", "")):
            return refusal(
                "unknown Host header; to allow it, start the server with hosts=[NAME]", 403, "host_not_allowed"
            )
        if not self.may_read(headers):
            return refusal(
                "requests from this Origin are not allowed; to allow them, start the server with origins=[ORIGIN]",
                403,
                "origin_not_allowed",
            )
        if scope["method"] == "OPTIONS":
            return Response(status_code=204, headers={"allow": "GET, POST, OPTIONS"})
        if self.rules.token is not None and scope["path"] not in self.rules.open_paths:
            given = headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {self.rules.token}".encode()):
                return refusal("wrong or missing token; send Authorization: Bearer TOKEN", 401, "invalid_api_key")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length[:20]) > self.rules.max_body:
            return too_large(self.rules.max_body).response()
        return None

    def is_ours(self, host: str) -> bool:
        """Whether the Host header names this server. A page that rebinds its own name to this address is refused."""
        name = host_name(host)
        if name == "localhost" or name.endswith(".localhost") or name in self.rules.hosts:
            return True
        try:
            return ipaddress.ip_address(name).is_loopback or self.rules.any_address
        except ValueError:
            return False

    def may_read(self, headers: Headers) -> bool:
        """Whether the request is from no page, from our own or from one of an allowed origin."""
        origin = headers.get("origin")
        return origin in (None, *self.rules.origins, f"http://{headers['host']}", f"https://{headers['host']}")

    def cors(self, headers: Headers) -> dict[str, str]:
        """The headers that let a page of an allowed origin read the answer, errors included."""
        origin = headers.get("origin")
        if origin not in self.rules.origins or origin is None:
            return {"vary": "Origin"}
        found = {
            "vary": "Origin",
            "access-control-allow-origin": origin,
            "access-control-expose-headers": "retry-after",
        }
        if headers.get("access-control-request-method"):
            asked = headers.get("access-control-request-headers", "authorization, content-type")
            found |= {
                "access-control-allow-methods": "GET, POST, OPTIONS",
                "access-control-allow-headers": asked,
                "access-control-max-age": "600",
            }
        if headers.get("access-control-request-private-network") == "true":
            found["access-control-allow-private-network"] = "true"
        return found


def host_name(host: str) -> str:
    """The name or address of a Host header, without port and brackets, in lower case."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


def refusal(message: str, status: int, code: str) -> Response:
    return ApiError(message, status=status, code=code).response()


def too_large(limit: int) -> ApiError:
    return closing(f"the body is larger than {limit:,} bytes", 413, "body_too_large")


def closing(message: str, status: int, code: str) -> ApiError:
    error = ApiError(message, status=status, code=code)
    error.headers["connection"] = "close"  # the rest of the body is not read
    return error


def bounded(receive: Receive, limit: int) -> Receive:
    """Receives at most `limit` bytes of body, also from a client that does not announce their number, and in time."""
    read, complete = 0, False
    deadline = asyncio.get_running_loop().time() + BODY_SECONDS

    async def receive_some() -> Message:
        nonlocal read, complete
        left = None if complete else deadline - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(receive(), left)
        except TimeoutError:
            raise closing(f"the body did not arrive within {BODY_SECONDS} s", 408, "body_too_slow") from None
        if message["type"] == "http.request":
            read, complete = read + len(message.get("body", b"")), not message.get("more_body", False)
            if read > limit:
                raise too_large(limit)
        return message

    return receive_some
