"""Engine: continuous batching. One thread owns the model; requests join and leave between its steps."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import torch
from torch import Tensor

from ... import InputError
from ...device import Compute
from ...gpt import GPT
from ..generate import check, overflow
from ..sampling import checked
from ..vocabulary import Vocabulary
from .groups import Active, Groups
from .reading import Reading
from .request import EngineClosed, EngineRequest, QueueFull, Ticket
from .slots import Slots

T = TypeVar("T")
Finish = tuple[str, Exception | None]  # see Ticket
Job = tuple[Callable[[], Any], Future]  # a function to run between two steps
READ_PER_STEP = 256  # tokens of prompts that are read between two steps, so that a long prompt does not stop the others
DEFAULT_CAPACITY = 2048


class Engine:
    """Continues up to `slots` prompts at the same time; more wait in a queue of at most `queue`.

    A request's text does not depend on its neighbours: a token's noise is a function of (seed, index, position), and
    batched logits differ from single ones by rounding only. Each loop of the worker does this:

    1. frees the slots of cancelled requests
    2. runs one function of run_alone()
    3. appends one token to each active row, in one forward
    4. reads waiting prompts into free slots, up to READ_PER_STEP tokens
    5. samples the next token of each row and delivers it

    An error in one request ends its ticket only. A bug in the worker ends all tickets, and later calls raise it.
    """

    def __init__(
        self,
        model: GPT,
        vocabulary: Vocabulary,
        compute: Compute,
        *,
        slots: int = 16,
        capacity: int | None = None,
        queue: int = 64,
    ) -> None:
        """capacity: the most tokens of prompt and text together in one slot; the memory grows with slots * capacity."""
        self.vocabulary, self.queue = vocabulary, queue
        self.capacity = min(capacity or DEFAULT_CAPACITY, model.config.context)
        self.slots = Slots(model, compute, count=slots, capacity=self.capacity)
        self.groups = Groups(vocabulary, compute.device)
        self.active: list[Active] = []  # by place
        self.reading: Reading | None = None
        self._changed = threading.Condition()  # guards what follows
        self._waiting: deque[Ticket] = deque()
        self._jobs: deque[Job] = deque()
        self._unfinished = 0  # tickets
        self._ended: BaseException | None = None  # why nothing more is accepted
        self._worker = threading.Thread(target=self._work, name="engine", daemon=True)
        self._worker.start()

    def submit(self, request: EngineRequest) -> Ticket:
        """Accepts a request, from any thread. Raises InputError if it cannot be met, and QueueFull."""
        self.check(request)
        ticket = Ticket(request)
        with self._changed:
            self._require_open()
            if self._unfinished >= self.slots.count + self.queue:
                raise QueueFull(f"{self._unfinished} texts are in progress or waiting; try again later")
            self._unfinished += 1
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def check(self, request: EngineRequest) -> None:
        """Raises InputError if a request is malformed, does not fit a slot, or has impossible constraints."""
        checked(request.sampling)
        prompt, limit, size = request.prompt, request.max_new_tokens, self.slots.model.config.vocab_size
        check([prompt], [limit], request.sampling, context=self.capacity, on_overflow="slide", speculative=False)
        if bad := [token for token in prompt if not 0 <= token < size]:
            raise InputError(f"prompt has the id {bad[0]}, which is not in 0..{size - 1}")
        if not 0 <= request.top_logprobs <= size:
            raise InputError(f"top_logprobs={request.top_logprobs} must be in 0..{size}")
        if excess := overflow(len(prompt), limit, context=self.capacity):
            raise InputError(f"{excess}; shorten one")
        self.groups.constraints(request)

    def run_alone(self, function: Callable[[], T]) -> Future[T]:
        """Runs a function that uses the model in the worker, between two steps; returns its future.

        A function whose future is cancelled does not start. Everything else waits for one that has started, so long
        work should come in several functions.
        """
        future: Future[T] = Future()
        with self._changed:
            self._require_open()
            if len(self._jobs) >= max(1, self.queue):
                raise QueueFull(f"{len(self._jobs)} functions are waiting; try again later")
            self._jobs.append((function, future))
            self._changed.notify()
        return future

    def close(self, timeout: float | None = None) -> bool:
        """Ends all tickets as cancelled and the worker with them. Returns whether the worker has ended.

        A function or forward pass that is running is not interrupted: waits at most `timeout` seconds for it, or
        without one until it returns.
        """
        with self._changed:
            self._ended = self._ended or EngineClosed("the engine is closed")
            self._changed.notify()
        self._worker.join(timeout)
        return not self._worker.is_alive()

    def _require_open(self) -> None:
        if self._ended is not None:
            raise self._ended

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            with torch.no_grad():
                while self._wait_for_work():
                    self._drop_cancelled()
                    self._run_job()
                    self._step()
        except BaseException as bug:
            error = bug
        with self._changed:
            self._ended = error or self._ended
            tickets, jobs = [*self._waiting, *(active.ticket for active in self.active)], list(self._jobs)
        for ticket in tickets + ([self.reading.ticket] if self.reading else []):
            ticket.end("error" if error else "cancelled", error)
        for _, future in jobs:
            if future.set_running_or_notify_cancel():
                future.set_exception(self._ended)

    def _wait_for_work(self) -> bool:
        """Blocks while there is nothing to do. Returns False when the engine closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self.active or self.reading or self._waiting or self._jobs)
            return self._ended is None

    def _drop_cancelled(self) -> None:
        with self._changed:
            cancelled = [ticket for ticket in self._waiting if ticket.cancelled]
            if cancelled:
                self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled)
        for ticket in cancelled:
            self._end(ticket, "cancelled")
        if self.reading and self.reading.ticket.cancelled:
            self._end(self.reading.ticket, "cancelled")
            self.reading = None  # its row is still among the free ones
        self._leave({active: ("cancelled", None) for active in self.active if active.ticket.cancelled})

    def _run_job(self) -> None:
        with self._changed:
            if not self._jobs:
                return
            function, future = self._jobs.popleft()
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def _step(self) -> None:
        logits = []
        if self.active:
            logits.append(self.slots.step([active.row.window[-1] for active in self.active]))
        logits += self._read_prompts()
        if not logits:
            return
        outcomes = self.groups.choose(torch.cat(logits))  # from (A, V)
        leaving: dict[Active, Finish] = {}
        for active, new in outcomes:
            if isinstance(new, Exception):
                leaving[active] = "error", new
            else:
                active.ticket.add(new)
                if new.ended is not None:
                    leaving[active] = "length" if new.ended == "length" else "stop", None
        self._leave(leaving)

    def _read_prompts(self) -> list[Tensor]:
        """Reads waiting prompts and activates their rows; returns their logits, each (1, V)."""
        budget, found = READ_PER_STEP, []
        while budget > 0 and (reading := self.reading or self._admit()):
            self.reading, before = reading, reading.done
            try:
                logits = reading.read(self.slots, budget)
                if logits is not None:
                    active = Active.begin(reading.ticket, len(self.active), self.vocabulary)
                    self.groups.add(active)
            except Exception as error:
                self.slots.clear(reading.place)
                self.reading = None
                self._end(reading.ticket, "error", error)
                continue
            budget -= reading.done - before
            if logits is not None:
                self.reading = None
                self.slots.activate(reading.place)
                self.active.append(active)
                found.append(logits)
        return found

    def _admit(self) -> Reading | None:
        """Begins to read the next waiting prompt if there is a free slot."""
        if len(self.active) == self.slots.count:
            return None
        with self._changed:
            ticket = self._waiting.popleft() if self._waiting else None
        if ticket is None:
            return None
        try:
            return Reading.begin(ticket, self.slots)
        except Exception as error:  # for example no memory for a copy
            self._end(ticket, "error", error)
            return None

    def _leave(self, leaving: Mapping[Active, Finish]) -> None:
        """Frees the slots of rows, then ends their tickets."""
        self.groups.remove(leaving)
        for active in sorted(leaving, key=lambda active: -active.place):  # from the last, so that few rows move
            if leaving[active][1] is not None:
                self.slots.clear(active.place)
            self.slots.release(active.place)
            last = self.active.pop()
            if last is not active:
                self.active[active.place], last.place = last, active.place
        for active, (finish, error) in leaving.items():
            self._end(active.ticket, finish, error)

    def _end(self, ticket: Ticket, finish: str, error: Exception | None = None) -> None:
        with self._changed:
            self._unfinished -= 1
        ticket.end(finish, error)
