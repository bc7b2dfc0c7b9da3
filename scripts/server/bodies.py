"""JSON bodies: the checked fields of a request, errors in OpenAI's shape, and answers; long ones in a thread."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import anyio
from starlette.requests import Request
from starlette.responses import Response

from data import InputError as DataError
from model import InputError as ModelError
from model.inference.engine import EngineClosed, QueueFull

Result = TypeVar("Result")
MAX_INTEGER = 2**63 - 1
MAX_DEPTH = 64  # of lists and objects inside each other
PART = 1000  # entries of a list
LONG_BODY = 10_000  # bytes
LONG_ANSWER = 10_000  # log-probabilities or other figures
THREADS = anyio.CapacityLimiter(2)  # more would compete with the event loop for the interpreter
ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
REQUIRED: Any = object()  # the default of a field that has none
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 503: "server_error"}
KINDS = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    list: "a list",
    dict: "an object",
}


class ApiError(Exception):
    """An answer that is an error. Clients retry 408, 409, 429 and 5xx, so a bad request has none of these statuses."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, {"retry-after": "1"} if status in (429, 503) else {}
        kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> Response:
        return Json(self.body, self.status, self.headers)


def as_api_error(error: BaseException) -> ApiError | None:
    """An error as an answer: what the model or a tokenizer refuses is a bad request. None: it is a bug."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return ApiError(str(error), status=429, code="queue_full")
    if isinstance(error, EngineClosed):
        return ApiError("the server is shutting down", status=503)
    if isinstance(error, DataError | ModelError):
        return ApiError("; ".join(map(str, error.args)))
    return None


class Json(Response):
    """JSON in ASCII, so that half a surrogate pair can be sent too. NaN and Infinity, which JSON lacks, are a bug."""

    media_type = "application/json"

    def __init__(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(as_json(content), status, headers)


def as_json(content: Any) -> bytes:
    return "".join(json_parts(content)).encode("ascii")


def json_parts(content: Any) -> Iterator[str]:
    """JSON in parts, because json holds the interpreter, and so the event loop, until it returns."""
    if isinstance(content, dict):
        for number, (name, value) in enumerate(content.items()):
            yield f"{',' if number else '{'}{ENCODER.encode(name)}:"
            yield from json_parts(value)
        yield "}" if content else "{}"
    elif isinstance(content, list) and content and isinstance(content[0], list):
        for number, inner in enumerate(content):
            yield "," if number else "["
            yield from json_parts(inner)
        yield "]"
    elif isinstance(content, list) and len(content) > PART:
        for start in range(0, len(content), PART):
            yield ("," if start else "[") + ENCODER.encode(content[start : start + PART])[1:-1]
        yield "]"
    else:
        yield ENCODER.encode(content)


async def read_json(request: Request) -> Any:
    """The body as JSON. Raises ApiError."""
    body = await request.body()
    try:
        value = json.loads(body, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:  # text that is not UTF-8, and integers of 5,000 digits, as well
        raise ApiError(f"the body is not valid JSON: {error}") from None
    if depth_exceeds(value, MAX_DEPTH):
        raise ApiError(f"the body is nested more than {MAX_DEPTH} levels deep")
    return value


async def in_thread(work: Callable[[], Result]) -> Result:
    """The result of work that does not use the model, done in a thread so that other requests do not wait for it.

    A shutdown does not wait for the thread.
    """
    return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=THREADS)


async def read_body(request: Request, read: Callable[[], Result]) -> Result:
    """The result of read(), which checks and encodes what the body asks for; in a thread if the body is long."""
    long = len(await request.body()) >= LONG_BODY
    return await in_thread(read) if long else read()


async def write_answer(write: Callable[[], Json], *, figures: int) -> Json:
    """The answer that write() makes, of about this many figures; in a thread if they are many."""
    return await in_thread(write) if figures >= LONG_ANSWER else write()


def refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
        if not level:
            return False
    return True


class Fields:
    """The fields of a JSON object. A field that is null counts as absent, and then has its default.

    Fields that nobody here knows are ignored, since clients send their own; but a misspelt name is an error.
    """

    def __init__(self, values: Any, known: Iterable[str], *, place: str = "") -> None:
        """place: where the object is in the body, such as questions[3]."""
        self.place = place
        if not isinstance(values, dict):
            raise ApiError(f"{place or 'the body'} must be an object", param=place or None)
        self.values = {name: value for name, value in values.items() if value is not None}
        known = list(known)
        for name in list(self.values)[:100]:
            near = [] if name in known else difflib.get_close_matches(name[:50].lower(), known, n=1, cutoff=0.85)
            if near and near[0] not in self.values:
                raise self.error(name[:50], f"is unknown; did you mean {near[0]!r}?")

    def error(self, name: str, problem: str, *, code: str | None = None) -> ApiError:
        path = f"{self.place}.{name}" if self.place else name
        return ApiError(f"{path!r} {problem}", param=path, code=code)

    def get(self, name: str, *kinds: type, default: Any = REQUIRED) -> Any:
        """The value of a field, which is of one of these kinds. An integer is a number, true is not an integer."""
        if name not in self.values:
            if default is REQUIRED:
                raise self.error(name, "is required")
            return default
        value = self.values[name]
        allowed = (*kinds, int) if float in kinds else kinds
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in kinds):
            raise self.error(name, f"must be {' or '.join(KINDS[kind] for kind in kinds)}")
        return value

    def text(self, name: str, default: Any = REQUIRED) -> Any:
        return self.get(name, str, default=default)

    def flag(self, name: str) -> bool:
        return self.get(name, bool, default=False)

    def integer(self, name: str, default: Any = REQUIRED, *, low: int = 0, high: int = MAX_INTEGER) -> Any:
        value = self.get(name, int, default=default)
        if name in self.values and not low <= value <= high:
            raise self.error(name, f"must be {low} to {high}")
        return value

    def number(self, name: str, default: Any = REQUIRED) -> Any:
        value = self.get(name, float, default=default)
        try:
            number = value if value is default else float(value)
        except OverflowError:
            number = math.inf
        if isinstance(number, float) and not math.isfinite(number):
            raise self.error(name, "is too large")
        return number

    def texts(self, name: str, *, most: int, longest: int) -> list[str]:
        """One text, or a list of at most `most`."""
        value = self.get(name, str, list, default=[])
        found = [value] if isinstance(value, str) else value
        if len(found) > most:
            raise self.error(name, f"has {len(found)} texts; at most {most} are allowed")
        if not all(isinstance(text, str) and 0 < len(text) <= longest for text in found):
            raise self.error(name, f"must be texts of 1 to {longest} characters")
        return found

    def objects(self, name: str, known: Iterable[str], *, least: int, most: int) -> list[Fields]:
        """A list of objects."""
        found = self.get(name, list)
        if not least <= len(found) <= most:
            raise self.error(name, f"has {len(found)} entries; it must have {least} to {most}")
        path = f"{self.place}.{name}" if self.place else name
        return [Fields(value, known, place=f"{path}[{number}]") for number, value in enumerate(found)]

    def refuse(self, name: str, allowed: Callable[[Any], bool], problem: str = "is not supported") -> None:
        """Refuses a field that would change the answer, unless its value asks for nothing."""
        if name in self.values and not allowed(self.values[name]):
            raise self.error(name, problem)


def is_ids(value: Any, vocab_size: int) -> bool:
    """Whether the value is a list of token ids."""
    return isinstance(value, list) and all(type(token) is int and 0 <= token < vocab_size for token in value)


def joined_text(content: Any, kinds: Sequence[str], fields: Fields, name: str) -> str:
    """The text of a message: a string, or a list of parts {"type": one of `kinds`, "text": ...}."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else {} for part in content]
        if all(part.get("type") in kinds and isinstance(part.get("text"), str) for part in parts):
            return "".join(part["text"] for part in parts)
    raise fields.error(name, f"must be a string, or a list of parts of type {' or '.join(kinds)}")
