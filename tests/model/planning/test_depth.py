"""depth= sets a whole model."""

from __future__ import annotations

import itertools

from model.checkpoints import reader
from model.config import ModelConfig
from model.optimization.schedule import OptimizerConfig
from model.planning.depth import settings_for
from tests.programs import ok, run


def test_depth_gives_a_valid_shape_and_explicit_settings_win(base, tmp_path, monkeypatch):
    for depth in range(1, 40):
        values = settings_for(depth, OptimizerConfig())
        shape = ModelConfig(
            vocab_size=96, **{key[6:]: value for key, value in values.items() if key.startswith("model.")}
        )
        assert not shape.validate() and shape.head_dim == 64
        assert values["batch_size"] & (values["batch_size"] - 1) == 0
    ordered = [settings_for(depth, OptimizerConfig()) for depth in (4, 8, 16, 32)]
    for smaller, larger in itertools.pairwise(ordered):
        assert smaller["optimizer.adamw_learning_rate"] > larger["optimizer.adamw_learning_rate"]
        assert smaller["batch_size"] * smaller["model.context"] < larger["batch_size"] * larger["model.context"]
    monkeypatch.chdir(tmp_path)
    few = [option for option in base if not option.startswith("model.") or "context" in option]
    ok("train", *few, "depth=2")
    config = reader.find(tmp_path / "run").config
    assert (config.n_layer, config.d_model, config.n_head, config.context) == (2, 128, 2, 32)
    assert "is finished" in ok("train", "run_dir=run", "resume=true", "depth=2")
    refused = run("train", *base, "depth=2", "run_dir=other")
    assert refused.status == 2 and "depth= sets model.n_layer" in refused.err
