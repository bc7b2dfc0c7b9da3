"""Runs the app until an interrupt: then every stream ends, and so does the program, with status 0."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

GRACE = 5  # seconds for answers to end after the engines have


class Server(uvicorn.Server):
    """uvicorn's server, for which an interrupt is a way to end and not a failure."""

    def __init__(self, config: uvicorn.Config, before_exit: Callable[[], None]) -> None:
        super().__init__(config)
        self.before_exit = before_exit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first interrupt lets answers end, a second one does not wait for them."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.before_exit()  # ends what is being generated, so that no stream keeps the server waiting
        await super().shutdown(sockets)


def run(app: ASGIApp, listener: socket.socket, *, before_exit: Callable[[], None]) -> None:
    config = uvicorn.Config(
        app, http="h11", ws="none", loop="asyncio", lifespan="off", log_config=None, access_log=False,
        server_header=False, timeout_graceful_shutdown=GRACE, timeout_keep_alive=65, backlog=2048,
    )  # fmt: skip
    Server(config, before_exit).run(sockets=[listener])
