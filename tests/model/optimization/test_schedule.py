"""The learning rate is a function of the step; wrong settings are reported."""

from __future__ import annotations

from itertools import pairwise

from model.optimization.schedule import OptimizerConfig, lr_multiplier


def test_schedules():
    wsd = OptimizerConfig(schedule="wsd", warmup_steps=10, decay_ratio=0.5)
    rates = [lr_multiplier(wsd, step, 100) for step in range(100)]
    assert rates[:2] == [1 / 11, 2 / 11] and rates[10:51] == [1.0] * 41
    assert all(a > b for a, b in pairwise(rates[50:])) and 0 < rates[-1] < 0.03
    cosine = OptimizerConfig(schedule="cosine", warmup_steps=0, min_lr_ratio=0.1)
    assert lr_multiplier(cosine, 0, 100) == 1.0 and abs(lr_multiplier(cosine, 50, 100) - 0.55) < 1e-9
    assert 0.1 < lr_multiplier(cosine, 99, 100) < 0.11
    assert lr_multiplier(OptimizerConfig(schedule="constant"), 99, 100) == 1.0
    assert lr_multiplier(OptimizerConfig(), 0, 5) == 1.0  # a default warmup never takes up a short run
    late = OptimizerConfig(schedule="wsd", warmup_steps=90, decay_ratio=0.5)
    assert [lr_multiplier(late, step, 100) for step in (89, 90)] == [90 / 91, 1.0]


def test_all_config_errors_are_reported():
    bad = OptimizerConfig(name="sgd", learning_rate=0, beta2=1.0, grad_clip=-1, schedule="step", warmup_steps=-3)
    assert len(bad.validate()) == 6
    assert OptimizerConfig().validate() == []
