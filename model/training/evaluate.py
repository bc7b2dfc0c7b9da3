"""Evaluates a whole split, exactly on any number of ranks; samples a text; the interfaces of the data."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import InputError
from ..attention import document_table
from ..device import Compute
from ..distributed import parallel, sharded
from ..gpt import GPT
from ..inference.sampling import SamplingConfig
from ..inference.vocabulary import Tokenizer
from ..language_model import LanguageModel
from ..loss import IGNORE

Batch = tuple[Tensor, Tensor, Tensor | None]  # inputs and targets (B, T), documents (B, R)


class EvaluationData(Protocol):
    """Rows that contain every target once. Rows past the end are ignored, so all ranks run equally many forwards."""

    n_bytes: int | None  # of the text of all targets; None if the tokenizer cannot give that text back

    def __len__(self) -> int: ...

    def batch(self, start: int, stop: int) -> Any: ...  # arrays (inputs, targets), each (stop - start, T)


class TrainingData(Protocol):
    """Batches as a pure function of (seed, step): the same for a resumed run and for any number of ranks."""

    batch_size: int
    context: int  # tokens of the longest row
    document_mask: bool  # attention stays within a document: batches have document starts as a third array

    def batch(self, step: int, rows: slice) -> Any: ...  # arrays (inputs, targets[, doc_starts]): this rank's rows

    def supervised_tokens(self, step: int) -> int: ...  # targets that carry loss, in the whole global batch

    def epochs(self, step: int) -> dict[str, float]: ...  # epochs completed after `step` steps, by corpus

    def describe(self, step: int) -> str: ...  # where the batch comes from, for error messages


@dataclass(frozen=True)
class EvalResult:
    loss: float  # nats per token
    bits_per_byte: float | None  # bits of all targets, end tokens included, over the bytes of their text, if known
    tokens: int
    metrics: dict[str, float] = field(default_factory=dict)  # of a TaskEvaluation, each better the higher it is
    select: str = "loss"  # the figure by which evaluations are compared: loss, or the name of a metric

    @property
    def score(self) -> float:
        """That figure, negative if it is a metric: the lower, the better."""
        if self.select == "loss":
            return self.loss
        if self.select not in self.metrics:
            known = ", ".join(["loss", *self.metrics])
            raise InputError(f"select={self.select} is not among the figures of this run's evaluations: {known}")
        return -self.metrics[self.select]


class TaskEvaluation(Protocol):
    """Answers held-out examples at each evaluation of a run."""

    task: Any  # what each checkpoint keeps of it: save(directory) writes it

    def __call__(self, model: Any) -> dict[str, float]: ...  # metrics; all ranks call it


def to_device(batch: Any, device: torch.device) -> Batch:
    """Copies a batch of numpy arrays (inputs, targets[, doc_starts]) to the device.

    doc_starts become the document_table (B, R) that the model takes, or None if the batch has none.
    """
    inputs, targets, *doc_starts = (torch.from_numpy(array) for array in batch if array is not None)
    tensors = [inputs, targets, *(document_table(starts) for starts in doc_starts)]
    if device.type == "cuda":
        tensors = [tensor.pin_memory() for tensor in tensors]
    inputs, targets, *documents = (tensor.to(device, non_blocking=device.type == "cuda") for tensor in tensors)
    return inputs, targets, documents[0] if documents else None


@torch.no_grad()
def evaluate(
    model: nn.Module, data: EvaluationData, *, compute: Compute, batch_size: int, world: parallel.World | None = None,
    forwards: int | None = None, task: TaskEvaluation | None = None, select: str = "loss",
) -> EvalResult:  # fmt: skip
    """Scores a split without dropout, `batch_size` rows per forward on each rank. Does not affect training.

    forwards: number of forwards on each rank; all that the split needs by default. `task` adds its metrics.
    """
    world = world or parallel.World()
    was_training = model.training
    model.eval()
    offset, stride = world.rank * batch_size, world.size * batch_size
    starts, tokens = range(offset, len(data) + offset, stride)[:forwards], 0
    # One tensor for all sums: many small tensors, kept between large temporary ones, would fragment the heap.
    losses = torch.zeros(len(starts), device=compute.device)
    for index, start in enumerate(starts):
        batch = data.batch(start, start + batch_size)
        inputs, targets, _ = to_device(batch, compute.device)
        with compute.autocast():
            losses[index] = model(inputs, targets=targets)
        tokens += int((batch[1] != IGNORE).sum())
    sharded.reshard(model)  # else the model would keep parameters that the optimizer does not update
    model.train(was_training)
    nats = losses.cpu().double().sum()
    totals = torch.stack([nats, torch.tensor(float(tokens), dtype=torch.float64)])
    if compute.device.type == "cuda":
        totals = totals.to(compute.device)
    nats_sum, count = parallel.all_reduce_sum(totals).tolist()
    bits_per_byte = None if data.n_bytes is None else nats_sum / math.log(2) / max(1, data.n_bytes)
    metrics = {} if task is None else task(model)
    return EvalResult(nats_sum / max(1, count), bits_per_byte, int(count), metrics, select)


@contextlib.contextmanager
def answering(model: GPT, tokenizer: Tokenizer, compute: Compute) -> Iterator[LanguageModel]:
    """Within, a model in training is a language model: without dropout, its sharded parameters gathered.

    It runs eagerly even if training is compiled: a growing cache would cause recompilation. All ranks must enter it and
    make the same calls.
    """
    was_training = model.training
    model.eval()
    eager = torch.compiler.set_stance("force_eager") if compute.compile else contextlib.nullcontext()
    try:
        with sharded.unsharded(model), eager:
            yield LanguageModel(model, tokenizer, replace(compute, compile=False), Path())
    finally:
        model.train(was_training)


def sample_text(
    model: GPT, tokenizer: Tokenizer, prompt: str, *, compute: Compute, max_new_tokens: int = 64, seed: int = 1
) -> str:
    """Continues `prompt` at temperature 0.8. The seed is fixed, so that the texts of a run can be compared."""
    with answering(model, tokenizer, compute) as lm:
        sampling = SamplingConfig(temperature=0.8)
        return lm.generate([prompt], max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)[0].text
