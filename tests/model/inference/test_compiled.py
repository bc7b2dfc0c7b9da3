"""A compiled decoding step equals the plain one, and is never reused for another model or shape."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from model.device import Compute
from model.inference.decode import Decoder
from model.inference.quantize import prepare_for_decoding
from tests.families import FAMILIES, make


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def assert_compiled_equals_eager(model, compute, atol):
    model = prepare_for_decoding(copy.deepcopy(model), compute)
    eager = Decoder(model, rows=1, capacity=300, compute=dataclasses.replace(compute, compile=False))
    compiled = Decoder(model, rows=1, capacity=300, compute=compute)
    text = torch.randint(0, 96, (200,), generator=torch.Generator().manual_seed(2))
    for decoder in (compiled, eager):
        decoder.prefill([text[:10].tolist()])
    for position, token in enumerate(text[10:]):  # past two steps of the window
        a, b = compiled.step(token[None]), eager.step(token[None])
        assert (a - b).abs().max() < atol, position
    compiled.cache.length.fill_(30)
    eager.cache.length.fill_(30)
    torch.testing.assert_close(compiled.extend(text[None, :5]), eager.extend(text[None, :5]), atol=atol, rtol=0)
    torch.testing.assert_close(compiled.step(text[:1]), eager.step(text[:1]), atol=atol, rtol=0)
    assert compiled.cache.length.tolist() == eager.cache.length.tolist() == [36]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype, atol", [("float32", 1e-4), ("bfloat16", 0.5), ("int8", 0.5)])
def test_a_compiled_step_equals_an_eager_one(family, dtype, atol):
    model = make(family, context=320, n_layer=2)
    assert_compiled_equals_eager(model, Compute.for_decoding("cpu", dtype=dtype, compile=True), atol)


@pytest.mark.slow
def test_each_model_and_each_size_gets_its_own_compiled_step():
    compute = Compute.for_decoding("cpu", compile=True)
    for model in (make("gpt2"), make("llama"), make("gpt2", seed=1, n_layer=1)):
        for capacity in (48, 20):
            decoder = Decoder(model, rows=1, capacity=capacity, compute=compute)
            decoder.prefill([[1, 2, 3]])
            torch.testing.assert_close(
                decoder.step(torch.tensor([4]))[0], model(torch.tensor([[1, 2, 3, 4]]))[0, -1], atol=1e-4, rtol=0
            )
