"""The checkpoints that are served, by name, each with its engine."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request

from data.labelled.rows import chat_end, chat_prompt
from data.labelled.templates import Task
from model.inference.engine import Engine
from sample import LanguageModel

from .bodies import ApiError, Fields, is_ids

Result = TypeVar("Result")
MOST_SEARCHES = 8  # for next words, at a time; more wait


@dataclass(frozen=True)
class Served:
    """A checkpoint with the engine that answers for it."""

    name: str
    lm: LanguageModel
    engine: Engine

    @cached_property
    def task(self) -> Task:
        """What the checkpoint was fine-tuned to do."""
        return Task.load(self.lm.directory) or Task()

    @cached_property
    def searches(self) -> asyncio.Semaphore:
        """Held by each search for next words while it runs."""
        return asyncio.Semaphore(MOST_SEARCHES)

    @property
    def context(self) -> int:
        """The most tokens of prompt and answer together."""
        return self.engine.capacity

    @cached_property
    def longest_token(self) -> int:
        return max(1, *map(len, self.lm.vocabulary.tokens))

    def about(self) -> dict[str, Any]:
        """The checkpoint as OpenAI's API lists a model, and what a page needs to know of it."""
        return {
            "id": self.name,
            "object": "model",
            "created": int(self.lm.directory.stat().st_mtime) if self.lm.directory.exists() else 0,
            "owned_by": "nextword",
            "context": self.context,
            "vocab_size": self.lm.tokenizer.vocab_size,
            "chat": self.task.chat is not None,
            "labels": list(self.task.labels),
            "special_tokens": sorted(self.lm.tokenizer.special_tokens),
        }

    async def alone(self, function: Callable[[], Result]) -> Result:
        """The result of other work with the model, between two steps of the engine. Cancelled, it is not begun."""
        return await asyncio.wrap_future(self.engine.run_alone(function))

    def encode(self, text: str, *, name: str = "prompt") -> list[int]:
        """The ids of a text; an empty one is the start of a document. Refuses at once what cannot fit the context."""
        if len(text) > self.longest_token * self.context:
            raise too_long(name, f"{len(text):,} characters", self.context)
        return self.lm.encode(text)

    def ids(self, fields: Fields, name: str = "prompt") -> list[int]:
        """The ids of a field that is a text, or ids already."""
        value = fields.get(name, str, list, default="")
        if isinstance(value, str):
            return self.encode(value, name=name)
        if not is_ids(value, self.lm.tokenizer.vocab_size):
            raise fields.error(name, f"must be a text, or a list of ids below {self.lm.tokenizer.vocab_size}")
        return self.lm.encode(value)

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of a chat, up to where the assistant answers."""
        if self.task.chat is None:
            raise ApiError(
                f"the model {self.name!r} has no chat template; fine-tune it on chats, or use /v1/completions",
                param="model",
            )
        if (length := sum(len(message["content"]) for message in messages)) > self.longest_token * self.context:
            raise too_long("messages", f"{length:,} characters", self.context)
        return chat_prompt(self.task.chat, messages, self.lm.tokenizer)  # type: ignore[arg-type]

    def chat_ends(self) -> tuple[str, tuple[int, ...]]:
        """What ends an answer of the assistant: text that is no part of it, mostly none, and then one of these ids."""
        assert self.task.chat is not None
        return chat_end(self.task.chat, self.lm.tokenizer)  # type: ignore[arg-type]


def too_long(name: str, length: str, context: int) -> ApiError:
    return ApiError(
        f"{name!r} has {length}, which exceed the model's context of {context} tokens; shorten it",
        param=name,
        code="context_length_exceeded",
    )


class Models:
    """All served checkpoints. The first one answers requests that name none."""

    def __init__(self, served: Sequence[Served]) -> None:
        self.by_name = {one.name: one for one in served}

    def get(self, name: str | None = None) -> Served:
        if name is None:
            return next(iter(self.by_name.values()))
        if name not in self.by_name:
            known = ", ".join(self.by_name)
            raise ApiError(
                f"the model {name[:100]!r} is not served; choose from {known}",
                status=404,
                param="model",
                code="model_not_found",
            )
        return self.by_name[name]

    def of(self, fields: Fields) -> Served:
        return self.get(fields.text("model", None))

    @staticmethod
    def here(request: Request) -> Models:
        """The models of the app that got the request."""
        return request.app.state.models

    def close(self, timeout: float | None = None) -> bool:
        """Ends what is being generated. Returns whether all engines ended within `timeout` seconds."""
        engines = [one.engine for one in self.by_name.values()]
        for engine in engines:
            engine.close(timeout=0)  # all hear of it before one is waited for
        deadline = None if timeout is None else time.monotonic() + timeout
        for engine in engines:
            if not engine.close(None if deadline is None else max(0.0, deadline - time.monotonic())):
                return False
        return True


def names_of(paths: Sequence[Path]) -> list[str]:
    """A different name for each checkpoint: its run's folder, with best or the step if the path names one."""
    names: list[str] = []
    for path in paths:
        path = path.expanduser().resolve()
        inner = path.name == "best" or path.name.startswith("step_")
        name = f"{path.parent.name}-{path.name}" if inner else path.name
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        names.append(next(one for one in itertools.chain([name], numbered) if one not in names))
    return names
