"""The trace of a forward pass: its FLOPs are the plan's, its axes fit its shapes, it changes nothing."""

from __future__ import annotations

import pytest
import torch

from model.inspection.trace import trace
from model.planning.plan import flops_per_token
from tests.families import FAMILIES, make


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [1, 4, 48])  # 4 tokens and 4 heads: sizes do not tell axes apart
def test_the_flops_are_those_of_the_plan(family, length):
    model = make(family)
    ids = torch.randint(0, 96, (2, length))
    flops = sum(op.flops for op in trace(model, ids))
    assert 3 * flops == ids.numel() * flops_per_token(model, context=length)
    if length == model.config.context:
        assert 3 * flops == ids.numel() * flops_per_token(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_axes_are_named_and_fit_the_shapes(family):
    model, config = make(family), make(family).config
    operations = trace(model, torch.randint(0, 96, (2, 4)))
    H, K, E = config.n_head, config.kv_heads, config.head_dim
    sizes = {"B": 2, "T": 4, "D": 64, "H": H, "K": K, "E": E, "E/2": E // 2, "F": config.ff_width, "H+K": H + K,
             "H+2K": H + 2 * K, "B·H": 2 * H, "H/K": H // K, "(H+2K)·E": (H + 2 * K) * E, "(H+K)·E": (H + K) * E,
             "K·E": K * E, "1": 1}  # fmt: skip
    for op in operations:
        assert len(op.axes) == len(op.shape)
        for name, size in zip(op.axes, op.shape, strict=True):
            assert size in (config.padded_vocab, config.vocab_size) if name == "V" else size == sizes[name], op
    by_module = {op.module: op for op in operations if not op.view}
    assert by_module["blocks.0.attention.qkv"].axes == ("B", "T", "(H+2K)·E")
    assert by_module["blocks.2.mlp.down"].axes == ("B", "T", "D")
    if family != "gpt2":
        assert by_module["blocks.1.attention.rotary"].axes == ("B", "T", "H+K", "E")
    softmax = [op for op in operations if op.name == "softmax"]
    assert len(softmax) == 3 and all(op.axes[-2:] == ("T", "T") for op in softmax)
    assert all(op.module.endswith("attention.weights") and "softmax" in op.code for op in softmax)


def test_statistics_are_those_of_the_results_and_bytes_those_of_the_tensors():
    model = make("gpt2")
    ids = torch.randint(0, 96, (1, 5))
    operations = trace(model, ids)
    x = model.embed(ids).detach()
    embed = next(op for op in operations if op.module == "embed")
    assert embed.mean == pytest.approx(float(x.mean()), abs=1e-6)
    assert embed.deviation == pytest.approx(float(x.std(correction=0)))
    assert embed.n_bytes == 2 * x.numel() * 4 + 5 * 8  # five rows read and written, five ids of eight bytes
    qkv = next(op for op in operations if op.module == "blocks.0.attention.qkv")
    assert qkv.n_bytes == 4 * (5 * 64 + 192 * 64 + 192 + 5 * 192)
    assert all((op.n_bytes == 0) == op.view for op in operations)
    transposed = next(op for op in operations if op.name == "transpose")
    assert transposed.view and transposed.axes == ("B", "H", "T", "E")


def test_tracing_leaves_the_model_and_random_numbers_as_they_were():
    model = make("modern_grouped")
    ids = torch.randint(0, 96, (1, 7))
    before, state = model(ids), torch.get_rng_state()
    trace(model, ids)
    assert torch.equal(model(ids), before) and torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
