"""Training and decoding on a CPU beside one busy process, with and without share_cpus (model/threads.py)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from conf import cli
from model.config import ModelConfig
from model.device import Compute, keep_freed_memory
from model.gpt import GPT
from model.inference.decode import Decoder
from model.inference.quantize import prepare_for_decoding
from model.threads import share_cpus

from .decode import PROMPT, make_model
from .measure import describe_rates, print_json, rates, timed

CPU = torch.device("cpu")
NEIGHBOURS = {"alone": None, "beside an equal": 0, "beside nice 19": 19}  # the niceness of the busy process
SIDES: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "before": contextlib.nullcontext, "with share_cpus": lambda: share_cpus(CPU)
}  # fmt: skip


@dataclass
class Config:
    """The keys of `python -m scripts.bench contention`."""

    seconds: float = 2.0  # of each measurement
    settle: float = 1.0  # seconds of the same work before each, not counted
    repeats: int = 5
    debug: bool = False

    def validate(self) -> list[str]:
        found = [] if self.repeats >= 1 else [f"repeats={self.repeats} must be at least 1"]
        if self.seconds <= 0 or self.settle < 0:
            found.append(f"seconds={self.seconds} must be above 0, settle={self.settle} at least 0")
        return found


def training() -> Callable[[], int]:
    """A step of a small GPT with AdamW, eager; returns its number of tokens."""
    torch.manual_seed(1)
    model = GPT(ModelConfig(vocab_size=65, n_layer=4, n_head=4, d_model=128, context=128))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(65, (16, 129))

    def step() -> int:
        inputs, targets = ids[:, :-1], ids[:, 1:]
        (model(inputs, targets=targets) / targets.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()
        return targets.numel()

    return step


def decoding() -> Callable[[], int]:
    """32 greedy tokens of one text, of the quickstart's size, eager; returns their number."""
    compute = Compute.for_decoding("cpu")
    model = prepare_for_decoding(make_model("5m", seed=1), compute)

    @torch.no_grad()
    def continue_text() -> int:
        decoder = Decoder(model, rows=1, capacity=len(PROMPT) + 32, compute=compute)
        logits = decoder.prefill([PROMPT])
        for _ in range(31):
            logits = decoder.step(logits.argmax(-1))
        return 32

    return continue_text


@contextlib.contextmanager
def busy_process(niceness: int | None) -> Iterator[subprocess.Popen | None]:
    """A process that keeps one CPU busy beside the body; None: no process."""
    if niceness is None:
        yield None
        return
    process = subprocess.Popen([sys.executable, "-c", f"import os; os.nice({niceness})\nwhile True: pass"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def work_for(seconds: float, work: Callable[[], int]) -> float:
    """Repeats `work`; returns its tokens per second."""
    tokens, start = 0, time.perf_counter()
    while tokens == 0 or time.perf_counter() - start < seconds:
        tokens += work()
    return tokens / (time.perf_counter() - start)


def bench(cfg: Config, work: Callable[[], int]) -> dict[str, dict[str, Any]]:
    """Tokens per second of each side with each neighbour, in turns, as ratios of `before` alone too."""
    cases = [(neighbour, side) for neighbour in NEIGHBOURS for side in SIDES]
    speeds: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    disturbed = dict.fromkeys(cases, 0)
    for _ in range(cfg.repeats):
        for neighbour, side in cases:
            with busy_process(NEIGHBOURS[neighbour]), SIDES[side]():
                work_for(cfg.settle, work)
                _, others, speed = timed(lambda: work_for(cfg.seconds, work))
            speeds[neighbour, side].append(speed)
            disturbed[neighbour, side] += others and neighbour == "alone"  # else the neighbour is what disturbs
    rows: dict[str, dict[str, Any]] = {}
    for neighbour, side in cases:
        row: dict[str, Any] = rates(speeds[neighbour, side], disturbed=disturbed[neighbour, side])
        alone = rates(speeds["alone", "before"], disturbed=0)["per_second"]
        row |= {"of_alone": round(row["per_second"] / alone, 2), "lowest_of_alone": round(row["lowest"] / alone, 2)}
        rows.setdefault(neighbour, {})[side] = row
        line = describe_rates(f"{neighbour}, {side}", row)
        print(f"  {line}  {row['of_alone']:.2f}x of alone, lowest {row['lowest_of_alone']:.2f}x", flush=True)
    return rows


def main(cfg: Config, overrides: cli.Overrides) -> None:
    keep_freed_memory()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{torch.get_num_threads()} threads on {cpus} CPUs; tokens/s, {cfg.repeats} repeats")
    results: dict[str, Any] = {}
    for name, make in {"training": training, "decoding": decoding}.items():
        print(name)
        results[name] = bench(cfg, make())
    print_json({"benchmark": "contention", "threads": torch.get_num_threads(), "cpus": cpus} | results)
