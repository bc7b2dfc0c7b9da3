"""Decoding: tokens per second, against transformers' and nanoGPT's generate with the same weights on one device."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from conf import cli
from model.config import ModelConfig
from model.device import Compute, resolve_device
from model.exchange.other_programs import is_installed
from model.gpt import GPT
from model.inference.decode import Decoder
from model.inference.generate import generate
from model.inference.quantize import QualityLoss, compare_logits, prepare_for_decoding
from model.inference.sampling import SamplingConfig

from .contenders import nanogpt
from .contenders.generate import Generate, nanogpt_generate, transformers_generate
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
    tokens: int = 500  # new ones in each row, chosen greedily
    rows: int | None = None  # texts decoded together, besides one; null: 64 on a GPU, none on a CPU
    device: str = "auto"
    # the folder of a nanoGPT checkout; null: without nanoGPT
    against: str | None = field(default=None, metadata={"kind": "path"})
    transformers: bool = True  # where it is installed
    dtypes: list[str] | None = None  # float32, bfloat16, int8; null: all, on a GPU the first two
    compile: bool = True  # on a GPU also eager; the seconds to compile are printed, and not counted
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
        if self.dtypes == [] or not set(self.dtypes or []) <= set(BYTES):
            found.append(f"dtypes={self.dtypes} must be some of {', '.join(BYTES)}")
        if self.repeats < 1:
            found.append(f"repeats={self.repeats} must be at least 1")
        if self.rows is not None and self.rows < 2:
            found.append(f"rows={self.rows} must be at least 2, or null")
        return found


@dataclass(frozen=True)
class Form:
    """One way of decoding with this project."""

    dtype: str
    compile: bool
    rows: int = 1
    by_generate: bool = False  # with generate(), which samples and ends texts, as sample.py does
    suffix: str = ""

    @property
    def name(self) -> str:
        return self.dtype + self.suffix


def forms(cfg: Config, *, on_gpu: bool) -> list[Form]:
    """The decoder alone in each dtype; generate() with one row, and with many rows at once."""
    rows = cfg.rows or (64 if on_gpu else 0)
    found = []
    for dtype in cfg.dtypes or [*BYTES][: 2 if on_gpu else 3]:
        found.append(Form(dtype, cfg.compile))
        if on_gpu and cfg.compile:
            found.append(Form(dtype, compile=False, suffix=" eager"))
        if rows or dtype == "float32":
            found.append(Form(dtype, cfg.compile, by_generate=True, suffix=", by generate()"))
        if rows:
            found.append(Form(dtype, cfg.compile, rows=rows, by_generate=True, suffix=f", {rows} rows"))
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


def greedy(decoder: Decoder, tokens: int) -> list[int]:
    logits, new = decoder.prefill([PROMPT]), []
    for _ in range(tokens - 1):
        new.append(logits.argmax(-1))
        logits = decoder.step(new[-1])
    return torch.stack([*new, logits.argmax(-1)]).flatten().tolist()


def greedy_rows(model: GPT, rows: int, tokens: int, compute: Compute) -> list[int]:
    """Continues as many different prompts at once with generate(); returns the text after PROMPT, the first."""
    size = model.config.vocab_size
    prompts = [[*PROMPT[:-1], (PROMPT[-1] + row) % size] for row in range(rows)]
    sampling = SamplingConfig(temperature=0)
    steps = generate(model, prompts, max_new_tokens=tokens, sampling=sampling, compute=compute)
    return [first.id for first, *_ in steps if first is not None]


def teacher_forced(decoder: Decoder, text: list[int]) -> Tensor:
    """Feeds a text token by token; returns the logits (T, V) from which each of its tokens would be drawn."""
    ids = torch.tensor(text[:-1], device=decoder.compute.device)
    return torch.cat([decoder.prefill([PROMPT]), *(decoder.step(token) for token in ids.split(1))])


def first_difference(ours: list[int], theirs: list[int], logits: Tensor) -> dict[str, Any]:
    """How many tokens two greedy texts share, and, where they part, how far apart the two best logits were."""
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            best = logits[place].topk(2).values
            return {"same_tokens": place, "gap": (best[0] - best[1]).item()}
    return {"same_tokens": len(ours), "gap": None}


def describe_difference(found: dict[str, Any]) -> str:
    if found["gap"] is None:
        return "equal"
    return f"differs from token {found['same_tokens']}, where the two best logits are {found['gap']:.1e} apart"


@dataclass(frozen=True)
class Contenders:
    """What decodes, by the name of its row."""

    runs: dict[str, Generate]
    decoders: dict[str, Decoder]  # of the runs by the decoder alone
    compile_seconds: dict[str, float]  # of the compiled decoders


def contenders(cfg: Config, own: dict[str, Form], peers: dict[str, str], exact: GPT) -> Contenders:
    """This project's forms and the other programs, with the weights of `exact` on its device."""
    device, capacity = exact.embed.weight.device, len(PROMPT) + cfg.tokens
    found = Contenders({}, {}, {})
    models: dict[str, GPT] = {}
    for name, form in own.items():
        compute = Compute.for_decoding(str(device), dtype=form.dtype, compile=form.compile)
        if form.dtype not in models:
            models[form.dtype] = prepare_for_decoding(copy.deepcopy(exact), compute)
        model = models[form.dtype]
        if form.by_generate:
            found.runs[name] = partial(greedy_rows, model, form.rows, cfg.tokens, compute)
            continue
        start = time.perf_counter()
        decoder = found.decoders[name] = Decoder(model, rows=1, capacity=capacity, compute=compute)
        if form.compile:
            found.compile_seconds[name] = round(time.perf_counter() - start, 1)
        found.runs[name] = partial(greedy, decoder, cfg.tokens)
    if cfg.transformers and not is_installed("transformers"):
        print("transformers is not installed and is left out: pip install -e '.[bench]'")
    elif cfg.transformers:
        for name in dict.fromkeys(peers.values()):
            dtype = getattr(torch, name)
            found.runs[f"transformers {name}"] = transformers_generate(exact, PROMPT, dtype=dtype, tokens=cfg.tokens)
    if cfg.against is not None:
        found.runs["nanoGPT float32"] = nanogpt_generate(exact, PROMPT, checkout=cfg.against, tokens=cfg.tokens)
    return found


