"""Tokens per second of one text, beside transformers' and nanoGPT's own `generate` with the same weights."""

from __future__ import annotations

import copy
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conf import cli
from model.config import ModelConfig
from model.device import Compute
from model.gpt import GPT
from model.inference.decode import Decoder
from model.inference.generate import generate
from model.inference.quantize import compare_logits, prepare_for_decoding
from model.inference.sampling import SamplingConfig

from .measure import Target, Times, memory_rate, print_json, take_turns

# GPT-2's family (Radford et al. 2019), for which all three have a model: 10.7M parameters are those of nanoGPT's
# recipe for Shakespeare's characters, 124M those of GPT-2 small.
SHAPES: dict[str, dict[str, Any]] = {
    "10m": {"vocab_size": 65, "n_layer": 6, "n_head": 6, "d_model": 384, "context": 512},
    "5m": {"vocab_size": 4096, "n_layer": 4, "n_head": 4, "d_model": 256, "context": 512},  # the quickstart's size
    "124m": {"vocab_size": 50257, "n_layer": 12, "n_head": 12, "d_model": 768, "context": 1024},
    "toy": {"vocab_size": 96, "n_layer": 2, "n_head": 2, "d_model": 64, "context": 128},  # to try the benchmark itself
}
WANTED = {  # (shape, ours, theirs): how many times as fast ours is to be
    ("10m", "float32", "nanoGPT float32"): 20.0,
    ("10m", "float32", "transformers float32"): 3.7,
    ("10m", "bfloat16", "transformers bfloat16"): 4.5,
    ("10m", "int8", "transformers bfloat16"): 8.0,
    ("5m", "float32", "transformers float32"): 3.7,
    ("5m", "bfloat16", "transformers bfloat16"): 4.5,
    ("5m", "int8", "transformers bfloat16"): 8.0,
    ("124m", "float32", "transformers float32"): 2.3,
    ("124m", "bfloat16", "transformers bfloat16"): 2.0,
    ("124m", "int8", "transformers bfloat16"): 2.8,
}
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass
class Config:
    """The keys of `python -m scripts.bench decode`."""

    shape: str = "10m"  # 5m | 10m | 124m | toy
    tokens: int = 500  # new ones, greedily chosen
    # the folder of a nanoGPT checkout: its model.py joins in
    against: str | None = field(default=None, metadata={"kind": "path"})
    transformers: bool = True
    dtypes: list[str] = field(default_factory=lambda: list(BYTES))
    compile: bool = True  # of a step; the seconds that it takes are printed apart
    repeats: int = 5
    threads: int = 0  # 0: as many as there are CPUs
    seed: int = 1
    debug: bool = False

    def validate(self) -> list[str]:
        found = []
        if self.shape not in SHAPES:
            found.append(f"shape={self.shape!r} is not one of {', '.join(SHAPES)}")
        elif not 1 <= self.tokens <= SHAPES[self.shape]["context"] - len(PROMPT):
            found.append(f"tokens={self.tokens} must be in 1..{SHAPES[self.shape]['context'] - len(PROMPT)}")
        if unknown := [name for name in self.dtypes if name not in BYTES]:
            found.append(f"dtypes={unknown} is not among {', '.join(BYTES)}")
        if self.repeats < 1:
            found.append(f"repeats={self.repeats} must be at least 1")
        if self.transformers and not importlib.util.find_spec("transformers"):
            found.append("transformers is not installed: pip install -e '.[bench]', or give transformers=false")
        if self.against is not None and not (Path(self.against) / "model.py").is_file():
            found.append(f"against={self.against} holds no model.py; give the folder of a checkout of nanoGPT")
        return found


PROMPT = [11, 42, 5, 60, 23, 7, 33, 1]


def make_model(shape: str, seed: int) -> GPT:
    """Random weights, large enough that the greedy text does not fall into a loop at once."""
    gpt2: dict[str, Any] = {"position": "learned", "norm": "layer", "norm_affine": True, "norm_eps": 1e-5}
    gpt2 |= {"activation": "gelu", "bias": True, "tie_embeddings": True}
    torch.manual_seed(seed)
    gpt2 |= {"qk_norm": False, "embedding_norm": False}
    model = GPT(ModelConfig(**SHAPES[shape] | gpt2))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.normal_(std=2 * weight.shape[1] ** -0.5)
    return model.eval()


