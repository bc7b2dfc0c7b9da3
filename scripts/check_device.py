"""Checks on a GPU what the tests cannot check on a CPU, one line each: PASS, FAIL or SKIP, with the figure.

The last line is JSON with the status and the figures of every check. On a CPU the same checks run at toy sizes, which
rehearses them. `scripts/check_gpu.sh` installs what this needs.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from conf import cli
from conf.cli import InputError
from conf.cli.child import run_process
from model.checkpoints import reader
from model.device import resolve_device

ROOT = Path(__file__).parent.parent
PASSED, FAILED, SKIPPED = "PASS", "FAIL", "SKIP"


class Result(NamedTuple):
    """The end of a check."""

    status: str  # PASS | FAIL | SKIP
    figure: str  # the figure, or the reason
    numbers: Mapping[str, Any] = MappingProxyType({})  # by name, for the line of JSON


@dataclass(frozen=True)
class Sizes:
    """How much each check does."""

    model: tuple[str, ...]  # settings of train.py
    shapes: tuple[str, str]  # of the benchmark of training: for all variants, and for one at the end
    training: tuple[str, ...]  # its settings
    decoding: tuple[str, ...]  # of the benchmark of decoding
    steps: int  # of a run
    save_every: int  # of the run that is killed
    prompts: int  # of the benchmark of next words


FULL = Sizes(
    ("model.n_layer=3", "model.n_head=6", "model.d_model=384", "model.context=256", "batch_size=32"),
    ("68m", "124m"), ("batch_sizes=[64]", "steps=20"),
    ("shape=124m", "tokens=60", "dtypes=[bfloat16]", "repeats=2"),
    steps=100, save_every=20, prompts=5,
)  # fmt: skip
TOY = Sizes(
    ("model.n_layer=1", "model.n_head=2", "model.d_model=32", "model.context=32", "batch_size=4", "tokenizer=char",
     "compile=false"),
    ("toy", "toy"), ("batch_sizes=[4]", "steps=10", "compile=false"),
    ("shape=toy", "tokens=20", "rows=3", "dtypes=[bfloat16]", "repeats=2"), steps=20, save_every=5, prompts=2,
)  # fmt: skip


@dataclass
class CheckConfig:
    """The keys of `python -m scripts.check_device`."""

    device: str = "auto"  # auto | cuda | cuda:N | cpu (a rehearsal at toy sizes)
    only: list[str] | None = None  # names of checks; null: all
    # for all checks: one that would need longer than what is left is skipped; null: 480, with several GPUs 540
    seconds: float | None = None
    debug: bool = False

    def validate(self) -> list[str]:
        wrong = self.seconds is not None and self.seconds <= 0
        found = [f"seconds={self.seconds} must be above 0"] if wrong else []
        if unknown := [name for name in self.only or [] if name not in CHECKS]:
            found.append(f"only={unknown} is not among {', '.join(CHECKS)}")
        return found


def verdict(passed: bool, figure: str, **numbers: Any) -> Result:
    return Result(PASSED if passed else FAILED, figure, numbers)


class Place:
    """The device, the sizes, and a folder with the runs, of which several checks share the plain one."""

    def __init__(self, device: torch.device, folder: Path, *, seconds: float) -> None:
        self.device, self.folder = device, folder
        self.on_gpu = device.type == "cuda"
        self.sizes = FULL if self.on_gpu else TOY
        self.end = time.monotonic() + seconds
        self.speeds: dict[str, float] = {}  # tokens per second in training, by variant
        self.text = folder / "pages.jsonl"  # a document for each section of the READMEs
        pages = sorted(page for name in ("model", "data", "conf", "scripts") for page in (ROOT / name).rglob("*.md"))
        sections = "\n## ".join(page.read_text(encoding="utf-8") for page in pages).split("\n## ")
        self.text.write_text("".join(json.dumps({"text": one}) + "\n" for one in sections), encoding="utf-8")

    def train_command(self, name: str, *settings: str, launcher: tuple[str, ...] = ()) -> list[str]:
        """The command that trains the run `name` on the pages, one log line a step."""
        own = (f"corpus={self.text}", f"datasets={self.folder / 'datasets'}", f"run_dir={self.folder / name}")
        loop = ("log_every=1", "eval_every=1000000000", "optimizer.newton_schulz_dtype=float32")
        return [
            sys.executable, *launcher, str(ROOT / "train.py"), *own, *loop, f"steps={self.sizes.steps}",
            f"device={self.device.type if launcher else self.device}", *self.sizes.model, *settings,
        ]  # fmt: skip

    def run(self, command: list[str]) -> str:
        """Runs a program in the clone, in the time that is left. Returns what it printed."""
        try:
            return run_process(command, timeout=max(1.0, self.end - time.monotonic()))
        except TimeoutError as error:
            raise InputError(f"{error}; raise seconds=") from error

    def module(self, name: str, *settings: str) -> dict[str, Any]:
        """Runs a program of scripts/ on the device. Returns its line of JSON."""
        words = name.split()
        out = self.run([sys.executable, "-m", f"scripts.{words[0]}", *words[1:], f"device={self.device}", *settings])
        return json.loads(next(line for line in reversed(out.splitlines()) if line.startswith("{")))

    def losses(self, name: str) -> list[float]:
        """The training loss of each step of a run."""
        lines = (self.folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [line["train_loss"] for line in map(json.loads, lines) if "train_loss" in line]

    @property
    def plain(self) -> Path:
        """A run in float32 without dropout, for the checks that compare with it or need a checkpoint."""
        if isinstance(self.trained, InputError):
            raise self.trained
        return self.trained

    @cached_property
    def trained(self) -> Path | InputError:
        """The plain run, trained once, eager; or why that failed."""
        try:
            self.run(self.train_command("plain", "dtype=float32", "model.dropout=0", "compile=false"))
        except InputError as error:
            return InputError(f"the run to compare with failed: {error}")
        return self.folder / "plain"


def check_numbers(name: str, place: Place, *, trained: bool = False) -> Result:
    """A check of scripts/check_numerics.py, `trained`: of a trained model."""
    found = place.module("check_numerics", f"check={name}", *([f"checkpoint={place.plain}"] if trained else []))
    passed, figure = found.pop("passed"), found.pop("figure")
    return Result(SKIPPED, figure) if passed is None else verdict(passed, figure, **found)


def check_resume(place: Place) -> Result:
    """A run that is killed and resumed ends with the weights of an uninterrupted one, bit for bit.

    The document mask is on, so that on a GPU with bfloat16 this holds for the variable-length kernel too.
    """
    how = (
        "deterministic=true", "model.dropout=0.1", "packing=stream", "document_mask=true", "resume=auto",
        f"save_every={place.sizes.save_every}", "optimizer.schedule=constant", "optimizer.warmup_steps=0",
    )  # fmt: skip
    killed = place.folder / "killed"
    with (place.folder / "killed.log").open("w", encoding="utf-8") as log:
        command = place.train_command("killed", *how, "steps=1000000000")
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None and time.monotonic() < place.end:
                if len(list(killed.glob("step_*/manifest.json"))) >= 2:
                    break
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            status = process.wait()
    found = reader.newest(killed, say=lambda line: None)
    if status != -signal.SIGKILL or found is None:
        last = (Path(log.name).read_text(encoding="utf-8").strip().splitlines() or ["no message"])[-1]
        return Result(FAILED, f"the run to kill ended with status {status}: {last}")
    steps = f"steps={found.step + place.sizes.save_every}"
    out = place.run(place.train_command("killed", *how, steps))
    if f"at step {found.step}" not in out:
        return Result(FAILED, f"the killed run did not resume from step {found.step}")
    place.run(place.train_command("straight", *how, steps))
    files = [reader.find(place.folder / name).directory / "model.safetensors" for name in ("killed", "straight")]
    one, two = map(reader.sha256, files)
    how_equal = "the same sha256" if one == two else "different sha256"
    return verdict(one == two, f"killed after step {found.step}, {steps}: {how_equal} of the weights, {one:.12}")


def check_float16(place: Place) -> Result:
    """Training in float16 with its loss scale ends with about the loss of float32."""
    place.run(place.train_command("float16", "dtype=float16", "model.dropout=0"))
    exact, loss = place.losses(place.plain.name)[-1], place.losses("float16")[-1]
    tensors, _ = reader.find(place.folder / "float16").train_state()
    scale = tensors["loss_scale.scale"].item()
    figure = f"loss {loss:.4f}, in float32 {exact:.4f}; loss scale {scale:g}"
    close = abs(loss - exact) <= 0.05 * exact
    return verdict(close and scale >= 1, figure, loss=loss, float32_loss=exact, loss_scale=scale)


def check_several(place: Place) -> Result:
    """DDP and FSDP on two devices train as one process does."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    exact, largest = place.losses(place.plain.name), {}
    for kind in ("ddp", "fsdp") if place.on_gpu else ("fsdp",):  # the tests do both over gloo
        place.run(place.train_command(kind, "dtype=float32", "model.dropout=0", f"parallel={kind}", launcher=launcher))
        largest[kind] = max(abs(a - b) for a, b in zip(exact, place.losses(kind), strict=True))
    figures = ", ".join(f"{kind} {difference:.1e}" for kind, difference in largest.items())
    backend = "nccl" if place.on_gpu else "gloo"
    figure = f"{backend}, largest difference of a loss from one process: {figures}"
    return verdict(max(largest.values()) < 1e-3, figure, largest_differences=largest)


