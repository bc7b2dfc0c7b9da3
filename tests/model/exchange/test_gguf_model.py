"""Models as GGUF: written and read they are the same, transformers reads the same, and what does not fit is refused."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model import InputError
from model.exchange.gguf_config import shortest
from model.exchange.gguf_file import GgufFile
from model.exchange.gguf_layout import rope_factors, to_halves, to_interleaved
from model.exchange.gguf_model import read_model, write_model
from model.exchange.source import canonical
from model.gpt import GPT
from tests.families import make

gguf = pytest.importorskip("gguf", reason="needs pip install -e '.[gguf]'")

PORTABLE = {"norm_affine": True, "qk_norm": False, "embedding_norm": False}
LLAMA_3 = [8.0, 1.0, 4.0, 8192.0]
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {  # family, changes, architecture
    "gpt2": ("gpt2", {}, "gpt2"),
    "gpt2 untied, grouped": ("gpt2", {"tie_embeddings": False, "n_kv_head": 2}, "gpt2"),
    "gpt2 without biases": ("gpt2", {"bias": False}, "gpt2"),
    "gpt2 with an odd vocabulary": ("gpt2", {"vocab_size": 91}, "gpt2"),
    "llama": ("llama", {"vocab_size": 91}, "llama"),
    "llama untied": ("llama", {"tie_embeddings": False, "n_kv_head": None, "vocab_size": 91}, "llama"),
    "llama with one key head": ("llama", {"n_kv_head": 1}, "llama"),
    "llama with biases": ("llama", {"bias": True}, "llama"),
    "llama 3.1": ("llama", {"rotary_scaling": LLAMA_3}, "llama"),
    "llama 3.2": ("llama", {"rotary_scaling": [32.0, *LLAMA_3[1:]], "tie_embeddings": False}, "llama"),
    "llama, linear": ("llama", {"rotary_scaling": [3.0], "norm_eps": 1e-6}, "llama"),
    "portable": ("modern", PORTABLE, "arcee"),
    "portable without norm weights": ("modern", PORTABLE | {"norm_affine": False}, "arcee"),
    "portable tied, grouped": ("modern", PORTABLE | {"tie_embeddings": True, "n_kv_head": 2, "d_ff": 96}, "arcee"),
}


def tokenizer(vocab_size: int) -> dict[str, Any]:
    """Metadata of a tokenizer of single characters."""
    tokens = [chr(33 + i) if i < 94 else f"t{i}" for i in range(vocab_size)]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * vocab_size, "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip


def write(model: GPT, path: Path, *, kind: str = "F32", **about: Any) -> GgufFile:
    words = tokenizer(model.config.vocab_size)
    write_model(path, model.config, model.state_dict(), kind=kind, tokenizer=words, about={"name": "toy"} | about)
    return GgufFile(path)


def read(file: GgufFile) -> GPT:
    source = read_model(file)
    model = GPT(source.config)
    model.load_state_dict(dict(source.weights))
    return model.eval()


@torch.no_grad()
def logits(model: GPT) -> torch.Tensor:
    ids = torch.randint(model.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    return model(ids)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_written_and_read_is_the_same_bit_for_bit(name, tmp_path):
    family, changes, architecture = MODELS[name]
    model = make(family, **changes)
    file = write(model, tmp_path / "x.gguf")
    source = read_model(file)
    assert source.architecture == architecture == file.metadata["general.architecture"]
    own = replace(canonical(model.config), norm_affine=True)
    assert source.config == (replace(own, bias=True) if architecture == "gpt2" else own)
    assert len(source.weights) == len(list(source.weights)) == len(GPT(source.config).state_dict())
    assert torch.equal(logits(read(file)), logits(model))


@pytest.mark.parametrize("name", ["gpt2", "llama", "portable"])
@pytest.mark.parametrize("kind, step", [("F16", 2**-11), ("Q8_0", (0.5 + 127 / 2**11) / 127)])  # Q8_0's scale is an F16
def test_a_rounded_model_differs_by_the_rounding_of_its_matrices_alone(name, kind, step, tmp_path):
    family, changes, _ = MODELS[name]
    model = make(family, **(changes | {"vocab_size": 128}))  # no padded rows
    source = read_model(write(model, tmp_path / "x.gguf", kind=kind))
    for part, weight in model.state_dict().items():
        loaded = source.weights[part]
        if weight.dim() == 1 or part == "position_embed.weight":
            assert torch.equal(loaded, weight)
        else:
            assert not torch.equal(loaded, weight)
            assert (loaded - weight).abs().max() <= step * weight.abs().max()
    assert f"{kind} (" in source.notes[0]


def test_matrices_with_short_rows_become_f16_under_q8_0(tmp_path):
    file = write(make("llama", d_ff=40), tmp_path / "x.gguf", kind="Q8_0")
    assert file.types == {"F32": 7, "F16": 3, "Q8_0": 19}


def test_notes_name_the_types(tmp_path):
    source = read_model(write(make("llama"), tmp_path / "x.gguf", kind="F16"))
    assert source.notes == ["converted from F16 (22)", "the embedding also serves as the output head (tied weights)"]


@pytest.mark.parametrize("name", ["gpt2", "gpt2 without biases", "llama", "llama untied", "llama with one key head"])
def test_transformers_reads_the_same_model(name, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra `test`")
    family, changes, _ = MODELS[name]
    model = make(family, **changes, context=1024)  # which transformers assumes of every GPT-2 in GGUF
    write(model, tmp_path / "x.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=torch.float32)
    ids = torch.randint(model.config.vocab_size, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs.eval()(ids).logits, rtol=0, atol=1e-4)


def test_interleaved_rows_turn_the_pairs_that_halves_turn():
    rows = torch.arange(16).view(16, 1)  # two heads of 8
    expected = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15])
    assert torch.equal(to_interleaved(rows, 2).flatten(), expected)
    assert torch.equal(to_interleaved(rows.flatten(), 2), expected)
    assert torch.equal(to_halves(to_interleaved(rows, 2), 2), rows)


def test_the_factors_of_llama_3_1_keep_short_waves_and_stretch_long_ones():
    config = replace(make("llama").config, d_model=512, rotary_base=500_000.0, rotary_scaling=LLAMA_3)
    factors = rope_factors(config)
    assert factors[0] == 1 and factors[-1] == 8 and bool((factors.diff() >= 0).all())


def test_a_float32_is_read_as_the_decimal_that_was_meant():
    for value in (1e-5, 1e-6, 0.1, 10_000.0, 500_000.0, 1e6):
        assert shortest(torch.tensor(value).item()) == value


@pytest.mark.parametrize(
    "family, changes, reason",
    [
        ("modern", {}, "model.qk_norm=True, model.embedding_norm=True; the nearest, arcee, needs"),
        ("gpt2", {"activation": "gelu_exact"}, "model.activation=gelu_exact; the nearest, gpt2, needs activation=gelu"),
        ("llama", {"logit_softcap": 15.0}, "model.logit_softcap=15.0; the nearest, llama, needs"),
        ("modern", PORTABLE | {"bias": True}, "model.bias=True; the nearest, arcee, needs bias=False"),
        ("llama", {"norm": "layer"}, "model.norm=layer; the nearest, llama, needs norm=rms"),
    ],
)
def test_what_no_architecture_computes_is_refused_before_a_file_exists(family, changes, reason, tmp_path):
    with pytest.raises(InputError, match=r"train with model=portable, or export with format=hf$") as error:
        write(make(family, **changes), tmp_path / "x.gguf")
    assert reason in str(error.value) and not list(tmp_path.iterdir())


def test_what_gguf_cannot_hold_is_refused(tmp_path):
    model = make("llama")
    for about, reason in (({"tags": []}, "general.tags=\\[\\]"), ({"n": -1}, "general.n=-1"), ({"n": None}, "n=None")):
        with pytest.raises(InputError, match=reason):
            write(model, tmp_path / "x.gguf", **about)
    with pytest.raises(InputError, match="'Q4_0' cannot be written; take one of F32, F16, Q8_0"):
        write(model, tmp_path / "x.gguf", kind="Q4_0")
    other = make("llama", rotary_scaling=[16.0, 1.0, 4.0, 4096.0])
    with pytest.raises(InputError, match=r"rotary_scaling=\[16.0, .*format=hf"):
        write(other, tmp_path / "x.gguf")
    with pytest.raises(InputError, match="the tokenizer has 90 tokens and the model 96"):
        write_model(tmp_path / "x", model.config, model.state_dict(), kind="F32", tokenizer=tokenizer(90), about={})
    assert not list(tmp_path.iterdir())
    for value in (1e5, float("nan")):
        broken = copy.deepcopy(model)
        broken.embed.weight.data[3, 4] = value
        with pytest.raises(InputError, match=r"'token_embd\.weight' holds numbers that F16 cannot hold"):
            write(broken, tmp_path / "x.gguf", kind="F16")


def altered(path: Path, *, metadata: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None) -> GgufFile:
    """Writes a file of a Llama again with other metadata and tensors. None: left out."""
    file = write(make("llama"), path)
    values = file.metadata | (metadata or {})
    writer = gguf.GGUFWriter(path, values.pop("general.architecture"))
    for key, value in values.items():
        if value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for name, tensor in ({name: file.tensor(name) for name in file.shapes} | (tensors or {})).items():
        if tensor is not None:
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile(path)


@pytest.mark.parametrize(
    "metadata, reason",
    [
        ({"general.architecture": "qwen3"}, "architecture 'qwen3' is none of gpt2, llama, arcee"),
        ({"general.type": "adapter"}, "general.type='adapter'"),
        ({"llama.block_count": None}, "llama.block_count is missing"),
        ({"llama.block_count": "3"}, "llama.block_count='3' must be one number"),
        ({"llama.block_count": True}, "llama.block_count=True must be one number"),
        ({"llama.block_count": 2.0}, "llama.block_count=2.0 must be one number"),
        ({"llama.block_count": 2**30}, "must be between 1 and 10,000"),
        ({"llama.block_count": -1}, "must be between 1 and 10,000"),
        ({"llama.block_count": 4}, "there is no tensor 'blk.3.attn_norm.weight'"),
        ({"llama.block_count": 2}, "tensor 'blk.2.attn_norm.weight' has no place"),
        ({"llama.context_length": 2**30}, "must be between 1 and 1,048,576"),
        ({"llama.feed_forward_length": 128}, "tensor 'blk.0.ffn_up.weight' has shape (160, 64); by"),
        ({"llama.attention.head_count": 0}, "model.n_head=0 must be between"),
        ({"llama.attention.head_count": 7}, "is not divisible"),
        ({"llama.attention.head_count_kv": [2, 2, 2]}, "head_count_kv=[2, 2, 2] must be one number"),
        ({"llama.attention.head_count_kv": None}, "tensor 'blk.0.attn_k.weight' has shape (32, 64)"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "model.norm_eps=nan must be above 0"),
        ({"llama.rope.freq_base": 0.0}, "model.rotary_base=0.0 must be above 0"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count=8 is not supported; the head dim is 16"),
        ({"llama.attention.key_length": 32}, "attention.key_length=32 is not supported"),
        ({"llama.vocab_size": 95}, "llama.vocab_size, 95, is not the number of rows"),
        ({"tokenizer.ggml.tokens": ["a"]}, "the number of tokenizer.ggml.tokens, 1, is not the number of rows"),
        ({"llama.expert_count": 8}, "llama.expert_count=8 is not supported"),
        ({"llama.attention.sliding_window": 512}, "llama.attention.sliding_window=512 is not supported"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type='yarn'"),
        ({"llama.rope.scaling.factor": "4"}, "factor='4'"),
        ({"llama.rope.scaling.factor": -4.0}, "model.rotary_scaling=[-4.0]"),
    ],
)
def test_metadata_that_do_not_fit_are_refused_in_one_line(metadata, reason, tmp_path):
    file = altered(tmp_path / "x.gguf", metadata=metadata)
    with pytest.raises(InputError) as error:
        read_model(file)
    assert reason in str(error.value) and "\n" not in str(error.value) and str(file.path) in str(error.value)


@pytest.mark.parametrize(
    "tensors, reason",
    [
        ({"token_embd.weight": None}, "there is no matrix 'token_embd.weight'"),
        ({"blk.1.ffn_gate.weight": None}, "there is no tensor 'blk.1.ffn_gate.weight'"),
        ({"blk.0.attn_q_norm.weight": torch.ones(16)}, "'blk.0.attn_q_norm.weight' has no place"),
        ({"blk.0.attn_q.bias": torch.ones(64)}, "'blk.0.attn_k.bias', llama has one; biases must be in all"),
        ({"rope_freqs.weight": torch.full((8,), 4.0)}, "is not Llama 3.1's rule"),
        ({"rope_freqs.weight": torch.ones(9)}, "of shape (9,) has no meaning"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_in_one_line(tensors, reason, tmp_path):
    file = altered(tmp_path / "x.gguf", tensors=tensors)
    with pytest.raises(InputError) as error:
        read_model(file)
    assert reason in str(error.value) and "\n" not in str(error.value) and str(file.path) in str(error.value)


def test_settings_that_are_off_are_no_reason_to_refuse(tmp_path):
    off = {"llama.expert_count": 0, "llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}
    assert read_model(altered(tmp_path / "x.gguf", metadata=off)).config.rotary_scaling is None


def test_random_damage_to_a_header_is_refused_or_gives_a_model(tmp_path):
    path = tmp_path / "x.gguf"
    file = write(make("llama", n_layer=1, rotary_scaling=LLAMA_3), path)
    content, header = path.read_bytes(), min(entry.start for entry in file.entries.values())
    draw, read = random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[draw.randrange(4, header)] = draw.choice((0, 1, 2, 4, 64, 128, 255))
        path.write_bytes(damaged)
        try:
            read += read_model(GgufFile(path)).config.validate() == []
        except InputError as error:
            assert "\n" not in str(error)
    assert 30 < read < 270
