"""The loop that answers a file of prompts batch by batch, with progress, interruption and resumption."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable
from typing import Any, Protocol

from . import progress

Results = list[dict[str, Any]]


class Outputs(Protocol):
    """The file of results, which keeps what was added even if the process is killed."""

    rows: int  # results in the file
    finished: bool

    def add(self, results: Results) -> None: ...
    def publish(self) -> None: ...


def answer_all(answers: Iterable[Results], outputs: Outputs, *, total: int, name: str) -> None:
    """Adds the results of each batch to `outputs`, the file `name` of `total` results in the end.

    SIGTERM and Ctrl-C drop the current batch and return; the same call later resumes.
    """
    if outputs.finished:
        return print(f"{name} is complete: {total:,} results; nothing to do")
    earlier, began, tokens = outputs.rows, time.perf_counter(), 0
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt, as Ctrl-C does
    try:
        with progress.Progress(total, start=earlier, unit="prompt", every=5, file=sys.stderr) as shown:
            for results in answers:
                outputs.add(results)
                tokens += sum(len(result["log_probabilities"]) for result in results if "log_probabilities" in result)
                speed = tokens / (time.perf_counter() - began)
                shown.update(outputs.rows, *([f"{progress.count(speed)} tok/s"] if tokens else []))
            outputs.publish()
    except KeyboardInterrupt:
        return print(f"stopped after {outputs.rows:,} of {total:,} results; run the same command to resume")
    finally:
        signal.signal(signal.SIGTERM, before)
    seconds = time.perf_counter() - began
    again = f" ({earlier:,} of them from before)" if earlier else ""
    made = f", {tokens:,} tokens, {tokens / seconds:,.0f} tokens/s" if tokens else ""
    print(f"{total:,} results{again} in {progress.duration(seconds)}{made}: {name}")
