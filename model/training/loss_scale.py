"""Loss scaling for float16: keeps small gradients from underflowing to zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


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
