"""Directories of transformers: what is read computes the same there and here, what would not is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import InputError
from model.config import ModelConfig
from model.exchange import huggingface
from model.exchange.huggingface import read_model, write_model
from model.exchange.huggingface_config import read_config
from model.exchange.source import Source, SpecialIds
from model.gpt import GPT
from tests.families import GPT2, LLAMA, SHAPE, make

LLAMA31 = [8.0, 1.0, 4.0, 16.0]  # the original context is below that of SHAPE
PORTABLE: dict[str, Any] = {"norm_affine": True, "norm_eps": 1e-5, "qk_norm": False, "embedding_norm": False}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # the class, the family in tests/families.py, changes
    "gpt2": ("GPT2LMHeadModel", "gpt2", {}),
    "gpt2 untied, exact gelu": ("GPT2LMHeadModel", "gpt2", {"tie_embeddings": False, "activation": "gelu_exact"}),
    "gpt2 of another width": ("GPT2LMHeadModel", "gpt2", {"d_ff": 96, "vocab_size": 100}),
    "llama grouped, tied": ("LlamaForCausalLM", "llama", {}),
    "llama untied": ("LlamaForCausalLM", "llama", {"tie_embeddings": False, "n_kv_head": None, "vocab_size": 100}),
    "llama with bias": ("LlamaForCausalLM", "llama", {"bias": True}),
    "llama 3.1": ("LlamaForCausalLM", "llama", {"rotary_scaling": LLAMA31}),
    "llama, interpolated": ("LlamaForCausalLM", "llama", {"rotary_scaling": [4.0]}),
    "modern": ("NanoChatForCausalLM", "modern", {"vocab_size": 100}),
    "modern grouped": ("NanoChatForCausalLM", "modern_grouped", {}),
    "modern tied, scaled": ("NanoChatForCausalLM", "modern", {"tie_embeddings": True, "rotary_scaling": LLAMA31}),
    "portable": ("ArceeForCausalLM", "modern", PORTABLE | {"vocab_size": 100}),
    "portable grouped, tied": ("ArceeForCausalLM", "modern", PORTABLE | {"n_kv_head": 2, "tie_embeddings": True}),
    "portable, gelu, bias": ("ArceeForCausalLM", "modern", PORTABLE | {"activation": "gelu", "bias": True}),
}
IDS = SpecialIds(end_id=3, start_id=None, pad_id=None)


def of(case: str) -> GPT:
    _, family, changes = CASES[case]
    model = make(family, **changes)
    with torch.no_grad():
        for name in ("embed.weight", "lm_head.weight"):
            if (weight := dict(model.named_parameters()).get(name)) is not None:
                weight[model.config.vocab_size :] = 0  # padding stays at home, and comes back as zeros
    return model


def logits_of(source: Source, ids: torch.Tensor) -> torch.Tensor:
    model = GPT(source.config).eval()
    model.load_state_dict({name: source.weights[name] for name in source.weights})
    with torch.no_grad():
        return model(ids)


def open_in_transformers(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def some_ids(vocab_size: int, *, seed: int = 1) -> torch.Tensor:
    return torch.randint(vocab_size, (2, 40), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_read_back_bit_for_bit(case, tmp_path):
    model = of(case)
    own = model.state_dict()
    assert write_model(tmp_path, model.config, own, ids=IDS) == CASES[case][0]
    source = read_model(tmp_path)
    assert source.config == model.config and source.architecture == CASES[case][0] and source.notes == []
    assert source.weights.keys() == own.keys()
    for name, weight in own.items():
        assert source.weights[name].equal(weight) and source.weights[name].dtype == torch.float32, name
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 3


@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_the_same_logits(case, tmp_path):
    model = of(case)
    write_model(tmp_path, model.config, model.state_dict(), ids=IDS)
    theirs = open_in_transformers(tmp_path)
    ids = some_ids(model.config.vocab_size)
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-4)
    assert type(theirs).__name__ == CASES[case][0] and theirs.dtype == torch.float32
    assert (theirs.generation_config.bos_token_id, theirs.generation_config.eos_token_id) == (3, 3)


@pytest.mark.parametrize("how", ["whole", "in several files", "bfloat16", "without head"])
@pytest.mark.parametrize("case", CASES)
def test_a_directory_that_transformers_saved_gives_the_same_logits(case, how, tmp_path):
    model = of(case)
    write_model(tmp_path / "first", model.config, model.state_dict(), ids=IDS)
    theirs = open_in_transformers(tmp_path / "first")
    saved = theirs
    if how == "bfloat16":
        saved = theirs.to(torch.bfloat16)
    if how == "without head":
        if not model.config.tie_embeddings:
            pytest.skip("without its head, only a tied model is whole")
        saved = theirs.base_model
    saved.save_pretrained(tmp_path / "again", max_shard_size="30KB" if how == "in several files" else "1GB")
    assert (tmp_path / "again" / huggingface.INDEX).exists() == (how == "in several files")
    source = read_model(tmp_path / "again")
    assert source.config == model.config
    assert [note for note in source.notes if "bfloat16" in note] == source.notes
    assert bool(source.notes) == (how == "bfloat16")
    ids = some_ids(model.config.vocab_size)
    theirs = open_in_transformers(tmp_path / "again")  # anew: a conversion rounds the rotary frequencies too
    with torch.no_grad():
        expected = theirs(ids).logits
    torch.testing.assert_close(logits_of(source, ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [None, 64, 48])
def test_mistral_without_a_window_is_a_llama(window, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.MistralConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=48, sliding_window=window, rope_parameters={"rope_theta": 5e4},
    )  # fmt: skip
    theirs = transformers.MistralForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    source = read_model(tmp_path)
    assert source.architecture == "MistralForCausalLM" and source.config.rotary_base == 5e4
    ids = some_ids(96)
    with torch.no_grad():
        expected = theirs(ids).logits
    torch.testing.assert_close(logits_of(source, ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "family, lacks", [("gpt2", {"bias": False}), ("gpt2", {"norm_affine": False}), ("llama", {"norm_affine": False})]
)
def test_weights_that_a_class_has_and_the_model_lacks_are_written_as_zeros_and_ones(family, lacks, tmp_path):
    model = make(family, **lacks)
    write_model(tmp_path, model.config, model.state_dict(), ids=IDS)
    source = read_model(tmp_path)
    assert source.config == replace(model.config, **dict.fromkeys(lacks, True))
    ids = some_ids(SHAPE["vocab_size"])
    torch.testing.assert_close(logits_of(source, ids), model(ids).detach())
    with torch.no_grad():
        theirs = open_in_transformers(tmp_path)(ids).logits
    torch.testing.assert_close(theirs, model(ids).detach(), rtol=1e-4, atol=1e-4)


def test_a_large_model_is_written_to_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 40_000)
    model = of("gpt2")
    write_model(tmp_path, model.config, model.state_dict(), ids=IDS)
    files = sorted(tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / huggingface.INDEX).read_text())
    assert len(files) > 3 and set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] == sum(t.nbytes for file in files for t in load_file(file).values())
    assert all(weight.equal(model.state_dict()[name]) for name, weight in read_model(tmp_path).weights.items())
    ids = some_ids(SHAPE["vocab_size"])
    torch.testing.assert_close(open_in_transformers(tmp_path)(ids).logits, model(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["gpt2", "llama grouped, tied"])
def test_older_files_have_buffers_a_tied_head_and_no_prefix(case, tmp_path):
    model = of(case)
    write_model(tmp_path, model.config, model.state_dict(), ids=IDS)
    path = tmp_path / "model.safetensors"
    tensors = {name.split(".", 1)[1]: tensor for name, tensor in load_file(path).items()}
    tensors["lm_head.weight"] = model.state_dict()["embed.weight"][: model.config.vocab_size].clone()
    tensors |= {
        "h.0.attn.bias": torch.ones(1, 1, 48, 48, dtype=torch.uint8),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    if case != "gpt2":
        tensors |= {"layers.0.self_attn.rotary_emb.inv_freq": tensors.pop("h.0.attn.bias")}
        del tensors["h.0.attn.masked_bias"]
    save_file(tensors, path)
    source = read_model(tmp_path)
    assert all(source.weights[name].equal(weight) for name, weight in model.state_dict().items())


def test_missing_keys_mean_what_transformers_takes_them_to_mean(tmp_path):
    model = make("modern", logit_softcap=15.0)
    write_model(tmp_path, model.config, model.state_dict(), ids=IDS)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "model_type")
    path.write_text(json.dumps({key: values[key] for key in (*kept, "max_position_embeddings")}))
    assert read_model(tmp_path).config == model.config
    with torch.no_grad():
        theirs = open_in_transformers(tmp_path)(ids := some_ids(96)).logits
    torch.testing.assert_close(theirs, model(ids).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("key, remark", [("rope_parameters", "v4"), ("rope_theta", "v5"), ("rope_scaling", "v5")])
def test_rotary_settings_of_transformers_4_and_5_are_read(key, remark, tmp_path):
    model = of("llama 3.1")
    write_model(tmp_path, model.config, model.state_dict(), ids=IDS)
    change(tmp_path, {key: None})
    assert read_model(tmp_path).config == model.config


PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # the keys of well-known config.json files
    "gpt2": (
        {
            "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
            "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
            "n_layer": 12, "n_positions": 1024, "n_special": 0, "predict_special_tokens": True, "resid_pdrop": 0.1,
            "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
            "summary_type": "cls_index", "summary_use_proj": True, "vocab_size": 50257,
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        },
        {"n_layer": 12, "n_head": 12, "d_model": 768, "context": 1024, "vocab_size": 50257} | GPT2,
    ),
    "smollm2": (
        {
            "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
            "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
            "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "model_type": "llama",
            "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pretraining_tp": 1,
            "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
            "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.40.1",
            "use_cache": True, "vocab_size": 49152,
        },
        LLAMA | {
            "n_layer": 30, "n_head": 9, "n_kv_head": 3, "d_model": 576, "d_ff": 1536, "context": 8192,
            "vocab_size": 49152,
        },
    ),
    "llama 3.1": (
        {
            "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
            "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu",
            "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
            "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32,
            "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3",
            },
            "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
            "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 128256,
        },
        LLAMA | {
            "n_layer": 32, "n_head": 32, "n_kv_head": 8, "d_model": 4096, "d_ff": 14336, "context": 131072,
            "vocab_size": 128256, "rotary_base": 500_000.0, "rotary_scaling": [8.0, 1.0, 4.0, 8192.0],
            "tie_embeddings": False,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_well_known_configurations_are_read(name):
    values, expected = PUBLISHED[name]
    assert read_config(values, Path("config.json"))[2] == ModelConfig(**expected)


UNLIKE_ANY = {
    "norm=layer": ("modern", {"norm": "layer"}, "model.norm=rms"),
    "swiglu": ("modern", {"activation": "swiglu"}, "model.activation=gelu|gelu_exact|relu2"),
    "affine": ("modern", {"norm_affine": True}, "model.norm_affine=false"),
    "softcap": ("llama", {"logit_softcap": 5.0}, "model.logit_softcap=0.0"),
    "gate": ("gpt2", {"activation": "swiglu"}, "model.activation=gelu|gelu_exact|relu2"),
    "grouped": ("gpt2", {"n_kv_head": 2}, "model.n_kv_head=null"),
}


@pytest.mark.parametrize("case", UNLIKE_ANY)
def test_a_model_that_no_class_computes_is_refused_before_anything_is_written(case, tmp_path):
    family, changes, needed = UNLIKE_ANY[case]
    model = make(family, **changes)
    with pytest.raises(InputError) as error:
        write_model(tmp_path / "new", model.config, model.state_dict(), ids=IDS)
    assert needed in str(error.value) and "model=portable" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def change(folder: Path, values: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
