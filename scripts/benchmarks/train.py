"""Training speed: this project's train.py, and with against= nanoGPT's model and training step at the same shape."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from conf import cli
from conf.cli.arguments import split_settings
from data.tokenizers.build import load
from model.config import ModelConfig
from model.gpt import GPT
from model.planning.plan import flops_per_token, peak_flops

from .contenders import nanogpt
from .measure import ROOT, describe_rates, print_json, rates, run_process, take_turns


@dataclass(frozen=True)
class Shape:
    """A GPT-2 without biases, as nanoGPT trains it, and the data that one run reads."""

    n_layer: int
    n_head: int
    d_model: int
    context: int
    batch_size: int  # sequences per step
    nanogpt_batch_size: int  # the same, or what nanoGPT's bench.py takes, or what fits
    steps: int  # timed steps
    corpus: str
    tokenizer: str  # a setting; the standard library is large enough to train a vocabulary of GPT-2's size

    def flops_per_token(self, vocab_size: int) -> int:
        config = ModelConfig(
            vocab_size, self.n_layer, self.n_head, d_model=self.d_model, context=self.context, position="learned",
            tie_embeddings=True, activation="gelu",
        )  # fmt: skip
        with torch.device("meta"):
            return flops_per_token(GPT(config))


GPT2_DATA = {"corpus": "pystdlib", "tokenizer": "tokenizer.vocab_size=50257"}
CHARACTERS = {"corpus": "shakespeare", "tokenizer": "tokenizer=char"}
SHAPES = {
    "1m": Shape(4, 4, 128, 64, batch_size=12, nanogpt_batch_size=12, steps=200, **CHARACTERS),  # nanoGPT's CPU recipe
    "10m": Shape(6, 6, 384, 256, batch_size=16, nanogpt_batch_size=16, steps=8, **CHARACTERS),  # its GPU recipe's model
    "124m": Shape(12, 12, 768, 1024, batch_size=64, nanogpt_batch_size=12, steps=40, **GPT2_DATA),
    "1b": Shape(18, 16, 2048, 1024, batch_size=16, nanogpt_batch_size=8, steps=20, **GPT2_DATA),
    "toy": Shape(1, 2, 32, 32, batch_size=4, nanogpt_batch_size=4, steps=10, **CHARACTERS),  # to test the benchmark
}
USUAL = {"cpu": ["1m", "10m"], "cuda": ["124m", "1b"]}


@dataclass
class Config:
    """The keys of `python -m scripts.bench train`."""

    # the folder of a nanoGPT checkout; null: only this project
    against: str | None = field(default=None, metadata={"kind": "path"})
    shapes: list[str] | None = None  # 1m, 10m, 124m, 1b, toy; null: the first two on a CPU, the next two on a GPU
    # null: shakespeare as characters, or pystdlib with a BPE vocabulary of GPT-2's size
    corpus: str | None = field(default=None, metadata={"kind": "path"})
    # more settings of this project's runs, as on train.py's command line
    common: str = field(default="", metadata={"kind": "text"})
    steps: int | None = None  # timed steps of each run; null: the shape's
    dropout: float = 0.0  # outside attention, on both sides
    compile: bool = True  # on both sides; the seconds to compile are not counted
    device: str = "auto"
    repeats: int = 3
    datasets: str = field(default="datasets", metadata={"kind": "path"})
    debug: bool = False

    def validate(self) -> list[str]:
        found = nanogpt.problems(self.against)
        if unknown := [name for name in self.shapes or [] if name not in SHAPES]:
            found.append(f"shapes={unknown} is not among {', '.join(SHAPES)}")
        for name in ("repeats", "steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                found.append(f"{name}={value} must be at least 1")
        if not 0 <= self.dropout < 1:
            found.append(f"dropout={self.dropout} must be in [0, 1)")
        try:
            split_settings("common", self.common)
        except cli.InputError as error:
            found.append(str(error))
        return found

    def data(self, shape: Shape) -> list[str]:
        return [
            f"corpus={self.corpus or shape.corpus}", f"datasets={self.datasets}", shape.tokenizer, "val_fraction=0"
        ]  # fmt: skip


def ours(cfg: Config, shape: Shape, device: str) -> dict[str, Any]:
    """Runs train.py with AdamW: the median speed of its log lines after the first."""
    steps = cfg.steps or shape.steps
    log_every = max(1, steps // 10)
    total = steps + 2 * log_every  # the first log lines include warmup and compilation
    model = [f"model.{name}={getattr(shape, name)}" for name in ("n_layer", "n_head", "d_model", "context")]
    model += ["model=gpt2_124m", "model.bias=false", "model.activation=gelu_exact", f"model.dropout={cfg.dropout}"]
    loop = [f"batch_size={shape.batch_size}", f"steps={total}", f"log_every={log_every}", f"compile={cfg.compile}"]
    loop += [f"save_every={total}", "save_in_background=false", "optimizer=adamw", f"device={device}"]
    loop += ["micro_batch=auto"] if device.startswith("cuda") else []
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        settings = [*model, *cfg.data(shape), *loop, *split_settings("common", cfg.common), f"run_dir={run_dir}"]
        run_process([sys.executable, str(ROOT / "train.py"), *settings])
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        timing = json.loads((run_dir / "timing.json").read_text(encoding="utf-8"))
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    return {"tokens_per_second": statistics.median(speeds[1:]), "peak_memory": timing["peak_memory"]}


def theirs(cfg: Config, shape: Shape, device: str, vocab_size: int, *, autocast: bool) -> dict[str, Any]:
    size = {"n_layer": shape.n_layer, "n_head": shape.n_head, "n_embd": shape.d_model, "block_size": shape.context}
    return nanogpt.measure(
        nanogpt.Training(
            str(Path(cfg.against or "").resolve()),
            shape=size | {"vocab_size": -(-vocab_size // 64) * 64},  # padded, as ours is
            batch_size=shape.nanogpt_batch_size,
            steps=cfg.steps or shape.steps,
            dropout=cfg.dropout,
            autocast=autocast,
            compile=cfg.compile,
            device=device,
        )
    )


def bench_shape(cfg: Config, shape: Shape, device: str, peak: float | None) -> dict[str, Any]:
    """Each contender's tokens per second, share of the peak FLOP/s (MFU) and memory."""
    prepared = run_process([sys.executable, "-m", "scripts.prepare", *cfg.data(shape)]).split()[-1]
    vocab_size = load(Path(prepared) / "tokenizer").vocab_size
    contenders: dict[str, Callable[[], dict[str, Any]]] = {"ours": lambda: ours(cfg, shape, device)}
    if cfg.against is not None:
        contenders["nanoGPT bfloat16"] = lambda: theirs(cfg, shape, device, vocab_size, autocast=True)
        if device == "cpu":  # where its train.py trains in float32
            contenders["nanoGPT float32"] = lambda: theirs(cfg, shape, device, vocab_size, autocast=False)
    flops = shape.flops_per_token(vocab_size)
    rows: dict[str, Any] = {}
    for name, times in take_turns(contenders, repeats=cfg.repeats).items():
        row: dict[str, Any] = rates([run["tokens_per_second"] for run in times.results], disturbed=times.disturbed)
        row["mfu"] = None if peak is None else round(row["per_second"] * flops / peak, 3)
        row["peak_memory"] = times.results[-1]["peak_memory"]
        rows[name] = row
        line = describe_rates(name, row) + ("" if peak is None else f"  MFU {row['mfu']:.1%}")
        print(line + (f"  {row['peak_memory'] / 2**30:.1f} GiB" if row["peak_memory"] else ""), flush=True)
    ratios = {name: round(rows["ours"]["per_second"] / rows[name]["per_second"], 2) for name in rows if name != "ours"}
    for name, ratio in ratios.items():
        print(f"ours / {name}: {ratio:.2f}x")
    return {"flops_per_token": flops, "contenders": rows, "ratios": ratios}


def main(cfg: Config, overrides: cli.Overrides) -> None:
    device = cfg.device if cfg.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    peak = peak_flops(where, torch.bfloat16)
    if where.type == "cpu":  # without bfloat16 instructions float32 is the faster
        peak = max(peak or 0.0, peak_flops(where, torch.float32) or 0.0)
    print(f"{name}, peak of matrix products {'unknown' if peak is None else f'{peak / 1e12:.3g} TFLOP/s'}")
    result: dict[str, Any] = {"benchmark": "train", "device": name, "peak_flops": peak, "shapes": {}}
    for key in cfg.shapes or USUAL.get(where.type, ["1m", "10m"]):
        shape = SHAPES[key]
        print(f"{key}: {shape.n_layer} layers, {shape.d_model} wide, context {shape.context}; tokens/s in training")
        result["shapes"][key] = bench_shape(cfg, shape, device, peak)
    print_json(result)
