"""Skips updates with non-finite gradients and, on request, loss or gradient spikes; loss scaling for float16."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .. import InputError

GOOD, NON_FINITE, OVERFLOW, SPIKE = 0, 1, 2, 3  # the status of an update


class LossScale:
    """Halves the scale after an overflow and doubles it after 2,000 good steps (Micikevicius et al. 2018).

    The scale stays 1 for all dtypes but float16. It is a tensor on the device, so that nothing waits for it.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.active = dtype == torch.float16
        self.scale = torch.tensor(2.0**16 if self.active else 1.0, device=device)
        self.good_steps = torch.zeros((), device=device)

    def update(self, norm: Tensor) -> None:
        """Adjusts the scale after an update whose gradient had this norm (). A skipped spike is not an overflow."""
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


class SpikeDetector:
    """Finds updates whose gradient norm or loss is more than `deviations` standard deviations above its running mean.

    Mean and variance cover about the last 50 updates; nothing is a spike before 50 updates were seen. A spike is
    clamped to the threshold before it enters the statistics, so one spike barely moves them while a lasting shift is
    absorbed.
    """

    MEMORY = 50

    def __init__(self, deviations: float, device: torch.device) -> None:
        self.deviations = deviations
        self.seen = torch.zeros((), device=device)
        self.mean = torch.zeros(2, device=device)  # of norm and loss
        self.variance = torch.zeros(2, device=device)

    def check(self, norm: Tensor, loss: Tensor) -> Tensor:
        """True if this update is a spike, a boolean tensor (). Also updates the statistics."""
        now = torch.stack([norm, loss.to(norm.dtype)])
        warm = self.seen >= self.MEMORY
        threshold = self.mean + self.deviations * self.variance.sqrt()
        spike = warm & (now > threshold).any()
        finite = torch.isfinite(now).all()
        weight = torch.where(finite, 1 / (self.seen + 1).clamp_max(self.MEMORY), torch.zeros_like(self.seen))
        now = torch.where(warm, torch.minimum(now, threshold), now)
        difference = torch.where(finite, now - self.mean, torch.zeros_like(now))
        self.mean = self.mean + weight * difference
        self.variance = (1 - weight) * (self.variance + weight * difference.square())
        self.seen = self.seen + finite
        return spike & finite


class UpdateGuard:
    """Decides on the device, identically on every rank, which updates to skip. The host reads the decisions later.

    Non-finite gradients never reach the weights. With float16 an occasional overflow is expected: it only lowers the
    loss scale, and it counts as an overflow as long as the scale can be lowered. With spike_deviations > 0 spikes are
    skipped too.
    """

    def __init__(self, device: torch.device, *, spike_deviations: float = 0.0) -> None:
        self.device = device
        self.pending: list[tuple[int, Tensor]] = []  # step and status () of the updates since the last sync_to_host()
        self.consecutive_bad = 0  # non-finite updates without a good one in between
        self.counts = {NON_FINITE: 0, OVERFLOW: 0, SPIKE: 0}  # since the last report
        self.last_step = {NON_FINITE: 0, OVERFLOW: 0, SPIKE: 0}
        self.spikes = SpikeDetector(spike_deviations, device) if spike_deviations else None

    def check(self, norm: Tensor, step: int, scale: LossScale, *, loss: Tensor | None = None) -> Tensor:
        """True if the update with this gradient norm () must be skipped, a boolean tensor ().

        `loss` () is the batch's mean loss; it is only needed to find spikes.
        """
        non_finite = ~torch.isfinite(norm)
        status = torch.where(non_finite, NON_FINITE, GOOD)
        if scale.active:
            status = torch.where(non_finite & (scale.scale > 1), OVERFLOW, status)
        if self.spikes is not None and loss is not None:
            status = torch.where(self.spikes.check(norm, loss), SPIKE, status)
        self.pending.append((step, status))
        return status != GOOD

    def sync_to_host(self) -> None:
        """Counts the pending statuses; this waits for the device."""
        if not self.pending:
            return
        statuses = torch.stack([status for _, status in self.pending]).tolist()
        for (step, _), status in zip(self.pending, statuses, strict=True):
            if status != GOOD:
                self.counts[status] += 1
                self.last_step[status] = step
            if status == NON_FINITE:
                self.consecutive_bad += 1
            elif status != OVERFLOW:
                self.consecutive_bad = 0
        self.pending = []

    def report(self, *, limit: int, describe: Callable[[int], str]) -> list[str]:
        """Returns a warning for each kind of update skipped since the last report.

        describe(step) names the batch. Raises InputError after `limit` non-finite updates in a row.
        """
        self.sync_to_host()

        def where(status: int) -> str:
            step = self.last_step[status]
            return f"the last at step {step + 1}: {describe(step)}"

        if self.consecutive_bad >= limit:
            raise InputError(
                f"{self.consecutive_bad} updates in a row had no finite gradient, {where(NON_FINITE)}; "
                "lower optimizer.learning_rate"
            )
        warnings = []
        for status, cause in ((NON_FINITE, "a non-finite gradient"), (SPIKE, "a spike in loss or gradient norm")):
            if count := self.counts[status]:
                warnings.append(f"warning: skipped {count} update(s) with {cause}, {where(status)}")
        self.counts = dict.fromkeys(self.counts, 0)
        return warnings

    def state_dict(self) -> dict[str, Tensor]:
        """The running statistics, which the next decision depends on."""
        if self.spikes is None:
            return {}
        return {f"spikes.{name}": getattr(self.spikes, name) for name in ("seen", "mean", "variance")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in self.state_dict().keys() & state.keys():
            setattr(self.spikes, name.removeprefix("spikes."), state[name].to(self.device))
