"""Costs of a model by arithmetic: parameters by part, FLOPs per token, memory, number of GPUs needed."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from typing import Any

import torch

from .. import InputError
from ..config import ModelConfig
from ..gpt import GPT
from ..loss import tokens_at_once
from ..optimization.optimizer import split_parameters

GIB = 2**30


@dataclass(frozen=True)
class GPU:
    memory: float  # GiB that a program can use
    flops: float  # dense 16-bit FLOP/s with float32 accumulation, from the data sheet


GPUS = {
    "T4": GPU(14.6, 65e12),
    "V100": GPU(31.7, 125e12),
    "A10": GPU(22.0, 125e12),
    "A10G": GPU(22.0, 70e12),
    "L4": GPU(22.0, 121e12),
    "L40": GPU(44.5, 181e12),
    "L40S": GPU(44.5, 362e12),
    "RTX3090": GPU(23.6, 71e12),
    "RTX4090": GPU(23.6, 165e12),
    "A100-40": GPU(39.4, 312e12),
    "A100": GPU(79.1, 312e12),
    "H100PCIE": GPU(79.1, 756e12),
    "H100NVL": GPU(93.1, 835e12),
    "H100": GPU(79.1, 989e12),
    "H200": GPU(139.8, 989e12),
    "GH200": GPU(94.5, 989e12),
    "B200": GPU(178.0, 2250e12),
    "MI300X": GPU(191.5, 1307e12),
}
ASSUMED_MFU = 0.4  # of well-tuned sharded training of large models; only on_paper() assumes it


def find_gpu(name: str) -> GPU | None:
    """Finds a GPU by a name such as H100, or by the driver's name such as `NVIDIA H100 80GB HBM3`; None if unknown."""
    words = [word.removesuffix("GB") for word in re.findall(r"\w+", name.upper())]
    # Whole words only: an RTX A1000 is not an A100.
    words_and_pairs = {*words, *(a + b for a, b in itertools.pairwise(words))}
    known = [key for key in GPUS if words_and_pairs.issuperset(key.split("-"))]
    return GPUS[max(known, key=len)] if known else None


def parameters_by_part(model: GPT) -> dict[str, int]:
    """Returns the number of parameters by part. Vocabulary padding counts; a tied head does not."""
    parts = dict.fromkeys(("embedding", "positions", "attention", "mlp", "norms", "head"), 0)
    prefixes = {"embed": "embedding", "position_embed": "positions", "lm_head": "head", "norm": "norms"}
    for name, p in model.named_parameters():
        path = name.split(".")
        inner = path[2] if path[0] == "blocks" else path[0]
        parts[prefixes.get(inner, "norms" if inner.endswith("norm") else inner)] += p.numel()
    return {part: count for part, count in parts.items() if count}


def flops_per_token(model: GPT, *, context: int | None = None) -> int:
    """Returns the FLOPs of training on one token, forward and backward, as MFU counts them.

    context: tokens of a sequence, by default as many as fit. A third of the FLOPs are those of the forward pass.

    Six per weight of each matrix, including the head but not the embedding (a lookup), plus
    12 * layers * heads * head width * context for attention, without the causal mask (Chowdhery et al. 2022,
    appendix B).
    """
    config = model.config
    blocks = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    weights = blocks + config.padded_vocab * config.d_model
    return 6 * weights + 12 * config.n_layer * config.n_head * config.head_dim * (context or config.context)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Returns a GPU's peak FLOP/s in half precision, from its data sheet; None for other dtypes and devices."""
    if device.type != "cuda" or dtype == torch.float32:
        return None
    gpu = find_gpu(torch.cuda.get_device_name(device))
    return gpu.flops if gpu else None


def muon_weights(model: GPT) -> int:
    """Returns the number of weights in hidden matrices, which Muon updates."""
    return sum(p.numel() for p in split_parameters(model)[0].values())


def state_bytes(model: GPT, *, muon: bool) -> int:
    """Returns the size of weights, gradients and optimizer state in float32: AdamW has two moments, Muon one."""
    return 16 * sum(p.numel() for p in model.parameters()) - (4 * muon_weights(model) if muon else 0)


def checkpoint_bytes(model: GPT, *, muon: bool, averaged: bool) -> int:
    """Returns the size of a checkpoint: weights, optimizer state and, with averaging, also the live weights."""
    weights = 4 * sum(p.numel() for p in model.parameters())
    return state_bytes(model, muon=muon) - (0 if averaged else weights)


