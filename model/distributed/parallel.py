"""The process group: which rank this process is, rank 0 first, and the two reductions that training needs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

Result = TypeVar("Result")


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
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
        return World(*(int(os.environ.get(name, name.endswith("SIZE"))) for name in names))  # sizes are 1 by default

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Returns this rank's rows of a global batch of `rows`, which the number of ranks must divide."""
        assert rows % self.size == 0, f"{rows} rows for {self.size} ranks"
        part = rows // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


@contextlib.contextmanager
def process_group(world: World, device: torch.device) -> Iterator[None]:
    """Keeps a process group open for the body if there are several ranks."""
    if world.size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=10)))
    store = dist.PrefixStore(f"attempt {world.restarts}", store)  # without what the ranks wrote before a restart
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size)
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        if succeeded or backend == "gloo":  # after an error, NCCL would wait for ranks that wait for this one
            dist.destroy_process_group()


def from_rank0(action: Callable[[], Result], world: World) -> Result:
    """Runs `action` on rank 0 only, and returns its result on all ranks.

    It may take hours, such as preparing a corpus. If it fails, rank 0 raises the error, and the others exit silently
    with status 2.
    """
    if world.size == 1:
        return action()
    group = dist.new_group(backend="gloo", timeout=timedelta(days=30))  # collectives usually wait some minutes only
    found: list[Any] = [None]
    try:
        if world.is_main:
            found = [(action(),)]
    finally:
        dist.broadcast_object_list(found, src=0, group=group)
    if found[0] is None:
        time.sleep(5)  # rank 0 prints the error: torchrun kills all ranks once one exits
        raise SystemExit(2)
    return found[0][0]


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