def comparison(found: Contenders, exact: GPT, tokens: int) -> tuple[dict[str, Any], dict[str, QualityLoss]]:
    """Compares with the greedy text of `exact`, eager: the texts in float32, and the logits of each decoder on it.

    Every contender runs once, which compiles what is not compiled yet.
    """
    compute = Compute.for_decoding(str(exact.embed.weight.device))
    eager = Decoder(exact, rows=1, capacity=len(PROMPT) + tokens, compute=compute)
    text = greedy(eager, tokens)
    logits = teacher_forced(eager, text)
    print(f"{tokens} greedy tokens, {len(set(text))} different ones; against eager float32:")
    made = {name: run() for name, run in found.runs.items()}
    texts = {name: first_difference(text, made[name], logits) for name in made if "float32" in name}
    losses = {name: compare_logits(logits, teacher_forced(decoder, text)) for name, decoder in found.decoders.items()}
    for name, difference in texts.items():
        print(f"  {name:<24} {describe_difference(difference)}")
    for name, loss in losses.items():
        print(f"  {name:<24} {loss}")
    return texts, losses


@torch.no_grad()
def main(cfg: Config, overrides: cli.Overrides) -> None:
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = resolve_device(cfg.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    exact = make_model(cfg.shape, cfg.seed).to(device)
    n_weights = sum(p.numel() for p in exact.parameters()) - exact.config.context * exact.config.d_model
    print(f"{n_weights / 1e6:.1f}M weights are read per token; {where}", flush=True)
    own = {form.name: form for form in forms(cfg, on_gpu=device.type == "cuda")}
    # The dtype of the other programs in each of ours: they have no int8.
    peers = {form.dtype: "bfloat16" if form.dtype == "int8" else form.dtype for form in own.values()}
    compared = contenders(cfg, own, peers, exact)
    texts, losses = comparison(compared, exact, cfg.tokens)

    times = take_turns(compared.runs, repeats=cfg.repeats)
    bandwidth = memory_bandwidth(device)
    used = {
        name: n_weights * BYTES[own[name].dtype] * cfg.tokens / times[name].median / bandwidth
        for name in compared.decoders
    }
    rows = {name: taken.rates(cfg.tokens * (own[name].rows if name in own else 1)) for name, taken in times.items()}
    print(f"\ntokens/s, {cfg.repeats} repeats; memory bandwidth {bandwidth / 1e9:.0f} GB/s")
    for name, row in rows.items():
        line = describe_rates(name, row)
        line += f"  {used[name]:.0%} of the bandwidth" if name in used else ""
        line += f", compiled in {compared.compile_seconds[name]} s" if name in compared.compile_seconds else ""
        print(line)
    ratios = ratios_of(rows, own, peers)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}x")
    print_json(
        {"benchmark": "decode", "shape": cfg.shape, "tokens": cfg.tokens, "device": where}
        | {"threads": torch.get_num_threads(), "torch": torch.__version__, "tokens_per_second": rows}
        | {"ratios": ratios, "compile_seconds": compared.compile_seconds, "greedy_text": texts}
        | {"logit_difference": {name: asdict(loss) for name, loss in losses.items()}}
        | {"memory_bytes_per_second": bandwidth, "part_of_memory_rate": used}
    )


def ratios_of(rows: dict[str, Any], own: dict[str, Form], peers: dict[str, str]) -> dict[str, float]:
    """The decoder over other programs and over its eager form, and many rows over one, in each dtype."""
    pairs = [
        (dtype, other)
        for dtype, peer in peers.items()
        for other in (f"{dtype} eager", f"transformers {peer}", f"nanoGPT {dtype}")
    ]
    pairs += [(name, f"{form.dtype}, by generate()") for name, form in own.items() if form.rows > 1]
    return {
        f"{name} / {other}": round(rows[name]["per_second"] / rows[other]["per_second"], 2)
        for name, other in pairs
        if other in rows
    }
