"""The gradient as one compiled graph: the same numbers as autograd's, whatever the model, and past torch.compile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.device import Compute, missing_for_compile
from model.evaluate import IGNORE
from model.fused import normal
from model.gradients import OneGraph
from model.microbatch import MicroBatches
from model.parallel import World
from model.recorded import Graph, Recorded

from .families import FAMILIES, make

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(bool(missing_for_compile(CPU)), reason="needs a C++ compiler")


def batch(seed: int, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, targets of which some carry no loss, and starts of two documents a row."""
    ids = torch.randint(90, (rows, 25), generator=torch.Generator().manual_seed(seed))
    targets = ids[:, 1:].clone()
    targets[0, :5] = IGNORE
    return ids[:, :-1], targets, (torch.arange(24) >= 9 + seed).long().mul(9 + seed).expand(rows, 24).contiguous()


def gradients(model, graph, arrays, *, rows: int, dtype=torch.float32) -> tuple[float, list[torch.Tensor]]:
    compute = Compute(CPU, dtype, compile=graph is not None)
    micro = MicroBatches(model, rows, compute=compute, world=World(), graph=graph)
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
    [
        ("modern", True, {}),
        ("ngram", False, {}),
        ("gpt2", False, FEW),
        *(pytest.param(family, False, {}, marks=pytest.mark.slow) for family in FAMILIES),
    ],
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
    [held] = graph.recorded.values()
    assert held is not None and {id(v) for v in held.inputs if v is not None} <= {id(b) for b in model.buffers()}
    assert not graph.graph.inputs and not graph.graph.outputs  # nothing of the first batch is kept


def test_a_graph_is_recorded_only_where_all_that_changes_is_found_once():
    graph = Graph()
    x, y, weight = torch.ones(2), torch.ones(2), torch.full((2,), 3.0)
    graph.call, graph.inputs = lambda x, n, y, w: (x * n + y * w,), (x, 5, y, weight)
    graph.outputs = graph.call(*graph.inputs)
    found = Recorded.of(graph, [y, x, 5], graph.outputs, constants=[weight])
    assert found is not None and found([torch.zeros(2), torch.ones(2), 7])[0].tolist() == [7, 7]
    assert Recorded.of(graph, [y, x, 5], graph.outputs) is not None
    assert Recorded.of(graph, [y, x], graph.outputs) is None  # 5 may change
    assert Recorded.of(graph, [y, 5], graph.outputs, constants=[weight]) is None  # x too
    assert Recorded.of(graph, [y, x, 6], graph.outputs) is None
    assert Recorded.of(graph, [torch.ones(2)], graph.outputs) is None
    assert Recorded.of(graph, [x], [torch.ones(2)]) is None
    graph.inputs = (x, 5, x, weight)
    assert Recorded.of(graph, [x], graph.outputs) is None


def test_a_graph_that_cannot_be_recorded_goes_on_through_torch_compile(monkeypatch):
    monkeypatch.setattr(Recorded, "of", lambda *args, **kwargs: None)
    model = make("modern", n_layer=1).train()
    graph = OneGraph(model, Compute(CPU, torch.float32, compile=True))
    for seed in (1, 2):
        loss, wanted = gradients(model, None, (*batch(seed)[:2], None), rows=4)
        own_loss, own = gradients(model, graph, (*batch(seed)[:2], None), rows=4)
        assert own_loss == pytest.approx(loss, rel=1e-6)
        for found, known in zip(own, wanted, strict=True):
            torch.testing.assert_close(found, known, rtol=1e-4, atol=2e-6)
    assert list(graph.recorded.values()) == [None]


def test_a_second_model_is_compiled_too_and_shapes_beyond_the_limit_go_by_autograd(monkeypatch):
    monkeypatch.setattr(OneGraph, "KINDS", 1)
    with torch._dynamo.config.patch(recompile_limit=1):
        for seed in (1, 2):
            model = make("modern", n_layer=1, seed=seed).train()
            graph = OneGraph(model, Compute(CPU, torch.float32, compile=True))
            for rows in (4, 3):
                arrays = (*(array[:rows] for array in batch(1, rows=rows)[:2]), None)
                loss, wanted = gradients(model, None, arrays, rows=rows)
                own_loss, own = gradients(model, graph, arrays, rows=rows)
                assert own_loss == pytest.approx(loss, rel=1e-6)
                for found, known in zip(own, wanted, strict=True):
                    torch.testing.assert_close(found, known, rtol=1e-4, atol=2e-6)
            assert [recorded is not None for recorded in graph.recorded.values()] == [True]


def test_dropout_follows_the_seed_in_one_graph_too():
    model = make("modern", n_layer=1, dropout=0.3).train()
    graph = OneGraph(model, Compute(CPU, torch.float32, compile=True))
    micro = MicroBatches(model, 4, compute=graph.compute, world=World(), graph=graph)
    inputs, targets, _ = batch(1)
    losses = [micro.backward(inputs, targets, weight=1.0, seed=seed).item() for seed in (1, 1, 2, 1, 2)]
    assert losses[0] == losses[1] == losses[3] != losses[2] == losses[4]


def test_the_normal_distribution_is_erf_s():
    x = torch.linspace(-12, 12, 100_001)
    share, density = normal(x)
    exact = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1)
    torch.testing.assert_close(share.double(), exact.cdf(x.double()), rtol=0, atol=3e-7)
    torch.testing.assert_close(density.double(), exact.log_prob(x.double()).exp(), rtol=1e-5, atol=1e-9)


SHORT_OF_MEMORY = """
import resource, torch
from model.device import Compute
from model.gradients import OneGraph
from model.microbatch import MicroBatches
from model.parallel import World
from tests.families import make
torch.set_num_threads(1)
OneGraph.KINDS = 1  # the smaller parts go by autograd, so that nothing is compiled within the limit
model, compute = make("modern", n_layer=1).train(), Compute(torch.device("cpu"), torch.float32, compile=True)
graph = OneGraph(model, compute)
micro = MicroBatches(model, 2048, compute=compute, world=World(), graph=graph)
ids = torch.randint(90, (2048, 49))
def backward():
    loss = micro.backward(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), weight=1e-5, seed=1).item()
    gradient = model.embed.weight.grad.clone()
    model.zero_grad(set_to_none=True)
    return loss, gradient
loss, gradient = backward()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)
again, other = backward()
torch.testing.assert_close(other, gradient, rtol=1e-3, atol=1e-5)
assert abs(again - loss) < 1e-5 * loss
print("rows", micro.rows)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts memory as Linux does")
def test_out_of_memory_within_the_graph_makes_smaller_parts():
    ran = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.split()[-1]) < 2048
