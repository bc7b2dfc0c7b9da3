"""Fine-tuning steps: the output head on tokens with a target only, against the head on all tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conf import cli
from model.config import ModelConfig
from model.device import DTYPES, Compute, keep_freed_memory
from model.gpt import GPT
from model.loss import IGNORE
from model.optimization.optimizer import Optimizer
from model.optimization.schedule import OptimizerConfig

from .measure import describe_rates, print_json, take_turns


@dataclass
class Config:
    """The keys of `python -m scripts.bench finetune`."""

    prompt_tokens: int = 200
    completion_tokens: int = 3  # the end token comes on top
    batch_size: int = 16
    n_layer: int = 4
    vocab_size: int = 4096
    dtype: str = "auto"  # auto | float32 | bfloat16
    steps: int = 5  # in each repeat
    repeats: int = 5
    debug: bool = False

    def validate(self) -> list[str]:
        found = [] if self.dtype in ("auto", *DTYPES) else [f"dtype={self.dtype!r} is not one of {', '.join(DTYPES)}"]
        names = ("prompt_tokens", "completion_tokens", "batch_size", "n_layer", "vocab_size", "steps", "repeats")
        return found + [f"{name} must be at least 1" for name in names if getattr(self, name) < 1]


def main(cfg: Config, overrides: cli.Overrides) -> None:
    keep_freed_memory()
    compute = Compute.resolve("cpu", dtype=cfg.dtype, compile=False)
    torch.manual_seed(1)
    length = cfg.prompt_tokens + cfg.completion_tokens
    model = GPT(ModelConfig(vocab_size=cfg.vocab_size, n_layer=cfg.n_layer, context=length)).train()
    ids = torch.randint(cfg.vocab_size, (cfg.batch_size, length + 1))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].clone()
    targets[:, : cfg.prompt_tokens - 1] = IGNORE

    def on_all_tokens() -> Tensor:
        logits = model(inputs).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")

    losses: dict[str, Callable[[], Tensor]] = {
        "head on targets only": lambda: model(inputs, targets=targets),
        "head on all tokens": on_all_tokens,
    }
    gradients = []
    for loss in losses.values():
        model.zero_grad()
        loss().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    difference = float((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max())
    prompts = f"{cfg.batch_size} prompts of {cfg.prompt_tokens} tokens"
    print(f"{prompts}, completions of {cfg.completion_tokens}, {compute.dtype}")
    print(f"largest difference of the float32 gradients: {difference:.1e} of the largest gradient")
    optimizer = Optimizer(model, OptimizerConfig(name="adamw", learning_rate=1e-4))
    one, never = torch.tensor(1.0), torch.tensor(False)

    def steps(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(cfg.steps):
                with compute.autocast():
                    total = loss()
                (total / int((targets != IGNORE).sum())).backward()
                optimizer.step(1.0, divisor=one, skip=never)
                optimizer.zero_grad()

        return run

    times = take_turns({name: steps(loss) for name, loss in losses.items()}, repeats=cfg.repeats)
    rows = {name: found.rates(cfg.steps) for name, found in times.items()}
    for name, row in rows.items():
        print(describe_rates(name, row))
    fast, slow = (times[name].median for name in losses)
    print(f"ratio {slow / fast:.2f}")
    result: dict[str, Any] = {"steps_per_second": rows, "ratio": round(slow / fast, 3), "difference": difference}
    print_json(result)
