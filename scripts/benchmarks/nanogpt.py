"""nanoGPT as it is: a copy of its checkout, its own train.py in a process, its model, and its training step alone.

`python -m scripts.benchmarks.nanogpt JSON` times that step in a process of its own: see step_seconds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import shutil
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conf.cli import InputError

from .measure import Process, run_process

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = Path("data/shakespeare_char")
FILES = ("train.py", "model.py", "configurator.py", "config/train_shakespeare_char.py", str(DATA / "prepare.py"))
# Its README's command for a computer without a GPU. The last flag is the one addition: each evaluation saves, so that
# the checkpoint is that of the last update, not of the best evaluation on a few batches.
README = (
    *("--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1", "--block_size=64", "--batch_size=12"),
    *("--n_layer=4", "--n_head=4", "--n_embd=128", "--dropout=0.0"),
)
ADDED = ("--always_save_checkpoint=True",)
EVAL_EVERY = 250  # eval_interval in its config


def problems(checkout: str | None) -> list[str]:
    if checkout is None or all((Path(checkout) / name).is_file() for name in FILES):
        return []
    return [f"against={checkout} holds no {' or '.join(FILES[:2])}; give the folder of a checkout of nanoGPT"]


def copy(checkout: str, corpus: str, folder: Path) -> None:
    """Its files, unchanged, in `folder`, and the text prepared there by its own prepare.py."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(checkout) / name, folder / name)
    shutil.copyfile(corpus, folder / DATA / "input.txt")
    run_process([sys.executable, "prepare.py"], folder=folder / DATA)


def train(folder: Path, steps: int) -> Process:
    """Its train.py with its README's flags, from a cold start; `steps` are 2,000 there.

    eval_interval stays as it is, so it evaluates and saves every 250 steps and last before update number steps + 1,
    the one that it makes but never saves.
    """
    every = min(EVAL_EVERY, steps)
    length = (f"--max_iters={steps}", f"--lr_decay_iters={steps}", f"--eval_interval={every}")
    return run_process(
        [sys.executable, "train.py", "config/train_shakespeare_char.py", *README, *length, *ADDED], folder=folder
    )


def training_seconds(ran: Process, every: int = EVAL_EVERY) -> float:
    """From its first step to its last, without the evaluations: a step that holds one counts as the median step."""
    found = re.findall(r"iter (\d+): loss \S+ time ([\d.]+)ms", ran.text)
    steps = {int(number): float(milliseconds) / 1000 for number, milliseconds in found}
    plain = [seconds for number, seconds in steps.items() if number % every]
    return sum(plain) + (len(steps) - len(plain)) * statistics.median(plain)


def module(checkout: str | Path) -> Any:
    """Its model.py."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(checkout) / "model.py")
    assert spec and spec.loader
    found = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def trained_model(folder: Path, steps: int) -> nn.Module:
    """The model after exactly `steps` updates."""
    checkpoint = torch.load(folder / "out-shakespeare-char" / "ckpt.pt", map_location="cpu", weights_only=True)
    if checkpoint["iter_num"] != steps:
        raise InputError(f"{folder}: nanoGPT saved step {checkpoint['iter_num']}, not its last, {steps}")
    theirs = module(folder)
    with contextlib.redirect_stdout(None):  # it says how many parameters it has
        model = theirs.GPT(theirs.GPTConfig(**checkpoint["model_args"]))
    model.load_state_dict(checkpoint["model"])
    return model.eval()


@dataclass
class Step:
    """One of nanoGPT's training steps, to be timed: where its model.py lies, the model's shape, how it computes."""

    checkout: str
    shape: dict[str, int]  # of its GPTConfig
    batch_size: int
    steps: int  # timed, after `warm` that are not
    warm: int = 5
    dropout: float = 0.0
    autocast: bool = False  # bfloat16; its train.py has that on GPUs only
    compile: bool = False
    device: str = "cpu"


def step_seconds(step: Step) -> dict[str, Any]:
    """The seconds of each step as its train.py makes it: batch, forward, backward, clipping, AdamW, the loss read.

    Of dropout, that inside attention is off: equal on both sides, and so its fast attention stays in use.
    """
    theirs, where = module(step.checkout), torch.device(step.device).type
    torch.manual_seed(1337)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model = theirs.GPT(theirs.GPTConfig(**step.shape, dropout=step.dropout, bias=False)).to(step.device)
    for block in model.transformer.h:
        block.attn.dropout = 0.0
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), where)
    ctx = torch.autocast(where, torch.bfloat16) if step.autocast else contextlib.nullcontext()
    forward = torch.compile(model) if step.compile else model
    data = torch.randint(step.shape["vocab_size"], (1_000_000,)).to(torch.uint16).numpy()
    length = step.shape["block_size"]

    def batch() -> tuple[torch.Tensor, ...]:
        starts = torch.randint(len(data) - length, (step.batch_size,)).tolist()
        pair = (
            torch.stack([torch.from_numpy(data[i + k : i + k + length].astype("int64")) for i in starts])
            for k in (0, 1)
        )
        if where == "cuda":
            return tuple(part.pin_memory().to(step.device, non_blocking=True) for part in pair)
        return tuple(pair)

    inputs, targets = batch()
    taken, began = [], time.perf_counter()
    for _ in range(step.warm + step.steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        with ctx:
            _, loss = forward(inputs, targets)
        inputs, targets = batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # waits for the device
        taken.append(time.perf_counter() - began)
        began = time.perf_counter()
    peak = torch.cuda.max_memory_reserved() if where == "cuda" else None
    return {"seconds": taken[step.warm :], "peak_memory": peak}


def timed_step(step: Step, *, cache: Path) -> tuple[Process, list[float], int | None]:
    """step_seconds in a process of its own: the process, the seconds of each step, the peak memory of a GPU."""
    command = [sys.executable, "-m", "scripts.benchmarks.nanogpt", json.dumps(asdict(step))]
    ran = run_process(command, folder=ROOT, TORCHINDUCTOR_CACHE_DIR=str(cache))
    result = json.loads(next(line for _, line in reversed(ran.lines) if line.startswith("{")))
    return ran, result["seconds"], result["peak_memory"]


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        result = step_seconds(Step(**json.loads(sys.argv[1])))
    print(json.dumps(result))
