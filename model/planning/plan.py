"""What a model costs, by arithmetic: parameters by part, FLOPs a token, memory, how many GPUs of a kind it needs."""

from __future__ import annotations

import itertools
import re
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from .. import InputError
from ..config import ModelConfig
from ..gpt import GPT
from ..optimization.optimizer import split_parameters

GIB = 2**30


@dataclass(frozen=True)
class GPU:
    memory: float  # GiB that a program gets
    flops: float  # dense 16-bit matrix products a second with float32 sums, by the maker's data sheet


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
ASSUMED_MFU = 0.4  # what well-tuned sharded training of large models reaches; only sizing() assumes anything


def find_gpu(name: str) -> GPU | None:
    """The GPU that a name means: H100, or what the driver calls it, such as `NVIDIA H100 80GB HBM3`."""
    words = [word.removesuffix("GB") for word in re.findall(r"\w+", name.upper())]
    words_and_pairs = {*words, *(a + b for a, b in itertools.pairwise(words))}  # whole words: an RTX A1000 is no A100
    known = [key for key in GPUS if words_and_pairs.issuperset(key.split("-"))]
    return GPUS[max(known, key=len)] if known else None


def parameters_by_part(model: GPT) -> dict[str, int]:
    """embedding, positions, attention, mlp, norms, head; the padding of the vocabulary counts, a tied head does not."""
    parts = dict.fromkeys(("embedding", "positions", "attention", "mlp", "norms", "head"), 0)
    prefixes = {"embed": "embedding", "position_embed": "positions", "lm_head": "head", "norm": "norms"}
    for name, p in model.named_parameters():
        place = name.split(".")
        inner = place[2] if place[0] == "blocks" else place[0]
        parts[prefixes.get(inner, "norms" if inner.endswith("norm") else inner)] += p.numel()
    return {part: count for part, count in parts.items() if count}


def flops_per_token(model: GPT) -> int:
    """FLOPs of training on one token, forward and backward: what MFU counts (Chowdhery et al. 2022, appendix B).

    Six for each weight in a matrix product, the head too and the embedding not (it is looked up, not multiplied), and
    12 * layers * heads * head width * context for the products of attention, as if nothing were masked.
    """
    config = model.config
    blocks = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    weights = blocks + config.padded_vocab * config.d_model
    return 6 * weights + 12 * config.n_layer * config.n_head * config.head_dim * config.context


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Matrix products a second that the device could do in `dtype`: a GPU's from its data sheet, a CPU's measured now.

    None where unknown.
    """
    if device.type == "cuda" and dtype != torch.float32:
        gpu = find_gpu(torch.cuda.get_device_name(device))
        return gpu.flops if gpu else None
    if device.type != "cpu":
        return None
    size, seconds = 1024, []
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    for _ in range(8):
        began = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def state_bytes(model: GPT, *, muon: bool) -> int:
    """Weights, gradients and the optimizer's state, float32: AdamW keeps two moments, Muon one of hidden matrices."""
    return 16 * sum(p.numel() for p in model.parameters()) - (4 * hidden_weights(model) if muon else 0)


def hidden_weights(model: GPT) -> int:
    """How many there are in the blocks' matrices, which Muon updates."""
    return sum(p.numel() for p in split_parameters(model)[0].values())


def checkpoint_bytes(model: GPT, *, muon: bool, averaged: bool) -> int:
    """One saved step: weights and the optimizer's state, and the raw weights beside an average."""
    weights = 4 * sum(p.numel() for p in model.parameters())
    return state_bytes(model, muon=muon) - (0 if averaged else weights)