def sizing(model: GPT, gpu: str, *, muon: bool, usable: float = 0.9) -> tuple[int, dict[str, int]]:
    """Estimates how many GPUs of a kind can train the model with parallel=fsdp activation_checkpointing=true.

    Returns their number, and the bytes that each holds at the peak by purpose, for one sequence at a time. Counts
    tensors, and plans with `usable` of the memory. Raises InputError for an unknown kind.
    """
    kind = find_gpu(gpu)
    if kind is None:
        raise InputError(f"gpu={gpu!r} is not one of {', '.join(GPUS)}")
    config = model.config
    layer = sum(p.numel() for p in model.blocks[0].parameters())
    outside = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("blocks."))
    # Two layers' weights in bfloat16, one gradient in bfloat16 and, being reduced, in float32. Outside the blocks
    # everything is float32, and gradients are reduced after the activations were freed.
    working = (2 * 2 + 2 + 4) * layer + (4 + 4) * outside
    # The input of each layer (float32), and all activations of one layer (bfloat16: norms, queries, keys, values, the
    # MLP's width) or the logits with their gradient (float32 and bfloat16).
    inputs = 4 * config.context * config.d_model * config.n_layer
    widened = config.ff_width * (4 if config.activation == "swiglu" else 3)
    heads = config.head_dim * (2 * config.n_head + 2 * config.kv_heads)
    one_layer = config.context * (2 * 4 * config.d_model + 2 * (2 * config.d_model + heads + widened))
    at_once = tokens_at_once(config.context, config.padded_vocab, "gpu")
    logits = at_once * config.padded_vocab * (2 + 2 + 4 + 4 + (8 if config.logit_softcap else 0))
    if at_once < config.context:  # the head's gradient, and that of one chunk
        logits += (4 + 4) * config.padded_vocab * config.d_model
    activations = inputs + max(2 * one_layer, logits)
    # Muon: the matrices that a GPU owns, and gradients sent to and from their owners after the above was freed.
    hidden = muon_weights(model) if muon else 0
    state, exchanged = state_bytes(model, muon=muon) + 4 * hidden, (4 + 4 + 4) * hidden
    planned = int(usable * kind.memory * GIB)
    room = planned - working - activations
    if room <= 0:
        raise InputError(
            f"one sequence of {config.context} tokens and one layer need {(working + activations) / GIB:.0f} GiB, more "
            f"than one {gpu} has; choose a larger GPU or a smaller model.context"
        )
    fewest = max(-(-state // room), -(-(state + exchanged) // planned))
    gpus = fewest if fewest <= 8 else -(-fewest // 8) * 8  # whole machines of eight
    passing = {"working": working, "activations of one sequence": activations}
    if sum(passing.values()) < exchanged // gpus:
        passing = {"gradients exchanged": exchanged // gpus}
    return gpus, {"weights, gradients, optimizer": state // gpus} | passing


def on_paper(cfg: Any, shape: ModelConfig, *, gpu: str, vocab_size: int) -> dict[str, Any]:
    """Estimates the training of `shape` on GPUs of a kind. Allocates nothing, whatever the size.

    cfg: the LoopConfig. Returns the arguments of describe_sizing() in conf/display/forecast.py.
    """
    with torch.device("meta"):
        model = GPT(replace(shape, vocab_size=vocab_size))
    muon = cfg.optimizer.name == "muon"
    gpus, memory = sizing(model, gpu, muon=muon)
    kind, flops = find_gpu(gpu), flops_per_token(model)
    assert kind is not None  # else sizing() has raised
    tokens = cfg.steps * cfg.batch_size * shape.context
    return {
        "parts": parameters_by_part(model),
        "vocab_size": vocab_size,
        "flops_per_token": flops,
        "tokens": tokens,
        "gpu": gpu,
        "gpus": gpus,
        "memory": memory,
        "memory_of_one": kind.memory * GIB,
        "seconds": tokens * flops / (gpus * kind.flops * ASSUMED_MFU),
        "assumed_mfu": ASSUMED_MFU,
        "checkpoint_bytes": checkpoint_bytes(model, muon=muon, averaged=cfg.weight_average != "none"),
    }
