"""A compiled step on a CPU, called without torch.compile's own part in each call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .cache import KVCache


class Graph:
    """A backend for torch.compile: inductor's, which notes what its graph was last called with, and gave."""

    def __init__(self) -> None:
        self.call: Callable[..., Sequence[Any]] | None = None
        self.inputs: tuple[Any, ...] = ()
        self.outputs: Sequence[Any] = ()

    def __call__(self, module: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Sequence[Any]]:
        from torch._inductor.compile_fx import compile_fx

        compiled: Any = compile_fx(module, examples, config_patches={"size_asserts": False})

        def call(*inputs: Any) -> Sequence[Any]:
            self.call, self.inputs, self.outputs = compiled, inputs, compiled(*inputs)
            return self.outputs

        return call

    def forget(self) -> None:
        """Lets go of what it noted: a graph outlives what it was called with."""
        self.call, self.inputs, self.outputs = None, (), ()


class Straight:
    """decode.py's `step` for one cache: the first token goes through torch.compile, the others straight to the graph.

    torch.compile collects the graph's inputs anew at each call, all weights and all of the cache, which takes a tenth
    of a small model's step. They stay what they are but for the token's id and the slots to look at.
    """

    def __init__(self, compiled: Callable[..., Tensor], graph: Graph) -> None:
        self.compiled, self.graph = compiled, graph
        self.inputs: list[Any] | None = None

    def __call__(self, model: torch.nn.Module, cache: KVCache, ids: Tensor, compute: Any) -> Tensor:
        if self.inputs is None:
            logits = self.compiled(model, cache, ids, compute)
            self._remember(cache, ids, logits)
            return logits
        inputs = self.inputs
        inputs[self.id_place] = ids
        inputs[self.slots_place], inputs[self.count_place] = cache.slots, len(cache.slots)
        return self.call(*inputs)[self.logits_place]

    def _remember(self, cache: KVCache, ids: Tensor, logits: Tensor) -> None:
        graph = self.graph
        assert graph.call is not None
        self.call = graph.call
        self.id_place = only(value is ids for value in graph.inputs)
        self.slots_place = only(value is cache.slots for value in graph.inputs)
        self.count_place = only(isinstance(value, int) for value in graph.inputs)
        self.logits_place = only(value is logits for value in graph.outputs)
        self.inputs = list(graph.inputs)
        graph.forget()


def only(matches: Any) -> int:
    [place] = [place for place, match in enumerate(matches) if match]
    return place
