"""The loop that answers a file of prompts batch by batch, with progress, interruption and resumption."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from . import progress

Results = list[dict[str, Any]]


class Prompts(Protocol):
    """A file of prompts, cut into batches."""

    def __len__(self) -> int: ...
    def batch(self, number: int) -> Sequence[Any]: ...
    def shape(self, number: int) -> int: ...


class Outputs(Protocol):
    """The file of results, which keeps what was added even if the process is killed."""

    @property
    def rows(self) -> int: ...  # results in the file
    @property
    def done(self) -> int: ...  # complete batches
    @property
    def finished(self) -> bool: ...
    def add(self, results: Results) -> None: ...
    def publish(self) -> None: ...


def answer_all(
    prompts: Prompts, outputs: Outputs, answer: Callable[[Sequence[Any], int], Results], *, total: int, name: str
) -> None:
    """Calls answer(batch, rows) for each batch missing from `outputs`.

    The file `name` has `total` results when complete. SIGTERM and Ctrl-C drop the current batch and return; the same
    call later resumes.
    """
    if outputs.finished:
        return print(f"{name} is complete: {total:,} results; nothing to do")
    earlier, began, tokens = outputs.rows, time.perf_counter(), 0
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt, as Ctrl-C does
    try:
        with progress.Progress(total, start=earlier, unit="prompt", every=5, file=sys.stderr) as shown:
            for number in range(outputs.done, len(prompts)):
                results = answer(prompts.batch(number), prompts.shape(number))
                outputs.add(results)
                tokens += sum(len(result["log_probabilities"]) for result in results if "log_probabilities" in result)
                speed = tokens / (time.perf_counter() - began)
                shown.update(outputs.rows, tokens_per_second=speed if tokens else None)
            outputs.publish()
    except KeyboardInterrupt:
        return print(f"stopped after {outputs.rows:,} of {total:,} results; run the same command to resume")
    finally:
        signal.signal(signal.SIGTERM, before)
    seconds = time.perf_counter() - began
    again = f" ({earlier:,} of them from before)" if earlier else ""
    made = f", {tokens:,} tokens, {tokens / seconds:,.0f} tokens/s" if tokens else ""
    print(f"{total:,} results{again} in {progress.duration(seconds)}{made}: {name}")