def bench_next_words(place: Place) -> Result:
    how = (f"checkpoint={place.plain}", f"corpus={place.text}", f"n_prompts={place.sizes.prompts}", "repeats=1")
    found = place.module("bench next_word", *how, "top=[10]")
    row = found["seconds"]["top 10"]
    figure = f"median {row['median']:.3f} s, 95th percentile {row['p95']:.3f} s, {row['certified']:.0%} certified"
    for ratio in found.get("ratios", {}).values():
        figure += f", {ratio:.2f} times as fast as the CPU"
    return verdict(row["certified"] > 0, figure, **found)


def bench_decoding(place: Place) -> Result:
    """Tokens per second; fails if the logits in bfloat16 are far from those in float32, by any way of decoding."""
    found = place.module("bench decode", *place.sizes.decoding)
    speeds = {name: row["per_second"] for name, row in found["tokens_per_second"].items()}
    worst = max(row["divergence"] for row in found["logit_difference"].values())
    figure = "; ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items())
    return verdict(worst < 1e-2, f"tokens/s: {figure}; divergence from float32 {worst:.1e} nats", **found)


def bench_training(variant: str, place: Place, *, largest: bool = False) -> Result:
    """Tokens per second of a variant, `largest`: of the larger shape."""
    shape = place.sizes.shapes[largest]
    how = [f"shapes=[{shape}]", *place.sizes.training, "repeats=1", f"variants=[{variant}]"]
    how += [] if place.on_gpu else [f"corpus={place.text}", f"datasets={place.folder}"]
    found = place.module("bench train", *how)
    [row] = found["shapes"][shape]["contenders"].values()
    if "failed" in row:
        return Result(FAILED, row["failed"], row)
    figure = f"{shape} {row['per_second']:,.0f} tokens/s"
    if row["mfu"] is not None:
        figure += f", MFU {row['mfu']:.1%}, causal {row['causal_mfu']:.1%}"
    if row["peak_memory"]:
        figure += f", {row['peak_memory'] / 2**30:.1f} GiB"
    if not largest:
        place.speeds[variant] = row["per_second"]
        if variant != "default" and "default" in place.speeds:
            row["ratio_to_default"] = round(row["per_second"] / place.speeds["default"], 3)
            figure += f", {row['ratio_to_default']:.2f} times the default's speed"
    return Result(PASSED, figure, {"shape": shape, "peak_flops": found["peak_flops"]} | row)


