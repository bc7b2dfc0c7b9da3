"""FSDP2: each rank keeps some rows of every parameter. How to shard a model, and to convert between rows and tensors.

A sharded parameter is a DTensor. The conversions accept plain tensors too, which are whole on every rank, so callers
such as checkpoints are written once for both.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..gpt import GPT, Block


def shard(model: GPT, device: torch.device, dtype: torch.dtype) -> None:
    """Splits the parameters over all ranks, in place and directly onto `device`, which never holds the whole model.

    A block's weights are gathered just before it runs and freed after it. In bfloat16 they are sent and multiplied in
    bfloat16, and gradients are summed in float32. Norms, embeddings and head stay float32, as under autocast.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # FSDP warns about in-place changes of a module's output; the model makes none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    low_precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if dtype == torch.bfloat16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    float32 = MixedPrecisionPolicy(cast_forward_inputs=False)
    for block in model.blocks:
        units = fsdp_units(block)
        for unit in units:
            fully_shard(unit, mesh=mesh, mp_policy=low_precision)
        if block not in units:
            fully_shard(block, mesh=mesh, mp_policy=float32)
    fully_shard(model, mesh=mesh, mp_policy=float32)


def fsdp_units(block: nn.Module) -> list[nn.Module]:
    """Returns the modules gathered at once: a block, or its two halves if its norms have weights (kept in float32)."""
    assert isinstance(block, Block)
    return [block.attention, block.mlp] if any(p.dim() == 1 for p in block.attention_norm.parameters()) else [block]


def advance_generator(model: GPT) -> None:
    """Draws the random numbers that torch's modules draw when they are created on a CPU, and discards them.

    A model on the meta device drew none. Afterwards the generator is where it would be for a model built as usual.
    """
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            on_cpu: Any = copy.deepcopy(module).to_empty(device="cpu")
            on_cpu.reset_parameters()


def allocate(model: GPT, device: torch.device, *, random_init: bool) -> None:
    """Allocates this rank's rows of a sharded model on the meta device, with random weights if `random_init`.

    Each rank draws every matrix whole and keeps its rows, so the weights are the same for any number of ranks.
    """
    model.to_empty(device=device)
    model.build_rotary()
    for name, p in model.named_parameters() if random_init else ():
        weight = torch.empty(p.shape)
        model.init_weight(name, weight)
        to_local(p).copy_(weight[local_rows(p)])


def is_sharded(tensor: Any) -> bool:
    return hasattr(tensor, "to_local")  # only DTensor has it, and importing that class takes a while


def to_local(tensor: Any) -> Tensor:
    """Returns this rank's rows of a tensor, sharing its memory."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor.detach()


def full_tensor(tensor: Any) -> Tensor:
    """Returns the whole tensor on each rank; all ranks must call it."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach()


def from_local(parameter: Tensor, local: Tensor) -> Tensor:
    """Returns a tensor that is sharded as `parameter` is and whose rows on this rank are `local`."""
    if not is_sharded(parameter):
        return local
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    return DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape,
        stride=parameter.stride(),
    )  # fmt: skip


def local_rows(tensor: Tensor) -> slice:
    """Returns which rows of the whole tensor this rank holds."""
    if not is_sharded(tensor):
        return slice(None)
    start, stop = row_bounds(len(tensor), dist.get_world_size())[dist.get_rank() :][:2]
    assert stop - start == len(to_local(tensor)), "FSDP has split this tensor differently"
    return slice(start, stop)


def row_bounds(rows: int, ranks: int) -> list[int]:
    """Returns the first row of each rank, and the end: equal parts, except that the last may be shorter or empty."""
    size = -(-rows // ranks)
    return [min(rank * size, rows) for rank in range(ranks + 1)]


@contextlib.contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gathers the parameters outside the blocks, so that the body can call the model's parts.

    All ranks must enter it and make the same calls.
    """
    unshard: Any = getattr(model, "unshard", None)
    if unshard is not None:
        unshard()
    try:
        yield
    finally:
        reshard(model)


def reshard(model: nn.Module) -> None:
    """Frees the gathered parameters outside the blocks, which FSDP keeps after an evaluation.

    Call it wherever local rows were changed: the gathered copies are stale then.
    """
    free: Any = getattr(model, "reshard", None)
    if free is not None:
        free()
