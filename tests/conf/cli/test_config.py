"""Every yaml composes, a config is plain dataclasses, and a saved one reads back, damage reported in one line."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from pathlib import Path

import pytest

from conf import cli
from conf.cli.config import group_options, read_config, write_config
from model.config import ModelConfig
from tests.conf.cli.schema import CONF, NASTY, Train, compose


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("group", ["model", "tokenizer", "optimizer"])
def test_every_option_of_every_group_composes(group: str) -> None:
    for option in options(group):
        config, _ = compose(f"{group}={option}")
        assert config.model.validate() == [] and isinstance(config.model, ModelConfig)


def test_presets_are_listed_by_size() -> None:
    models = group_options("train")["model"]
    assert [name for name in models if "gpt2" in name] == ["gpt2_124m", "gpt2_350m", "gpt2_774m", "gpt2_1558m"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, schema, name",
    [
        ("train", "TrainConfig", "train"),
        ("finetune", "FinetuneConfig", "finetune"),
        ("sample", "MODES", "sample"),
        ("data.preparation.config", "PrepareConfig", "prepare"),
        ("scripts.evaluate", "EvaluateConfig", "evaluate"),
        ("scripts.tokenizer", "ToolConfig", "tokenize"),
    ],
)
def test_every_program_composes_with_every_option(module: str, schema: str, name: str) -> None:
    choices = group_options(name)
    assert all(choices.values()), "a defaults list names a group without files"
    for arguments in [[], *([f"{group}={option}"] for group in choices for option in choices[group])]:
        cli.compose(getattr(importlib.import_module(module), schema), name=name, arguments=arguments, check=False)


def parameters(shape: ModelConfig, vocabulary: int) -> int:
    query_and_output, key_and_value = 2 * shape.d_model**2, 2 * shape.d_model * shape.kv_heads * shape.head_dim
    feed_forward = (3 if shape.activation == "swiglu" else 2) * shape.d_model * shape.ff_width
    tables = (1 if shape.tie_embeddings else 2) * vocabulary * shape.d_model
    tables += shape.context * shape.d_model if shape.position == "learned" else 0
    return shape.n_layer * (query_and_output + key_and_value + feed_forward) + tables


@pytest.mark.parametrize(
    "name, vocabulary, millions",
    [
        ("nano", 4096, 1.1),
        ("tiny", 4096, 6.8),
        ("small", 4096, 29.4),
        ("gpt2_124m", 50257, 124),
        ("gpt2_350m", 50257, 354),
        ("gpt2_774m", 50257, 774),
        ("gpt2_1558m", 50257, 1557),
        ("smollm2_135m", 49152, 134.5),
    ],
)
def test_models_have_the_size_in_their_name(name: str, vocabulary: int, millions: float) -> None:
    assert parameters(compose(f"model={name}")[0].model, vocabulary) / 1e6 == pytest.approx(millions, rel=0.02)


def test_tiny_is_the_dataclass_and_the_config_is_plain() -> None:
    config, overrides = compose()
    assert config == Train() and overrides == {}
    assert type(config.tokenizer.special_tokens) is list


def test_overrides_are_what_the_command_line_set() -> None:
    config, overrides = compose("model=gpt2_124m", "model.n_layer=2", "steps=5", "resume=auto")
    assert overrides["steps"] == 5 and overrides["resume"] == "auto" and overrides["model.n_layer"] == 2
    assert {key for key in overrides if key.startswith("model.")} == {f"model.{name}" for name in asdict(config.model)}
    assert not any(key.startswith(("tokenizer.", "optimizer.")) for key in overrides)
    overrides = compose("experiment=gpt2_recipe", "steps=7")[1]
    assert overrides["batch_size"] == 512 and overrides["model.n_layer"] == 12 and overrides["steps"] == 7
    assert "seed" not in overrides


def test_a_written_config_reads_back(tmp_path: Path) -> None:
    config, _ = compose("model=smollm2_135m", "optimizer.eps=1e-9")
    for text in [*NASTY, "\x85\u2028\ufeff", "\udcff"]:
        config.prompt, config.corpus, config.tokenizer.special_tokens = text, [text, "b"], [text]
        write_config(config, tmp_path / "config.yaml")
        assert read_config(tmp_path / "config.yaml", Train) == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    "old, new, part",
    [
        ("steps: 1000", "setps: 1000", "'setps'"),
        ("steps: 1000", "steps: many", "many"),
        ("steps: 1000\n", "", "lacks the key 'steps'"),
        ("  n_layer: 6", "  n_layer: 6\n  n_lyer: 6", "'model.n_lyer'"),
        ("steps: 1000", "steps: [", "line"),
        ("steps: 1000", "steps: !!python/object/apply:os.system ['true']", "python/object"),
        ("steps: 1000", "steps: \udcff", "damaged"),
        ("  n_layer: 6", "  n_layer: 6\n  ngram: 3", "model.ngram is set, but no longer exists"),
    ],
)
def test_a_damaged_config_is_one_line(tmp_path: Path, old: str, new: str, part: str) -> None:
    path = tmp_path / "config.yaml"
    write_config(Train(), path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new), errors="surrogateescape")
    with pytest.raises(cli.InputError) as caught:
        read_config(path, Train)
    assert str(path) in str(caught.value) and part in str(caught.value) and "\n" not in str(caught.value)
