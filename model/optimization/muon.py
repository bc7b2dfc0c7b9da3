"""Muon: momentum with orthogonalized updates, which change a matrix equally in all directions (Jordan 2024)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..distributed import sharded
from .schedule import OptimizerConfig


class Muon:
    """Updates hidden matrices in place. Parameters of one shape are stacked, so that each product is batched.

    `row_counts` lists the rows of each matrix in a parameter that holds several (queries, keys and values); each is
    orthogonalized on its own. `scales` multiply the learning rate, by parameter. Under FSDP each rank keeps its rows of
    the momentum. For each parameter all ranks compute the whole update, as with DDP, one parameter after another, and
    then apply their rows.
    """

    def __init__(
        self, parameters: dict[str, nn.Parameter], config: OptimizerConfig, *, row_counts: dict[str, list[int]],
        dtype: torch.dtype, scales: Mapping[str, float],
    ) -> None:  # fmt: skip
        self.config, self.dtype, self.row_counts, self.scales = config, dtype, row_counts, scales
        self.momenta = {name: torch.zeros_like(sharded.to_local(p)) for name, p in parameters.items()}
        groups: defaultdict[object, list[tuple[str, nn.Parameter]]] = defaultdict(list)
        for name, p in parameters.items():
            alike = name if sharded.is_sharded(p) else (p.shape, scales[name], *row_counts.get(name, ()))
            groups[alike].append((name, p))
        self.groups = list(groups.values())

    @torch.no_grad()
    def step(self, multiplier: float, *, divisor: Tensor, skip: Tensor) -> None:
        """Updates with gradients / divisor at `multiplier` times the peak learning rate; does nothing if skip is true.

        divisor and skip are tensors ().
        """
        config = self.config
        active = 1 - skip.float()  # 0 if skip is true: a factor, since an `if` would wait for the device
        for group in self.groups:
            lr = multiplier * config.learning_rate * self.scales[group[0][0]]
            directions = []
            for name, p in group:
                gradient = torch.zeros_like(p) if p.grad is None else p.grad
                gradient = (sharded.to_local(gradient) / divisor).masked_fill_(skip, 0.0)
                momentum = self.momenta[name].lerp_(gradient, active * (1 - config.momentum))
                direction = gradient.lerp_(momentum, config.momentum).to(self.dtype)  # Nesterov momentum
                directions.append(sharded.full_tensor(sharded.from_local(p, direction)))
            stack = torch.stack(directions)  # (N, rows, columns)
            matrices = stack.split(self.row_counts.get(group[0][0], stack.shape[1]), dim=1)
            update = torch.cat([orthogonal_update(matrix) for matrix in matrices], dim=1) * (-lr * active)
            for (_, p), change in zip(group, update, strict=True):
                weight = sharded.to_local(p).mul_(1 - lr * config.weight_decay * active)
                weight.add_(change[sharded.local_rows(p)])


def orthogonal_update(g: Tensor) -> Tensor:
    """Returns g (N, rows, columns) orthogonalized, with entries of RMS 1 / sqrt(columns) in every shape."""
    rows, columns = g.shape[1:]
    return newton_schulz(g) * max(1.0, rows / columns) ** 0.5  # entries of a tall orthogonal matrix: 1 / sqrt(rows)


def newton_schulz(g: Tensor) -> Tensor:
    """Approximates the nearest (semi-)orthogonal matrices to g (N, rows, columns), in float32, by five iterations.

    The iterations use the dtype of g. The quintic coefficients (Jordan 2024) trade accuracy for speed: most singular
    values end up between 0.7 and 1.2; very small ones stay smaller.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[1] > g.shape[2]
    x = g.mT if tall else g  # a wide matrix has the smaller Gram matrix
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)  # Frobenius norm 1 bounds all singular values by 1
    for _ in range(5):  # x <- a x + (b G + c G^2) x, with the Gram matrix G = x x^T
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()
