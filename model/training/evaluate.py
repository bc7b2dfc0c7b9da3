"""The loss over a whole evaluation split, exact on any number of ranks; what training and evaluating ask of data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..device import Compute
from ..distributed import parallel, sharded
from ..loss import IGNORE


class EvaluationData(Protocol):
    """Rows to score: every target once, rows past the end ignored, so that all ranks do equally many forwards."""

    n_bytes: int  # of the text of all targets

    def __len__(self) -> int: ...

    def batch(self, start: int, stop: int) -> Any: ...  # (inputs, targets), each (stop - start, T)


class TrainingData(Protocol):
    """Batches as a pure function of (seed, step): a resumed run, or one on more ranks, sees the same."""

    batch_size: int
    context: int
    document_mask: bool  # attention stays within a document: batches have a third array, of where each begins

    def batch(self, step: int, rows: slice) -> Any: ...  # (inputs, targets), this rank's rows of the global batch

    def supervised_tokens(self, step: int) -> int: ...  # targets that carry loss, in the whole global batch

    def epochs(self, step: int) -> dict[str, float]: ...  # how often each part was seen after so many steps, by name

    def describe(self, step: int) -> str: ...  # where the batch comes from, for error messages


@dataclass(frozen=True)
class Score:
    loss: float  # nats per token
    bits_per_byte: float  # bits of all targets, end tokens included, over the bytes of their text
    tokens: int


def to_device(batch: Any, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """A batch of numpy arrays as tensors: inputs, targets and, where it has them, the starts of documents."""
    tensors = [torch.from_numpy(array) for array in batch if array is not None]
    if device.type == "cuda":
        tensors = [tensor.pin_memory() for tensor in tensors]
    inputs, targets, *starts = (tensor.to(device, non_blocking=device.type == "cuda") for tensor in tensors)
    return inputs, targets, starts[0] if starts else None


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: EvaluationData,
    *,
    compute: Compute,
    rows: int,
    world: parallel.World | None = None,
) -> Score:
    """Scores the whole split, dropout off, `rows` rows a forward on each rank. Changes nothing that training reads."""
    world = world or parallel.World()
    was_training = model.training
    model.eval()
    starts, tokens = range(world.rank * rows, len(data) + world.rank * rows, world.size * rows), 0
    # One tensor for all sums: small ones that stay, between large ones that go, would break the heap into pieces.
    losses = torch.zeros(len(starts), device=compute.device)
    for place, start in enumerate(starts):
        batch = data.batch(start, start + rows)
        inputs, targets, _ = to_device(batch, compute.device)
        with compute.autocast():
            losses[place] = model(inputs, targets=targets)
        tokens += int((batch[1] != IGNORE).sum())
    sharded.forget_gathered(model)  # the model's parameters would stay others than the optimizer's
    model.train(was_training)
    nats = losses.cpu().double().sum()
    totals = torch.stack([nats, torch.tensor(float(tokens), dtype=torch.float64)])
    if compute.device.type == "cuda":
        totals = totals.to(compute.device)
    nats_sum, count = parallel.all_reduce_sum(totals).tolist()
    return Score(nats_sum / max(1, count), nats_sum / math.log(2) / max(1, data.n_bytes), int(count))
