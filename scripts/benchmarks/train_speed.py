"""Tokens a second in training an identical model on a CPU: our train.py as it is, beside nanoGPT's model and step."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from conf.run.runs import words
from model.config import ModelConfig
from model.gpt import GPT
from model.planning.plan import flops_per_token, peak_flops

from . import nanogpt
from .measure import PATIENCE, Process, Target, print_json, run_process

ROOT = Path(__file__).resolve().parent.parent.parent
VOCABULARY = 65


@dataclass(frozen=True)
class Shape:
    """A recipe's model and batch, how many steps of it are timed, and the share of the matrix peak to be reached."""

    n_layer: int
    n_head: int
    d_model: int
    context: int
    batch_size: int
    steps: int
    wanted_share: float

    def model(self) -> ModelConfig:
        """As far as arithmetic goes: its matrices."""
        return ModelConfig(
            VOCABULARY, self.n_layer, self.n_head, d_model=self.d_model, context=self.context, position="learned",
            tie_embeddings=True, activation="gelu",
        )  # fmt: skip


SHAPES = {
    "cpu": Shape(4, 4, 128, context=64, batch_size=12, steps=200, wanted_share=0.45),
    "gpu": Shape(6, 6, 384, context=256, batch_size=16, steps=8, wanted_share=0.65),
    "toy": Shape(1, 2, 32, context=32, batch_size=4, steps=20, wanted_share=0.0),  # to try the benchmark itself
}
WANTED, STRETCH = 2.5, 3.0


