"""The app: which function answers which path, the page, and errors in OpenAI's shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from data import InputError as DataError
from model import InputError as ModelError
from model.inference.engine import EngineClosed, QueueFull

from .bodies import ApiError, Json, as_api_error
from .chat import chat_completions
from .completions import completions
from .decisions import decisions
from .inside import attention, lens
from .middleware import Guard, Rules
from .models import Models
from .next_words import next_words
from .streaming import BUG
from .texts import detokenize, next_tokens, surprisal, tokenize, tokenizer_info

PAGE = Path(__file__).parent / "page"
MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


async def list_models(request: Request) -> Json:
    models = Models.here(request)
    return Json({"object": "list", "data": [one.about() for one in models.by_name.values()]})


async def one_model(request: Request) -> Json:
    return Json(Models.here(request).get(request.path_params["name"]).about())


async def page(request: Request) -> Response:
    """A file of the page. It is read each time, so that a change is seen after a reload."""
    path = PAGE / (request.url.path.removeprefix("/") or "index.html")  # one of page_paths()
    headers = {"cache-control": "no-cache"}
    return Response(path.read_bytes(), media_type=MEDIA_TYPES[path.suffix], headers=headers)


def page_paths() -> list[str]:
    """The paths of the page's files: known at the start, so that no request can name another file."""
    return ["/", *(f"/{path.name}" for path in sorted(PAGE.iterdir()) if path.suffix in MEDIA_TYPES)]


GET: dict[str, Any] = {
    "/v1/models": list_models,
    "/v1/models/{name}": one_model,
    "/tokenizer_info": tokenizer_info,
}
POST: dict[str, Any] = {
    "/v1/completions": completions,
    "/v1/chat/completions": chat_completions,
    "/v1/decisions": decisions,
    "/v1/next_words": next_words,
    "/v1/next_tokens": next_tokens,
    "/v1/surprisal": surprisal,
    "/v1/attention": attention,
    "/v1/lens": lens,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
}


async def known_error(request: Request, error: Any) -> Response:
    answer = as_api_error(error)
    assert answer is not None
    return answer.response()


async def http_error(request: Request, error: Any) -> Response:
    problem = {404: "no such path", 405: "this method is not allowed for this path"}.get(error.status_code)
    answer = ApiError(problem or str(error.detail), status=error.status_code).response()
    answer.headers.update(error.headers or {})
    return answer


async def gone(request: Request, error: Any) -> Response:
    """Nobody reads this answer."""
    return Response(status_code=499)


async def bug(request: Request, error: Any) -> Response:
    """An error of the server itself, whose traceback it prints."""
    return BUG.response()


ERRORS: dict[Any, Any] = {
    **dict.fromkeys((ApiError, DataError, ModelError, QueueFull, EngineClosed), known_error),
    HTTPException: http_error,
    ClientDisconnect: gone,
    Exception: bug,
}


def make_app(models: Models, rules: Rules, *, log: Any = None) -> ASGIApp:
    """The ASGI app, with everything that a request passes first."""
    routes = [Route(path, answer, methods=["GET"]) for path, answer in GET.items()]
    routes += [Route(path, answer, methods=["POST"]) for path, answer in POST.items()]
    routes += [Route(path, page, methods=["GET"]) for path in page_paths()]
    app = Starlette(routes=routes, exception_handlers=ERRORS)
    app.router.redirect_slashes = False
    app.state.models = models
    return Guard(app, rules, log=log)
