"""How three architectures of llama.cpp hold a model: GPT-2, Llama, and Arcee, which the portable preset equals.

| here                      | gpt2          | llama, arcee                                    |
| ------------------------- | ------------- | ----------------------------------------------- |
| embed                     | token_embd    | token_embd                                      |
| position_embed            | position_embd |                                                 |
| blocks.N.attention_norm   | attn_norm     | attn_norm                                       |
| blocks.N.attention.qkv    | attn_qkv      | attn_q, attn_k, attn_v; rows of q and k permuted |
| blocks.N.attention.output | attn_output   | attn_output                                     |
| blocks.N.mlp_norm         | ffn_norm      | ffn_norm                                        |
| blocks.N.mlp.up, down     | ffn_up, down  | ffn_up, ffn_down                                |
| blocks.N.mlp.gate         |               | ffn_gate (llama)                                |
| norm                      | output_norm   | output_norm                                     |
| lm_head                   | output        | output; absent if tied, for all three           |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import InputError
from ..config import ModelConfig
from ..rotary import rotary_frequencies

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp computes under a name, as settings of ModelConfig, and how it calls the tensors of a block."""

    name: str
    settings: Mapping[str, Any]
    epsilon_key: str
    block: Mapping[str, tuple[str, ...]]  # name here -> the tensors whose rows, in this order, it consists of


BLOCK = {
    "attention_norm": ("attn_norm",),
    "attention.qkv": ("attn_q", "attn_k", "attn_v"),
    "attention.output": ("attn_output",),
    "mlp_norm": ("ffn_norm",),
    "mlp.up": ("ffn_up",),
    "mlp.down": ("ffn_down",),
}
PLAIN = {"qk_norm": False, "embedding_norm": False, "logit_softcap": 0.0}
ROTARY = PLAIN | {"position": "rotary", "norm": "rms"}
ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            "gpt2",
            PLAIN | {"position": "learned", "norm": "layer", "activation": "gelu"},
            "attention.layer_norm_epsilon",
            BLOCK | {"attention.qkv": ("attn_qkv",)},
        ),
        Architecture(
            "llama",
            ROTARY | {"activation": "swiglu"},
            "attention.layer_norm_rms_epsilon",
            BLOCK | {"mlp.gate": ("ffn_gate",)},
        ),
        Architecture(
            "arcee", ROTARY | {"activation": "relu2", "bias": False}, "attention.layer_norm_rms_epsilon", BLOCK
        ),
    )
}
ROPE_FACTORS = "rope_freqs.weight"  # (E/2,): what Llama 3.1 divides each frequency by


def choose_architecture(config: ModelConfig) -> Architecture:
    """Returns the architecture that computes what the network does. Raises InputError if there is none."""

    def differences(architecture: Architecture) -> list[str]:
        return [name for name, value in architecture.settings.items() if getattr(config, name) != value]

    def distance(architecture: Architecture) -> tuple[int, bool]:
        wrong = differences(architecture)
        return len(wrong), "activation" in wrong

    nearest = min(ARCHITECTURES.values(), key=distance)
    if wrong := differences(nearest):
        have = ", ".join(f"model.{name}={getattr(config, name)}" for name in wrong)
        need = ", ".join(f"{name}={nearest.settings[name]}" for name in wrong)
        raise InputError(
            f"no GGUF architecture has {have}; the nearest, {nearest.name}, needs {need}: "
            "train with model=portable, or export with format=hf"
        )
    return nearest


def as_written(config: ModelConfig, architecture: Architecture) -> ModelConfig:
    """Returns the shape with the tensors that the architecture requires: weights in norms, and all biases of GPT-2."""
    return replace(config, norm_affine=True, bias=config.bias or architecture.name == "gpt2")


def layout(config: ModelConfig, architecture: Architecture) -> dict[str, dict[str, Shape]]:
    """Returns, for each tensor of this project, the GGUF tensors (and their shapes) whose rows it consists of.

    Rows of embedding and head are those of the vocabulary: GGUF has no padded ones.
    """
    V, D, F = config.vocab_size, config.d_model, config.ff_width
    K = config.kv_heads * config.head_dim
    rows = {"attn_qkv": D + 2 * K, "attn_k": K, "attn_v": K, "ffn_up": F, "ffn_gate": F}  # others: D
    found: dict[str, dict[str, Shape]] = {"embed.weight": {"token_embd.weight": (V, D)}}
    if config.position == "learned":
        found["position_embed.weight"] = {"position_embd.weight": (config.context, D)}
    for layer in range(config.n_layer):
        for name, parts in architecture.block.items():
            shapes: dict[str, Shape] = {
                f"blk.{layer}.{part}": (rows.get(part, D), F if part == "ffn_down" else D) for part in parts
            }
            found |= tensors(config, f"blocks.{layer}.{name}", shapes, is_norm=name.endswith("_norm"))
    found |= tensors(config, "norm", {"output_norm": (D, D)}, is_norm=True)
    if not config.tie_embeddings:
        found["lm_head.weight"] = {"output.weight": (V, D)}
    return found


def tensors(config: ModelConfig, name: str, shapes: dict[str, Shape], *, is_norm: bool) -> dict[str, dict[str, Shape]]:
    """Returns weight and bias of a layer, from the shapes of its matrices; a norm has vectors."""
    found = {f"{name}.weight": {f"{part}.weight": shape[:1] if is_norm else shape for part, shape in shapes.items()}}
    if config.bias and (config.norm == "layer" or not is_norm):
        found[f"{name}.bias"] = {f"{part}.bias": shape[:1] for part, shape in shapes.items()}
    return found


def rotated_heads(name: str, config: ModelConfig) -> int:
    """Returns the number of heads in a GGUF tensor whose rows are permuted, and 0 for all others."""
    return {"attn_q": config.n_head, "attn_k": config.kv_heads}.get(name.split(".")[-2], 0)


def to_interleaved(rows: Tensor, heads: int) -> Tensor:
    """Reorders the rows of queries or keys, (heads * E, ...) or (heads * E,), as llama.cpp's rotary wants them.

    Here rotary turns the pairs (i, i + E/2) of each head; llama.cpp turns (2i, 2i + 1).
    """
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(rows.shape)


def to_halves(rows: Tensor, heads: int) -> Tensor:
    """The inverse of to_interleaved."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(rows.shape)


def rope_factors(config: ModelConfig) -> Tensor:
    """Returns what Llama 3.1's rule divides each frequency by, (E/2,)."""
    return rotary_frequencies(replace(config, rotary_scaling=None)) / rotary_frequencies(config)


def read_rope_factors(factors: Tensor, config: ModelConfig) -> list[float] | None:
    """Returns the rotary_scaling that gives these factors: one that Llama 3.1 or 3.2 uses. None: there is none."""
    for factor in (8.0, 32.0):
        known = [factor, 1.0, 4.0, 8192.0]  # factor, low and high number of turns, original context
        if torch.allclose(factors, rope_factors(replace(config, rotary_scaling=known)), rtol=1e-4, atol=0):
            return known
    return None
