"""The process group: which rank this process is, rank 0 first, and the two reductions that training needs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous


@dataclass(frozen=True)
class World:
    """This process's place among its peers, as torchrun gives it in the environment."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1  # ranks on this machine
    restarts: int = 0  # how often torchrun has restarted this group

    @staticmethod
    def from_environment() -> World:
        def number(name: str, default: int) -> int:
            return int(os.environ.get(name, default))

        return World(
            number("RANK", 0), number("WORLD_SIZE", 1), number("LOCAL_RANK", 0), number("LOCAL_WORLD_SIZE", 1),
            restarts=number("TORCHELASTIC_RESTART_COUNT", 0),
        )  # fmt: skip

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Returns this rank's rows of a global batch of `rows`, which the number of ranks must divide."""
        assert rows % self.size == 0, f"{rows} rows for {self.size} ranks"
        part = rows // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


@contextlib.contextmanager
def process_group(world: World, device: torch.device, first: Callable[[], str]) -> Iterator[str]:
    """Runs `first` on rank 0 only, yields its result on all ranks, and keeps a process group open for the body.

    `first` may take hours (preparing a corpus), so it runs before the group forms: collectives would time out. If it
    fails, rank 0 reports the error and the other ranks exit silently with status 2.
    """
    if world.size == 1:
        yield first()
        return
    store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=10)))
    store = dist.PrefixStore(f"attempt {world.restarts}", store)
    if world.is_main:
        try:
            result = first()
        except BaseException:
            store.set("first", "failed")
            raise
        store.set("first", "done " + result)
    else:
        store.wait(["first"], timedelta(days=30))
        status, _, result = store.get("first").decode().partition(" ")
        if status == "failed":
            exit_after_rank0()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=world.rank, world_size=world.size)
    succeeded = False
    try:
        yield result
        succeeded = True
    finally:
        if succeeded or backend == "gloo":  # after an error, NCCL would wait for ranks that wait for this one
            dist.destroy_process_group()


def exit_after_rank0() -> NoReturn:
    """Exits with status 2 after giving rank 0 time to print the error: torchrun kills all ranks once one exits."""
    time.sleep(5)
    raise SystemExit(2)


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sums `value` over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def all_reduce_min(value: int, device: torch.device) -> int:
    """Returns the smallest of the ranks' values. Waits for all ranks."""
    if not dist.is_initialized():
        return value
    smallest = torch.tensor(value, device=device)
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return int(smallest)
