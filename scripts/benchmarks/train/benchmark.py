"""Training speed: this project's train.py, and with against= nanoGPT's model and training step at the same shape."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from conf import cli
from conf.cli.arguments import split_settings
from conf.cli.child import run_process
from data.tokenizers.build import load
from model.device import resolve_device
from model.planning.plan import peak_flops

from ..contenders import nanogpt
from ..measure import cpu_peak_flops, describe_rates, print_json, rates
from .runs import Run, Runs, in_turns, ours, theirs
from .shapes import SHAPES, USUAL, VARIANTS, Shape


@dataclass
class Config:
    """The keys of `python -m scripts.bench train`."""

    # the folder of a nanoGPT checkout; null: only this project
    against: str | None = field(default=None, metadata={"kind": "path"})
    part: str | None = None  # cpu | gpu: which shapes are the usual ones; null: those of the device
    shapes: list[str] | None = None  # 1m, 10m, 68m, 124m, 1b, toy; null: 1m and 10m on a CPU, 124m and 1b on a GPU
    batch_sizes: list[int] | None = None  # sequences per step, of both programs; null: the shape's
    # default, deterministic, document_mask, modern; null: the shape's. All but the first only at the largest batch
    variants: list[str] | None = None
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
        if self.part not in (None, *USUAL):
            found.append(f"part={self.part!r} is not one of {', '.join(USUAL)}")
        for name, known in (("shapes", SHAPES), ("variants", VARIANTS)):
            given: list[str] | None = getattr(self, name)
            if given == [] or not set(given or []) <= set(known):
                found.append(f"{name}={given} must be some of {', '.join(known)}")
        if self.batch_sizes is not None and (not self.batch_sizes or min(self.batch_sizes) < 1):
            found.append(f"batch_sizes={self.batch_sizes} must be numbers of at least 1")
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
        corpus, tokenizer = shape.data
        return [f"corpus={self.corpus or corpus}", f"datasets={self.datasets}", tokenizer, "val_fraction=0"]


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    program: str  # ours | nanoGPT
    variant: str  # ours: of VARIANTS; nanoGPT: its precision
    batch_size: int

    @property
    def name(self) -> str:
        return f"{self.program} {self.batch_size}" + ("" if self.variant == "default" else f" {self.variant}")


def contenders(cfg: Config, shape: Shape, device: str, vocab_size: int) -> dict[Contender, Run]:
    """What is run: the default variant at each batch size, other variants at the largest, nanoGPT at each of its."""
    settings = [*cfg.data(shape), f"model.dropout={cfg.dropout}", f"compile={cfg.compile}", f"device={device}"]
    settings += split_settings("common", cfg.common)
    sizes = sorted(cfg.batch_sizes or shape.batch_sizes)
    found: dict[Contender, Run] = {}
    for variant in cfg.variants or shape.variants:
        for size in sizes if variant == "default" else sizes[-1:]:
            run = partial(ours, shape, variant, size, settings, steps=cfg.steps or shape.steps_at(size))
            found[Contender("ours", variant, size)] = run
    if cfg.against is None:
        return found
    # On a CPU its train.py trains in float32.
    for precision in ("bfloat16",) if device.startswith("cuda") else ("bfloat16", "float32"):
        for size in sorted(cfg.batch_sizes or shape.nanogpt_batch_sizes):
            found[Contender("nanoGPT", precision, size)] = partial(
                theirs, cfg.against, shape, size, vocab_size=vocab_size, steps=cfg.steps or shape.steps_at(size),
                dropout=cfg.dropout, autocast=precision == "bfloat16", compile=cfg.compile, device=device,
            )  # fmt: skip
    return found


def row_of(contender: Contender, runs: Runs, shape: Shape, vocab_size: int, peak: float | None) -> dict[str, Any]:
    """A contender's row in the JSON line: speed, share of the peak FLOP/s (MFU) and memory, or why it failed."""
    row: dict[str, Any] = {
        "program": contender.program, "variant": contender.variant, "batch_size": contender.batch_size
    }  # fmt: skip
    if runs.failed is not None:
        row["failed"] = runs.failed
    if runs.speeds:
        row |= rates(runs.speeds, disturbed=runs.disturbed)
        variant = contender.variant if contender.program == "ours" else "default"
        flops, causal = shape.flops_per_token(vocab_size, variant)
        row |= {"flops_per_token": flops, "causal_flops_per_token": causal}
        for name, count in (("mfu", flops), ("causal_mfu", causal)):
            row[name] = None if peak is None else round(row["per_second"] * count / peak, 4)
        row["peak_memory"] = runs.peak_memory
    return row


