"""Time to a loss: whole processes from a cold start, ours and nanoGPT's in turn, judged by one evaluation."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conf.run.runs import words
from sample import load

from . import nanogpt
from .measure import Process, Target, print_json, run_process

ROOT = Path(__file__).resolve().parent.parent.parent
WINDOW = 64  # the context of nanoGPT's recipe
WANTED = {  # how many times as fast as nanoGPT, and the stretch
    "same_shape": {"training": (14.0, 20.0), "process": (8.0, 11.0)},
    "any": {"training": (30.0, 60.0), "process": (12.0, 18.0)},
}
VAL_FRACTION = 0.1  # the end of the text, as nanoGPT cuts it


@dataclass
class Run:
    """One run of one contender, from a cold start."""

    seed: int | None  # None: nanoGPT's train.py always takes its own
    loss: float  # nats a character on the whole validation split, float32, the weights after the last update
    process: float  # seconds, the preparation of the text left out on both sides
    training: float  # of these, from the first step to the last; evaluations, saves and compilation left out
    compiling: float
    disturbed: bool
    parts: dict[str, float]  # where the seconds of the process went


def split_loss(logits_of: Callable[[Tensor], Tensor], ids: Tensor, *, window: int, rows: int = 256) -> float:
    """Nats a token over all of ids (N,) but the first, in windows side by side; logits_of: ids (B, T) -> (B, T, V)."""
    whole = (len(ids) - 1) // window * window
    total = 0.0
    pairs = list(
        zip(ids[:whole].view(-1, window).split(rows), ids[1 : whole + 1].view(-1, window).split(rows), strict=True)
    )
    if whole + 1 < len(ids):
        pairs.append((ids[None, whole:-1], ids[None, whole + 1 :]))
    with torch.inference_mode():
        for inputs, targets in pairs:
            logits = logits_of(inputs).float().flatten(0, 1)
            total += F.cross_entropy(logits, targets.flatten(), reduction="sum").item()
    return total / (len(ids) - 1)


def undisturbed(run: Callable[[Path], Process], folder: Path) -> tuple[Process, Path]:
    """Runs in a new folder within `folder`, once more where others used the machine meanwhile; what ran, and where."""
    for _ in range(2):
        place = Path(tempfile.mkdtemp(dir=folder))
        ran = run(place)
        if not ran.disturbed:
            break
    return ran, place


def theirs(folder: Path, text: str, cfg: Any) -> Run:
    steps = cfg.steps or 2000
    ran, _ = undisturbed(lambda place: nanogpt.train(folder, steps), folder)
    model, known = nanogpt.trained_model(folder, steps), sorted(set(text))
    ids = torch.tensor([known.index(character) for character in validation(text)])
    loss = split_loss(lambda inputs: model(inputs, inputs)[0], ids, window=cfg.window or WINDOW)
    training = nanogpt.training_seconds(ran, min(nanogpt.EVAL_EVERY, steps))
    start = ran.until("step 0:")  # imports, and its first evaluation
    parts = {"start": start, "training": training, "evaluating and saving": ran.seconds - start - training}
    return Run(None, loss, ran.seconds, training, 0.0, ran.disturbed, parts)


def ours(experiment: str, folder: Path, text: str, seed: int, cfg: Any) -> Run:
    """A run of an experiment; where it compiles, with an empty cache."""

    def start(place: Path) -> Process:
        command = [*own_settings(cfg, folder), f"experiment={experiment}", f"seed={seed}", f"run_dir={place / 'run'}"]
        return run_process(
            [sys.executable, str(ROOT / "train.py"), *command], TORCHINDUCTOR_CACHE_DIR=str(place / "cache")
        )

    ran, place = undisturbed(start, folder)
    run_dir = place / "run"
    timing = json.loads((run_dir / "timing.json").read_text(encoding="utf-8"))
    aside = timing["aside_seconds"]
    compiled = "compile True" in ran.text
    step = (timing["training_seconds"] - timing["first_step_seconds"]) / max(1, timing["steps"] - 1)
    compiling = max(0.0, timing["first_step_seconds"] - step) if compiled else 0.0
    training = timing["training_seconds"] - compiling
    lm = load(run_dir)
    window = cfg.window or (WINDOW if cfg.target is None else lm.model.config.context)
    ids = torch.tensor(lm.tokenizer.encode(validation(text)))
    loss = split_loss(lm.model, ids, window=window)
    parts = {"start": ran.until("  compile "), "compiling": compiling, "training": training}
    parts |= {name: aside.get(name, 0.0) for name in ("evaluating", "saving", "plotting")}
    parts["end"] = ran.seconds - sum(parts.values())
    return Run(seed, loss, ran.seconds, training, compiling, ran.disturbed, parts)


def own_settings(cfg: Any, folder: Path) -> list[str]:
    data = [f"corpus={Path(cfg.corpus).resolve()}", f"datasets={folder / 'datasets'}", "tokenizer=char"]
    return [*data, f"val_fraction={VAL_FRACTION}", *words("common", cfg.common)]


def validation(text: str) -> str:
    return text[int(len(text) * (1 - VAL_FRACTION)) :]


def main(cfg: Any) -> None:
    """cfg: the Config of scripts/benchmarks/train.py."""
    text = Path(cfg.corpus).read_text(encoding="utf-8")
    experiments = {key: name for key in WANTED if (name := getattr(cfg, key)) is not None}
    runs: dict[str, list[Run]] = {key: [] for key in ("nanoGPT", *experiments)}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        contenders: dict[str, Callable[[int], Run]] = {}
        if cfg.against is not None:
            nanogpt.copy(cfg.against, cfg.corpus, folder / "nanogpt")
            contenders["nanoGPT"] = lambda seed: theirs(folder / "nanogpt", text, cfg)
        prepared = own_settings(replace(cfg, common=""), folder)
        run_process([sys.executable, "-m", "scripts.prepare", *prepared], folder=ROOT)
        for key, name in experiments.items():
            contenders[key] = lambda seed, name=name: ours(name, folder, text, seed, cfg)  # type: ignore[misc]
        imports = run_process([sys.executable, "-c", "import train"], folder=ROOT).seconds
        print(f"{'':<12} {'seed':>4} {'loss':>7} {'training':>9} {'compiling':>9} {'process':>8}   seconds, and where")
        for seed in range(cfg.seed, cfg.seed + cfg.seeds):
            for key, contender in contenders.items():
                run = contender(seed)
                runs[key].append(run)
                print(line(key, run), flush=True)
    report(cfg, runs, imports)


def line(key: str, run: Run) -> str:
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in run.parts.items() if round(seconds, 1))
    mark = "   (disturbed by others)" if run.disturbed else ""
    figures = f"{run.loss:7.4f} {run.training:9.2f} {run.compiling:9.1f} {run.process:8.1f}"
    return f"{key:<12} {'-' if run.seed is None else run.seed:>4} {figures}   {parts}{mark}"


def report(cfg: Any, runs: dict[str, list[Run]], imports: float) -> None:
    """Whether the loss was reached, how soon, and how many times as fast that is."""
    base, targets, verdicts = runs.pop("nanoGPT"), [], {}
    print(f"\nimports alone take {imports:.1f} s of each of our processes")
    for key, taken in runs.items():
        goals = [cfg.target] * len(taken) if cfg.target is not None else [run.loss for run in base]  # of the same turn
        reached = [run.loss <= goal for run, goal in zip(taken, goals, strict=True)]
        late = [run for run in taken if cfg.limit is not None and run.process > cfg.limit]
        verdicts[key] = {"reached": sum(reached), "of": len(taken), "in_time": len(taken) - len(late)}
        worst = max(run.loss for run in taken)
        print(
            f"{key} ({getattr(cfg, key)}): {sum(reached)} of {len(taken)} reach {min(goals):.4f}, worst {worst:.4f}; "
            f"process {spread([run.process for run in taken])}, training {spread([run.training for run in taken])}"
            + ("" if cfg.limit is None else f"; {len(taken) - len(late)} within {cfg.limit:g} s")
        )
        for what, (wanted, stretch) in WANTED[key].items() if base and cfg.target is None else ():
            own, other = [getattr(run, what) for run in taken], [getattr(run, what) for run in base]
            ratio = statistics.median(other) / statistics.median(own)
            targets.append(Target(f"{key}: {what}", ratio, wanted, stretch))
            print(f"{targets[-1]}; their fastest over our slowest {min(other) / max(own):.2f}x")
    if cfg.steps is not None:
        print(f"nanoGPT ran {cfg.steps} steps instead of 2,000: these ratios are no result")
    print_json(
        {"benchmark": "train", "part": "loss", "threads": torch.get_num_threads(), "nanogpt_steps": cfg.steps or 2000}
        | {"runs": {key: [asdict(run) for run in taken] for key, taken in ({"nanoGPT": base} | runs).items()}}
        | {"import_seconds": imports, "target": cfg.target, "limit": cfg.limit, "verdicts": verdicts}
        | {"ratios": {t.name: {"value": t.value, "target": t.wanted, "stretch": t.stretch} for t in targets}}
    )


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
