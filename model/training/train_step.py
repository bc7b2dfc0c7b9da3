"""One update of the weights: gradient, gradient norm, skip or not, clipping, optimizer step."""

from __future__ import annotations

import torch
from torch import Tensor

from ..device import DTYPES, Compute
from ..distributed import parallel
from ..gpt import GPT
from ..optimization.optimizer import Optimizer
from ..seeds import hash_seed
from .evaluate import Batch
from .microbatch import MicroBatches
from .settings import LoopConfig
from .skip_updates import LossScale, UpdateGuard


class TrainStep:
    """Makes one update per call. Create it after strategies.wrap(), when parameters have their final form."""

    def __init__(
        self, cfg: LoopConfig, model: GPT, micro_batches: MicroBatches, *, world: parallel.World, compute: Compute
    ) -> None:
        self.cfg, self.micro_batches, self.world = cfg, micro_batches, world
        newton_schulz_dtype = DTYPES[cfg.optimizer.newton_schulz_dtype]
        self.optimizer = Optimizer(model, cfg.optimizer, newton_schulz_dtype=newton_schulz_dtype)
        self.loss_scale = LossScale(compute.dtype, compute.device)
        self.guard = UpdateGuard(compute.device, spike_deviations=cfg.spike_deviations)

    def __call__(self, step: int, batch: Batch, *, n_targets: int, lr_multiplier: float) -> tuple[Tensor, Tensor]:
        """Updates the weights from this rank's rows of the batch of `step` (from 0).

        n_targets: targets that carry loss, over all ranks. Returns the summed loss of this rank's rows and the
        global gradient norm, both tensors ().
        """
        inputs, targets, documents = batch
        scale, grad_clip = self.loss_scale.scale, self.cfg.optimizer.grad_clip

        # Each loss is a sum, divided by the number of targets in the whole step. So the gradient does not depend on the
        # split into micro-batches or ranks. DDP and FSDP average over the ranks, hence the factor world.size.
        loss_weight = self.world.size / n_targets * scale
        seed = hash_seed(self.cfg.seed, step, self.world.rank)  # of dropout; a resumed run draws the same
        loss_sum = self.micro_batches.backward(inputs, targets, loss_weight=loss_weight, seed=seed, documents=documents)

        # `skip` stays a tensor: reading it would wait for the device.
        norm = self.optimizer.gradient_norm() / scale
        loss = global_mean_loss(loss_sum, n_targets) if self.cfg.spike_deviations else None
        skip = self.guard.check(norm, step, self.loss_scale, loss=loss)
        clip_divisor = (norm / grad_clip).clamp_min(1) if grad_clip else torch.ones_like(norm)
        self.optimizer.step(lr_multiplier, divisor=scale * clip_divisor, skip=skip)
        self.optimizer.zero_grad()
        self.loss_scale.update(norm)
        return loss_sum, norm


def global_mean_loss(loss_sum: Tensor, n_targets: int) -> Tensor:
    """Returns the mean loss of a step's batch, a tensor (). A collective: all ranks must call it."""
    return parallel.all_reduce_sum(loss_sum.clone()) / n_targets