def their_state(model: GPT, *, transposed: bool) -> dict[str, Tensor]:
    """The weights under the names that GPT-2 has in nanoGPT and in transformers, which stores some transposed."""
    own, size = model.state_dict(), model.config.vocab_size
    state = {"transformer.wte.weight": own["embed.weight"][:size], "lm_head.weight": own["embed.weight"][:size]}
    state["transformer.wpe.weight"] = own["position_embed.weight"]
    names = {"attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.output": "attn.c_proj"}
    names |= {"mlp_norm": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
    for kind in ("weight", "bias"):
        state[f"transformer.ln_f.{kind}"] = own[f"norm.{kind}"]
        for layer in range(model.config.n_layer):
            for ours, theirs in names.items():
                value = own[f"blocks.{layer}.{ours}.{kind}"]
                turned = value.T if transposed and value.dim() == 2 else value
                state[f"transformer.h.{layer}.{theirs}.{kind}"] = turned
    return state


def load(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith(".attn.bias") for name in missing), (missing, unexpected)
    return module.eval()


def nanogpt(model: GPT, folder: str, tokens: int) -> Callable[[], list[int]]:
    """nanoGPT's generate, greedy by top_k=1, with GPT-2's own form of GELU instead of the exact one."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(folder) / "model.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c = model.config
    shape = {"block_size": c.context, "vocab_size": c.vocab_size, "n_layer": c.n_layer, "n_head": c.n_head}
    theirs = module.GPT(module.GPTConfig(**shape, n_embd=c.d_model, dropout=0.0, bias=True))
    load(theirs, their_state(model, transposed=False))
    for block in theirs.transformer.h:
        block.mlp.gelu = nn.GELU(approximate="tanh")
    return lambda: theirs.generate(torch.tensor([PROMPT]), tokens, top_k=1)[0, len(PROMPT) :].tolist()


def transformers_gpt2(model: GPT, dtype: torch.dtype, tokens: int) -> Callable[[], list[int]]:
    """transformers' generate as it comes: with its cache, greedy, and never ended by a token."""
    import transformers

    c = model.config
    shape: dict[str, Any] = {
        "vocab_size": c.vocab_size,
        "n_positions": c.context,
        "n_embd": c.d_model,
        "n_layer": c.n_layer,
    }
    settings = transformers.GPT2Config(**shape, n_head=c.n_head, bos_token_id=None, eos_token_id=None)
    theirs: Any = load(transformers.GPT2LMHeadModel(settings), their_state(model, transposed=True)).to(dtype)
    ids = torch.tensor([PROMPT])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": tokens, "do_sample": False, "use_cache": True}
    return lambda: theirs.generate(ids, **options)[0, len(PROMPT) :].tolist()


def greedy(decoder: Decoder, tokens: int) -> list[int]:
    logits, made = decoder.prefill([PROMPT]), []
    for _ in range(tokens - 1):
        made.append(logits.argmax(-1))
        logits = decoder.step(made[-1])
    return torch.stack([*made, logits.argmax(-1)]).flatten().tolist()


def forced(decoder: Decoder, text: list[int]) -> Tensor:
    """The logits (T, V) of a text that is fed token by token: after the prompt and after each of its tokens."""
    rows = [decoder.prefill([PROMPT]), *(decoder.step(torch.tensor([token])) for token in text[:-1])]
    return torch.cat(rows)


def same(ours: list[int], theirs: list[int], logits: Tensor) -> str:
    """Whether two greedy texts are one; where they part, how close the two best logits were."""
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            best = logits[place].topk(2).values
            return f"parts at token {place}, where the two best logits are {(best[0] - best[1]).item():.1e} apart"
    return "equal"


def main(cfg: Config, overrides: cli.Overrides) -> None:
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    torch.set_grad_enabled(False)
    exact = make_model(cfg.shape, cfg.seed)
    n_weights = sum(p.numel() for p in exact.parameters()) - exact.config.context * exact.config.d_model
    print(
        f"{n_weights / 1e6:.1f}M weights read for a token, {cfg.tokens} greedy tokens after {len(PROMPT)}, "
        f"{torch.get_num_threads()} threads"
    )
    contenders: dict[str, Callable[[], list[Any]]] = {}
    capacity = len(PROMPT) + cfg.tokens
    decoders: dict[str, Decoder] = {}
    compile_seconds: dict[str, float] = {}
    for dtype in cfg.dtypes:
        compute = Compute.for_decoding("cpu", dtype=dtype, compile=cfg.compile)
        prepared = prepare_for_decoding(copy.deepcopy(exact), compute)
        start = time.perf_counter()
        decoder = decoders[dtype] = Decoder(prepared, rows=1, capacity=capacity, compute=compute)
        compile_seconds[dtype] = round(time.perf_counter() - start, 1)
        contenders[dtype] = lambda decoder=decoder: greedy(decoder, cfg.tokens)  # type: ignore[misc]
    if "float32" in cfg.dtypes:
        options: dict[str, Any] = {"sampling": SamplingConfig(temperature=0), "compute": decoders["float32"].compute}
        contenders["float32, by generate()"] = lambda: [
            new.id for [new] in generate(exact, [PROMPT], max_new_tokens=cfg.tokens, **options) if new is not None
        ]
    if cfg.transformers:
        for name in {"bfloat16" if name == "int8" else name for name in cfg.dtypes}:
            contenders[f"transformers {name}"] = transformers_gpt2(exact, getattr(torch, name), cfg.tokens)
    if cfg.against is not None:
        contenders["nanoGPT float32"] = nanogpt(exact, cfg.against, cfg.tokens)

    eager = Decoder(exact, rows=1, capacity=capacity, compute=Compute.for_decoding("cpu"))
    text = greedy(eager, cfg.tokens)
    wanted = forced(eager, text)
    print(f"the greedy text has {len(set(text))} different tokens")
    equal = {name: same(text, run(), wanted) for name, run in contenders.items() if "float32" in name}
    for name, verdict in equal.items():
        print(f"  {name:<24} {verdict}")
    losses = {name: compare_logits(wanted, forced(decoder, text)) for name, decoder in decoders.items()}
    for name, loss in losses.items():
        print(f"  {name:<24} {loss}")

    times = take_turns(contenders, repeats=cfg.repeats)
    rate = memory_rate()
    reached = {name: n_weights * BYTES[name] * cfg.tokens / times[name].median / rate for name in decoders}
    show(cfg, times, compile_seconds, reached)
    print(f"{rate / 1e9:.0f} GB/s is what torch reads from memory, summing a tensor that no cache can hold")
    targets = [
        Target(f"{ours} over {theirs}", times[theirs].median / times[ours].median, wanted_ratio)
        for (shape, ours, theirs), wanted_ratio in WANTED.items()
        if shape == cfg.shape and ours in times and theirs in times
    ]
    for target in targets:
        print(target)
    print_json(
        {"benchmark": "decode", "shape": cfg.shape, "tokens": cfg.tokens, "threads": torch.get_num_threads()}
        | {"tokens_per_second": {name: taken.row(cfg.tokens) for name, taken in times.items()}}
        | {"compile_seconds": compile_seconds, "greedy_text": equal}
        | {"logit_difference": {name: asdict(loss) for name, loss in losses.items()}}
        | {"memory_bytes_per_second": rate, "part_of_memory_rate": reached}
        | {"ratios": {target.name: {"value": target.value, "target": target.wanted} for target in targets}}
    )


def show(cfg: Config, times: dict[str, Times], compile_seconds: dict[str, float], reached: dict[str, float]) -> None:
    print(f"\n{'':<24} {'tokens/s':>9} {'lowest':>8} {'highest':>8}   of {cfg.repeats} repeats")
    for name, taken in times.items():
        row = taken.row(cfg.tokens)
        line = f"{name:<24} {row['per_second']:>9.1f} {row['lowest']:>8.1f} {row['highest']:>8.1f}"
        if name in reached:
            line += f"   {reached[name]:.0%} of the memory's rate"
            line += f", compiled in {compile_seconds[name]} s" if cfg.compile else ""
        if taken.disturbed:
            line += f"   ({taken.disturbed} disturbed by others)"
        print(line)
