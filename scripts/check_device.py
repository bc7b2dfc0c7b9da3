"""Checks on a GPU what the tests cannot check on a CPU, one line each: PASS, FAIL or SKIP, with the figure.

On a CPU the same checks run at toy sizes, which rehearses them. `scripts/check_gpu.sh` installs what this needs.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conf import cli
from model import InputError
from model.checkpoints import reader
from model.device import Compute, missing_for_compile, resolve_device
from model.distributed import parallel
from model.inference.sampling import SamplingConfig
from model.language_model import LanguageModel
from model.training.microbatch import MicroBatches
from sample import load

ROOT = Path(__file__).parent.parent
PROMPTS = ("A resumed run", "The tokenizer", "Each rank")
PASSED, FAILED, SKIPPED = "PASS", "FAIL", "SKIP"
Result = tuple[str, str]  # one of these, and the figure or the reason


@dataclass(frozen=True)
class Sizes:
    """How much each check does."""

    model: tuple[str, ...]  # settings of train.py
    benchmark: tuple[str, ...]  # of the benchmark of training
    steps: int  # of a run
    save_every: int  # of the run that is killed
    sequences: int  # of the batch that does not fit
    new_tokens: int  # to decode
    prompts: int  # of the benchmark of next words


FULL = Sizes(
    ("model.n_layer=6", "model.n_head=6", "model.d_model=384", "model.context=256", "batch_size=32"),
    ("shapes=[124m]", "steps=20"), steps=100, save_every=20, sequences=4096, new_tokens=200, prompts=20,
)  # fmt: skip
TOY = Sizes(
    ("model.n_layer=1", "model.n_head=2", "model.d_model=32", "model.context=32", "batch_size=4", "tokenizer=char",
     "compile=false"),
    ("shapes=[toy]", "steps=10", "compile=false"), steps=20, save_every=5, sequences=32, new_tokens=20, prompts=2,
)  # fmt: skip
MEMORY = 4 * 2**30  # bytes of a GPU that the batch which does not fit may use, so that it fails quickly
ROWS_IN_MEMORY = 4  # the same in the rehearsal: sequences


@dataclass
class CheckConfig:
    """The keys of `python -m scripts.check_device`."""

    device: str = "auto"  # auto | cuda | cuda:N | cpu (a rehearsal at toy sizes)
    only: list[str] | None = None  # names of checks; null: all
    seconds: float = 480.0  # checks that have not started by then are skipped
    debug: bool = False

    def validate(self) -> list[str]:
        found = [f"seconds={self.seconds} must be above 0"] if self.seconds <= 0 else []
        if unknown := [name for name in self.only or [] if name not in CHECKS]:
            found.append(f"only={unknown} is not among {', '.join(CHECKS)}")
        return found


def verdict(passed: bool, figure: str) -> Result:
    return PASSED if passed else FAILED, figure


class Place:
    """The device, the sizes, and a folder with the runs, of which several checks share the plain one."""

    def __init__(self, device: torch.device, folder: Path, *, seconds: float) -> None:
        self.device, self.folder = device, folder
        self.on_gpu = device.type == "cuda"
        self.sizes = FULL if self.on_gpu else TOY
        self.end = time.monotonic() + seconds
        self.text = folder / "pages.txt"
        pages = sorted(page for name in ("model", "data", "conf", "scripts") for page in (ROOT / name).rglob("*.md"))
        self.text.write_text("\n".join(page.read_text(encoding="utf-8") for page in pages), encoding="utf-8")

    def train_command(self, name: str, *settings: str, launcher: tuple[str, ...] = ()) -> list[str]:
        """The command that trains the run `name` on the pages, one log line a step."""
        own = (f"corpus={self.text}", f"datasets={self.folder / 'datasets'}", f"run_dir={self.folder / name}")
        loop = ("log_every=1", "eval_every=1000000000", "optimizer.newton_schulz_dtype=float32")
        return [
            sys.executable, *launcher, str(ROOT / "train.py"), *own, *loop, f"steps={self.sizes.steps}",
            f"device={self.device.type if launcher else self.device}", *self.sizes.model, *settings,
        ]  # fmt: skip

    def run(self, command: list[str]) -> str:
        """Runs a program in the clone. Returns what it printed."""
        left = max(1.0, self.end - time.monotonic())
        try:
            ended = subprocess.run(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, timeout=left,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise InputError(f"no end within the {left:.0f} seconds that were left; raise seconds=") from error
        if ended.returncode:
            last = (ended.stdout.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"{' '.join(command[1:3])} ended with status {ended.returncode}: {last}")
        return ended.stdout

    def bench(self, name: str, *settings: str) -> dict[str, Any]:
        """The last line of a benchmark."""
        out = self.run([sys.executable, "-m", "scripts.bench", name, f"device={self.device}", *settings])
        return json.loads(out.strip().splitlines()[-1])

    def losses(self, name: str) -> list[float]:
        """The training loss of each step of a run."""
        lines = (self.folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [line["train_loss"] for line in map(json.loads, lines) if "train_loss" in line]

    @cached_property
    def plain(self) -> Path:
        """A run in float32 without dropout, for the checks that compare with it or need a checkpoint."""
        self.run(self.train_command("plain", "dtype=float32", "model.dropout=0"))
        return self.folder / "plain"

    def model(self, device: str | None = None, **how: Any) -> LanguageModel:
        return load(self.plain, device=device or str(self.device), **how)


def check_resume(place: Place) -> Result:
    """A run that is killed and resumed ends with the weights of an uninterrupted one, bit for bit."""
    how = ("deterministic=true", "model.dropout=0.1", f"save_every={place.sizes.save_every}", "resume=auto",
           "optimizer.schedule=constant", "optimizer.warmup_steps=0")  # fmt: skip
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
        return FAILED, f"the run to kill ended with status {status}: {last}"
    steps = f"steps={found.step + place.sizes.save_every}"
    out = place.run(place.train_command("killed", *how, steps))
    if f"at step {found.step}" not in out:
        return FAILED, f"the killed run did not resume from step {found.step}"
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
    return verdict(abs(loss - exact) <= 0.05 * exact and scale >= 1, figure)


class Limited(nn.Module):
    """A model whose memory, in the rehearsal, holds only a few sequences."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, **options: Any) -> Tensor:
        if len(ids) > ROWS_IN_MEMORY:
            raise torch.OutOfMemoryError(f"{len(ids)} sequences")
        return self.model(ids, **options)