def describe_row(name: str, row: dict[str, Any]) -> str:
    """A line of the table."""
    failed = f"failed: {row['failed']}" if "failed" in row else ""
    if "per_second" not in row:
        return f"{name:<26} {failed}"
    parts = [describe_rates(name, row)]
    if row["mfu"] is not None:
        parts.append(f"MFU {row['mfu']:.1%}, causal {row['causal_mfu']:.1%}")
    if row["peak_memory"]:
        parts.append(f"{row['peak_memory'] / 2**30:.1f} GiB")
    return "  ".join([*parts, *([failed] if failed else [])])


def ratios_of(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The speed of each of this project's rows over nanoGPT's fastest batch in each precision."""
    measured = {name: row for name, row in rows.items() if "per_second" in row}
    best: dict[str, str] = {}  # of each precision: the name of the row
    for name, row in measured.items():
        if row["program"] == "nanoGPT":
            other = best.setdefault(row["variant"], name)
            if row["per_second"] > measured[other]["per_second"]:
                best[row["variant"]] = name
    return {
        f"{name} / {other}": round(row["per_second"] / measured[other]["per_second"], 3)
        for name, row in measured.items() if row["program"] == "ours" for other in best.values()
    }  # fmt: skip


def bench_shape(cfg: Config, shape: Shape, device: str, peak: float | None) -> dict[str, Any]:
    """Prepares the data, runs the contenders in turns, prints the table; returns rows and ratios."""
    prepared = run_process([sys.executable, "-m", "scripts.prepare", *cfg.data(shape)]).split()[-1]
    vocab_size = load(Path(prepared) / "tokenizer").vocab_size
    compared = contenders(cfg, shape, device, vocab_size)
    on_gpu = device.startswith("cuda")
    found = in_turns({one.name: run for one, run in compared.items()}, repeats=cfg.repeats, on_gpu=on_gpu)
    rows = {one.name: row_of(one, found[one.name], shape, vocab_size, peak) for one in compared}
    for name, row in rows.items():
        print(describe_row(name, row))
    ratios = ratios_of(rows)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}x")
    return {"contenders": rows, "ratios": ratios}


def main(cfg: Config, overrides: cli.Overrides) -> None:
    where = resolve_device(cfg.device)
    part = cfg.part or ("gpu" if where.type == "cuda" else "cpu")
    if part == "gpu" and where.type != "cuda" and cfg.shapes is None:
        raise cli.InputError(f"part=gpu takes hours on device={where}; use a GPU, or shapes=[toy] to rehearse it")
    processor = f"{where.type.upper()}, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else processor
    peak = cpu_peak_flops() if where.type == "cpu" else peak_flops(where, torch.bfloat16)
    shown = "unknown" if peak is None else f"{peak / 1e12:.3g} TFLOP/s"
    print(f"{name}, torch {torch.__version__}, peak of matrix products {shown}")
    result: dict[str, Any] = {
        "benchmark": "train", "part": part, "device": name, "torch": torch.__version__, "peak_flops": peak
    }  # fmt: skip
    result["shapes"] = {}
    for key in cfg.shapes or USUAL[part]:
        shape = SHAPES[key]
        size = f"{shape.n_layer} layers, {shape.d_model} wide, context {shape.context}"
        print(f"{key}: {size}; tokens/s in training, program and sequences per step", flush=True)
        result["shapes"][key] = bench_shape(cfg, shape, str(where), peak)
    print_json(result)
