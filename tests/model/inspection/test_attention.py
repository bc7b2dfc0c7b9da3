"""Attention weights: rows sum to 1, look back only, and give the attention that the model computes."""

from __future__ import annotations

import pytest
import torch

from model import InputError
from model.inspection.attention import attention_weights
from tests.families import FAMILIES, make


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_the_ones_that_the_model_uses(family):
    model = make(family)
    ids = torch.randint(0, 96, (2, 9))
    seen: dict[str, torch.Tensor] = {}
    attention = model.blocks[1].attention
    with torch.no_grad():
        attention.qkv.register_forward_hook(lambda _, __, result: seen.update(qkv=result))
        attention.output.register_forward_pre_hook(lambda _, args: seen.update(y=args[0]))
        weights = attention_weights(model, ids)
    assert weights.shape == (3, 2, 4, 9, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 4, 9))
    assert torch.equal(weights, weights.tril())
    K, E = model.config.kv_heads, model.config.head_dim
    v = seen["qkv"][..., -K * E :].view(2, 9, K, E).transpose(1, 2).repeat_interleave(4 // K, dim=1)  # (B, H, T, E)
    torch.testing.assert_close((weights[1] @ v).transpose(1, 2).flatten(2), seen["y"])


def test_another_kernel_is_refused():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError, match="float32 only"):
        attention_weights(make("modern"), torch.randint(0, 96, (1, 9)))
