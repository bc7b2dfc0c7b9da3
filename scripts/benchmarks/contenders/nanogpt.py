"""nanoGPT from a checkout: its model.py, and its training step timed in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from conf.cli.child import run_process

LOG_INTERVAL = 10  # its train.py reads the loss every ten steps; until then a GPU does not wait for Python


def problems(checkout: str | None) -> list[str]:
    if checkout is None or (Path(checkout) / "model.py").is_file():
        return []
    return [f"against={checkout} has no model.py; give the folder of a checkout of nanoGPT"]


def module(checkout: str) -> Any:
    """Imports its model.py."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(checkout) / "model.py")
    assert spec and spec.loader
    found = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@dataclass
class Training:
    """A training run of nanoGPT to be timed."""

    checkout: str
    shape: dict[str, int]  # arguments of its GPTConfig
    batch_size: int
    steps: int  # timed steps, after `warmup` untimed ones
    warmup: int = 10
    dropout: float = 0.0
    autocast: bool = False  # to bfloat16; its train.py does that only on GPUs
    compile: bool = False
    device: str = "cpu"


def measure(training: Training) -> dict[str, Any]:
    """Times its training step in a new process: tokens per second (median step), and the peak memory of a GPU."""
    out = run_process([sys.executable, "-m", "scripts.benchmarks.contenders.nanogpt", json.dumps(asdict(training))])
    return json.loads(next(line for line in reversed(out.splitlines()) if line.startswith("{")))


def train(run: Training) -> dict[str, Any]:
    """Trains as its train.py does: batch, forward, backward, clipping, AdamW, and reading the loss now and then.

    Dropout inside attention is off, as in this project's model; so its fast attention stays in use.
    """
    theirs, where = module(run.checkout), torch.device(run.device).type
    torch.manual_seed(1337)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model = theirs.GPT(theirs.GPTConfig(**run.shape, dropout=run.dropout, bias=False)).to(run.device)
    for block in model.transformer.h:
        block.attn.dropout = 0.0
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), where)
    context = torch.autocast(where, torch.bfloat16) if run.autocast else contextlib.nullcontext()
    forward = torch.compile(model) if run.compile else model
    data = torch.randint(run.shape["vocab_size"], (1_000_000,)).to(torch.uint16).numpy()
    length = run.shape["block_size"]

    def batch() -> list[torch.Tensor]:
        starts = torch.randint(len(data) - length, (run.batch_size,)).tolist()
        pair = [
            torch.stack([torch.from_numpy(data[i + k : i + k + length].astype("int64")) for i in starts])
            for k in (0, 1)
        ]
        if where == "cuda":
            return [part.pin_memory().to(run.device, non_blocking=True) for part in pair]
        return pair

    inputs, targets = batch()

    def step() -> torch.Tensor:
        nonlocal inputs, targets
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        with context:
            _, loss = forward(inputs, targets)
        inputs, targets = batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    def steps(count: int) -> float:
        """Seconds per step. Reading the loss waits for the device."""
        start = time.perf_counter()
        for _ in range(count):
            loss = step()
        loss.item()
        return (time.perf_counter() - start) / count

    at_once = min(run.steps, LOG_INTERVAL if where == "cuda" else 1)
    steps(run.warmup)
    seconds = [steps(at_once) for _ in range(run.steps // at_once)]
    return {
        "tokens_per_second": run.batch_size * length / statistics.median(seconds),
        "peak_memory": torch.cuda.max_memory_reserved(run.device) if where == "cuda" else None,
    }


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        result = train(Training(**json.loads(sys.argv[1])))
    print(json.dumps(result))
