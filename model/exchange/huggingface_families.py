"""Which classes of transformers compute the same as this project's models, and under which names and layouts.

One table serves both directions, so import and export cannot disagree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints.reader import weight_shapes
from ..checkpoints.tensors import Shape
from ..config import ModelConfig

Get = Callable[[str], Tensor]  # from a tensor's name to the tensor


@dataclass(frozen=True)
class Family:
    """A class of transformers: the settings of ours that it computes, and its names for configuration and weights."""

    name: str  # the class that has an output head
    model_type: str
    settings: dict[str, Any]  # of ModelConfig: fixed, whatever config.json says
    activations: dict[str, str]  # its name in config.json -> ours
    keys: dict[str, str]  # a key of config.json -> the field of ModelConfig with the same value
    defaults: dict[str, Any]  # what a missing key means to transformers; other keys must be present
    modules: dict[str, str]  # our module -> its modules, in the order in which ours joins them
    prefix: str = "model."  # of all modules except the head; files written from the class without head lack it
    layers: str = "layers"
    buffers: str = r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"  # tensors that are no weights
    neutral: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # keys that must have one of these values
    transposed: bool = False  # GPT-2's Conv1D stores a linear layer's matrix as (inputs, outputs)
    opposite_rotary: bool = False  # a rotation in the opposite direction is ours with swapped halves of each head
    # Settings of ours that it lacks but can express: a bias that is absent is zero, a norm's absent weight one.
    expressible: tuple[str, ...] = ("norm_affine",)
    export: bool = True


ROTARY = {"position": "rotary", "norm": "rms"}
PLAIN = {"norm_affine": True, "qk_norm": False, "embedding_norm": False, "logit_softcap": 0.0}
NO_GATE = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact", "relu2": "relu2"}
GATED = {"silu": "swiglu", "swish": "swiglu"}
LLAMA_KEYS = {
    "vocab_size": "vocab_size",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_kv_head",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "max_position_embeddings": "context",
    "rms_norm_eps": "norm_eps",
    "hidden_act": "activation",
    "tie_word_embeddings": "tie_embeddings",
}
LLAMA_DEFAULTS = {
    "num_key_value_heads": None, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False,
    "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
ATTENTION = {
    "attention.qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
}
ENDS = {"embed": "embed_tokens", "lm_head": "lm_head"}
NORMS = {"norm": "norm", "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
MLP = {"mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}

GPT2 = Family(
    name="GPT2LMHeadModel",
    model_type="gpt2",
    settings=PLAIN | {"position": "learned", "norm": "layer", "n_kv_head": None, "bias": True},
    expressible=("norm_affine", "bias"),
    activations=NO_GATE,
    keys={
        "vocab_size": "vocab_size", "n_layer": "n_layer", "n_head": "n_head", "n_embd": "d_model", "n_inner": "d_ff",
        "n_positions": "context", "layer_norm_epsilon": "norm_eps", "activation_function": "activation",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={
        "n_inner": None, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "tie_word_embeddings": True,
    },
    neutral={
        "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,), "add_cross_attention": (False,),
    },
    modules={
        "embed": "wte", "position_embed": "wpe", "norm": "ln_f", "lm_head": "lm_head",
        "attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.output": "attn.c_proj",
        "mlp_norm": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj",
    },
    prefix="transformer.",
    layers="h",
    buffers=r"h\.\d+\.attn\.(bias|masked_bias)",
    transposed=True,
)  # fmt: skip
LLAMA = Family(
    name="LlamaForCausalLM",
    model_type="llama",
    settings=ROTARY | PLAIN,
    activations=GATED,
    keys=LLAMA_KEYS,
    defaults=LLAMA_DEFAULTS,
    neutral={"pretraining_tp": (1, None)},
    modules=ENDS | NORMS | ATTENTION | MLP | {"mlp.gate": "mlp.gate_proj"},
)
ARCEE = replace(
    LLAMA,
    name="ArceeForCausalLM",
    model_type="arcee",
    activations=NO_GATE,
    defaults=LLAMA_DEFAULTS | {"rms_norm_eps": 1e-5, "hidden_act": "relu2"},
    modules=ENDS | NORMS | ATTENTION | MLP,
)
MISTRAL = replace(  # what is exported as Llama; a window of the newest positions is refused by huggingface_config.py
    LLAMA,
    name="MistralForCausalLM",
    model_type="mistral",
    settings=ROTARY | PLAIN | {"bias": False},
    defaults=LLAMA_DEFAULTS | {"num_key_value_heads": 8, "sliding_window": 4096},
    export=False,
)
NANOCHAT = Family(
    name="NanoChatForCausalLM",
    model_type="nanochat",
    settings=ROTARY | {"norm_affine": False, "qk_norm": True, "embedding_norm": True, "bias": False},
    expressible=(),
    activations=NO_GATE,
    keys=LLAMA_KEYS | {"final_logit_softcapping": "logit_softcap"},
    defaults=LLAMA_DEFAULTS | {"hidden_act": "relu2", "final_logit_softcapping": 15.0},
    modules=ENDS | ATTENTION | {"mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"},
    opposite_rotary=True,
)
FAMILIES = (GPT2, LLAMA, ARCEE, NANOCHAT, MISTRAL)
MATRICES = ("attention.qkv", "attention.output", "mlp.up", "mlp.down")  # those that GPT-2 transposes


@dataclass(frozen=True)
class Link:
    """One weight of ours, the tensors that it is called in a file of transformers, and how one becomes the other."""

    ours: str
    shape: Shape
    theirs: tuple[str, ...]
    rows: tuple[int, ...]  # of ours that come from each of theirs; further rows of ours are padding
    transposed: bool
    swapped: tuple[int, ...]  # for each of theirs: the head dim if its halves are swapped, else 0

    @property
    def n_bytes(self) -> int:
        """The size of their tensors in float32."""
        return 4 * sum(math.prod(shape) for _, shape in self.their_shapes())

    def their_shapes(self) -> Iterator[tuple[str, Shape]]:
        for name, rows in zip(self.theirs, self.rows, strict=True):
            shape = (rows, *self.shape[1:])
            yield name, shape[::-1] if self.transposed else shape

    def to_ours(self, get: Get) -> Tensor:
        """Returns our weight in float32, from theirs."""
        parts = []
        for name, head_dim in zip(self.theirs, self.swapped, strict=True):
            part = get(name).float()
            part = part.T if self.transposed else part
            parts.append(swap_halves(part, head_dim) if head_dim else part)
        weight = torch.cat(parts) if len(parts) > 1 else parts[0]
        padding = self.shape[0] - len(weight)
        return (F.pad(weight, (0, 0, 0, padding)) if padding else weight).contiguous()

    def to_theirs(self, get: Get) -> Iterator[tuple[str, Tensor]]:
        """Yields their tensors in float32, none of them sharing storage with another."""
        weight = get(self.ours).detach().to("cpu", torch.float32)[: sum(self.rows)]
        for name, part, head_dim in zip(self.theirs, weight.split(self.rows), self.swapped, strict=True):
            part = part.T if self.transposed else part
            yield name, (swap_halves(part, head_dim) if head_dim else part).clone(memory_format=torch.contiguous_format)


def swap_halves(x: Tensor, head_dim: int) -> Tensor:
    """Swaps the first and the second half of each head's rows, (heads * E, D). Twice is the identity."""
    return x.view(-1, 2, head_dim // 2, *x.shape[1:]).flip(1).reshape(x.shape)


def links(family: Family, config: ModelConfig) -> list[Link]:
    """Returns how each weight of a model of this shape, which the family must compute, is called and laid out there."""
    found = []
    q, k = config.n_head * config.head_dim, config.kv_heads * config.head_dim
    for ours, shape in weight_shapes(config).items():
        module, _, kind = ours.rpartition(".")
        prefix = "" if module == "lm_head" else family.prefix
        if in_block := re.fullmatch(r"blocks\.(\d+)\.(.+)", module):
            module, prefix = in_block[2], f"{prefix}{family.layers}.{in_block[1]}."
        theirs = tuple(f"{prefix}{part}.{kind}" for part in family.modules[module].split())
        rows = (q, k, k) if len(theirs) == 3 else shape[:1]
        if module in ("embed", "lm_head"):
            rows = (config.vocab_size,)
        transposed = family.transposed and module in MATRICES and len(shape) == 2
        swapped = [config.head_dim if family.opposite_rotary and module == "attention.qkv" else 0] * len(theirs)
        swapped[2:] = [0] * len(swapped[2:])  # values are not rotated
        found.append(Link(ours, shape, theirs, rows, transposed, tuple(swapped)))
    return found


def with_neutral(weights: Mapping[str, Tensor], config: ModelConfig) -> Get:
    """Returns a function from a weight's name to it. A bias that the model lacks is zero, a norm's weight one."""
    shapes = weight_shapes(config)

    def get(name: str) -> Tensor:
        if name in weights:
            return weights[name]
        assert name.endswith(".bias") or "norm" in name, name
        return (torch.zeros if name.endswith(".bias") else torch.ones)(shapes[name])

    return get
