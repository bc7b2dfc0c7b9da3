"""The logit lens: its last layer is the model, every other one a prediction of its own."""

from __future__ import annotations

import pytest
import torch

from model.inspection.lens import log_probabilities_by_layer, logit_lens, residual_stream
from tests.families import FAMILIES, make


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_last_row_is_the_models_own_table(family):
    model = make(family)
    ids = torch.randint(0, 96, (11,))
    lens = logit_lens(model, ids, top=7)
    own = model(ids[None])[0].softmax(-1).topk(7)
    assert lens.ids.shape == lens.probabilities.shape == (4, 11, 7) and lens.divergence.shape == (4, 11)
    assert torch.equal(lens.ids[-1], own.indices)
    torch.testing.assert_close(lens.probabilities[-1], own.values)
    assert not lens.divergence[-1].any() and (lens.divergence[:-1] > 0).all()


@torch.no_grad()
def test_each_layer_is_the_model_without_the_blocks_after_it():
    model = make("modern")
    ids = torch.randint(0, 96, (2, 6))
    layers = [*log_probabilities_by_layer(model, ids)][::-1]
    stream = residual_stream(model, ids)
    assert len(layers) == len(stream) == 4
    for kept in (2, 1, 0):
        model.blocks = model.blocks[:kept]
        torch.testing.assert_close(layers[kept], model(ids).log_softmax(-1))
