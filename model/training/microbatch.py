"""Gradient accumulation: the gradient of one step in micro-batches that fit into memory, and how large to make them."""

from __future__ import annotations

import functools
import time

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import InputError
from ..device import Compute
from ..distributed import parallel, strategies
from ..gpt import GPT
from ..planning import memory

USABLE = 0.92  # fraction of a GPU's memory to plan with; the rest is for fragmentation and other libraries


class MicroBatches:
    """Computes the gradient of a step, micro_batch_size sequences per forward, or fewer if they run out of memory."""

    def __init__(self, model: nn.Module, micro_batch_size: int, *, compute: Compute, world: parallel.World) -> None:
        self.model, self.micro_batch_size, self.compute, self.world = model, micro_batch_size, compute, world

    def backward(
        self, inputs: Tensor, targets: Tensor, *, loss_weight: Tensor | float, seed: int,
        documents: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Adds the gradient of loss_weight * (the summed loss) to each parameter. Returns the summed loss, a tensor ().

        inputs and targets are (B, T), documents (B, R), as the model takes them. `seed` is for dropout. On
        out-of-memory it retries the step with at most half the micro-batch; the batch and its gradient stay the same.
        Raises InputError if one sequence does not fit.
        """
        while True:
            torch.manual_seed(seed)
            try:
                return self.accumulate(inputs, targets, loss_weight, documents)
            except RuntimeError as error:
                if not memory.out_of_memory(error):
                    raise
            # Outside `except`: the error's traceback would keep the tensors alive.
            self._lower(len(inputs))
            self.model.zero_grad(set_to_none=True)
            memory.release(self.compute.device)

    def accumulate(
        self, inputs: Tensor, targets: Tensor, loss_weight: Tensor | float, documents: Tensor | None = None
    ) -> Tensor:
        loss_sum = torch.zeros((), device=inputs.device)
        for start in range(0, len(inputs), self.micro_batch_size):
            rows = slice(start, start + self.micro_batch_size)
            with strategies.no_sync(self.model, skip=rows.stop < len(inputs)):
                with self.compute.autocast():
                    some = None if documents is None else documents[rows]
                    loss = self.model(inputs[rows], documents=some, targets=targets[rows])
                (loss * loss_weight).backward()
            loss_sum += loss.detach()
        return loss_sum

    def _lower(self, per_rank_batch: int) -> None:
        smaller = [size for size in divisors(per_rank_batch) if size <= self.micro_batch_size // 2]
        if not smaller:
            advice = "set activation_checkpointing=true, a smaller model or a smaller model.context"
            raise InputError(f"out of memory with one sequence at a time; {advice}")
        if self.world.size > 1:  # the other ranks wait inside a collective that this rank cannot restart
            raise InputError(
                f"rank {self.world.rank}: out of memory with micro_batch={self.micro_batch_size}; set "
                f"micro_batch={smaller[-1]}, and resume=auto if the run had started"
            )
        self.micro_batch_size = smaller[-1]


def divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]


def recompute_activations(model: GPT) -> None:
    """Turns on activation checkpointing: each block keeps only its input and recomputes the rest in the backward pass.

    It costs a third more arithmetic and saves most of the memory (Chen et al. 2016). The gradient is the same,
    dropout included.
    """
    for block in model.blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def best_micro_batch_size(model: GPT, per_rank_batch: int, *, compute: Compute, document_mask: bool = False) -> int:
    """Returns the best number of sequences per forward on this device, a divisor of per_rank_batch.

    Tries 1, 2, 4... sequences of random ids before the model is compiled, as long as memory should suffice (activations
    grow in proportion). On a GPU: the largest that fits beside the optimizer state. On a CPU: the fastest, since a
    micro-batch that fits the caches can beat a larger one. Leaves the model unchanged and without gradients.
    """
    device = compute.device
    memory.reset_peak(device)
    start, room = memory.peak(device) or 0, memory.available(device)
    parameters = sum(p.numel() for p in model.parameters())
    gradients, moments = 4 * parameters, 8 * parameters  # float32; the optimizer's moments do not exist yet
    best, best_speed, tried, activations = 1, 0.0, 0, 0
    for size in divisors(per_rank_batch):
        if tried and (size < 2 * tried and size != per_rank_batch):
            continue
        if tried and room and gradients + moments + activations * size / tried > USABLE * room:
            break
        ids = torch.randint(model.config.vocab_size, (size, model.config.context), device=device)
        try:
            micro_batches = MicroBatches(model, size, compute=compute, world=parallel.World())
            speed = sequences_per_second(micro_batches, ids, ids.new_zeros(size, 1) if document_mask else None)
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
            best, best_speed = size, speed
        tried, activations = size, max(0, (memory.peak(device) or 0) - start - gradients)
    return best


def sequences_per_second(micro_batches: MicroBatches, ids: Tensor, documents: Tensor | None) -> float:
    """Speed of forward and backward on ids (B, T); the fastest of three attempts."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        micro_batches.accumulate(ids, ids, 1 / ids.numel(), documents)
        seconds.append(time.perf_counter() - began)
    return len(ids) / min(seconds)
