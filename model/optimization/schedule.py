"""Optimizer settings, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

ADVANCED = {"group": "advanced"}
MUON = {"needs": ("name=muon",)}


@dataclass
class OptimizerConfig:
    """With Muon, `learning_rate` applies to hidden matrices and `adamw_learning_rate` to everything else."""

    name: str = "muon"  # muon | adamw
    learning_rate: float = 0.02  # peak
    # muon: peak for embeddings, head, norms and biases
    adamw_learning_rate: float = field(default=0.004, metadata=MUON)
    # learning rate of each block relative to the next one; below 1, layers near the input change less
    layer_decay: float = field(default=1.0, metadata=ADVANCED)
    weight_decay: float = 0.1  # decoupled; never on norms and biases
    beta1: float = field(default=0.9, metadata=ADVANCED)  # AdamW: decay of the mean gradient
    beta2: float = field(default=0.95, metadata=ADVANCED)  # AdamW: decay of the mean squared gradient
    eps: float = field(default=1e-8, metadata=ADVANCED)  # AdamW
    momentum: float = field(default=0.9, metadata=ADVANCED | MUON)  # muon
    # muon: auto (bfloat16 where it is fast, else float32) | bfloat16 | float32
    newton_schulz_dtype: str = field(default="auto", metadata=ADVANCED | MUON)
    grad_clip: float = 1.0  # largest global gradient norm; 0: no clipping
    warmup_steps: int | None = None  # null: min(100, steps // 10)
    schedule: str = "wsd"  # wsd (warmup, stable, linear decay) | cosine | constant
    # wsd: fraction of the steps in which the learning rate decays
    decay_ratio: float = field(default=0.5, metadata={"needs": ("schedule=wsd",)})
    # wsd, cosine: final learning rate as a fraction of the peak
    min_lr_ratio: float = field(default=0.0, metadata={"needs": ("schedule=wsd|cosine",)})

    def validate(self) -> list[str]:
        errors = []
        for name, allowed in (
            ("name", ("muon", "adamw")),
            ("schedule", ("wsd", "cosine", "constant")),
            ("newton_schulz_dtype", ("auto", "bfloat16", "float32")),
        ):
            if getattr(self, name) not in allowed:
                errors.append(f"optimizer.{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name in ("learning_rate", "adamw_learning_rate", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                errors.append(f"optimizer.{name}={getattr(self, name)} must be above 0")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                errors.append(f"optimizer.{name}={getattr(self, name)} must be in [0, 1)")
        for name in ("weight_decay", "grad_clip", "warmup_steps"):
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                errors.append(f"optimizer.{name}={getattr(self, name)} must be 0 or above")
        if not 0 < self.layer_decay <= 1:
            errors.append(f"optimizer.layer_decay={self.layer_decay} must be in (0, 1]")
        for name in ("decay_ratio", "min_lr_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                errors.append(f"optimizer.{name}={getattr(self, name)} must be in [0, 1]")
        return errors


def warmup_steps(config: OptimizerConfig, steps: int) -> int:
    return min(100, steps // 10) if config.warmup_steps is None else config.warmup_steps


def decay_start(config: OptimizerConfig, steps: int) -> int:
    """The step at which the learning rate starts to decay.

    Before it, the learning rate does not depend on `steps` if warmup_steps is set.
    """
    warmup = warmup_steps(config, steps)
    if config.schedule == "constant":
        return steps
    return warmup if config.schedule == "cosine" else max(warmup, steps - round(config.decay_ratio * steps))


def lr_multiplier(config: OptimizerConfig, step: int, steps: int) -> float:
    r"""The learning rate of update `step` (from 0) out of `steps`, as a fraction of the peak: in (0, 1].

          1 |     ________________
            |    /                \
        min |   /                  \
            |  /
          0 +-------------------------
              warmup   stable   decay        (wsd; cosine decays right after the warmup, constant never)
    """
    warmup, start = warmup_steps(config, steps), decay_start(config, steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if step < start or config.schedule == "constant":
        return 1.0
    progress = (step - start) / max(1, steps - start)  # stays below 1, so the last update still moves the weights
    decay = (1 + math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else 1 - progress
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * decay
