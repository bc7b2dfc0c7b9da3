"""The shape of a network: its weights by arithmetic, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch

from model.config import LARGEST, ModelConfig
from model.gpt import GPT
from tests.families import FAMILIES, SHAPE

CHOICES = {
    "position": ("rotary", "learned"),
    "norm": ("rms", "layer"),
    "norm_affine": (False, True),
    "activation": ("relu2", "swiglu"),
    "bias": (False, True),
    "tie_embeddings": (False, True),
}


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in GPT(config).state_dict().items()}


def test_weight_shapes_are_those_of_the_network():
    configs = [ModelConfig(**(SHAPE | family)) for family in FAMILIES.values()]
    small = {"vocab_size": 70, "n_layer": 2, "n_head": 4, "d_model": 16, "context": 8, "n_kv_head": 2, "d_ff": 40}
    for values in itertools.product(*CHOICES.values()):
        configs.append(ModelConfig(**small, **dict(zip(CHOICES, values, strict=True))))
    for config in configs:
        assert config.weight_shapes() == shapes_of(config), config


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