def check_out_of_memory(place: Place) -> Result:
    """A micro-batch that is far too large is halved until it fits, and the gradient stays the same."""
    model = reader.find(place.plain).model(place.device).train()
    compute = Compute.resolve(str(place.device), dtype="float32")
    generator = torch.Generator().manual_seed(1)
    shape = (place.sizes.sequences, model.config.context)
    ids = torch.randint(model.config.vocab_size, shape, generator=generator).to(place.device)

    def gradient(size: int) -> tuple[int, Tensor]:
        """The micro-batch that was used, and the gradient of the first matrix."""
        module = model if place.on_gpu else Limited(model)
        micro_batches = MicroBatches(module, size, compute=compute, world=parallel.World())
        model.zero_grad(set_to_none=True)
        micro_batches.backward(ids, ids, loss_weight=1 / ids.numel(), seed=1)
        return micro_batches.micro_batch_size, next(p.grad for p in model.parameters() if p.grad is not None).clone()

    if place.on_gpu:  # for this process only, whose other checks need less
        total = torch.cuda.get_device_properties(place.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(0.9, MEMORY / total), place.device)
    size, halved = gradient(len(ids))
    _, small = gradient(max(1, size // 2))
    difference = ((halved - small).norm() / small.norm()).item()
    figure = f"micro_batch {len(ids)} became {size}; relative difference of a gradient {difference:.1e}"
    return verdict(size < len(ids) and difference < 1e-4, figure)


def check_decoding(place: Place) -> Result:
    """Compiled decoding (on a GPU as a captured graph) gives the greedy tokens of eager decoding."""
    if missing := missing_for_compile(place.device):
        return SKIPPED, f"compilation needs {missing}"
    texts: dict[str, list[int]] = {}
    tokens, greedy, speeds = place.sizes.new_tokens, SamplingConfig(temperature=0), {}
    eager = place.model()
    sure = eager.generate(PROMPTS[0], max_new_tokens=tokens, sampling=greedy, top_logprobs=2)[0].alternatives
    for name, lm in (("eager", eager), ("compiled", place.model(compile=True))):
        lm.generate(PROMPTS[0], max_new_tokens=tokens, sampling=greedy)  # compiles
        began = time.perf_counter()
        texts[name] = lm.generate(PROMPTS[0], max_new_tokens=tokens, sampling=greedy)[0].tokens
        speeds[name] = len(texts[name]) / (time.perf_counter() - began)
    equal, figure = first_difference(texts["compiled"], texts["eager"], [[p.probability for p in row] for row in sure])
    return verdict(equal, "; ".join([figure, *(f"{name} {speed:,.0f} tokens/s" for name, speed in speeds.items())]))


def first_difference(ours: list[int], theirs: list[int], best: list[list[float]]) -> tuple[bool, str]:
    """Compares two greedy texts. They may part where the two best probabilities (T, 2) are equal up to rounding."""
    for place, (one, two) in enumerate(zip(ours, theirs, strict=False)):
        if one != two:
            gap = best[place][0] - best[place][1]
            return gap < 1e-5, f"differs from token {place}, where the two best probabilities are {gap:.1e} apart"
    return len(ours) == len(theirs), f"the same {min(len(ours), len(theirs))} greedy tokens"


def check_next_words(place: Place) -> Result:
    """Next tokens have the probabilities that they have on the CPU, and the bounds of next words agree."""
    here, there = place.model(), place.model("cpu")
    differences = []
    for prompt in PROMPTS:
        ours, theirs = ({one.id: one.probability for one in lm.next_tokens(prompt, top=20)} for lm in (here, there))
        differences += [abs(ours[token] - theirs[token]) for token in ours.keys() & theirs.keys()]
        found, known = ({one.word: one for one in lm.next_words(prompt, top=10).words[:10]} for lm in (here, there))
        for one, two in ((found[word], known[word]) for word in found.keys() & known.keys()):
            differences.append(max(one.lower - two.upper, two.lower - one.upper, 0.0))
    figure = f"{len(differences)} tokens and words, largest difference of a probability {max(differences):.1e}"
    return verdict(max(differences) <= 1e-4, figure)


def check_several(place: Place) -> Result:
    """DDP and FSDP on two devices train as one process does."""
    if place.on_gpu and torch.cuda.device_count() < 2:
        return SKIPPED, "one GPU here; DDP and FSDP over nccl need two"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    exact, largest = place.losses(place.plain.name), {}
    for kind in ("ddp", "fsdp") if place.on_gpu else ("fsdp",):  # the tests do both over gloo
        place.run(place.train_command(kind, "dtype=float32", "model.dropout=0", f"parallel={kind}", launcher=launcher))
        largest[kind] = max(abs(a - b) for a, b in zip(exact, place.losses(kind), strict=True))
    figures = ", ".join(f"{kind} {difference:.1e}" for kind, difference in largest.items())
    backend = "nccl" if place.on_gpu else "gloo"
    return verdict(max(largest.values()) < 1e-3, f"{backend}, largest difference of a loss from one process: {figures}")


def bench_next_words(place: Place) -> Result:
    how = (f"checkpoint={place.plain}", f"corpus={place.text}", f"n_prompts={place.sizes.prompts}", "repeats=1")
    row = place.bench("next_word", *how)["seconds"]["top 10"]
    figure = f"median {row['median']:.3f} s, 95th percentile {row['p95']:.3f} s, {row['certified']:.0%} certified"
    return verdict(row["certified"] > 0, figure)


def bench_training(place: Place) -> Result:
    how = ["repeats=1", *place.sizes.benchmark]
    how += [] if place.on_gpu else [f"corpus={place.text}", f"datasets={place.folder}"]
    figures = []
    for setting in ("false", "true") if place.on_gpu else ("true",):
        [shape] = place.bench("train", *how, f"common=deterministic={setting}")["shapes"].values()
        row = shape["contenders"]["ours"]
        mfu = "" if row["mfu"] is None else f", MFU {row['mfu']:.1%}"
        figures.append(f"deterministic={setting} {row['per_second']:,.0f} tokens/s{mfu}")
    return PASSED, "; ".join(figures)


CHECKS: dict[str, Callable[[Place], Result]] = {  # the slowest last
    "resume": check_resume, "float16": check_float16, "out_of_memory": check_out_of_memory,
    "decoding": check_decoding, "next_words": check_next_words, "several": check_several,
    "bench_next_word": bench_next_words, "bench_train": bench_training,
}  # fmt: skip


def outcome(check: Callable[[Place], Result], place: Place) -> Result:
    """Runs a check. An error fails it, and the other checks still run."""
    if time.monotonic() >= place.end:
        return SKIPPED, "no time left; set seconds="
    try:
        return check(place)
    except Exception as error:
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        return FAILED, kind + str(error).partition("\n")[0]


def main(cfg: CheckConfig, overrides: cli.Overrides) -> None:
    device = resolve_device(cfg.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device}: a rehearsal at toy sizes"
    print(f"{name}; torch {torch.__version__}", flush=True)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        place = Place(device, Path(folder), seconds=cfg.seconds)
        for check in cfg.only or CHECKS:
            began = time.monotonic()
            status, figure = outcome(CHECKS[check], place)
            found.append(status)
            print(f"{status} {check:<15} {figure}  ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{found.count(PASSED)} passed, {found.count(FAILED)} failed, {found.count(SKIPPED)} skipped")
    if FAILED in found:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, CheckConfig, name="check_device")
