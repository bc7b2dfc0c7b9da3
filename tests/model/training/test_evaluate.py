"""Evaluation covers the whole split and does not affect training."""

from __future__ import annotations

import torch

from model.device import Compute
from model.training.evaluate import evaluate
from tests.families import make
from tests.toy_training import Rows


def test_evaluation_does_not_depend_on_the_batch_size_and_leaves_the_model_unchanged():
    model = make("gpt2", dropout=0.5).train()
    compute = Compute.resolve("cpu", dtype="float32")
    before = torch.get_rng_state()
    scores = [evaluate(model, Rows(7), compute=compute, batch_size=rows) for rows in (1, 3, 7, 16)]
    assert torch.equal(before, torch.get_rng_state()) and model.training
    assert {score.tokens for score in scores} == {140}
    assert max(score.loss for score in scores) - min(score.loss for score in scores) < 1e-6
    assert abs(scores[0].bits_per_byte - scores[0].loss * 140 / 0.6931471805599453 / 50) < 1e-9
