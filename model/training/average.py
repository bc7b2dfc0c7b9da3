"""Weight averaging: a mean over the path of the weights, which scores better than where the path ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from .. import InputError
from ..distributed import sharded

KINDS = ("none", "ema", "tail")
RAW = "raw."  # names the weights that training goes on from, in a saved state


class Average:
    """Keeps the mean beside the weights, which training goes on from. Until it begins, the weights are their own mean.

    kind, one of KINDS: none. tail: the plain mean over the last `fraction` of the steps (Izmailov et al. 2018). ema:
    mean += (w - mean) * max(1 - decay, 1 / n) after n steps (Polyak and Juditsky 1992 for why): the last
    1 / (1 - decay) steps count most, and the first weights not longer than others.
    """

    def __init__(self, model: nn.Module, kind: str, *, decay: float = 0.99, fraction: float = 0.1) -> None:
        self.model, self.kind, self.decay, self.fraction = model, kind, decay, fraction
        self.parameters = dict(model.named_parameters())
        self.mean: list[Tensor] = []
        self.count = 0  # steps in the mean

    @torch.no_grad()
    def update(self, step: int, steps: int) -> None:
        """Takes in the weights after `step` of `steps` updates."""
        if self.kind == "none":
            return
        if self.kind == "tail" and step <= steps - max(1, round(self.fraction * steps)):
            self.mean, self.count = [], 0  # a longer run's tail is another
            return
        weights = [sharded.to_local(p) for p in self.parameters.values()]
        self.count += 1
        if not self.mean:
            self.mean = [w.clone() for w in weights]
            return
        share = 1 / self.count if self.kind == "tail" else max(1 - self.decay, 1 / self.count)
        torch._foreach_lerp_(self.mean, weights, share)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside it the model has the mean's weights, after it the very bits that it had before."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        sharded.forget_gathered(self.model)
        for p, mean in zip(self.parameters.values(), self.mean, strict=False):
            own = sharded.to_local(p)
            held = own.clone()
            own.copy_(mean)
            mean.copy_(held)

    def state_dict(self) -> dict[str, Tensor]:
        """The raw weights and the count; to be called inside applied(), where the model itself holds the mean."""
        if not self.mean:
            return {}
        pairs = zip(self.parameters.items(), self.mean, strict=True)
        raw = {RAW + name: sharded.like(p, mean) for (name, p), mean in pairs}
        return raw | {"average.count": torch.tensor(self.count)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what `state` gave, into a model that holds the saved mean. InputError where weights are missing."""
        if "average.count" not in state:
            return
        if missing := [name for name in self.parameters if RAW + name not in state]:
            raise InputError(f"the saved training state lacks the weights {missing[0]!r} behind the average")
        if self.kind != "none":
            self.mean = [sharded.to_local(p).clone() for p in self.parameters.values()]
            self.count = int(state["average.count"])
        for name, p in self.parameters.items():
            sharded.to_local(p).copy_(state[RAW + name][sharded.rows_of(p)])
