"""The strategies none, DDP and FSDP: how a model is built, compiled and wrapped for each."""

from __future__ import annotations

import contextlib
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config import ModelConfig
from ..device import Compute
from ..gpt import GPT
from . import sharded

STRATEGIES = ("none", "ddp", "fsdp")


def build(config: ModelConfig, strategy: str) -> GPT:
    """Builds a model with random weights; on the meta device for FSDP, where wrap() allocates this rank's rows."""
    with torch.device("meta" if shards(strategy) else "cpu"):
        return GPT(config)


def shards(strategy: str) -> bool:
    return strategy == "fsdp" and dist.is_initialized()


def compile_in_place(model: GPT, strategy: str) -> None:
    """Compiles the whole model; with FSDP, each unit that FSDP gathers, because its hooks would split the graph."""
    if shards(strategy):
        for unit in (unit for block in model.blocks for unit in sharded.fsdp_units(block)):
            unit.forward = torch.compile(unit.forward, dynamic=False)
    else:
        model.compile(dynamic=False)


def wrap(model: GPT, strategy: str, compute: Compute, *, random_init: bool = True) -> nn.Module:
    """Moves the model to its device and returns the module to train.

    none, or one process: the model itself. ddp: each rank holds the whole model, and gradients are averaged during
    backward. fsdp: each rank keeps some rows of every parameter, gradient and optimizer state (see sharded.py). A model
    on the meta device is allocated here, with random weights if `random_init`.
    """
    device = compute.device
    if shards(strategy):
        on_meta = model.embed.weight.is_meta
        if on_meta and random_init:
            sharded.advance_generator(model)
        sharded.shard(model, device, compute.dtype)
        if on_meta:
            sharded.allocate(model, device, random_init=random_init)
        return model
    model.to(device)
    if strategy == "none" or not dist.is_initialized():
        return model
    ids = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 renames broadcast_buffers; 2.11 has no other name
        return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def no_sync(model: nn.Module, skip: bool) -> contextlib.AbstractContextManager:
    """Backward only accumulates in the body if `skip`: DDP reduces gradients at a step's last micro-batch only.

    FSDP reduces them at every micro-batch: no rank could hold the gradients of the whole model in between.
    """
    return model.no_sync() if skip and isinstance(model, DistributedDataParallel) else contextlib.nullcontext()
