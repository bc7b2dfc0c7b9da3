"""Quantized weights are close to float32 in every family, and the reported loss is correct."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from model import InputError
from model.device import Compute
from model.inference.kernels import DecodingLinear
from model.inference.quantize import FEW_ROWS, Int8Linear, compare_logits, prepare_for_decoding
from tests.families import FAMILIES, make

IDS = torch.randint(0, 90, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype, bound", [("bfloat16", 1e-2), ("int8", 3e-2)])
@torch.no_grad()
def test_a_quantized_model_is_close_to_the_exact_one(family, dtype, bound):
    exact = make(family, vocab_size=90)  # 38 rows of padding
    compute = Compute.for_decoding("cpu", dtype=dtype)
    quantized = prepare_for_decoding(copy.deepcopy(exact), compute)
    assert not any(isinstance(module, nn.Linear) for module in quantized.modules())
    assert torch.equal(quantized.embed.weight, exact.embed.weight)
    assert quantized(IDS).shape == (2, 40, 90)
    loss = compare_logits(exact(IDS), quantized(IDS))
    assert 0 < loss.divergence < bound and loss.positions == 80


@torch.no_grad()
def test_float32_keeps_its_weights_and_predictions():
    model = make("gpt2")
    expected, weight = model(IDS), model.blocks[0].mlp.up.weight
    assert prepare_for_decoding(model, Compute.for_decoding("cpu")) is model
    assert isinstance(model.blocks[0].mlp.up, DecodingLinear)
    assert model.blocks[0].mlp.up.weight.data_ptr() == weight.data_ptr()
    torch.testing.assert_close(model(IDS), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_int8_weights_are_off_by_at_most_half_a_step():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 96, generator=generator) * torch.logspace(-6, 3, 64)[:, None]
    weight[5] = 0
    layer = Int8Linear(weight, None)
    step = weight.abs().amax(1, keepdim=True) / 127
    restored = layer.weight.float() * layer.scale.float()[:, None]
    assert ((restored - weight).abs() <= step * (0.5 + 127 * 2**-8)).all()  # the scale itself is a bfloat16
    assert (restored[5] == 0).all()
    assert layer.weight.abs().max() <= 127


@pytest.mark.parametrize("rows", [1, 3, FEW_ROWS, FEW_ROWS + 1])
@torch.no_grad()
def test_both_int8_products_agree(rows):
    generator = torch.Generator().manual_seed(0)
    layer = Int8Linear(torch.randn(48, 32, generator=generator), torch.randn(48, generator=generator))
    x = torch.randn(rows, 32, generator=generator)
    wanted = x @ (layer.weight.float() * layer.scale.float()[:, None]).T + layer.bias
    torch.testing.assert_close(layer(x), wanted, atol=0.1, rtol=0.02)


def test_the_quality_loss_matches_its_definition():
    exact = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    other = torch.tensor([[3.0, 2.0], [0.5, -0.5]])  # the first is shifted only, which changes no probability
    loss = compare_logits(exact, other)
    p = torch.tensor([0.5, 0.5]).double()
    q = torch.softmax(other[1].double(), 0)
    assert loss.positions == 2
    assert loss.largest == pytest.approx(0.5) and loss.mean == pytest.approx(0.25)
    assert loss.divergence == pytest.approx((p * (p / q).log()).sum().item() / 2)


def test_int8_is_for_decoding_only():
    compute = Compute.for_decoding("cpu", dtype="int8")
    assert compute.int8 and compute.describe()["dtype"] == "int8"
    with pytest.raises(InputError, match="int8"):
        Compute.resolve("cpu", dtype="int8")
    with pytest.raises(InputError, match="int4"):
        Compute.for_decoding("cpu", dtype="int4")
