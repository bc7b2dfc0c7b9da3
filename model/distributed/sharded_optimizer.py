"""The optimizer under FSDP: AdamW updates this rank's rows of each parameter, Muon the matrices that it owns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..optimization.muon import iter_matrices
from ..optimization.optimizer import Optimizer
from . import sharded
from .matrix_ownership import MatrixOwnership, OwnedTensor


class ShardedOptimizer(Optimizer):
    """Optimizer for a model with sharded parameters; each rank holds a part of the state.

    AdamW works elementwise, so rows are enough. Muon needs whole matrices, which MatrixOwnership assigns to the ranks.
    """

    def local_parameters(
        self, others: dict[str, nn.Parameter], matrices: dict[str, nn.Parameter]
    ) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        assert all(map(sharded.is_sharded, (others | matrices).values())), "some parameters are not sharded"
        self.ownership = MatrixOwnership(matrices) if matrices else None
        owned = self.ownership.owned if self.ownership else {}
        return {name: nn.Parameter(sharded.to_local(p)) for name, p in others.items()}, owned

    def gradients(self) -> list[Tensor]:
        return [sharded.to_local(grad) for grad in super().gradients()]

    def gradient_norm(self) -> Tensor:
        square = super().gradient_norm().to(self.gradients()[0].device).square()
        torch.distributed.all_reduce(square)
        return square.sqrt()

    @torch.no_grad()
    def step(self, multiplier: float, *, divisor: Tensor, skip: Tensor) -> None:
        for name, p in self.adamw_parameters.items():
            grad = self.parameters[name].grad
            p.grad = None if grad is None else sharded.to_local(grad)
        if self.ownership is not None:
            self.ownership.gather_gradients()
        super().step(multiplier, divisor=divisor, skip=skip)
        if self.ownership is not None:
            self.ownership.scatter_weights()

    def momenta(self) -> Mapping[str, Any]:
        """Returns Muon's momentum of each matrix, by name, as a tensor that its owner holds."""
        if self.ownership is None:
            return {}
        mine = super().momenta()
        return {
            piece: OwnedTensor(
                self.ownership.owner[name], torch.Size((rows.stop - rows.start, p.shape[1])), p.device, mine.get(piece)
            )
            for name, p in self.ownership.parameters.items()
            for piece, rows in iter_matrices(name, p, self.row_counts)
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if self.ownership is not None:
            self.ownership.gather_weights()
        super().load_state_dict(state)

    def to_global(self, name: str, value: Tensor) -> Any:
        return sharded.from_local(self.parameters[name], value) if value.dim() else value

    def to_local(self, name: str, value: Tensor) -> Tensor:
        return value[sharded.local_rows(self.parameters[name])] if value.dim() else value
