"""FSDP2: each rank keeps some rows of every parameter; how to find them, and how to see a tensor whole again.

A sharded parameter is a DTensor. Everything here takes plain tensors too, which are then whole and everywhere alike:
so an optimizer or a checkpoint is written once, for both.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..gpt import GPT, Block


def shard(model: GPT, device: torch.device, dtype: torch.dtype) -> None:
    """Splits the parameters over all ranks, in place and straight onto `device`: no device ever holds them all.

    A block's weights are gathered just before it runs and freed after it; in bfloat16 they travel and multiply as
    such, and gradients are added up in float32. Norms, embeddings and head stay float32, as under autocast alone.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # It warns of in-place changes to a module's output; the model makes none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    products = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if dtype == torch.bfloat16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    for block in model.blocks:
        units = units_of(block)
        for unit in units:
            fully_shard(unit, mesh=mesh, mp_policy=products)
        if block not in units:
            fully_shard(block, mesh=mesh, mp_policy=plain)
    fully_shard(model, mesh=mesh, mp_policy=plain)


def units_of(block: nn.Module) -> list[nn.Module]:
    """What is gathered at once: a block, or its two halves where its norms have weights, which stay float32."""
    assert isinstance(block, Block)
    return [block.attention, block.mlp] if any(p.dim() == 1 for p in block.attention_norm.parameters()) else [block]


def draw_as_made(model: GPT) -> None:
    """Draws what torch's modules fill themselves with when they are made, for nothing but the generator: so the values
    behind it are those of a model that was made whole.
    """
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            made: Any = copy.deepcopy(module).to_empty(device="cpu")
            made.reset_parameters()


def give_memory(model: GPT, device: torch.device, *, draw: bool) -> None:
    """Gives a sharded model from the meta device the memory of this rank's rows and, with `draw`, random weights.

    Each rank draws every matrix whole and keeps its rows: the same weights on any number of ranks.
    """
    model.to_empty(device=device)
    for name, p in model.named_parameters() if draw else ():
        weight = torch.empty(p.shape)
        model.init_weight(name, weight)
        to_local(p).copy_(weight[rows_of(p)])


def is_sharded(tensor: Any) -> bool:
    return hasattr(tensor, "to_local")  # only a DTensor has it; importing that class takes a while


def to_local(tensor: Any) -> Tensor:
    """This rank's rows of a tensor, sharing its memory."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor.detach()


def full_tensor(tensor: Any) -> Tensor:
    """The tensor with the rows of all ranks, on each of them; all must ask."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach()


def forget_gathered(model: nn.Module) -> None:
    """To be called where weights were changed: FSDP keeps those outside the blocks gathered after an evaluation."""
    reshard: Any = getattr(model, "reshard", None)
    if reshard is not None:
        reshard()


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside it parts of the model other than itself can be called; all ranks must ask, and call the same."""
    unshard: Any = getattr(model, "unshard", None)
    if unshard is not None:
        unshard()
    try:
        yield
    finally:
        forget_gathered(model)


def rows_of(tensor: Tensor) -> slice:
    """Which rows of the whole tensor are this rank's."""
    if not is_sharded(tensor):
        return slice(None)
    first, stop = bounds(len(tensor), dist.get_world_size())[dist.get_rank() :][:2]
    assert stop - first == len(to_local(tensor)), "FSDP has cut this tensor in another way"
    return slice(first, stop)


