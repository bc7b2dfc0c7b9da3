"""Weight averaging: the mean of recent weights, which usually scores better than the last weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from .. import InputError
from ..distributed import sharded

KINDS = ("none", "ema", "tail")
RAW = "raw."  # prefix of the live (not averaged) weights in a saved state


class WeightAverage:
    """Keeps a mean of the weights. Training continues from the live weights; the mean is evaluated and saved.

    kind, one of KINDS:
    - none: no mean.
    - tail: the plain mean over the last `fraction` of the steps (Izmailov et al. 2018).
    - ema: mean += (w - mean) * max(1 - decay, 1 / n) after n steps (Polyak and Juditsky 1992). About the last
      1 / (1 - decay) steps count; the 1 / n keeps the initial weights from dominating early on.
    """

    def __init__(self, model: nn.Module, kind: str, *, decay: float = 0.99, fraction: float = 0.1) -> None:
        self.model, self.kind, self.decay, self.fraction = model, kind, decay, fraction
        self.parameters = dict(model.named_parameters())
        self.mean: list[Tensor] = []  # empty before the first averaged step
        self.count = 0  # steps in the mean

    @torch.no_grad()
    def update(self, step: int, steps: int) -> None:
        """Adds the weights after `step` of `steps` updates to the mean."""
        if self.kind == "none":
            return
        if self.kind == "tail" and step <= steps - max(1, round(self.fraction * steps)):
            self.mean, self.count = [], 0  # also drops the tail of a run that was extended
            return
        weights = [sharded.to_local(p) for p in self.parameters.values()]
        self.count += 1
        if not self.mean:
            self.mean = [w.clone() for w in weights]
            return
        weight = 1 / self.count if self.kind == "tail" else max(1 - self.decay, 1 / self.count)
        for mean, new in zip(self.mean, weights, strict=True):
            mean.lerp_(new, weight)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the model the averaged weights for the body, and its live weights, bit for bit, afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        sharded.reshard(self.model)
        for p, mean in zip(self.parameters.values(), self.mean, strict=False):
            live = sharded.to_local(p)
            before = live.clone()
            live.copy_(mean)
            mean.copy_(before)

    def state_dict(self) -> dict[str, Tensor]:
        """The live weights and the count. Call it inside applied(), while the model itself holds the mean."""
        if not self.mean:
            return {}
        pairs = zip(self.parameters.items(), self.mean, strict=True)
        raw = {RAW + name: sharded.from_local(p, mean) for (name, p), mean in pairs}
        return raw | {"average.count": torch.tensor(self.count)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes the mean from the model, which holds the saved weights, and restores the live weights from `state`.

        Raises InputError if live weights are missing.
        """
        if "average.count" not in state:
            return
        if missing := [name for name in self.parameters if RAW + name not in state]:
            raise InputError(f"the saved training state lacks the live weights of {missing[0]!r}")
        if self.kind != "none":
            self.mean = [sharded.to_local(p).clone() for p in self.parameters.values()]
            self.count = int(state["average.count"])
        for name, p in self.parameters.items():
            sharded.to_local(p).copy_(state[RAW + name][sharded.local_rows(p)])
