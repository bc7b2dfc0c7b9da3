"""A server in a thread, a page in Chromium, and answers that a test makes up."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from scripts.server.app import make_app
from scripts.server.middleware import Rules
from scripts.server.models import Models

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VIEWS = {"words": ".choice", "surprise": ".words button", "attention": ".heads button", "lens": ".lens td"}
READY = "!document.querySelector('[aria-busy]') && document.querySelector('{}')"
HOSTILE = "<img src=x onerror=document.title='run'>"
AXE = "axe_playwright_python"  # holds axe-core's script


@contextlib.contextmanager
def serving(models: Models) -> Iterator[str]:
    """The address of a server of these models."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = make_app(models, Rules(), log=io.StringIO())
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips the test without playwright or Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def axe_script() -> str:
    """The source of axe-core; skips the test without it."""
    return (Path(pytest.importorskip(AXE).__file__).parent / "axe.min.js").read_text(encoding="utf-8")


def stream(*events: dict[str, Any]) -> str:
    """The body of a streamed answer."""
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


def words(*rows: tuple[str, float], kind: str = "word") -> dict[str, Any]:
    """An event of /v1/next_words whose bounds agree."""
    found = [
        {"word": word, "kind": kind, "lower": p, "upper": p, "tokenisations": 1, "spaced": 1.0} for word, p in rows
    ]
    return {"words": found, "continues": 0.0, "unexplored": 0.0, "unseen": 0.0, "stopped": "certified", "evaluated": 40}


def until(page: Any, condition: str, arg: Any = None) -> None:
    """Waits until a JavaScript condition holds. (playwright's own waiting needs eval, which the page forbids.)"""
    deadline = time.monotonic() + 20
    while not page.evaluate(condition, arg):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def ready(page, view="words"):
    until(page, READY.format(VIEWS[view]))


def rows(page):
    """[(word, figure)] of the bars, from the top."""
    found = page.eval_on_selector_all(
        ".choice", "all => all.map(e => [e.ariaPosInSet, e.children[0].textContent, e.children[2].textContent])"
    )
    return [(word, figure) for _, word, figure in sorted(found, key=lambda row: int(row[0]))]


def text_of(page):
    return page.input_value("#text")


def after(page, text):
    until(page, "t => document.querySelector('.side h2').textContent === t", f"After “{text}”")
    ready(page)


def ask(address, path, **body):
    request = urllib.request.Request(f"{address}/{path}", json.dumps(body).encode())
    return json.load(urllib.request.urlopen(request))