@dataclass(frozen=True)
class Sizing:
    """The memory of each of `gpus` GPUs, in bytes, for one sequence at a time."""

    gpus: int
    state: int  # its shard of weights, gradients and optimizer state; with Muon also the matrices that it owns
    working: int  # two layers gathered in bfloat16, embeddings and head in float32, with their gradients on their way
    activations: int
    exchanged: int  # Muon: gradients that owners get and give, once the two above are free again

    @property
    def parts(self) -> dict[str, int]:
        """What is there at once when most is."""
        passing = {"working": self.working, "activations of one sequence": self.activations}
        if sum(passing.values()) < self.exchanged:
            passing = {"gradients exchanged": self.exchanged}
        return {"weights, gradients, optimizer": self.state} | passing

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def sizing(model: GPT, gpu: str, *, muon: bool, spare: float = 0.9) -> Sizing:
    """How many GPUs of a kind train the model under parallel=fsdp with activation_checkpointing=true.

    An estimate, by counting tensors: `spare` of the memory is planned with. Of a layer its input is kept (float32), of
    one layer everything (bfloat16: norms, queries, keys, values, what the MLP widens to), and the logits and their
    gradient (float32 and bfloat16) of one sequence. Raises InputError for an unknown kind.
    """
    kind = find_gpu(gpu)
    if kind is None:
        raise InputError(f"gpu={gpu!r} is not one of {', '.join(GPUS)}")
    config = model.config
    layer = sum(p.numel() for p in model.blocks[0].parameters())
    outside = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("blocks."))
    # Weights in bfloat16 (of two layers), their gradient, and that in float32 as it travels. Outside all is float32,
    # and the gradient travels when the activations are gone.
    working = (2 * 2 + 2 + 4) * layer + (4 + 4) * outside
    widened = config.ff_width * (4 if config.activation == "swiglu" else 3)
    heads = config.head_dim * (2 * config.n_head + 2 * config.kv_heads)
    one_layer = config.context * (2 * 4 * config.d_model + 2 * (2 * config.d_model + heads + widened))
    kept = 4 * config.context * config.d_model * config.n_layer
    logits = config.context * config.padded_vocab * (2 + 4 + 4 + (8 if config.logit_softcap else 0))
    activations = kept + max(2 * one_layer, logits)
    hidden = hidden_weights(model) if muon else 0
    state, exchanged = state_bytes(model, muon=muon) + 4 * hidden, (4 + 4 + 4) * hidden
    planned = int(spare * kind.memory * GIB)
    room = planned - working - activations
    if room <= 0:
        raise InputError(
            f"one sequence of {config.context} tokens and one layer take {(working + activations) / GIB:.0f} GiB, more "
            f"than one {gpu} has; choose a larger kind, or a smaller model.context"
        )
    least = max(-(-state // room), -(-(state + exchanged) // planned))
    gpus = least if least <= 8 else -(-least // 8) * 8  # whole machines of eight
    return Sizing(gpus, state // gpus, working, activations, exchanged // gpus)


def on_paper(cfg: Any, shape: ModelConfig, *, gpu: str, vocab_size: int) -> dict[str, Any]:
    """What training `shape` takes on GPUs of a kind, in numbers: the arguments of conf/forecast.py's describe_sizing().

    cfg: the LoopConfig. Nothing is allocated, whatever the size.
    """
    with torch.device("meta"):
        model = GPT(replace(shape, vocab_size=vocab_size))
    kind, flops = find_gpu(gpu), flops_per_token(model)
    found = sizing(model, gpu, muon=cfg.optimizer.name == "muon")
    assert kind is not None  # sizing() has asked
    tokens = cfg.steps * cfg.batch_size * shape.context
    return {
        "parts": parameters_by_part(model),
        "vocab_size": vocab_size,
        "flops_per_token": flops,
        "tokens": tokens,
        "gpu": gpu,
        "gpus": found.gpus,
        "memory": found.parts,
        "memory_of_one": kind.memory * GIB,
        "seconds": tokens * flops / (found.gpus * kind.flops * ASSUMED_MFU),
        "assumed_mfu": ASSUMED_MFU,
        "checkpoint_bytes": checkpoint_bytes(
            model, muon=cfg.optimizer.name == "muon", averaged=cfg.weight_average != "none"
        ),
    }
