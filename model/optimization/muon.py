"""Muon: momentum with orthogonalised updates, which change a matrix equally in all directions (Jordan 2024)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .schedule import OptimizerConfig


class Muon:
    """Updates hidden matrices in place. Matrices of one shape are stacked, so that each product is batched.

    `row_counts` lists the rows of each matrix in a parameter that stacks several (queries, keys and values); each is
    orthogonalised on its own.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        config: OptimizerConfig,
        *,
        row_counts: dict[str, list[int]],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.dtype = config, dtype
        by_shape: dict[tuple[int, int], list[tuple[str, nn.Parameter, slice]]] = {}
        for name, p in parameters.items():
            for piece, rows in iter_matrices(name, p, row_counts):
                by_shape.setdefault((rows.stop - rows.start, p.shape[1]), []).append((piece, p, rows))
        # Per shape: the matrices, and their momentum (N, rows, columns).
        self.stacks = [
            (group, torch.zeros(len(group), *shape, device=group[0][1].device)) for shape, group in by_shape.items()
        ]

    @torch.no_grad()
    def step(self, multiplier: float, *, divisor: Tensor, skip: Tensor) -> None:
        """Updates with gradients / divisor at `multiplier` times the peak learning rate; does nothing if skip is true.

        divisor and skip are tensors ().
        """
        config, lr = self.config, multiplier * self.config.learning_rate
        active = 1 - skip.float()  # 0 if skip is true: a factor, since an `if` would wait for the device
        for group, momentum in self.stacks:
            gradient = torch.stack([gradient_of(p)[rows] for _, p, rows in group])  # (N, rows, columns)
            gradient = gradient.div_(divisor).masked_fill_(skip, 0.0)
            momentum.lerp_(gradient, active * (1 - config.momentum))
            update = newton_schulz(gradient.lerp_(momentum, config.momentum), self.dtype)  # Nesterov momentum
            rows, columns = update.shape[1:]
            # Entries get an RMS of 1 / sqrt(columns) in every shape; in a tall orthogonal matrix it is 1 / sqrt(rows).
            update *= -lr * max(1.0, rows / columns) ** 0.5 * active
            weights = [p.data[rows] for _, p, rows in group]
            for weight, change in zip(weights, update.unbind(), strict=True):
                weight.mul_(1 - lr * config.weight_decay * active).add_(change)

    def momenta(self) -> Iterator[tuple[str, Tensor]]:
        """Yields the name and the momentum (a view) of each matrix."""
        for group, momentum in self.stacks:
            for (name, *_), piece in zip(group, momentum, strict=True):
                yield name, piece


def newton_schulz(g: Tensor, dtype: torch.dtype) -> Tensor:
    """Approximates the nearest (semi-)orthogonal matrices to g (N, rows, columns) by five iterations in `dtype`.

    The quintic coefficients (Jordan 2024) trade accuracy for speed: most singular values end up between 0.7 and 1.2;
    very small ones stay smaller.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[1] > g.shape[2]
    x = (g.mT if tall else g).to(dtype)  # a wide matrix has the smaller Gram matrix
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)  # Frobenius norm 1 bounds all singular values by 1
    for _ in range(5):  # x <- a x + (b G + c G^2) x, with the Gram matrix G = x x^T
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


def gradient_of(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


def iter_matrices(name: str, p: Tensor, row_counts: dict[str, list[int]]) -> Iterator[tuple[str, slice]]:
    """Yields the name and rows of each matrix in a parameter; a single matrix keeps the parameter's name."""
    start = 0
    for count in row_counts.get(name, [len(p)]):
        yield name if count == len(p) else f"{name}.{start}-{start + count}", slice(start, start + count)
        start += count
