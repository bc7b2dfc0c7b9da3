"""A request to the engine, and the ticket on which its answer arrives."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

from ..generate import NewToken
from ..sampling import SamplingConfig

Listener = Callable[[NewToken | None], None]


class EngineClosed(RuntimeError):  # noqa: N818
    """close() was called; nothing more is accepted."""


class QueueFull(Exception):  # noqa: N818 - a state of the engine, not a mistake
    """All slots are taken and as many requests wait as may; try again later."""


@dataclass(frozen=True)
class EngineRequest:
    """One prompt to continue. The text is that of generate() with the same seed, index and settings."""

    prompt: list[int]  # ids, at least one
    max_new_tokens: int
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = 1
    index: int = 0
    top_logprobs: int = 0  # number of alternatives to report at each position
    ends: tuple[int, ...] = ()  # ids that end this text, beside those of the vocabulary
    echo_scores: bool = False  # report the log-probabilities of the prompt's own tokens


@dataclass(frozen=True)
class PromptScores:
    """The model's log-probabilities (nats) of a prompt's tokens. The first token has none: nothing comes before it.

    A token that is among its alternatives has exactly the same figure there.
    """

    log_probabilities: list[float | None]
    alternatives: list[list[tuple[int, float]]]  # the top_logprobs best ids at each position; [] for the first


class Ticket:
    """The answer to one request, for any thread: iterate over its NewTokens, or give on_token() a listener.

    Iteration waits for each token. It ends when the text ends or is cancelled, and raises the error if there is one.
    """

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        self.finish: str | None = None  # None: not yet; stop (end token or stop string) | length | cancelled | error
        self.error: BaseException | None = None
        self.prompt_scores: PromptScores | None = None  # with echo_scores; set before the first token
        self.n_copied = 0  # tokens of the prompt that another row had read already
        self.cancelled = False
        self._arrived: SimpleQueue[NewToken | None] = SimpleQueue()  # None: no more
        self._listener: Listener | None = None
        self._lock = threading.Lock()  # keeps the order of tokens while a listener takes over

    def __iter__(self) -> Ticket:
        return self

    def __next__(self) -> NewToken:
        new = self._arrived.get()
        if new is not None:
            return new
        self._arrived.put(None)  # for the next call
        if self.error is not None:
            raise self.error
        raise StopIteration

    def on_token(self, listener: Listener) -> None:
        """Calls listener(token) for each token, also those that have arrived, and listener(None) at the end.

        It replaces iteration. It is called in the engine's thread, or in this one for what has arrived, and must
        return at once, as asyncio's loop.call_soon_threadsafe does. If it raises, the request is cancelled.
        """
        with self._lock:
            self._listener = listener
            while not self._arrived.empty():
                self._hand_over(self._arrived.get())

    def cancel(self) -> None:
        """Ends the text; the engine frees its slot before its next step."""
        self.cancelled = True

    def add(self, new: NewToken) -> None:
        """For the engine: the next token."""
        with self._lock:
            self._hand_over(new)

    def end(self, finish: str, error: BaseException | None = None) -> None:
        """For the engine: no more tokens will come."""
        self.finish, self.error = finish, error
        with self._lock:
            self._hand_over(None)

    def _hand_over(self, new: NewToken | None) -> None:
        if self._listener is None:
            return self._arrived.put(new)
        try:
            self._listener(new)
        except Exception:  # its client is gone, for example with a closed event loop
            self.cancelled = True
