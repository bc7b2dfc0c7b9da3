"""The metadata that describe a network in a GGUF file, in both directions."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from .. import InputError
from ..config import ModelConfig
from .gguf_file import GgufFile
from .gguf_layout import ROPE_FACTORS, Architecture, read_rope_factors
from .source import canonical

# Keys below the architecture's name that are understood. Any other may change what the model computes.
SHAPE_KEYS = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base",
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
}  # fmt: skip
SWITCHED_OFF = {
    "expert_count": 0, "expert_used_count": 0, "attention.causal": True, "use_parallel_residual": False,
    "tensor_data_layout": "Meta AI original pth",
}  # fmt: skip


def read_config(file: GgufFile, architecture: Architecture) -> ModelConfig:
    """Returns the shape of the network from the metadata. Raises InputError for what is missing, wrong or unknown."""
    values = {
        key.removeprefix(f"{architecture.name}."): value
        for key, value in file.metadata.items()
        if key.startswith(f"{architecture.name}.")
    }

    def refuse(what: str) -> InputError:
        return InputError(f"{file.path}: {what}")

    def get(key: str, default: Any = None, *, kind: type = int) -> Any:
        value = values.get(key, default)
        if value is None:
            raise refuse(f"metadata key {architecture.name}.{key} is missing")
        if isinstance(value, bool) or not isinstance(value, (int, kind)):
            raise refuse(f"{architecture.name}.{key}={value!r:.60} must be one number")
        return kind(value)

    for key, value in values.items():
        if key not in SHAPE_KEYS and SWITCHED_OFF.get(key) != value:
            raise refuse(f"{architecture.name}.{key}={value!r:.60} is not supported")
    if (kind := file.metadata.get("general.type", "model")) != "model":
        raise refuse(f"general.type={kind!r:.60} is no model")
    if len(embedding := file.shapes.get("token_embd.weight", ())) != 2:
        raise refuse("there is no matrix 'token_embd.weight'")
    tokens = file.metadata.get("tokenizer.ggml.tokens", embedding)
    for what, size in (
        (f"{architecture.name}.vocab_size", get("vocab_size", embedding[0])),
        ("the number of tokenizer.ggml.tokens", len(tokens) if isinstance(tokens, list) else embedding[0]),
    ):
        if size != embedding[0]:
            raise refuse(f"{what}, {size}, is not the number of rows of 'token_embd.weight', {embedding[0]}")
    heads = get("attention.head_count")
    config = ModelConfig(
        vocab_size=embedding[0],
        n_layer=get("block_count"),
        n_head=heads,
        n_kv_head=get("attention.head_count_kv", heads),
        d_model=get("embedding_length"),
        d_ff=get("feed_forward_length"),
        context=get("context_length"),
        rotary_base=shortest(get("rope.freq_base", 10_000.0, kind=float)),
        norm_eps=shortest(get(architecture.epsilon_key, kind=float)),
        norm_affine=True,
        tie_embeddings="output.weight" not in file.shapes,
        **({"bias": architecture.name == "gpt2" or any(name.endswith(".bias") for name in file.shapes)}
           | dict(architecture.settings)),
    )  # fmt: skip
    if errors := config.validate():
        raise refuse(f"its metadata describe no model: {errors[0]}")
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if (size := get(key, config.head_dim)) != config.head_dim:
            raise refuse(f"{architecture.name}.{key}={size} is not supported; the head dim is {config.head_dim}")
    config.rotary_scaling = read_scaling(file, config, values)
    if errors := config.validate():
        raise refuse(errors[0])
    return canonical(config)


def read_scaling(file: GgufFile, config: ModelConfig, values: Mapping[str, Any]) -> list[float] | None:
    """Returns rotary_scaling, from the metadata (one factor) or from the tensor of factors (Llama 3.1's rule)."""
    factor = values.get("rope.scaling.factor", 1.0)
    kind = values.get("rope.scaling.type", "linear")  # llama.cpp's default, whatever the factor
    if kind not in ("none", "linear") or isinstance(factor, bool) or not isinstance(factor, (int, float)):
        raise InputError(f"{file.path}: rope.scaling.type={kind!r:.60} with factor={factor!r:.60} is not supported")
    linear = None if kind == "none" or factor == 1 else [shortest(float(factor))]
    if ROPE_FACTORS not in file.shapes:
        return linear
    if config.position != "rotary" or file.shapes[ROPE_FACTORS] != (config.head_dim // 2,):
        raise InputError(f"{file.path}: tensor {ROPE_FACTORS!r} of shape {file.shapes[ROPE_FACTORS]} has no meaning")
    found = read_rope_factors(file.tensor(ROPE_FACTORS), config)
    if found is None or linear is not None:
        raise InputError(f"{file.path}: tensor {ROPE_FACTORS!r} is not Llama 3.1's rule with factor 8 or 32 alone")
    return found


def shortest(value: float) -> float:
    """Returns the shortest decimal number that is stored as the same float32: 1e-05, not 9.999999747378752e-06."""

    def stored(number: float) -> float:
        return struct.unpack("<f", struct.pack("<f", number))[0]

    if not abs(value) < 1e38:
        return value
    return next((short for digits in range(1, 9) if stored(short := float(f"{value:.{digits}g}")) == value), value)


def metadata_of(config: ModelConfig, architecture: Architecture) -> dict[str, Any]:
    """Returns the metadata of a shape, without the architecture's name in front of the keys."""
    found: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.context,
        "embedding_length": config.d_model,
        "block_count": config.n_layer,
        "feed_forward_length": config.ff_width,
        "attention.head_count": config.n_head,
        "attention.head_count_kv": config.kv_heads,
        architecture.epsilon_key: float(config.norm_eps),
    }
    if config.position == "rotary":
        found |= {"rope.dimension_count": config.head_dim, "rope.freq_base": float(config.rotary_base)}
        if config.rotary_scaling is not None and len(config.rotary_scaling) == 1:
            found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rotary_scaling[0])}
    return found
