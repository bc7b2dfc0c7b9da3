"""Many processes, one model: the process group, rank 0 first, DDP or FSDP, the few collectives that the loop needs."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from .. import InputError
from ..config import ModelConfig
from ..device import Compute
from ..gpt import GPT
from . import sharded

STRATEGIES = ("none", "ddp", "fsdp")


@dataclass(frozen=True)
class World:
    """Who this process is among its peers; as torchrun says in the environment."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0  # how often torchrun has started this group again

    @staticmethod
    def from_environment() -> World:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")
        rank, size, local_rank, restarts = (int(os.environ.get(name, int(name == "WORLD_SIZE"))) for name in names)
        return World(rank, size, local_rank, restarts)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """This rank's rows of a global batch of `rows`, which must divide evenly."""
        assert rows % self.size == 0, f"{rows} rows for {self.size} ranks"
        part = rows // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


@contextlib.contextmanager
def process_group(world: World, device: torch.device, first: Callable[[], str]) -> Iterator[str]:
    """Runs `first` on rank 0 alone, gives its result to all ranks, then holds a process group for the body.

    `first` may take hours (preparing a corpus): it runs before the group forms, whose collectives would time out.
    Where it fails, the other ranks end quietly with the status of a user's mistake, and rank 0 says what it was.
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
    well = False
    try:
        yield result
        well = True
    finally:
        if well or backend == "gloo":  # after an error NCCL would wait for ranks that wait for this one
            dist.destroy_process_group()


def exit_after_rank0() -> NoReturn:
    """Ends this process as a user's mistake does, once rank 0 had the time to say what it was: torchrun ends all ranks
    when it sees one end.
    """
    time.sleep(5)
    raise SystemExit(2)


def build(config: ModelConfig, strategy: str) -> GPT:
    """A model with random weights; on the meta device if FSDP will shard it, and wrap() then allocates each rank's part."""
    to_be_sharded = strategy == "fsdp" and dist.is_initialized()
    with torch.device("meta" if to_be_sharded else "cpu"):
        return GPT(config)


def compile_in_place(model: GPT, strategy: str) -> None:
    """Compiles the model in one piece; where it is to be sharded each part that FSDP gathers, within the hooks by which
    it does so, for a compiler stops at these.
    """
    if strategy == "fsdp" and dist.is_initialized():
        for unit in (unit for block in model.blocks for unit in sharded.units_of(block)):
            unit.forward = torch.compile(unit.forward, dynamic=False)
    else:
        model.compile(dynamic=False)


def wrap(model: GPT, strategy: str, compute: Compute, *, draw: bool = True) -> nn.Module:
    """Moves the model to its device; what is called in its place in training.

    none, or one process: itself. ddp: each rank has it whole, gradients are averaged while backward runs. fsdp: each
    rank keeps a part of every parameter, and of its gradient and optimizer state (see sharded.py). A model without
    memory gets it now; with `draw`, random weights in it.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"parallel={strategy!r} is not one of {', '.join(STRATEGIES)}")
    device = compute.device
    if strategy == "fsdp" and dist.is_initialized():
        empty = model.embed.weight.is_meta
        if empty and draw:
            sharded.draw_as_made(model)
        sharded.shard(model, device, compute.dtype)
        if empty:
            sharded.give_memory(model, device, draw=draw)
        return model
    model.to(device)
    if strategy == "none" or not dist.is_initialized():
        return model
    ids = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 renames broadcast_buffers, 2.11 knows only that
        return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def no_sync(model: nn.Module, skip: bool) -> contextlib.AbstractContextManager:
    """Inside it a backward only accumulates: of a step's micro-batches the last alone needs the network.

    Under FSDP each needs it: no rank could hold the gradients of the whole model meanwhile.
    """
    return model.no_sync() if skip and isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum of `value` over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def all_reduce_min(value: int, device: torch.device) -> int:
    """The smallest of the ranks' values; waits for all of them."""
    if not dist.is_initialized():
        return value
    least = torch.tensor(value, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


class StopSignal:
    """SIGTERM or Ctrl-C asks the loop to finish its step and save; a second one ends the process at once.

    All ranks stop after the same step, though a signal reaches each at another moment: each step starts a one-number
    reduction on the CPU and reads the one started a step before, so nobody waits for it.
    """

    def __enter__(self) -> StopSignal:
        self.raised = False
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self.pending: tuple[dist.Work, Tensor] | None = None
        self.before = {number: signal.signal(number, self.ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def ask(self, number: int, frame: object) -> None:
        if self.raised:
            os._exit(128 + number)
        self.raised = True
        if not dist.is_initialized() or dist.get_rank() == 0:
            os.write(2, b"stopping, once this step is done and saved; asked again, at once and without saving\n")

    def agreed(self) -> bool:
        """Whether all ranks stop here; every rank calls it once a step."""
        if self.group is None:
            return self.raised
        stop = False
        if self.pending is not None:
            work, flag = self.pending
            work.wait()
            stop = bool(flag)
        flag = torch.tensor([int(self.raised)])
        self.pending = (dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.group, async_op=True), flag)
        return stop
