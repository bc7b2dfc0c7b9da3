"""Muon: orthogonal updates, one matrix at a time."""

from __future__ import annotations

import pytest
import torch

from model.optimization.muon import newton_schulz
from model.optimization.optimizer import Optimizer, split_parameters
from model.optimization.schedule import OptimizerConfig
from tests.families import make
from tests.model.optimization.test_optimizer import NO, ONE, with_gradients


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 48), (2, 48, 16)])
def test_newton_schulz_keeps_singular_vectors_and_levels_singular_values(shape):
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    inner = u.mT @ newton_schulz(g) @ v.mT  # diagonal: the new singular values
    values = torch.diagonal(inner, dim1=1, dim2=2)
    assert values.min() > 0.1 and values.max() < 1.3
    assert values.mean() > 0.75
    assert (inner - torch.diag_embed(values)).abs().max() < 1e-3


def test_muon_updates_queries_keys_and_values_separately():
    model = with_gradients(family="modern_grouped")
    optimizer = Optimizer(model, OptimizerConfig(name="muon", learning_rate=0.1, weight_decay=0.0))
    weight = model.blocks[0].attention.qkv.weight
    before, gradient = weight.detach().clone(), weight.grad.clone()
    optimizer.step(1.0, divisor=ONE, skip=NO)
    start = 0
    for rows in (64, 32, 32):
        g = gradient[None, start : start + rows]
        expected = newton_schulz(g * (1 - 0.95**2))[0]  # Nesterov's mix points the same way
        torch.testing.assert_close(
            (before - weight.detach())[start : start + rows], 0.1 * expected, atol=1e-5, rtol=1e-3
        )
        start += rows


def test_muon_updates_hidden_matrices_only():
    hidden, rest = split_parameters(make("gpt2"))
    assert all(name.startswith("blocks.") and name.endswith("weight") for name in hidden)
    assert {"embed.weight", "position_embed.weight", "norm.weight", "blocks.0.mlp.up.bias"} <= rest.keys()