def bounds(rows: int, ranks: int) -> list[int]:
    """Where each rank's rows begin, and the end: equal parts, of which the last may be short or empty."""
    size = -(-rows // ranks)
    return [min(rank * size, rows) for rank in range(ranks + 1)]


def like(parameter: Tensor, own: Tensor) -> Tensor:
    """`own` seen as this rank's rows of a tensor that is sharded as `parameter` is."""
    if not is_sharded(parameter):
        return own
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    return DTensor.from_local(
        own, parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape,
        stride=parameter.stride(),
    )  # fmt: skip


@dataclass(frozen=True)
class OwnedTensor:
    """A whole tensor that one rank has; the others know its shape."""

    owner: int
    shape: torch.Size
    device: torch.device
    tensor: Tensor | None

    def broadcast(self) -> Tensor:
        """The tensor, on each rank; all must ask."""
        tensor = torch.empty(self.shape, device=self.device) if self.tensor is None else self.tensor.contiguous()
        dist.broadcast(tensor, src=self.owner)
        return tensor


class MatrixOwnership:
    """Deals whole matrices to the ranks, for an optimizer that cannot work on rows of them.

    Each rank owns about an equal part. Two exchanges a step among all ranks: rows of gradients to the owners, rows of
    updated weights back; so each matrix is worked on once, and nobody ever holds them all (as in ZeRO: Rajbhandari et
    al. 2020, section 5).
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.ranks, self.rank = dist.get_world_size(), dist.get_rank()
        self.names: list[list[str]] = [[] for _ in range(self.ranks)]  # of each owner
        load = [0] * self.ranks
        for name, p in parameters.items():
            owner = load.index(min(load))
            load[owner] += p.numel()
            self.names[owner].append(name)
        self.owner = {name: rank for rank, names in enumerate(self.names) for name in names}
        self.owned = {name: nn.Parameter(self.empty(name)) for name in self.names[self.rank]}
        self.gather_weights()

    def empty(self, name: str) -> Tensor:
        p = self.parameters[name]
        return torch.empty(p.shape, device=to_local(p).device)

    def gather_weights(self) -> None:
        """Fills the owned matrices with the weights of the model: once, and again when others were loaded."""
        self.collect(
            {name: to_local(p) for name, p in self.parameters.items()}, {n: p.data for n, p in self.owned.items()}
        )

    def gather_gradients(self) -> None:
        for p in self.owned.values():
            p.grad = torch.empty_like(p)
        rows = {name: to_local(p.grad) for name, p in self.parameters.items()}
        self.collect(rows, {name: p.grad for name, p in self.owned.items() if p.grad is not None})

    def collect(self, rows: dict[str, Tensor], wholes: dict[str, Tensor]) -> None:
        """Sends this rank's rows of every matrix to its owner, and fills the owned ones with everybody's."""
        outgoing = [[rows[name] for name in names] for names in self.names]
        arriving = [self.cut(wholes, rank) for rank in range(self.ranks)]
        exchange(outgoing, arriving)

    def scatter_weights(self) -> None:
        """Sends each rank its rows of the owned matrices, into the model."""
        wholes = {name: p.data for name, p in self.owned.items()}
        arriving = [[to_local(self.parameters[name]) for name in names] for names in self.names]
        exchange([self.cut(wholes, rank) for rank in range(self.ranks)], arriving)

    def cut(self, wholes: dict[str, Tensor], rank: int) -> list[Tensor]:
        """The rows of the owned matrices that live on `rank`, as views."""
        pieces = []
        for name in self.names[self.rank]:
            first, stop = list(pairwise(bounds(len(wholes[name]), self.ranks)))[rank]
            pieces.append(wholes[name][first:stop])
        return pieces


def exchange(outgoing: list[list[Tensor]], arriving: list[list[Tensor]]) -> None:
    """Sends outgoing[r] to rank r and fills arriving[r] from it; the shapes must agree on both sides."""
    sizes = [[sum(piece.numel() for piece in pieces) for pieces in side] for side in (outgoing, arriving)]
    targets = [piece for pieces in arriving for piece in pieces]
    rows = [piece.flatten() for pieces in outgoing for piece in pieces]
    sent = torch.cat(rows) if rows else targets[0].new_empty(0)  # of more ranks than matrices some own none
    received = sent.new_empty(sum(sizes[1]))
    dist.all_to_all_single(received, sent, sizes[1], sizes[0])
    for target, values in zip(targets, received.split([target.numel() for target in targets]), strict=True):
        target.copy_(values.view_as(target))
