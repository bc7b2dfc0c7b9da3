"""What a model in another program's format comes to: a shape, weights under this project's names, and remarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..config import ModelConfig


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens that other programs ask for. None: the tokenizer has no such token."""

    end_id: int
    start_id: int | None = None
    pad_id: int | None = None


@dataclass(frozen=True)
class Source:
    """A model read from another program's format, its names and shapes checked."""

    config: ModelConfig
    # Under the names of the attributes in gpt.py, float32, with the padded rows of embedding and head. Each tensor is
    # computed when it is accessed, so that no second copy of the model is in memory.
    weights: Mapping[str, Tensor]
    notes: list[str]  # what a user should know, a line each
    architecture: str  # the other program's name for it


class LazyWeights(Mapping[str, Tensor]):
    """Weights by name; each is computed anew whenever it is accessed."""

    def __init__(self, compute: Mapping[str, Callable[[], Tensor]]) -> None:
        self.compute = compute

    def __getitem__(self, name: str) -> Tensor:
        return self.compute[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.compute)

    def __len__(self) -> int:
        return len(self.compute)


def canonical(config: ModelConfig) -> ModelConfig:
    """Returns an equal shape in which null stands for a number wherever it means that number."""
    return replace(
        config,
        n_kv_head=None if config.n_kv_head == config.n_head else config.n_kv_head,
        d_ff=None if config.d_ff == 4 * config.d_model else config.d_ff,
    )
