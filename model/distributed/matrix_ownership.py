"""Whole matrices dealt to the ranks, for an optimizer that cannot work on rows of them (Muon)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .sharded import row_bounds, to_local


@dataclass(frozen=True)
class OwnedTensor:
    """A whole tensor that one rank holds; the others know its shape."""

    owner: int
    shape: torch.Size
    device: torch.device
    tensor: Tensor | None

    def broadcast(self) -> Tensor:
        """Returns the tensor on each rank; all ranks must call it."""
        tensor = torch.empty(self.shape, device=self.device) if self.tensor is None else self.tensor.contiguous()
        dist.broadcast(tensor, src=self.owner)
        return tensor


class MatrixOwnership:
    """Assigns each sharded matrix to one rank, about the same number of elements to each.

    An update takes two all-to-all exchanges: rows of gradients to the owners, rows of updated weights back. Each matrix
    is updated once, and no rank holds all of them (ZeRO: Rajbhandari et al. 2020, section 5).
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.ranks, self.rank = dist.get_world_size(), dist.get_rank()
        self.names: list[list[str]] = [[] for _ in range(self.ranks)]  # per owner
        elements = [0] * self.ranks
        for name, p in parameters.items():
            owner = elements.index(min(elements))
            elements[owner] += p.numel()
            self.names[owner].append(name)
        self.owner = {name: rank for rank, names in enumerate(self.names) for name in names}
        device = to_local(next(iter(parameters.values()))).device
        self.owned = {
            name: nn.Parameter(torch.empty(parameters[name].shape, device=device)) for name in self.names[self.rank]
        }
        self.gather_weights()

    def gather_weights(self) -> None:
        """Fills the owned matrices with the model's weights: at first, and again whenever those were loaded."""
        rows = {name: to_local(p) for name, p in self.parameters.items()}
        self.gather(rows, {name: p.data for name, p in self.owned.items()})

    def gather_gradients(self) -> None:
        """Fills the gradients of the owned matrices."""
        rows = {name: to_local(p.grad) for name, p in self.parameters.items()}
        gradients = {name: torch.empty_like(p) for name, p in self.owned.items()}
        self.gather(rows, gradients)
        for name, p in self.owned.items():
            p.grad = gradients[name]

    def gather(self, rows: dict[str, Tensor], whole: dict[str, Tensor]) -> None:
        """Sends this rank's rows of every matrix to its owner, and fills the owned ones with the rows of all ranks."""
        outgoing = [[rows[name] for name in names] for names in self.names]
        exchange(outgoing, [self.rows_on(rank, whole) for rank in range(self.ranks)])

    def scatter_weights(self) -> None:
        """Sends each rank its rows of the owned matrices, into the model."""
        whole = {name: p.data for name, p in self.owned.items()}
        incoming = [[to_local(self.parameters[name]) for name in names] for names in self.names]
        exchange([self.rows_on(rank, whole) for rank in range(self.ranks)], incoming)

    def rows_on(self, rank: int, whole: dict[str, Tensor]) -> list[Tensor]:
        """Returns views of the rows of the owned matrices that belong to `rank` in the sharded model."""
        bounds = {name: list(pairwise(row_bounds(len(tensor), self.ranks)))[rank] for name, tensor in whole.items()}
        return [whole[name][slice(*bounds[name])] for name in self.names[self.rank]]


def exchange(outgoing: list[list[Tensor]], incoming: list[list[Tensor]]) -> None:
    """Sends outgoing[r] to rank r and fills incoming[r] from it, for all ranks; the shapes must agree on both sides."""
    sent_sizes, received_sizes = (
        [sum(tensor.numel() for tensor in tensors) for tensors in side] for side in (outgoing, incoming)
    )
    targets = [tensor for tensors in incoming for tensor in tensors]
    pieces = [tensor.flatten() for tensors in outgoing for tensor in tensors]
    sent = torch.cat(pieces) if pieces else targets[0].new_empty(0)  # a rank may own no matrix
    received = sent.new_empty(sum(received_sizes))
    dist.all_to_all_single(received, sent, received_sizes, sent_sizes)
    for target, values in zip(targets, received.split([target.numel() for target in targets]), strict=True):
        target.copy_(values.view_as(target))
