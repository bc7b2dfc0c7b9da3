"""The gradient as one compiled graph: the same numbers as autograd's, whatever the model, and past torch.compile."""

from __future__ import annotations

import pytest
import torch

from model.device import Compute, missing_for_compile
from model.evaluate import IGNORE, summed_loss
from model.fused import normal
from model.gradients import OneGraph
from model.microbatch import MicroBatches
from model.parallel import World
from tests.families import FAMILIES, make

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(bool(missing_for_compile(CPU)), reason="needs a C++ compiler")


def batch(seed: int, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, targets of which some carry no loss, and starts of two documents a row."""
    ids = torch.randint(90, (rows, 25), generator=torch.Generator().manual_seed(seed))
    targets = ids[:, 1:].clone()
    targets[0, :5] = IGNORE
    return ids[:, :-1], targets, (torch.arange(24) >= 9 + seed).long().mul(9 + seed).expand(rows, 24).contiguous()


def gradients(model, graph, arrays, *, rows: int, dtype=torch.float32) -> tuple[float, list[torch.Tensor]]:
    compute = Compute(CPU, dtype, compile=graph is not None)
    micro = MicroBatches(model, rows, loss=summed_loss, compute=compute, world=World(), graph=graph)
    loss = micro.backward(*arrays[:2], weight=torch.tensor(1 / 96), seed=5, starts=arrays[2])
    found = [p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return loss.item(), found


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch._dynamo.reset()


FEW = {"activation": "gelu_exact", "bias": False}  # nanoGPT's: products and GELU with gradients of their own


@pytest.mark.parametrize(
    ("family", "confined", "changes"),
    [*((family, False, {}) for family in FAMILIES), ("modern", True, {}), ("gpt2", False, FEW)],
)
def test_one_graph_gives_autograds_gradient(family, confined, changes):
    model = make(family, n_layer=1, **changes).train()
    graph = OneGraph(model, Compute(CPU, torch.float32, compile=True))
    parts = (4, 2) if confined else (4,)  # the gradients of two parts add up
    for seed in (1, 2, 3):  # the first goes through torch.compile, the others straight
        arrays = batch(seed)
        arrays = arrays if confined else (*arrays[:2], None)
        loss, wanted = gradients(model, None, arrays, rows=4)
        for rows in parts:
            own_loss, own = gradients(model, graph, arrays, rows=rows)
            assert own_loss == pytest.approx(loss, rel=1e-6)
            for found, known in zip(own, wanted, strict=True):
                assert found.stride() == known.stride()
                torch.testing.assert_close(found, known, rtol=1e-4, atol=2e-6)
        with torch.no_grad():  # weights that change are seen
            next(iter(model.parameters())).mul_(0.9)
    assert len(graph.recorded) == len(parts) and all(graph.recorded.values())


def test_a_recorded_graph_is_called_past_torch_compile(monkeypatch):
    model = make("modern", n_layer=1).train()
    graph = OneGraph(model, Compute(CPU, torch.bfloat16, compile=True))
    first = gradients(model, graph, (*batch(1)[:2], None), rows=4, dtype=torch.bfloat16)
    monkeypatch.setattr(graph, "compiled", None)
    again = gradients(model, graph, (*batch(1)[:2], None), rows=4, dtype=torch.bfloat16)
    assert again[0] == first[0] and all(map(torch.equal, first[1], again[1]))
    held = graph.recorded[((4, 24), True)]
    assert held is not None and not any(tuple(value.shape) == (4, 24) for value in held.inputs if value is not None)


def test_dropout_follows_the_seed_in_one_graph_too():
    model = make("modern", n_layer=1, dropout=0.3).train()
    graph = OneGraph(model, Compute(CPU, torch.float32, compile=True))
    micro = MicroBatches(model, 4, loss=summed_loss, compute=graph.compute, world=World(), graph=graph)
    inputs, targets, _ = batch(1)
    losses = [micro.backward(inputs, targets, weight=1.0, seed=seed).item() for seed in (1, 1, 2, 1, 2)]
    assert losses[0] == losses[1] == losses[3] != losses[2] == losses[4]


def test_the_normal_distribution_is_erf_s():
    x = torch.linspace(-12, 12, 100_001)
    share, density = normal(x)
    exact = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1)
    torch.testing.assert_close(share.double(), exact.cdf(x.double()), rtol=0, atol=3e-7)
    torch.testing.assert_close(density.double(), exact.log_prob(x.double()).exp(), rtol=1e-5, atol=1e-9)
