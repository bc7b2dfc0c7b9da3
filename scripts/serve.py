"""Serves checkpoints over HTTP: OpenAI's API, next words with bounds, and a page; install the extra: .[serve]."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from conf import cli
from model import InputError
from model.device import keep_freed_memory
from model.sample_settings import as_list
from model.threads import share_cpus
from sample import load

if TYPE_CHECKING:
    from scripts.server.models import Models

GRACE = 0.7  # seconds for answers to end after an interrupt
BACKLOG = 2048  # connections that wait to be accepted
TEXTS = {"kind": "text", "list": True}


@dataclass
class ServeConfig:
    """The keys of `python -m scripts.serve`."""

    checkpoint: Any = field(default=None, metadata={"kind": "path", "list": True})  # one, or [several]
    host: str = field(default="127.0.0.1", metadata={"kind": "text"})  # the address to listen on
    port: int = 8000
    # the secret that clients must send (Authorization: Bearer TOKEN); required if other machines can reach host=
    token: str | None = field(default=None, metadata={"kind": "text"})
    hosts: Any = field(default=None, metadata=TEXTS)  # [further, names] that clients use for this machine
    origins: Any = field(default=None, metadata=TEXTS)  # [origins] of web pages that may send requests
    slots: int = 16  # number of texts generated at the same time
    queue: int = 64  # number of requests that may wait; further ones get status 429
    max_body: int = 1_000_000  # maximum size of a request, in bytes
    device: str = "auto"
    dtype: str = "float32"
    debug: bool = False

    def validate(self) -> list[str]:
        found = [] if as_list(self.checkpoint) else ["checkpoint is required: a run directory, or [several,runs]"]
        for name, low, high in (("port", 0, 65535), ("slots", 1, 1024), ("queue", 0, 10**6), ("max_body", 1, 2**31)):
            if not low <= getattr(self, name) <= high:
                found.append(f"{name}={getattr(self, name)} must be {low} to {high}")
        if self.token is not None and not (
            self.token.isascii() and self.token.isprintable() and self.token and self.token == self.token.strip()
        ):
            found.append("token= must be printable ASCII without spaces at its ends, because it is sent in a header")
        elif self.token is None and not is_loopback(self.host):
            found.append(f"host={self.host} can be reached from other machines, so it needs a secret: token=...")
        for origin in as_list(self.origins):
            if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                found.append(f"origins={origin}: write scheme, host and port, such as http://localhost:3000")
        return found


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_models(cfg: ServeConfig, stack: ExitStack) -> Models:
    """Loads the checkpoints and starts their engines, which end with the stack."""
    from model.inference.engine import Engine
    from scripts.server.models import Models, Served, names_of

    paths = [Path(path) for path in as_list(cfg.checkpoint)]
    served = []
    for name, path in zip(names_of(paths), paths, strict=True):
        lm = load(path, device=cfg.device, dtype=cfg.dtype)
        engine = Engine(lm.model, lm.vocabulary, lm.compute, slots=cfg.slots, queue=cfg.queue)
        stack.callback(engine.close)
        served.append(Served(name, lm, engine))
    return Models(served)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises InputError if the address is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InputError(f"host={host} port={port}: {os.strerror(error.errno or 0)}; choose another port") from None


def run(app: Any, listener: socket.socket, *, before_exit: Callable[[], object]) -> None:
    """Runs an ASGI app until an interrupt, which is a way to end and not a failure; a second one ends at once."""
    import uvicorn

    log = logging.getLogger("uvicorn.error")

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.force_exit = self.should_exit
            self.should_exit = True

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            log.disabled = True  # a client that is cut off after GRACE is no failure
            before_exit()  # ends what is being generated, so that no stream keeps the server waiting; must not wait
            await super().shutdown(sockets)

    seconds: Any = GRACE  # uvicorn declares whole seconds, and hands them to asyncio
    config = uvicorn.Config(
        app, http="h11", ws="none", loop="asyncio", lifespan="off", log_config=None, access_log=False,
        server_header=False, timeout_graceful_shutdown=seconds, timeout_keep_alive=65, backlog=BACKLOG,
    )  # fmt: skip
    try:
        Server(config).run(sockets=[listener])
    finally:
        log.disabled = False


def leave() -> NoReturn:
    """Ends the process, also while a thread computes; a normal exit would wait for the thread."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(0)


def main(cfg: ServeConfig, overrides: cli.Overrides) -> None:
    try:
        import uvicorn  # noqa: F401 - so that it is missed before anything is loaded

        from scripts.server.app import make_app, page_paths
        from scripts.server.middleware import Rules
    except ImportError as error:
        if error.name not in ("starlette", "uvicorn", "anyio"):
            raise
        raise InputError(f"{error.name} is not installed; install it with: pip install -e '.[serve]'") from None
    keep_freed_memory()
    with ExitStack() as stack:
        listener = stack.enter_context(listen(cfg.host, cfg.port))
        models = open_models(cfg, stack)
        stack.enter_context(share_cpus(models.get().lm.compute.device))
        rules = Rules(
            hosts=[cfg.host.lower(), *(name.lower() for name in as_list(cfg.hosts))],
            any_address=not is_loopback(cfg.host),
            origins=as_list(cfg.origins),
            token=cfg.token,
            max_body=cfg.max_body,
            open_paths=page_paths(),
        )
        place = f"[{cfg.host}]" if ":" in cfg.host else cfg.host
        address = f"http://{place}:{listener.getsockname()[1]}"
        print(f"serving {', '.join(models.by_name)} at {address} (Ctrl-C to stop)", file=sys.stderr, flush=True)
        run(make_app(models, rules), listener, before_exit=partial(models.close, timeout=0))
        leave()


if __name__ == "__main__":
    cli.run(main, ServeConfig, name="serve")
