"""Tensor files: their headers are compared with the model, and NaN and infinity are found."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file

from model import InputError
from model.checkpoints.reader import weight_shapes
from model.checkpoints.tensors import TensorFiles, is_finite, shape_of_state
from model.optimization.optimizer import Optimizer
from model.optimization.schedule import OptimizerConfig
from model.training.average import WeightAverage
from model.training.skip_updates import LossScale, UpdateGuard
from tests.families import FAMILIES, make


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_element_that_is_not_finite_is_found(value):
    for shape in ((), (1,), (3, 5), (70, 33)):
        for place in range(0, max(1, math.prod(shape)), 7):
            tensor = torch.randn(shape)
            assert is_finite(tensor)
            tensor.view(-1)[place] = value
            assert not is_finite(tensor)


def test_large_numbers_and_integers_are_finite():
    assert (
        is_finite(torch.tensor([3.4e38, -3.4e38, 3.4e38])) and is_finite(torch.tensor(7)) and is_finite(torch.zeros(0))
    )


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_training_state_has_the_shape_that_is_expected(family, name):
    model = make(family).train()
    optimizer = Optimizer(model, OptimizerConfig(name=name), newton_schulz_dtype=torch.float32)
    model(torch.arange(8)[None], targets=torch.arange(8)[None]).backward()
    optimizer.step(1.0, divisor=torch.tensor(1.0), skip=torch.tensor(False))
    average = WeightAverage(model, "ema")
    average.update(1, 2)
    cpu = torch.device("cpu")
    scale, guard = LossScale(torch.float16, cpu), UpdateGuard(cpu, spike_deviations=6.0)
    state = optimizer.state_dict() | average.state_dict() | scale.state_dict() | guard.state_dict()
    shapes = weight_shapes(model.config)
    assert shapes == {key: tuple(weight.shape) for key, weight in model.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        key: shape_of_state(key, shapes) for key in state
    }


@pytest.mark.parametrize(
    "name",
    [
        *("adamw", "adamw.x", "adamw.exp_avg.nowhere", "raw.nowhere", "spikes.other", "embed.weight", ""),
        *("muon.momentum.embed.weight.0-9999", f"muon.momentum.embed.weight.0-{10**30}"),
    ],
)
def test_other_training_state_has_no_shape(name):
    assert shape_of_state(name, {"embed.weight": (64, 8)}) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.bool])
def test_another_dtype_is_refused(tmp_path, dtype):
    save_file({"a": torch.ones(2, dtype=dtype), "b": torch.ones(2)}, tmp_path / "x.safetensors")
    tensors = TensorFiles([tmp_path / "x.safetensors"])
    tensors.check("b", (2,))
    with pytest.raises(InputError, match=r"x\.safetensors does not fit.*dtype of tensor 'a' is .* instead of F32"):
        tensors.check("a", (2,))


def test_a_name_in_two_files_is_refused(tmp_path):
    paths = [tmp_path / "x.safetensors", tmp_path / "y.safetensors"]
    for path in paths:
        save_file({"a": torch.ones(2)}, path)
    with pytest.raises(InputError, match=r"y\.safetensors holds the tensor 'a' a second time"):
        TensorFiles(paths)
