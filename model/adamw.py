"""AdamW on torch's fused kernel.

Not torch.optim.AdamW: making one imports torch's compiler, which takes a second and a half of a process.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

FUSED_ON = ("cpu", "cuda")  # elsewhere (MPS) the fused kernel ignores grad_scale and found_inf


@dataclass
class Group:
    """Parameters that share a weight decay."""

    parameters: list[nn.Parameter]
    weight_decay: float


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019); the state is torch's own, names and all.

    `state` holds of each parameter that was ever updated: step (), exp_avg and exp_avg_sq of its shape. All share one
    step, so that it is one tensor to count up.
    """

    def __init__(self, groups: list[Group], *, beta1: float, beta2: float, epsilon: float, fused: bool) -> None:
        self.groups = groups
        devices = [p.device for group in groups for p in group.parameters]
        device = devices[0] if fused and devices else "cpu"  # as torch has it
        self.steps = torch.zeros((), device=device)
        self.settings: dict[str, Any] = {"beta1": beta1, "beta2": beta2, "eps": epsilon, "maximize": False}
        self.fused = fused
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    @torch.no_grad()
    def step(self, rate: float, *, divisor: Tensor | None = None, skip: Tensor | None = None) -> None:
        """One update at the learning rate `rate`, of gradients divided by `divisor` (); none where `skip` () is 1.

        Both are for the fused kernel alone.
        """
        self.steps += 1
        for group in self.groups:
            moved: list[Tensor] = [p for p in group.parameters if p.grad is not None]
            if not moved:
                continue
            states = [self._state_of(p) for p in moved]
            means, squares = ([known[key] for known in states] for key in ("exp_avg", "exp_avg_sq"))
            grads: list[Any] = [p.grad for p in moved]
            settings = self.settings | {"lr": rate, "weight_decay": group.weight_decay, "amsgrad": False}
            if not self.fused:
                steps_before = [self.steps - 1 for _ in moved]
                adamw(moved, grads, means, squares, [], steps_before, **settings)
                continue
            scaling: dict[str, Any] = {"grad_scale": divisor, "found_inf": skip}
            torch._fused_adamw_(moved, grads, means, squares, [], [self.steps] * len(moved), **settings, **scaling)
        if skip is not None:
            self.steps -= skip

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        if not self.state[p]:
            self.state[p] = {"step": self.steps} | {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
        return self.state[p]

    def load(self, p: Tensor, key: str, value: Tensor) -> None:
        """Puts back one tensor of the state of a parameter."""
        self._state_of(p)[key].copy_(value)
