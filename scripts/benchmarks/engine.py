"""The engine of the server: tokens per second of many clients against one, and the wait for the first token."""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from conf import cli
from model.device import DTYPES, keep_freed_memory
from model.inference.engine import Engine, EngineRequest
from model.inference.generate import NewToken
from model.inference.sampling import SamplingConfig
from sample import load

from .measure import describe_rates, print_json, rates, take_turns


@dataclass
class Config:
    """The keys of `python -m scripts.bench engine`."""

    checkpoint: str = field(default="out/quickstart", metadata={"kind": "path"})
    dtype: str = "float32"  # float32 | bfloat16 | float16 | int8
    clients: int = 16  # as many slots
    waiting_clients: int = 4  # when the wait for the first token is measured
    requests: int = 2  # of each client, one after another
    prompt_tokens: int = 20  # random ids, no two prompts alike
    max_new_tokens: int = 100  # each request asks for this many, or down to half as many
    temperature: float = 1.0
    top_p: float | None = None
    repeats: int = 5
    threads: int = 0  # 0: as many as there are CPUs
    debug: bool = False

    def validate(self) -> list[str]:
        known = (*DTYPES, "int8")
        found = [] if self.dtype in known else [f"dtype={self.dtype!r} is not one of {', '.join(known)}"]
        for name in ("clients", "waiting_clients", "requests", "prompt_tokens", "max_new_tokens", "repeats"):
            if getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)} must be at least 1")
        return found


class Client:
    """Sends requests one after another, and notes how long each first token takes."""

    def __init__(self, engine: Engine, requests: Sequence[EngineRequest]) -> None:
        self.engine, self.waiting = engine, list(requests)
        self.n_tokens = 0
        self.first_after: list[float] = []  # seconds
        self.done = threading.Event()

    def send(self) -> None:
        self.sent, self.begun = time.perf_counter(), False
        self.engine.submit(self.waiting.pop()).on_token(self.receive)

    def receive(self, new: NewToken | None) -> None:
        if new is not None:
            self.n_tokens += 1
            if not self.begun:
                self.first_after.append(time.perf_counter() - self.sent)
                self.begun = True
        elif self.waiting:
            self.send()
        else:
            self.done.set()


def contender(engine: Engine, cfg: Config, n_clients: int, rng: random.Random) -> Callable[[], list[Client]]:
    """Returns a function that lets this many clients send all their requests, and returns them."""
    sampling = SamplingConfig(temperature=cfg.temperature, top_p=cfg.top_p)
    size = len(engine.vocabulary.tokens)

    def request() -> EngineRequest:
        prompt = [rng.randrange(size) for _ in range(cfg.prompt_tokens)]
        limit = rng.randint((cfg.max_new_tokens + 1) // 2, cfg.max_new_tokens)
        return EngineRequest(prompt, limit, sampling, seed=rng.randrange(2**32))

    def run() -> list[Client]:
        clients = [Client(engine, [request() for _ in range(cfg.requests)]) for _ in range(n_clients)]
        for client in clients:
            client.send()
        for client in clients:
            client.done.wait()
        return clients

    return run


def main(cfg: Config, overrides: cli.Overrides) -> None:
    keep_freed_memory()
    torch.set_num_threads(cfg.threads or os.cpu_count() or 1)
    lm = load(cfg.checkpoint, device="cpu", dtype=cfg.dtype)
    engine = Engine(lm.model, lm.vocabulary, lm.compute, slots=max(cfg.clients, cfg.waiting_clients))
    rng = random.Random(1)
    counts = dict.fromkeys((1, cfg.waiting_clients, cfg.clients))
    contenders = {str(count): contender(engine, cfg, count, rng) for count in counts}
    for run in contenders.values():
        run()  # warms up
    times = take_turns(contenders, repeats=cfg.repeats)
    engine.close()

    rows: dict[str, Any] = {}
    for name, taken in times.items():
        tokens = [sum(client.n_tokens for client in clients) for clients in taken.results]
        waits = sorted(1000 * wait for clients in taken.results for client in clients for wait in client.first_after)
        speeds = [n / seconds for n, seconds in zip(tokens, taken.seconds, strict=True)]
        rows[name] = rates(speeds, disturbed=taken.disturbed) | {
            "first_token_ms": round(statistics.median(waits), 1),
            "first_token_ms_p95": round(waits[min(len(waits) - 1, int(0.95 * len(waits)))], 1),
        }
    one = rows["1"]["per_second"]
    print(f"{lm.compute.describe()}, {torch.get_num_threads()} threads; new tokens/s of all clients together:")
    for name, row in rows.items():
        row["ratio"] = round(row["per_second"] / one, 2)
        waits_text = f"first token {row['first_token_ms']:.0f} ms, 95 % within {row['first_token_ms_p95']:.0f} ms"
        print(f"{describe_rates(f'{name} clients', row)}  {row['ratio']:.2f}x  {waits_text}")
    print_json({"benchmark": "engine", "dtype": cfg.dtype, "threads": torch.get_num_threads(), "clients": rows})
