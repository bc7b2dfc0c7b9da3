"""Decoding one text: tokens per second, against transformers' and nanoGPT's generate with the same weights."""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
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

from .contenders import nanogpt
from .measure import describe_rates, memory_bandwidth, print_json, take_turns

# GPT-2 (Radford et al. 2019), which all three implement. 10m is the size of nanoGPT's character model.
SHAPES: dict[str, dict[str, Any]] = {
    "5m": {"vocab_size": 4096, "n_layer": 4, "n_head": 4, "d_model": 256, "context": 512},  # the quickstart's size
    "10m": {"vocab_size": 65, "n_layer": 6, "n_head": 6, "d_model": 384, "context": 512},
    "124m": {"vocab_size": 50257, "n_layer": 12, "n_head": 12, "d_model": 768, "context": 1024},
    "toy": {"vocab_size": 96, "n_layer": 2, "n_head": 2, "d_model": 64, "context": 128},  # to test the benchmark
}
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
PROMPT = [11, 42, 5, 60, 23, 7, 33, 1]


@dataclass
class Config:
    """The keys of `python -m scripts.bench decode`."""

    shape: str = "10m"  # 5m | 10m | 124m | toy
    tokens: int = 500  # new ones, chosen greedily
    # the folder of a nanoGPT checkout; null: without nanoGPT
    against: str | None = field(default=None, metadata={"kind": "path"})
    transformers: bool = True
    dtypes: list[str] = field(default_factory=lambda: list(BYTES))
    compile: bool = True  # the seconds to compile are printed, and not counted
    repeats: int = 5
    threads: int = 0  # 0: torch's default
    seed: int = 1
    debug: bool = False

    def validate(self) -> list[str]:
        found = nanogpt.problems(self.against)
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
        return found


