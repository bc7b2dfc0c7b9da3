"""Micro-batches: the gradient of one step in parts that fit into memory, and how large a part is best."""

from __future__ import annotations

import functools
import time

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import InputError, memory
from ..device import Compute
from ..distributed import parallel
from ..gpt import GPT
from ..seeds import seed_generator

SPARE = 0.92  # of a GPU's memory may be planned with: the rest is fragmentation and other libraries'


class MicroBatches:
    """Computes the gradient of a step `rows` sequences at a time, fewer where they do not fit after all."""

    def __init__(
        self,
        model: nn.Module,
        rows: int,
        *,
        compute: Compute,
        world: parallel.World,
    ) -> None:
        self.model, self.rows, self.compute, self.world = model, rows, compute, world

    def backward(
        self, inputs: Tensor, targets: Tensor, *, weight: Tensor | float, seed: int, starts: Tensor | None = None
    ) -> Tensor:
        """Adds to each parameter the gradient of weight * (the sum of the loss); returns that sum, a tensor ().

        inputs, targets, starts: (B, T). `seed` is dropout's. Out of memory, it begins anew with at most half the rows a
        part: the batch and its gradient stay the same. Raises InputError where one row does not fit.
        """
        while True:
            seed_generator(seed, self.compute.device)
            try:
                return self.accumulate(inputs, targets, weight, starts)
            except RuntimeError as error:
                if not memory.out_of_memory(error):
                    raise
            # Outside of `except`, whose traceback would hold on to the tensors.
            self._halve(len(inputs))
            self.model.zero_grad(set_to_none=True)
            memory.release(self.compute.device)

    def accumulate(
        self, inputs: Tensor, targets: Tensor, weight: Tensor | float, starts: Tensor | None = None
    ) -> Tensor:
        loss_sum = torch.zeros((), device=inputs.device)
        for rows in (slice(start, start + self.rows) for start in range(0, len(inputs), self.rows)):
            part = None if starts is None else starts[rows]
            with parallel.no_sync(self.model, skip=rows.stop < len(inputs)):
                with self.compute.autocast():
                    loss = self.model(inputs[rows], doc_starts=part, targets=targets[rows])
                (loss * weight).backward()
            loss_sum += loss.detach()
        return loss_sum

    def _halve(self, share: int) -> None:
        smaller = [rows for rows in divisors(share) if rows <= self.rows // 2]
        if not smaller:
            raise InputError(
                "out of memory with one sequence at a time; set activation_checkpointing=true, a smaller model or a "
                "smaller model.context"
            )
        if self.world.size > 1:  # the others wait within a reduction, which this process cannot begin anew
            raise InputError(
                f"rank {self.world.rank}: out of memory with micro_batch={self.rows}; set micro_batch={smaller[-1]}, "
                "and resume=auto if the run had begun"
            )
        self.rows = smaller[-1]


def divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]


def recompute_activations(model: GPT) -> None:
    """Each block keeps its input alone for the backward pass, which computes the rest again (Chen et al. 2016).

    A third more arithmetic, a fraction of the memory; the gradient is the same, dropout included.
    """
    for block in model.blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def best_rows(model: GPT, share: int, *, compute: Compute, document_mask: bool = False) -> int:
    """The number of sequences a forward that suits this device: a divisor of `share`, a rank's part of the batch.

    Tries 1, 2, 4... with random ids, before the model is compiled, as far as memory will go (it grows in proportion).
    GPU: the largest that fits beside the optimizer's state. CPU: the fastest, for a part that fits the caches can beat
    a larger one. Leaves the model as it was, without gradients.
    """
    device = compute.device
    memory.reset_peak(device)
    start, room = memory.peak(device) or 0, memory.available(device)
    parameters = sum(p.numel() for p in model.parameters())
    gradients, moments = 4 * parameters, 8 * parameters  # float32; the optimizer's moments are not there yet
    best, best_speed, tried, activations = 1, 0.0, 0, 0
    for rows in divisors(share):
        if tried and (rows < 2 * tried and rows != share):
            continue
        if tried and room and gradients + moments + activations * rows / tried > SPARE * room:
            break
        ids = torch.randint(model.config.vocab_size, (rows, model.config.context), device=device)
        try:
            part = MicroBatches(model, rows, compute=compute, world=parallel.World())
            speed = speed_of(part, ids, starts=torch.zeros_like(ids) if document_mask else None)
        except RuntimeError as error:
            if memory.out_of_memory(error):
                break
            raise
        finally:
            model.zero_grad(set_to_none=True)
            memory.release(device)
        if device.type == "cpu" and speed < 0.9 * best_speed:
            break
        if device.type != "cpu" or speed > 1.02 * best_speed:
            best, best_speed = rows, speed
        tried, activations = rows, max(0, (memory.peak(device) or 0) - start - gradients)
    return best


def speed_of(part: MicroBatches, ids: Tensor, *, starts: Tensor | None = None) -> float:
    """Sequences a second, forward and backward; the fastest of three times."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        part.accumulate(ids, ids, 1 / ids.numel(), starts)
        seconds.append(time.perf_counter() - began)
    return len(ids) / min(seconds)