@dataclass
class Speed:
    """The turns of one contender: seconds a step, the median of each turn."""

    seconds: list[float]
    disturbed: int = 0

    def add(self, run: Callable[[], tuple[Process, list[float]]]) -> None:
        for attempt in range(PATIENCE):
            ran, steps = run()
            if not ran.disturbed or attempt == PATIENCE - 1:
                break
        self.seconds.append(statistics.median(steps))
        self.disturbed += ran.disturbed

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def ours(cfg: Any, shape: Shape, folder: Path, *, compile: bool) -> tuple[Process, list[float]]:
    """train.py itself, as a GPT-2 with AdamW, on the text; seconds a step of each line of figures but the first two."""
    steps = cfg.steps or shape.steps
    every = max(1, steps // 10)
    model = [f"model.{name}={getattr(shape, name)}" for name in ("n_layer", "n_head", "d_model", "context")]
    model += ["model=gpt2_124m", "model.bias=false", "model.activation=gelu_exact", f"model.dropout={cfg.dropout}"]
    data = [
        f"corpus={Path(cfg.corpus).resolve()}",
        f"datasets={folder / 'datasets'}",
        "tokenizer=char",
        "val_fraction=0",
    ]
    run_dir = tempfile.mkdtemp(dir=folder)
    loop = [f"batch_size={shape.batch_size}", f"steps={steps + 2 * every}", f"log_every={every}", f"compile={compile}"]
    loop += [f"save_every={steps + 2 * every}"]  # theirs does not save while it is timed
    loop += ["optimizer=adamw", "device=cpu", f"run_dir={run_dir}"]
    settings = [*model, *data, *loop, *words("common", cfg.common)]
    cache = str(folder / "cache")  # kept: the seconds to compile are not asked for here
    ran = run_process([sys.executable, str(ROOT / "train.py"), *settings], TORCHINDUCTOR_CACHE_DIR=cache)
    lines = map(json.loads, (Path(run_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    speeds = [known["tokens_per_second"] for known in lines if "tokens_per_second" in known]
    return ran, [shape.batch_size * shape.context / speed for speed in speeds[1:]]


def theirs(cfg: Any, shape: Shape, folder: Path, *, autocast: bool, compile: bool) -> tuple[Process, list[float]]:
    size = {"n_layer": shape.n_layer, "n_head": shape.n_head, "n_embd": shape.d_model, "block_size": shape.context}
    step = nanogpt.Step(
        str(Path(cfg.against).resolve()),
        shape=size | {"vocab_size": VOCABULARY},
        batch_size=shape.batch_size,
        steps=cfg.steps or shape.steps,
        dropout=cfg.dropout,
        autocast=autocast,
        compile=compile,
    )
    ran, seconds, _ = nanogpt.timed_step(step, cache=folder / "cache-theirs")
    return ran, seconds


def measure(cfg: Any, shape: Shape, folder: Path) -> dict[str, Speed]:
    """Each way to compute once, then the best of ours, of nanoGPT's, and of nanoGPT's given bfloat16, in turn."""
    ways: dict[str, dict[str, Callable[[], tuple[Process, list[float]]]]] = {
        "ours": {},
        "nanoGPT": {},
        "nanoGPT bfloat16": {},
    }
    for compile in (False, True):
        name = "compiled" if compile else "eager"
        ways["ours"][name] = lambda compile=compile: ours(cfg, shape, folder, compile=compile)  # type: ignore[misc]
        if cfg.against is not None:
            for key, autocast in (("nanoGPT", False), ("nanoGPT bfloat16", True)):
                ways[key][name] = lambda how=(autocast, compile): theirs(  # type: ignore[misc]
                    cfg, shape, folder, autocast=how[0], compile=how[1]
                )
    ways["ours"]["compiled"]()  # fills the cache, so that the time it takes is not in the way of the turns
    best = {}
    for key, some in ways.items():
        tried = {name: statistics.median(way()[1]) for name, way in some.items()}
        if tried:
            name = min(tried, key=lambda way: tried[way])
            best[f"{key}, {name}"] = some[name]
            print(
                f"  {key:<17} " + ", ".join(f"{way} {seconds * 1000:.1f} ms a step" for way, seconds in tried.items())
            )
    speeds = {name: Speed([]) for name in best}
    for _ in range(cfg.repeats):
        for name, way in best.items():
            speeds[name].add(way)
    return speeds


def main(cfg: Any) -> None:
    """cfg: the Config of scripts/benchmarks/train.py."""
    device = torch.device("cpu")
    result: dict[str, Any] = {"benchmark": "train", "part": "speed", "threads": torch.get_num_threads(), "shapes": {}}
    for name in cfg.shapes or ("cpu", "gpu"):
        shape = SHAPES[name]
        print(
            f"{name}: {shape.n_layer} layers, {shape.d_model} wide, {shape.batch_size} x {shape.context} tokens, "
            f"AdamW, dropout {cfg.dropout:g}, {torch.get_num_threads()} threads"
        )
        with tempfile.TemporaryDirectory() as folder:
            speeds = measure(cfg, shape, Path(folder))
        peaks = {dtype: peak_flops(device, getattr(torch, dtype)) or 0.0 for dtype in ("float32", "bfloat16")}
        with torch.device("meta"):
            flops = flops_per_token(GPT(shape.model()))
        rows = {key: row(shape, speed, flops, max(peaks.values())) for key, speed in speeds.items()}
        for key, figures in rows.items():
            mark = f"   ({figures['disturbed']} disturbed by others)" if figures["disturbed"] else ""
            print(
                f"  {key:<26} {figures['per_second']:>9,.0f} tokens/s ({figures['lowest']:,.0f} to "
                f"{figures['highest']:,.0f}), {figures['share']:.2f} of the matrix peak{mark}"
            )
        print(
            "  measured peak of matrix products: "
            + ", ".join(f"{dtype} {peak / 1e9:.0f} GFLOP/s" for dtype, peak in peaks.items())
        )
        own = next(key for key in rows if key.startswith("ours"))
        others = [key for key in rows if key != own]
        ratios = {f"{name}: ours over {key}": speeds[key].median / speeds[own].median for key in others}
        targets = [Target(what, ratio, WANTED, STRETCH) for what, ratio in ratios.items()]
        targets.append(Target(f"{name}: share of the matrix peak", rows[own]["share"], shape.wanted_share))
        print(*targets, sep="\n")
        result["shapes"][name] = {"peak_flops": peaks, "flops_per_token": flops, "contenders": rows} | {
            "targets": [asdict(target) for target in targets]
        }
    print_json(result)


def row(shape: Shape, speed: Speed, flops: int, peak: float) -> dict[str, float]:
    tokens = shape.batch_size * shape.context
    rates = {"per_second": speed.median, "lowest": max(speed.seconds), "highest": min(speed.seconds)}
    figures: dict[str, float] = {name: round(tokens / seconds, 1) for name, seconds in rates.items()}
    share = flops * tokens / speed.median / peak
    return figures | {"share": round(share, 3), "repeats": len(speed.seconds), "disturbed": speed.disturbed}
