"""The loss scale of float16."""

from __future__ import annotations

import torch

from model.training.skip_updates import LossScale

ONE = torch.tensor(1.0)


def test_loss_scale_halves_on_overflow_and_doubles_after_2000_good_steps():
    scale = LossScale(torch.float16, torch.device("cpu"))
    scale.update(torch.tensor(float("inf")))
    assert scale.scale.item() == 2**15
    for _ in range(1999):
        scale.update(ONE)
    other = LossScale(torch.float16, torch.device("cpu"))
    other.load_state_dict({name: value.clone() for name, value in scale.state_dict().items()})
    for s in (scale, other):
        assert s.scale.item() == 2**15
        s.update(ONE)
        assert s.scale.item() == 2**16
    still = LossScale(torch.bfloat16, torch.device("cpu"))
    still.update(torch.tensor(float("inf")))
    assert still.scale.item() == 1.0 and still.state_dict() == {}
