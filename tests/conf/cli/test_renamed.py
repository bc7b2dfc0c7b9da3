"""Old names of settings work for one version: typed, with a note, and in the config.yaml of an older run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import sample
from conf import cli
from conf.cli.config import read_config
from conf.cli.fields import keys_of
from conf.cli.renamed import REMOVED, RENAMED
from model.config import ModelConfig
from train import TrainConfig

# The old names with a value that differs from the default, and the value that they must give.
TRAIN: dict[str, tuple[str, Any]] = {
    "model.tied": ("true", True),
    "model.norm_weight": ("true", True),
    "model.norm_epsilon": ("1e-5", 1e-5),
    "model.softcap": ("15", 15.0),
    "optimizer.kind": ("adamw", "adamw"),
    "optimizer.clip": ("0.5", 0.5),
    "optimizer.epsilon": ("1e-9", 1e-9),
    "optimizer.newton_schulz": ("float32", "float32"),
    "optimizer.decay_fraction": ("0.2", 0.2),
    "optimizer.final_fraction": ("0.1", 0.1),
    "budget": ("10m", "10m"),
    "average": ("ema", "ema"),
    "average_decay": ("0.9", 0.9),
    "average_fraction": ("0.2", 0.2),
    "checkpoint_activations": ("true", True),
    "batches": ("documents", "documents"),
    "confined": ("true", True),
    "weights": ("[3,1]", [3, 1]),
    "broken_lines": ("5", 5),
}
SAMPLE: dict[str, tuple[str, str, Any]] = {
    "beside": ("next_word", '["a b"]', ["a b"]),
    "beyond": ("text", "refuse", "error"),
    "border": ("next_word", "bytes", False),
    "max_tokens": ("next_word", "9", 9),
    "banned": ("text", "x", "x"),
    "forced": ("text", "x", "x"),
    "alternatives": ("text", "3", 3),
}


def value_of(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def test_every_alias_is_tested_and_leads_to_a_setting() -> None:
    assert TRAIN.keys() | SAMPLE.keys() == RENAMED.keys()
    known = set(keys_of(TrainConfig)).union(*(keys_of(schema) for schema in sample.MODES.schemas.values()))
    assert set(RENAMED.values()) <= known and not (RENAMED.keys() | REMOVED.keys()) & known


def test_old_names_on_trainings_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"{old}={typed}" for old, (typed, _) in TRAIN.items()]
    config, overrides = cli.compose(TrainConfig, name="train", arguments=arguments, check=False)
    assert overrides == {RENAMED[old]: value for old, (_, value) in TRAIN.items()}
    assert all(value_of(config, key) == value for key, value in overrides.items())
    assert capsys.readouterr().err == "".join(f"note: {old}= is now called {RENAMED[old]}=\n" for old in TRAIN)


@pytest.mark.parametrize("old", SAMPLE)
def test_an_old_name_on_samplings_command_line(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    mode, typed, value = SAMPLE[old]
    arguments = [f"mode={mode}", "checkpoint=x", f"{old}={typed}"]
    config, _ = cli.compose(sample.MODES, name="sample", arguments=arguments)
    assert value_of(config, RENAMED[old]) == value
    assert capsys.readouterr().err == f"note: {old}= is now called {RENAMED[old]}=\n"


# What the version before the new names wrote for experiment=quickstart, less the keys that kept their names.
OLD_NAMES = {
    **{"batches": "stream", "confined": False, "weights": None, "broken_lines": 0, "budget": None},
    **{"checkpoint_activations": False, "average": "tail", "average_decay": 0.9, "average_fraction": 0.2},
    "optimizer": {
        **{"kind": "muon", "epsilon": 1e-08, "newton_schulz": "bfloat16", "clip": 0.5},
        **{"decay_fraction": 0.4, "final_fraction": 0.1, "cautious": False},
    },
    "model": {
        **{"norm_weight": True, "norm_epsilon": 1e-05, "tied": True, "softcap": 15.0},
        **{"ngram": 0, "ngram_contexts": 0},
    },
}


def old_config(path: Path, **model: Any) -> Path:
    import yaml

    content = dataclasses.asdict(TrainConfig(run_dir="out/old"))
    for key in RENAMED.values():
        *parents, last = key.split(".")
        (content[parents[0]] if parents else content).pop(last, None)
    for key, value in OLD_NAMES.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    content["model"] |= model
    path.write_text(yaml.safe_dump(content))
    return path


def test_an_old_runs_config_opens_under_the_new_names(tmp_path: Path) -> None:
    config = read_config(old_config(tmp_path / "config.yaml"), TrainConfig)
    assert (config.weight_average, config.ema_decay, config.tail_fraction) == ("tail", 0.9, 0.2)
    assert (config.optimizer.name, config.optimizer.newton_schulz_dtype) == ("muon", "bfloat16")
    assert (config.optimizer.grad_clip, config.optimizer.decay_ratio, config.optimizer.min_lr_ratio) == (0.5, 0.4, 0.1)
    assert config.model == ModelConfig(norm_affine=True, norm_eps=1e-5, tie_embeddings=True, logit_softcap=15.0)
    assert (config.packing, config.document_mask, config.max_bad_lines) == ("stream", False, 0)


def test_an_old_config_with_a_feature_that_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(cli.InputError, match=r"model\.ngram is set, but no longer exists"):
        read_config(old_config(tmp_path / "config.yaml", ngram=3), TrainConfig)
