"""Damaged, hostile and foreign directories of transformers are refused in one line, before any weight is used."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import InputError
from model.exchange import huggingface
from model.exchange.huggingface import read_model, write_model
from model.exchange.source import SpecialIds
from tests.families import make

FAMILIES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "modern": "NanoChatForCausalLM"}
NORM = "model.norm.weight"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("intact")
    for family in FAMILIES:
        model = make(family, n_layer=1, d_model=16, n_head=2, n_kv_head=None, context=16)
        write_model(folder / family, model.config, model.state_dict(), ids=SpecialIds(end_id=0))
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        read_model(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 900
    return str(error.value)


CONFIGS: list[tuple[str, dict[str, Any], str]] = [  # the family, changes of config.json, a part of the message
    ("llama", {"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ("llama", {"architectures": ["MistralForCausalLM"]}, "model_type"),
    ("llama", {"architectures": None, "model_type": None}, "cannot be read"),
    ("llama", {"architectures": {"a": 1}}, "cannot be read"),
    ("llama", {"architectures": []}, "cannot be read"),
    ("llama", {"auto_map": {"AutoModel": "code.Model"}}, "auto_map"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ("llama", {"head_dim": 16}, "head_dim"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act"),
    ("llama", {"hidden_act": ["silu"]}, "hidden_act"),
    ("llama", {"attention_bias": True}, "attention_bias"),
    ("llama", {"mlp_bias": True}, "mlp_bias"),
    ("llama", {"attention_bias": 1, "mlp_bias": 1}, "attention_bias"),
    ("llama", {"pretraining_tp": 2}, "pretraining_tp"),
    ("llama", {"sliding_window": 8}, "sliding_window"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama", {"attention_multiplier": 0.5}, "attention_multiplier"),
    ("llama", {"embedding_multiplier": 0}, "embedding_multiplier"),
    ("llama", {"layer_types": ["full_attention"]}, "layer_types"),
    ("llama", {"rope_theta": 7.0}, "contradict"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "contradict"),
    ("llama", {"rope_scaling": None, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "dynamic"),
    ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
    ("llama", {"rope_parameters": {"rope_type": ["linear"]}}, "rope_type"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "factor"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": True}}, "factor"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": -1.0}}, "rotary_scaling"),
    ("llama", {"rope_parameters": LLAMA3}, "original_max_position_embeddings"),
    ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
    ("llama", {"rope_parameters": [1]}, "rope_parameters"),
    ("llama", {"rope_theta": "big"}, "rope_theta"),
    ("llama", {"hidden_size": "16"}, "hidden_size"),
    ("llama", {"hidden_size": 16.0}, "hidden_size"),
    ("llama", {"hidden_size": -16}, "d_model"),
    ("llama", {"num_hidden_layers": 10**9}, "n_layer"),
    ("llama", {"hidden_size": 10**12, "head_dim": None}, "d_model"),
    ("llama", {"num_attention_heads": 0}, "n_head"),
    ("llama", {"num_key_value_heads": 0}, "n_kv_head"),
    ("llama", {"vocab_size": 0}, "vocab_size"),
    ("llama", {"vocab_size": 10**10}, "vocab_size"),
    ("llama", {"vocab_size": 95}, "shape"),
    ("llama", {"intermediate_size": 161}, "shape"),
    ("llama", {"num_hidden_layers": 2}, "layers.1."),
    ("llama", {"rms_norm_eps": math.nan}, "rms_norm_eps"),
    ("llama", {"rms_norm_eps": 0}, "norm_eps"),
    ("llama", {"tie_word_embeddings": False}, "lm_head.weight"),
    ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("gpt2", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ("gpt2", {"activation_function": "relu"}, "activation_function"),
    ("gpt2", {"n_positions": 17}, "shape"),
    ("gpt2", {"n_inner": 65}, "shape"),
    ("modern", {"final_logit_softcapping": 0}, "final_logit_softcapping"),
    ("modern", {"final_logit_softcapping": -1.0}, "logit_softcap"),
    ("modern", {"attention_bias": True, "mlp_bias": True}, "attention_bias"),
    ("modern", {"hidden_act": "silu"}, "hidden_act"),
    ("modern", {"num_attention_heads": 16}, "even head dim"),
]


@pytest.mark.parametrize("family, values, message", CONFIGS, ids=lambda value: str(value)[:60])
def test_a_configuration_that_is_not_computed_here_is_refused(family, values, message, intact, tmp_path):
    shutil.copytree(intact / family, tmp_path, dirs_exist_ok=True)
    assert read_model(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    assert message in refused(tmp_path)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_attention_heads", "max_position_embeddings"])
def test_a_size_that_is_missing_is_refused(key, intact, tmp_path):
    shutil.copytree(intact / "llama", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values[key]
    path.write_text(json.dumps(values))
    assert key in refused(tmp_path)


def test_harmless_keys_and_unknown_ones_that_are_off_are_accepted(intact, tmp_path):
    shutil.copytree(intact / "llama", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "config.json"
    more = {"id2label": {"0": "x"}, "temperature": 0.7, "new_feature": None, "use_new_feature": False, "list": []}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    assert read_model(tmp_path)


def edit(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def write_header(header: bytes, data: bytes = b"") -> Callable[[Path], None]:
    return lambda folder: (
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data) and None
    )


def shards(places: Any, *, second: str = NORM) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        save_file({second: torch.ones(16)}, folder / "model-00002-of-00002.safetensors")
        (folder / huggingface.INDEX).write_text(json.dumps({"weight_map": places}))

    return apply


def replace_weights(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name) and None


def truncate(folder: Path, name: str = "model.safetensors") -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-100])


OVERLAP = {name: {"dtype": "F32", "shape": [4], "data_offsets": [at, at + 16]} for name, at in (("a", 0), ("b", 8))}
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncate, "not a readable safetensors file"),
    "empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "not a readable safetensors file"),
    "header beyond the file": (write_header(b""), "not a readable safetensors file"),
    "header that claims 2^60 bytes": (
        lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}"),
        "not a readable safetensors file",
    ),
    "header not JSON": (write_header(b"\x80\x04pickle"), "not a readable safetensors file"),
    "overlap": (write_header(json.dumps(OVERLAP).encode(), b"0" * 24), "not a readable safetensors file"),
    "a pickle under the name": (
        lambda folder: torch.save({}, folder / "model.safetensors"),
        "not a readable safetensors file",
    ),
    "further tensor": (edit(lambda t: t.update(other=torch.ones(1))), "'other'"),
    "norm of queries": (edit(lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(8)})), "q_norm"),
    "bias": (edit(lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(16)})), "q_proj.bias"),
    "missing tensor": (edit(lambda t: t.pop(NORM)), "norm.weight"),
    "wrong shape": (edit(lambda t: t.update({NORM: torch.ones(17)})), "(17,) instead of (16,)"),
    "wrong dtype": (edit(lambda t: t.update({NORM: torch.ones(16, dtype=torch.float64)})), "F64"),
    "NaN": (edit(lambda t: t[NORM].__setitem__(3, math.nan)), "NaN"),
    "infinite": (edit(lambda t: t["model.layers.0.mlp.gate_proj.weight"].__setitem__((0, 3), -math.inf)), "infinity"),
    "half infinite": (edit(lambda t: t.update({NORM: torch.full((16,), 1e9).half()})), "infinity"),
    "both names": (edit(lambda t: t.update({"norm.weight": torch.ones(16)})), "both"),
    "another head": (edit(lambda t: t.update({"lm_head.weight": torch.ones(96, 16)})), "tie_word_embeddings"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "adapter": (lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"), "adapter"),
    "config not JSON": (lambda folder: (folder / "config.json").write_text("{vocab"), "not JSON"),
    "config not UTF-8": (lambda folder: (folder / "config.json").write_bytes(b"\xff{}"), "not JSON"),
    "config nested": (lambda folder: (folder / "config.json").write_text("[" * 10**5), "not JSON"),
    "config a list": (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
    "config a folder": (
        lambda folder: (folder / "config.json").unlink() or (folder / "config.json").mkdir(),
        "config.json",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
    "only pickles": (replace_weights("pytorch_model.bin"), "pickle"),
    "only nanoGPT": (replace_weights("ckpt.pt"), "scripts/README.md#nanogpt"),
    "index outside": (shards({NORM: "../elsewhere.safetensors"}), "not a plain name"),
    "index absolute": (shards({NORM: "/etc/passwd"}), "not a plain name"),
    "index to a number": (shards({NORM: 7}), "not a plain name"),
    "index a list": (shards([]), "weight_map"),
    "index empty": (shards({}), "weight_map"),
    "shard missing": (shards({NORM: "model-00003-of-00003.safetensors"}), "is missing"),
    "shard lacks a tensor": (shards({"other": "model-00001-of-00002.safetensors"}), "lacks"),
    "tensor in another shard": (shards({NORM: "model-00002-of-00002.safetensors"}, second="x"), "lacks"),
    "shard listed by no tensor of its own": (
        shards({"x": "model-00001-of-00002.safetensors", NORM: "model-00002-of-00002.safetensors"}, second="x"),
        "lacks",
    ),
    "tensor twice": (
        shards({NORM: "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}),
        "a second time",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_hostile_directory_is_refused(damage, intact, tmp_path):
    shutil.copytree(intact / "llama", tmp_path, dirs_exist_ok=True)
    change, message = DAMAGES[damage]
    change(tmp_path)
    assert message in refused(tmp_path)


def test_a_path_that_is_no_directory_is_refused(intact, tmp_path):
    assert "not a directory" in refused(intact / "llama" / "config.json")
    assert "not a directory" in refused(tmp_path / "nowhere")
    assert "not UTF-8" in refused(Path("\udcff"))
    (tmp_path / "config.json").symlink_to("/dev/null")  # /dev/zero has no end
    assert "is not a file" in refused(tmp_path)


def test_a_huge_config_is_not_read(intact, tmp_path):
    shutil.copytree(intact / "llama", tmp_path, dirs_exist_ok=True)
    with (tmp_path / "config.json").open("r+b") as file:
        file.truncate(huggingface.LARGEST_JSON + 1)
    assert "not a file of settings" in refused(tmp_path)