class Check(NamedTuple):
    """A check and what it needs."""

    run: Callable[[Place], Result]
    seconds: float  # an estimate for an H200 with nothing compiled before
    gpus: int = 1


CHECKS: dict[str, Check] = {  # what is correct, then how fast; the slowest last
    "loss": Check(partial(check_numbers, "loss"), 20),
    "document_mask": Check(partial(check_numbers, "document_mask"), 35),
    "resume": Check(check_resume, 60),
    "float16": Check(check_float16, 35),
    "out_of_memory": Check(partial(check_numbers, "out_of_memory", trained=True), 12),
    "decoding": Check(partial(check_numbers, "decoding", trained=True), 20),
    "next_words": Check(partial(check_numbers, "next_words", trained=True), 12),
    "several": Check(check_several, 60, gpus=2),
    "bench_next_word": Check(bench_next_words, 20),
    "train": Check(partial(bench_training, "default"), 50),
    "train_document_mask": Check(partial(bench_training, "document_mask"), 40),
    "train_modern": Check(partial(bench_training, "modern"), 45),
    "bench_decode": Check(bench_decoding, 45),
    "train_124m": Check(partial(bench_training, "default", largest=True), 75),
}


def usual_seconds(gpus: int) -> float:
    return 480 if gpus < 2 else 540


def outcome(check: Check, place: Place) -> Result:
    """Runs a check if the GPUs and the time suffice. An error fails it, and the other checks still run."""
    if place.on_gpu and torch.cuda.device_count() < check.gpus:
        return Result(SKIPPED, f"it needs {check.gpus} GPUs")
    left = place.end - time.monotonic()
    if left <= (check.seconds if place.on_gpu else 0):
        about = f"it takes about {check.seconds:.0f} s, " if place.on_gpu else ""
        return Result(SKIPPED, f"{about}{max(0.0, left):.0f} s left; set seconds=")
    try:
        return check.run(place)
    except Exception as error:
        kind = "" if cli.is_user_mistake(error) else f"{type(error).__name__}: "
        return Result(FAILED, kind + str(error).partition("\n")[0])


def main(cfg: CheckConfig, overrides: cli.Overrides) -> None:
    device = resolve_device(cfg.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device}: a rehearsal at toy sizes"
    print(f"{name}; torch {torch.__version__}", flush=True)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Place(device, Path(folder), seconds=cfg.seconds or usual_seconds(torch.cuda.device_count()))
        for check in cfg.only or CHECKS:
            began = time.monotonic()
            status, figure, numbers = outcome(CHECKS[check], place)
            seconds = time.monotonic() - began
            found[check] = {"status": status, "figure": figure, "took_seconds": round(seconds, 1), **numbers}
            print(f"{status} {check:<19} {figure}  ({seconds:.0f} s)", flush=True)
    ended = [row["status"] for row in found.values()]
    counts = {"passed": ended.count(PASSED), "failed": ended.count(FAILED), "skipped": ended.count(SKIPPED)}
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    print(json.dumps({"device": name, "torch": torch.__version__} | counts | {"checks": found}))
    if counts["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, CheckConfig, name="check_device")
