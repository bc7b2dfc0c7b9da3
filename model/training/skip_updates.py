"""Which updates are not made: those that are not finite, and on request those that stand out; the scale of float16."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .. import InputError


class LossScale:
    """Keeps float16 gradients within range: halves the scale after an overflow, doubles it after 2,000 good steps.

    For other number formats the scale is 1 and stays 1.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.active = dtype == torch.float16
        self.scale = torch.tensor(2.0**16 if self.active else 1.0, device=device)
        self.good_steps = torch.zeros((), device=device)

    def update(self, norm: Tensor) -> None:
        """After an update whose gradient had this norm (); a spike that was skipped is no overflow."""
        if not self.active:
            return
        overflow = ~torch.isfinite(norm)
        self.good_steps = torch.where(overflow, torch.zeros_like(self.good_steps), self.good_steps + 1)
        grow = self.good_steps >= 2000
        self.scale = torch.where(overflow, self.scale / 2, torch.where(grow, self.scale * 2, self.scale)).clamp_min(1)
        self.good_steps = torch.where(grow, torch.zeros_like(self.good_steps), self.good_steps)

    def state_dict(self) -> dict[str, Tensor]:
        return {"loss_scale.scale": self.scale, "loss_scale.good_steps": self.good_steps} if self.active else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if self.active and "loss_scale.scale" in state:
            self.scale.copy_(state["loss_scale.scale"])
            self.good_steps.copy_(state["loss_scale.good_steps"])


class Spikes:
    """Updates whose gradient norm or loss lies more than `deviations` standard deviations above its running mean.

    Mean and variance are over about the last 50 updates; nothing is judged before there were as many. A spike counts in
    them as if it lay at the border: so one leaves little trace, and a level that stays higher is soon the usual one.
    """

    MEMORY = 50

    def __init__(self, deviations: float, device: torch.device) -> None:
        self.deviations = deviations
        self.seen = torch.zeros((), device=device)
        self.mean = torch.zeros(2, device=device)  # of norm and loss
        self.variance = torch.zeros(2, device=device)

    def check(self, norm: Tensor, loss: Tensor) -> Tensor:
        """Whether this update is one, a boolean tensor (); takes it into the estimates."""
        now = torch.stack([norm, loss.to(norm.dtype)])
        known = self.seen >= self.MEMORY
        border = self.mean + self.deviations * self.variance.sqrt()
        spike = known & (now > border).any()
        finite = torch.isfinite(now).all()
        weight = torch.where(finite, 1 / (self.seen + 1).clamp_max(self.MEMORY), torch.zeros_like(self.seen))
        now = torch.where(known, torch.minimum(now, border), now)
        difference = torch.where(finite, now - self.mean, torch.zeros_like(now))
        self.mean = self.mean + weight * difference
        self.variance = (1 - weight) * (self.variance + weight * difference.square())
        self.seen = self.seen + finite
        return spike & finite


BAD, OVERFLOW, SPIKE = 1, 2, 3  # what may be found of an update; 0: nothing


class SkipGuard:
    """Decides on the device, alike on every rank, which updates to skip; the host need not wait, and looks later.

    Gradients that are not finite never reach the weights. With float16 an overflow is expected now and then and only
    lowers the loss scale; it counts as an overflow as long as there is a scale to lower. Spikes (see there) are looked
    for where `spike_deviations` is above 0.
    """

    UNSEEN = 1000  # findings that may wait for the host

    def __init__(self, device: torch.device, *, spike_deviations: float = 0.0) -> None:
        self.device = device
        self.waiting: list[tuple[int, Tensor]] = []  # step and finding () of the updates since the host last looked
        self.in_row = 0  # bad updates, up to the last that was looked at
        self.counts = {BAD: 0, OVERFLOW: 0, SPIKE: 0}
        self.last = {BAD: 0, OVERFLOW: 0, SPIKE: 0}  # the step of the last one
        self.reported = dict(self.counts)
        self.spikes = Spikes(spike_deviations, device) if spike_deviations else None

    def check(self, norm: Tensor, step: int, scale: LossScale, *, loss: Tensor | None = None) -> Tensor:
        """Whether to skip the update whose gradient has this norm (), a boolean tensor ().

        `loss` () is that of the batch; it is needed only where spikes are looked for.
        """
        skip = finding = ~(norm < math.inf)  # nor is NaN
        if scale.active:
            finding = torch.where(skip & (scale.scale > 1), OVERFLOW, finding)
        if self.spikes is not None and loss is not None:
            spike = self.spikes.check(norm, loss)
            skip, finding = skip | spike, torch.where(spike, SPIKE, finding)
        self.waiting.append((step, finding))
        if len(self.waiting) == self.UNSEEN:
            self.look()
        return skip

    def look(self) -> None:
        """Takes the findings since the last look to the host, which waits for them, and counts them."""
        if not self.waiting:
            return
        findings = torch.stack([finding for _, finding in self.waiting]).tolist()
        for (step, _), finding in zip(self.waiting, map(int, findings), strict=True):
            if finding:
                self.counts[finding] += 1
                self.last[finding] = step
            if finding == BAD:
                self.in_row += 1
            elif finding != OVERFLOW:
                self.in_row = 0
        self.waiting = []

    def report(self, *, limit: int, describe: Callable[[int], str]) -> list[str]:
        """Warnings about updates that were skipped since the last report.

        describe(step) names the batch. Raises InputError after `limit` bad updates in a row.
        """
        self.look()

        def where(finding: int) -> str:
            step = self.last[finding]
            return f"the last at step {step + 1}: {describe(step)}"

        if self.in_row >= limit:
            raise InputError(
                f"{self.in_row} updates in a row had no finite gradient, {where(BAD)}; lower optimizer.learning_rate"
            )
        found = []
        for finding, what in ((BAD, "gradient is not finite"), (SPIKE, "gradient or loss stands out")):
            if new := self.counts[finding] - self.reported[finding]:
                found.append(f"warning: skipped {new} update(s) whose {what}, {where(finding)}")
        self.reported = dict(self.counts)
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """What the next decision depends on."""
        if self.spikes is None:
            return {}
        return {f"spikes.{name}": getattr(self.spikes, name) for name in ("seen", "mean", "variance")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in self.state_dict().keys() & state.keys():
            setattr(self.spikes, name.removeprefix("spikes."), state[name].to(self.device))
