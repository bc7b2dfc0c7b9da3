"""A small schema in the shape of train.py's, for the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from conf import cli
from model.config import ModelConfig

ROOT = Path(__file__).resolve().parents[3]
CONF = ROOT / "conf"
PATTERNS = {"kind": "pattern", "list": True}


@dataclass
class Tokenizer:
    kind: str = "bpe"
    vocab_size: int = 4096
    pattern: str = field(default="gpt2", metadata={"kind": "text"})
    special_tokens: list[str] = field(default_factory=list)
    algorithm: str = "unigram"
    encoding: str = field(default="gpt2", metadata={"kind": "path"})
    path: str | None = field(default=None, metadata={"kind": "path"})


@dataclass
class Optimizer:
    name: str = "muon"
    learning_rate: float = 0.02
    adamw_learning_rate: float | None = None
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = field(default=1e-8, metadata={"group": "advanced"})
    warmup_steps: int | None = None
    schedule: str = "wsd"
    min_lr_ratio: float = 0.0

    def validate(self) -> list[str]:
        return [] if self.learning_rate > 0 else [f"optimizer.learning_rate={self.learning_rate} must be above 0"]


@dataclass
class Wandb:
    project: str = "nextword"


@dataclass
class Train:
    corpus: Any = field(default="shakespeare", metadata={"kind": "path", "list": True})
    include: Any = field(default=None, metadata=PATTERNS)
    stop: Any = field(default=None, metadata={"kind": "text", "list": True})
    # where the run
    # is written
    run_dir: str | None = field(default=None, metadata={"kind": "path"})
    prompt: str | None = field(default=None, metadata={"kind": "text"})
    json: str | None = field(default=None, metadata={"kind": "output"})
    steps: int = 1000  # optimizer steps
    seed: int = 1
    batch_size: int = 32
    micro_batch: int | None = None
    time_budget: str | None = None
    resume: Any = False
    debug: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    optimizer: Optimizer = field(default_factory=Optimizer)
    wandb: Wandb = field(default_factory=Wandb, metadata={"group": "evaluation and saving"})

    def validate(self) -> list[str]:
        return [] if self.steps > 0 else [f"steps={self.steps} must be at least 1"]


# Text that Hydra's grammar would refuse, change or expand.
NASTY = [
    *("It's 1e3, a=b (2024) [x] café wow! ", " leading", "trailing ", "line\nbreak\n", "${x}", "${oc.env:HOME}"),
    *("null", "1e3", "true", "", "a,b", "{a: b}", "[x]", "~/notes", '"quoted"', "'", "\\", "\\'", "#", "a: b"),
    *("--help", "=", "你好 👋\u200d", "\t", "@ $(x) `y` %s"),
]


def compose(*arguments: str) -> tuple[Train, cli.Overrides]:
    return cli.compose(Train, name="train", arguments=list(arguments))


def mistakes(*arguments: str) -> list[str]:
    with pytest.raises(cli.InputError) as caught:
        compose(*arguments)
    assert all("\n" not in line for line in caught.value.args)
    return list(caught.value.args)


def run(
    main: Callable[[Any, cli.Overrides], int | None], *arguments: str, schema: Any = Train, name: str = "train"
) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.run(main, schema, name=name, argv=list(arguments))
    assert isinstance(caught.value.code, int)
    return caught.value.code