def make_model(shape: str, seed: int) -> GPT:
    """A GPT-2 with random weights, large enough that the greedy text does not loop at once."""
    torch.manual_seed(seed)
    config = ModelConfig(
        **SHAPES[shape], position="learned", norm="layer", norm_affine=True, norm_eps=1e-5, activation="gelu",
        bias=True, tie_embeddings=True, qk_norm=False, embedding_norm=False,
    )  # fmt: skip
    model = GPT(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.normal_(std=2 * weight.shape[1] ** -0.5)
    return model.eval()


def gpt2_state(model: GPT, *, transposed: bool) -> dict[str, Tensor]:
    """The weights under GPT-2's names. transformers stores the matrices of its blocks transposed."""
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
                value = value.T if transposed and value.dim() == 2 else value
                state[f"transformer.h.{layer}.{theirs}.{kind}"] = value
    return state


def load(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith(".attn.bias") for name in missing), (missing, unexpected)
    return module.eval()


def nanogpt_contender(model: GPT, folder: str, tokens: int) -> Callable[[], list[int]]:
    """nanoGPT's generate, greedy through top_k=1, with GPT-2's tanh form of GELU."""
    theirs, c = nanogpt.module(folder), model.config
    shape = {"block_size": c.context, "vocab_size": c.vocab_size, "n_layer": c.n_layer, "n_head": c.n_head}
    module = theirs.GPT(theirs.GPTConfig(**shape, n_embd=c.d_model, dropout=0.0, bias=True))
    load(module, gpt2_state(model, transposed=False))
    for block in module.transformer.h:
        block.mlp.gelu = nn.GELU(approximate="tanh")
    return lambda: module.generate(torch.tensor([PROMPT]), tokens, top_k=1)[0, len(PROMPT) :].tolist()


def transformers_contender(model: GPT, dtype: torch.dtype, tokens: int) -> Callable[[], list[int]]:
    """transformers' generate with its defaults: eager, with its cache; greedy, and no token ends the text."""
    import transformers

    c = model.config
    shape: dict[str, Any] = {"n_positions": c.context, "n_embd": c.d_model, "n_layer": c.n_layer, "n_head": c.n_head}
    config = transformers.GPT2Config(**shape, vocab_size=c.vocab_size, bos_token_id=None, eos_token_id=None)
    module: Any = load(transformers.GPT2LMHeadModel(config), gpt2_state(model, transposed=True)).to(dtype)
    ids = torch.tensor([PROMPT])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": tokens, "do_sample": False, "use_cache": True}
    return lambda: module.generate(ids, **options)[0, len(PROMPT) :].tolist()


def greedy(decoder: Decoder, tokens: int) -> list[int]:
    logits, new = decoder.prefill([PROMPT]), []
    for _ in range(tokens - 1):
        new.append(logits.argmax(-1))
        logits = decoder.step(new[-1])
    return torch.stack([*new, logits.argmax(-1)]).flatten().tolist()


def teacher_forced(decoder: Decoder, text: list[int]) -> Tensor:
    """Feeds a text token by token; returns the logits (T, V) from which each of its tokens would be drawn."""
    rows = [decoder.prefill([PROMPT]), *(decoder.step(torch.tensor([token])) for token in text[:-1])]
    return torch.cat(rows)


def describe_difference(ours: list[int], theirs: list[int], logits: Tensor) -> str:
    """ "equal", or where two greedy texts part, and how close the two best logits were there."""
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            best = logits[place].topk(2).values
            return f"differs from token {place}, where the two best logits are {(best[0] - best[1]).item():.1e} apart"
    return "equal"


@torch.no_grad()
def main(cfg: Config, overrides: cli.Overrides) -> None:
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    exact = make_model(cfg.shape, cfg.seed)
    n_weights = sum(p.numel() for p in exact.parameters()) - exact.config.context * exact.config.d_model
    print(f"{n_weights / 1e6:.1f}M weights are read per token; {torch.get_num_threads()} threads")
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
    peers = {dtype: "bfloat16" if dtype == "int8" else dtype for dtype in cfg.dtypes}  # the others have no int8
    if cfg.transformers:
        for name in dict.fromkeys(peers.values()):
            contenders[f"transformers {name}"] = transformers_contender(exact, getattr(torch, name), cfg.tokens)
    if cfg.against is not None:
        contenders["nanoGPT float32"] = nanogpt_contender(exact, cfg.against, cfg.tokens)

    eager = Decoder(exact, rows=1, capacity=capacity, compute=Compute.for_decoding("cpu"))
    text = greedy(eager, cfg.tokens)
    logits = teacher_forced(eager, text)
    print(f"{cfg.tokens} greedy tokens, {len(set(text))} different ones; against eager float32:")
    texts = {name: describe_difference(text, run(), logits) for name, run in contenders.items() if "float32" in name}
    losses = {name: compare_logits(logits, teacher_forced(decoder, text)) for name, decoder in decoders.items()}
    for found in (texts, losses):
        for name, value in found.items():
            print(f"  {name:<24} {value}")

    times = take_turns(contenders, repeats=cfg.repeats)
    bandwidth = memory_bandwidth()
    used = {name: n_weights * BYTES[name] * cfg.tokens / times[name].median / bandwidth for name in decoders}
    rows = {name: taken.rates(cfg.tokens) for name, taken in times.items()}
    print(f"\ntokens/s, {cfg.repeats} repeats; memory bandwidth {bandwidth / 1e9:.0f} GB/s")
    for name, row in rows.items():
        line = describe_rates(name, row)
        if name in used:
            line += f"  {used[name]:.0%} of the bandwidth"
            line += f", compiled in {compile_seconds[name]} s" if cfg.compile else ""
        print(line)
    ratios = {
        f"{dtype} / {other}": round(rows[dtype]["per_second"] / rows[other]["per_second"], 2)
        for dtype, peer in peers.items()
        for other in (f"transformers {peer}", f"nanoGPT {dtype}")
        if other in rows
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}x")
    print_json(
        {"benchmark": "decode", "shape": cfg.shape, "tokens": cfg.tokens, "threads": torch.get_num_threads()}
        | {"tokens_per_second": rows, "ratios": ratios, "compile_seconds": compile_seconds, "greedy_text": texts}
        | {"logit_difference": {name: asdict(loss) for name, loss in losses.items()}}
        | {"memory_bytes_per_second": bandwidth, "part_of_memory_rate": used}
    )
