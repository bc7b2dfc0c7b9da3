"""A setting that another one switches off is named; the same setting where it has an effect is not."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from typing import Any

import pytest

from conf import cli
from conf.cli.fields import keys_of, unused
from tests.programs import CONFIGS, run

TRAIN = "corpus=x run_dir=y"
SCORE = "checkpoint=x mode=score"
CASES = [
    ("train", TRAIN, "steps=5", "time_budget=1m", ""),
    ("train", TRAIN, "ema_decay=0.5", "weight_average=tail", "weight_average=ema"),
    ("train", TRAIN, "tail_fraction=0.5", "", "weight_average=tail"),
    ("train", TRAIN, "sample_prompt=a", "", "sample_every=5"),
    ("train", TRAIN, "wandb.project=a", "", "wandb.mode=offline"),
    ("train", TRAIN, "optimizer.momentum=0.5", "optimizer=adamw", "optimizer=muon"),
    ("train", TRAIN, "optimizer.newton_schulz_dtype=float32", "optimizer=adamw", ""),
    ("train", TRAIN, "optimizer.adamw_learning_rate=0.1", "optimizer=adamw", ""),
    ("train", TRAIN, "optimizer.decay_ratio=0.1", "optimizer.schedule=cosine", ""),
    ("train", TRAIN, "optimizer.min_lr_ratio=0.1", "optimizer.schedule=constant", "optimizer.schedule=cosine"),
    ("train", TRAIN, "model.rotary_base=100", "model.position=learned", ""),
    ("train", TRAIN, "val_fraction=0.2", "val_include=x", ""),
    ("train", TRAIN, "tokenizer_sample=1000", "tokenizer=byte", "tokenizer=sentencepiece"),
    ("train", TRAIN, "tokenizer_sample=1000", "tokenizer.path=x", ""),
    ("train", TRAIN, "curate.similarity=0.5", "", "curate.near_duplicates=true"),
    ("train", TRAIN, "tokenizer.vocab_size=500", "tokenizer=char", "tokenizer=sentencepiece"),
    ("train", TRAIN, "tokenizer.vocab_size=500", "tokenizer.path=x", ""),
    ("train", TRAIN, "tokenizer.pattern=gpt4", "tokenizer=byte", ""),
    ("train", TRAIN, "tokenizer.min_frequency=2", "tokenizer=sentencepiece", ""),
    ("train", TRAIN, "tokenizer.algorithm=bpe", "", "tokenizer=sentencepiece"),
    ("train", TRAIN, "tokenizer.encoding=p50k_base", "", "tokenizer=gpt2"),
    ("train", TRAIN, 'tokenizer.special_tokens=["<u>"]', "", "tokenizer.allow_special=true"),
    ("finetune", "checkpoint=x examples=y run_dir=z", "val_fraction=0.5", "val_examples=x", ""),
    ("evaluate", "checkpoint=x", "text_field=a", "questions=x", "corpus=x"),
    ("evaluate", "checkpoint=x", "neutral=So", "corpus=x", "questions=x"),
    ("tokenize", "", "max_bytes=5", "mode=train out=x", "mode=compare tokenizers=bpe"),
    ("tokenize", "", "corpus=x", "mode=export tokenizers=x out=y", "mode=show tokenizers=x"),
    ("sample", "checkpoint=x prompt=a", "top_logprobs=3", "", "explain=true"),
    ("sample", SCORE, "method=pmi", "text=a", 'options=["a","b"]'),
    ("sample", SCORE, "neutral=x", "text=a", "examples=x"),
    ("sample", SCORE, "seed=3", 'options=["a","b"]', "examples=x"),
]


def schema(name: str):
    module, attribute = CONFIGS[name]
    return getattr(importlib.import_module(module), attribute)


@functools.cache
def composed(name: str, words: str) -> Any:
    return cli.compose(schema(name), name=name, arguments=words.split())[0]


@pytest.mark.parametrize("name, base, key, off, on", CASES)
def test_a_setting_without_effect_is_named(name: str, base: str, key: str, off: str, on: str) -> None:
    for others, words, without_effect in ((off, off, True), (on, f"{on} {key}", False)):
        config = composed(name, f"{base} {words}")
        found = unused(config, [key])
        assert bool(found) == without_effect, found
        assert all(line.startswith(f"{key.partition('=')[0]}= has no effect with") for line in found)
        other = [argument.partition("=")[0] for argument in [*others.split(), *base.split()] if "=" in argument]
        assert not unused(config, [f"{one}=" for one in other if "needs" not in one and one != "tokenizer"])


def test_the_note_comes_before_anything_else_happens(tmp_path) -> None:
    ended = run("train", f"corpus={tmp_path / 'none'}", f"run_dir={tmp_path / 'run'}", "average_decay=0.5")
    assert "note: average_decay= has no effect with weight_average=none" in ended.err and ended.status == 2


def test_a_run_that_resumes_with_its_saved_settings_has_no_notes() -> None:
    arguments = ["run_dir=x", "resume=true", "sample_prompt=a"]
    assert not unused(cli.compose(schema("train"), name="train", arguments=arguments)[0], arguments)


@pytest.mark.parametrize("key", ["prompt", "prompt_file", "compare_prompts"])
def test_prompts_beside_a_file_of_questions_are_refused(key: str) -> None:
    with pytest.raises(cli.InputError, match=f"{key}= cannot be used with examples=FILE"):
        cli.compose(schema("sample"), name="sample", arguments=[*SCORE.split(), "examples=x", f"{key}=y"])


def test_conditions_name_fields_that_exist() -> None:
    def conditions(node: type, config) -> None:
        for one in dataclasses.fields(node):
            unused(config, [one.name])  # fails for a misspelt name
            if dataclasses.is_dataclass(value := getattr(config, one.name)):
                conditions(type(value), value)

    for name in CONFIGS:
        found = schema(name)
        for one in found.schemas.values() if isinstance(found, cli.Modes) else [found]:
            conditions(one, one())
            assert keys_of(one)
