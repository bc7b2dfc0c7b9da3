"""A compiled graph on a CPU, called again without torch.compile's own part in each call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


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


class Recorded:
    """A graph's last call, to be made again with other values of some inputs.

    torch.compile collects all inputs anew at each call, every weight among them, which takes a tenth of a small model's
    step. Most of them stay what they are.
    """

    def __init__(self, graph: Graph, places: list[int], results: list[int]) -> None:
        assert graph.call is not None
        self.call, self.inputs, self.places, self.results = graph.call, list(graph.inputs), places, results
        for place in places:
            self.inputs[place] = None

    @staticmethod
    def of(
        graph: Graph, changing: Sequence[Any], results: Sequence[Tensor], *, constants: Sequence[Tensor] | None = None
    ) -> Recorded | None:
        """changing: tensors and integers among its inputs; results: among its outputs. None where one of them is not
        there, or more than once, or where another input is none of the `constants` (by default any tensor may be one).
        """
        with contextlib.suppress(ValueError):
            places = [only(same(value, each) for value in graph.inputs) for each in changing]
            kept = [value for place, value in enumerate(graph.inputs) if place not in places]
            if constants is None:
                constants = [value for value in kept if isinstance(value, Tensor)]
            if all(any(value is each for each in constants) for value in kept):
                return Recorded(graph, places, [only(value is each for value in graph.outputs) for each in results])
        return None

    def __call__(self, changing: Sequence[Any]) -> list[Tensor]:
        inputs = self.inputs.copy()
        for place, value in zip(self.places, changing, strict=True):
            inputs[place] = value
        outputs = self.call(*inputs)
        return [outputs[place] for place in self.results]


def same(value: Any, other: Any) -> bool:
    return value == other if type(value) is type(other) is int else value is other


def only(matches: Any) -> int:
    [place] = [place for place, match in enumerate(matches) if match]
    return place
