"""A client without a network: sends a request to an ASGI app and collects the answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

HOST = {"host": "127.0.0.1:8000"}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        def refuse(name):
            raise AssertionError(f"{name} is no JSON")

        return json.loads(self.body, parse_constant=refuse)

    @property
    def events(self) -> list[Any]:
        """The values of a stream, which must end with [DONE]."""
        assert self.headers["content-type"].startswith("text/event-stream")
        *lines, done, end = self.body.decode("ascii").split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        assert all(line.startswith("data: ") for line in lines)
        return [json.loads(line.removeprefix("data: ")) for line in lines]


class Client:
    def __init__(self, app: Any, **headers: str) -> None:
        self.app, self.headers = app, HOST | headers

    def get(self, path: str, **headers: str) -> Answer:
        return self.send("GET", path, b"", headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self.send("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)

    def send(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        return asyncio.run(self.request(method, path, [body], headers))

    async def request(
        self,
        method: str,
        path: str,
        parts: Iterable[bytes],
        headers: dict[str, str] | None = None,
        *,
        stay: asyncio.Event | None = None,
        on_body: Any = lambda body: None,
    ) -> Answer:
        """stay: the client disconnects when it is set. on_body: called for each part of the answer."""
        named = {name.replace("_", "-"): value for name, value in (self.headers | (headers or {})).items()}
        path, _, query = path.partition("?")
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in named.items()],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000), "root_path": "",
        }  # fmt: skip
        waiting, answer = iter(parts), Answer(0, {}, b"")
        stay = stay or asyncio.Event()

        async def receive():
            for part in waiting:
                return {"type": "http.request", "body": part, "more_body": True}
            if not finished:
                finished.append(True)
                return {"type": "http.request", "body": b"", "more_body": False}
            await stay.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            if message["type"] == "http.response.start":
                assert not answer.status, "two answers to one request"
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answer.body += message.get("body", b"")
                on_body(message.get("body", b""))

        finished: list[bool] = []
        await self.app(scope, receive, send)
        return answer
