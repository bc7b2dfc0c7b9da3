"""Tokens to a given loss: the default preset against GPT-2's network with AdamW, the learning rates of both swept."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from conf import cli
from conf.run.runs import train_once
from data.corpus.plays import HELD_OUT

from .measure import print_json

GPT2 = "model=gpt2_124m optimizer=adamw"  # the architecture; `size` sets its size
SIZE = "model.n_layer=4 model.n_head=4 model.d_model=256 model.context=256 batch_size=16"
TEXT = {"kind": "text"}


@dataclass
class Config:
    """The keys of `python -m scripts.bench tokens`."""

    steps: int = 400  # of GPT-2; its loss after them is the one to reach
    shares: list[float] = field(default_factory=lambda: [0.5, 0.35])  # of these steps, for the default preset
    gpt2_rates: list[float] = field(default_factory=lambda: [1e-3, 2e-3, 3e-3, 4e-3, 6e-3])
    default_rates: list[float] = field(default_factory=lambda: [0.014, 0.02, 0.028])  # Muon's
    seeds: int = 3  # the sweeps use the first; the best rate of each side gets all
    size: str = field(default=SIZE, metadata=TEXT)  # settings of both sides
    gpt2: str = field(default=GPT2, metadata=TEXT)  # settings of GPT-2
    default: str = field(default="", metadata=TEXT)  # settings of the default preset
    # where the runs go; finished runs are not repeated
    out: str = field(default="out/bench_tokens", metadata={"kind": "path"})
    debug: bool = False

    def validate(self) -> list[str]:
        found = [] if self.seeds >= 1 else [f"seeds={self.seeds} must be at least 1"]
        if not all(0 < share <= 1 for share in self.shares) or not self.shares:
            found.append(f"shares={self.shares} must be one or more numbers in (0, 1]")
        if not self.gpt2_rates or not self.default_rates:
            found.append("gpt2_rates and default_rates need at least one learning rate")
        if self.steps < 10:
            found.append(f"steps={self.steps} must be at least 10")
        return found


@dataclass
class Side:
    """One side's losses at its best learning rate."""

    share: float  # of GPT-2's tokens
    learning_rate: float
    losses: list[float]  # nats per token on whole held-out plays after the last step, one per seed

    @property
    def mean(self) -> float:
        return statistics.mean(self.losses)


def loss_of(cfg: Config, side: str, settings: str, *, rate: float, steps: int, seed: int) -> float:
    """Trains one run and returns its final loss on whole held-out plays, in nats per token."""
    words = [f"steps={steps}", f"eval_every={steps}", f"optimizer.learning_rate={rate}", f"seed={seed}"]
    words += [f"val_include=[{','.join(HELD_OUT)}]", *cfg.size.split()]
    run_dir = Path(cfg.out) / f"{side}-{steps}-{rate:g}-{seed}"
    loss = train_once(run_dir, [*settings.split(), *words])["val_loss"]
    print(f"{side:<8} {steps:>5} steps, learning rate {rate:<7g} seed {seed}: {loss:.4f}", flush=True)
    return loss


def sweep(cfg: Config, side: str, settings: str, rates: Iterable[float], *, share: float) -> Side:
    """Finds the best learning rate with the first seed, then trains with the other seeds at that rate."""
    steps = round(share * cfg.steps)
    first = {rate: loss_of(cfg, side, settings, rate=rate, steps=steps, seed=1) for rate in rates}
    best = min(first, key=lambda rate: first[rate])
    more = [loss_of(cfg, side, settings, rate=best, steps=steps, seed=seed) for seed in range(2, cfg.seeds + 1)]
    return Side(share, best, [first[best], *more])


def main(cfg: Config, overrides: cli.Overrides) -> None:
    gpt2 = sweep(cfg, "gpt2", cfg.gpt2, cfg.gpt2_rates, share=1.0)
    defaults = [sweep(cfg, "default", cfg.default, cfg.default_rates, share=share) for share in cfg.shares]
    print(f"\n{'':<8} {'tokens':>7} {'best rate':>10} {'loss':>8}   lowest to highest of {cfg.seeds} seeds")
    for name, side in (("gpt2", gpt2), *(("default", side) for side in defaults)):
        verdict = "" if side is gpt2 else "   reached" if side.mean <= gpt2.mean else "   missed"
        spread = f"{min(side.losses):.4f} to {max(side.losses):.4f}"
        print(f"{name:<8} {side.share:>7.0%} {side.learning_rate:>10g} {side.mean:>8.4f}   {spread}{verdict}")
    sides = {"gpt2": asdict(gpt2), "default": [asdict(side) for side in defaults]}
    print_json({"benchmark": "tokens", "steps": cfg.steps, "size": cfg.size} | sides)
