"""The loss of a batch and its gradient as one compiled graph, for CPUs: nothing between forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import parallel
from .device import Compute
from .gpt import GPT
from .recorded import Graph, Recorded


class LossOf(nn.Module):
    """The summed loss of a model, as a module; of model.forward, which is the plain one where the model is compiled."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor, starts: Tensor | None) -> Tensor:
        return self.model.forward(inputs, starts=starts, targets=targets)


class OneGraph:
    """Computes the loss of a batch and all gradients in one compiled graph, called without torch.compile's own part.

    On a CPU a small model's step is a hundred short kernels. Autograd's engine between the two halves, and collecting
    all weights anew at each call, would take a seventh of it; and one graph fuses what two cannot.
    """

    KINDS = 8  # shapes of batches that are compiled for

    def __init__(self, model: GPT, compute: Compute) -> None:
        self.holder, self.compute = LossOf(model), compute
        self.parameters = dict(self.holder.named_parameters())
        self.graph = Graph()
        self.compiled = torch.compile(self._gradients, backend=self.graph, dynamic=False, fullgraph=True)
        self.recorded: dict[tuple, Recorded | None] = {}  # by the shape of the batch

    @staticmethod
    def suits(compute: Compute, world: parallel.World, *, checkpoint_activations: bool) -> bool:
        """Whether it may stand for autograd: DDP, FSDP and recomputing need that; GPUs run ahead of the host, and two
        graphs keep less between the forward and the backward pass.
        """
        return compute.compile and compute.device.type == "cpu" and world.size == 1 and not checkpoint_activations

    def takes(self, inputs: Tensor, starts: Tensor | None) -> bool:
        """Whether a batch of this shape is known, or worth compiling for."""
        return self._kind(inputs, starts) in self.recorded or len(self.recorded) < self.KINDS

    def __call__(self, inputs: Tensor, targets: Tensor, starts: Tensor | None, *, weight: Tensor) -> Tensor:
        """Adds to each parameter the gradient of weight () * the summed loss; returns that sum, a tensor ()."""
        *gradients, loss = self._call(inputs, targets, starts, weight)
        held = [p.grad for p in self.parameters.values() if p.grad is not None]
        if held:
            torch._foreach_add_(held, gradients)
        else:
            for p, gradient in zip(self.parameters.values(), gradients, strict=True):
                p.grad = gradient
        return loss

    def _call(self, inputs: Tensor, targets: Tensor, starts: Tensor | None, weight: Tensor) -> list[Tensor]:
        """The gradients and, behind them, the loss: straight from the graph where it is recorded."""
        changing = [*(p.detach() for p in self.parameters.values()), weight, inputs, targets]
        changing += [] if starts is None else [starts]
        kind = self._kind(inputs, starts)
        if recorded := self.recorded.get(kind):
            return recorded(changing)
        count = len(self.parameters)
        named = dict(zip(self.parameters, changing[:count], strict=True))
        with torch._dynamo.config.patch(recompile_limit=256):  # which counts the graphs of other models too
            gradients, loss = self.compiled(named, *changing[count:])
        results = [*gradients.values(), loss]
        if kind not in self.recorded:
            self.recorded[kind] = Recorded.of(self.graph, changing, results, constants=list(self.holder.buffers()))
        self.graph.forget()
        return results

    def _kind(self, inputs: Tensor, starts: Tensor | None) -> tuple:
        return inputs.shape, starts is None, self.holder.model.training

    def _gradients(
        self,
        parameters: dict[str, Tensor],
        weight: Tensor,
        inputs: Tensor,
        targets: Tensor,
        starts: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        def weighted(parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            with self.compute.autocast():
                loss = torch.func.functional_call(self.holder, parameters, (inputs, targets, starts))
            return loss * weight, loss.detach()

        gradients, loss = torch.func.grad(weighted, has_aux=True)(parameters)
        return {name: gradient.contiguous() for name, gradient in gradients.items()}, loss
