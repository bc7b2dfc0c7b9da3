"""The shape of a network: what is refused."""

from __future__ import annotations

import pytest

from model.config import LARGEST, ModelConfig


@pytest.mark.parametrize("name", LARGEST)
def test_a_number_far_above_any_model_is_refused(name):
    shape = {"n_head": 1, "d_model": 64}
    assert not ModelConfig(**shape | {name: 32}).validate()
    for value in (0, -1, LARGEST[name] + 1, 10**99):
        [error, *_] = ModelConfig(**shape | {name: value}).validate()
        assert error == f"model.{name}={value} must be between 1 and {LARGEST[name]:,}"


@pytest.mark.parametrize("name", ["rotary_base", "norm_eps", "logit_softcap"])
def test_a_number_that_float32_cannot_hold_is_refused(name):
    for value in (float("nan"), float("inf"), 10**99, -1.0):
        assert len(ModelConfig(**{name: value}).validate()) == 1


@pytest.mark.parametrize("scaling", [[], [0.0], [2.0, 1.0], [8.0, 4.0, 1.0, 8192.0], [float("nan")]])
def test_rotary_scaling_must_be_one_of_two_forms(scaling):
    [error] = ModelConfig(rotary_scaling=scaling).validate()
    assert error.startswith("model.rotary_scaling=")
    assert not ModelConfig(rotary_scaling=[8.0, 1.0, 4.0, 8192.0]).validate()
