"""Training on a GPU: tokens a second, the share of its matrix products (MFU), peak memory; nanoGPT beside it."""

from __future__ import annotations

import json
import re
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from conf.run.runs import words
from model.config import ModelConfig
from model.gpt import GPT
from model.planning.plan import flops_per_token, peak_flops

from . import nanogpt
from .measure import print_json, run_process

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Shape:
    """A GPT-2 without biases, as nanoGPT trains it, and the batch of one step."""

    n_layer: int
    n_head: int
    d_model: int
    vocab_size: int
    context: int
    batch_size: int
    theirs: int  # nanoGPT's batch of one step: as in its bench.py, or what fits
    steps: int

    def model(self) -> ModelConfig:
        """As far as arithmetic goes: its matrices."""
        return ModelConfig(
            self.vocab_size, self.n_layer, self.n_head, d_model=self.d_model, context=self.context, position="learned",
            tie_embeddings=True, activation="gelu",
        )  # fmt: skip


SHAPES = {
    "124m": Shape(12, 12, 768, vocab_size=50257, context=1024, batch_size=64, theirs=12, steps=40),
    "1b": Shape(18, 16, 2048, vocab_size=50257, context=1024, batch_size=16, theirs=8, steps=20),
    "toy": Shape(1, 2, 32, vocab_size=300, context=32, batch_size=4, theirs=4, steps=10),  # to try the benchmark itself
}
WANTED = {"124m": ("tokens/s", 500_000.0), "1b": ("MFU", 0.50)}


def ours(cfg: Any, shape: Shape, folder: Path, device: str) -> dict[str, Any]:
    """train.py itself: compiled, the largest micro-batch that fits, AdamW; the median of its lines of figures.

    The text is the standard library of Python, and the vocabulary is made from it: of the size of GPT-2's, and there is
    nothing to download. It is prepared before, once.
    """
    steps = cfg.steps or shape.steps
    every = max(1, steps // 10)
    model = [f"model.{name}={getattr(shape, name)}" for name in ("n_layer", "n_head", "d_model", "context")]
    model += ["model=gpt2_124m", "model.bias=false", "model.activation=gelu_exact", f"model.dropout={cfg.dropout}"]
    data = [f"corpus={cfg.corpus or 'pystdlib'}", "val_fraction=0", f"tokenizer.vocab_size={shape.vocab_size}"]
    data += [f"datasets={folder / 'datasets'}"] if cfg.corpus else []
    run_process([sys.executable, "-m", "scripts.prepare", *data], folder=ROOT)
    run_dir = Path(tempfile.mkdtemp(dir=folder))
    loop = [f"batch_size={shape.batch_size}", f"steps={steps + 2 * every}", f"log_every={every}", f"device={device}"]
    loop += ["micro_batch=auto", "save_in_background=false", f"save_every={steps + 2 * every}"]  # theirs saves nothing
    settings = [*model, *data, *loop, "optimizer=adamw", f"run_dir={run_dir}", *words("common", cfg.common)]
    ran = run_process([sys.executable, str(ROOT / "train.py"), *settings], folder=ROOT)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line][1:]
    timing = json.loads((run_dir / "timing.json").read_text(encoding="utf-8"))
    resolved = dict(re.findall(r"(\w+) (\S+)", next(line for _, line in ran.lines if line.startswith("device "))))
    return {
        "tokens_per_second": statistics.median(speeds),
        "peak_memory": timing["peak_memory"],
        "first_step_seconds": timing["first_step_seconds"],  # the compilation
        "resolved": resolved,
    }


def theirs(cfg: Any, shape: Shape, folder: Path, device: str) -> dict[str, Any]:
    size = {"n_layer": shape.n_layer, "n_head": shape.n_head, "n_embd": shape.d_model, "block_size": shape.context}
    gpu = torch.device(device).type == "cuda"
    step = nanogpt.Step(
        str(Path(cfg.against).resolve()),
        shape=size | {"vocab_size": -(-shape.vocab_size // 64) * 64},  # padded, as it comes
        batch_size=shape.theirs,
        steps=cfg.steps or shape.steps,
        warm=10,
        dropout=cfg.dropout,
        autocast=gpu,
        compile=gpu,
        device=device,
    )
    _, seconds, peak_memory = nanogpt.timed_step(step, cache=folder / "cache-theirs")
    return {"tokens_per_second": shape.theirs * shape.context / statistics.median(seconds), "peak_memory": peak_memory}


def main(cfg: Any) -> None:
    """cfg: the Config of scripts/benchmarks/train.py."""
    device = cfg.device or "cuda"
    where = torch.device(device)
    name_of = torch.cuda.get_device_name(where) if where.type == "cuda" else device
    peak = peak_flops(where, torch.bfloat16)
    print(f"{name_of}, bfloat16 peak {'unknown' if peak is None else f'{peak / 1e12:.3g} TFLOP/s'}")
    result: dict[str, Any] = {"benchmark": "train", "part": "gpu", "device": name_of, "peak_flops": peak, "shapes": {}}
    for name in cfg.shapes or ("124m", "1b"):
        shape = SHAPES[name]
        rows: dict[str, list[dict[str, Any]]] = {}
        with torch.device("meta"):
            flops = flops_per_token(GPT(shape.model()))
        with tempfile.TemporaryDirectory() as place:
            contenders = {"ours": ours} | ({"nanoGPT": theirs} if cfg.against is not None else {})
            for _ in range(cfg.repeats):
                for key, contender in contenders.items():
                    rows.setdefault(key, []).append(contender(cfg, shape, Path(place), device))
        print(f"{name}: {flops / 1e9:.3g} GFLOP a token, {shape.context} tokens a sequence")
        figures = {key: summary(taken, flops, peak) for key, taken in rows.items()}
        for key, known in figures.items():
            print(f"  {key:<8} {shown(known)}")
        if name in WANTED:
            what, wanted = WANTED[name]
            value = figures["ours"]["tokens_per_second" if what == "tokens/s" else "mfu"] or 0.0
            print(f"  target {what} {wanted:,g}: {'reached' if value >= wanted else 'MISSED'}")
        if "nanoGPT" in figures:
            ratio = figures["ours"]["tokens_per_second"] / figures["nanoGPT"]["tokens_per_second"]
            print(f"  ours over nanoGPT {ratio:.2f}x")
        result["shapes"][name] = {"flops_per_token": flops, "contenders": figures}
    print_json(result)


def summary(taken: list[dict[str, Any]], flops: int, peak: float | None) -> dict[str, Any]:
    speeds = [run["tokens_per_second"] for run in taken]
    median = statistics.median(speeds)
    mfu = None if peak is None else median * flops / peak
    last = {key: value for key, value in taken[-1].items() if key != "tokens_per_second"}
    return {"tokens_per_second": median, "lowest": min(speeds), "highest": max(speeds), "mfu": mfu} | last


def shown(known: dict[str, Any]) -> str:
    line = f"{known['tokens_per_second']:>10,.0f} tokens/s ({known['lowest']:,.0f} to {known['highest']:,.0f})"
    line += "" if known["mfu"] is None else f", MFU {known['mfu']:.1%}"
    return line + ("" if known["peak_memory"] is None else f", peak memory {known['peak_memory'] / 2**30:.1f} GiB")
