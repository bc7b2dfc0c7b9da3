"""Training beside nanoGPT's: time to a loss, tokens a second with an identical model, what is reached on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from conf import cli
from conf.run.runs import words

from . import nanogpt, train_gpu, train_loss, train_speed

PARTS = {"loss": train_loss.main, "speed": train_speed.main, "gpu": train_gpu.main}
SHAPES = {"speed": ("cpu", "gpu", "toy"), "gpu": ("124m", "1b", "toy")}


@dataclass
class Config:
    """The keys of `python -m scripts.bench train`."""

    part: str = "loss"  # loss: time to a loss | speed: tokens a second on a CPU | gpu: the same on a GPU
    against: str | None = field(default=None, metadata={"kind": "path"})  # the folder of a nanoGPT checkout
    # loss, speed: a text file, taken as characters (nanoGPT's is tinyshakespeare's)
    corpus: str | None = field(default=None, metadata={"kind": "path", "list": True})
    # more settings of each of our runs, as on train.py's command line
    common: str = field(default="", metadata={"kind": "text"})
    seeds: int = 5  # loss: runs of each, in turn
    seed: int = 1  # of the first; each run after it has the next
    same_shape: str | None = "char_sprint"  # loss: an experiment with the shape of nanoGPT's recipe
    any: str | None = None  # loss: an experiment with any model
    target: float | None = None  # loss: the loss to reach; null: that of nanoGPT's own final weights
    limit: float | None = None  # loss: the seconds that a whole process may take
    window: int | None = None  # loss: characters that the evaluation sees; null: 64, with target= the model's own
    steps: int | None = None  # loss: nanoGPT's, null: 2000 as in its README; speed, gpu: how many are timed of each
    shapes: list[str] | None = None  # speed: cpu, gpu (nanoGPT's recipes), toy; gpu: 124m, 1b, toy; null: the first two
    dropout: float = 0.0  # speed, gpu: outside of attention, on both sides
    repeats: int = 3  # speed, gpu
    device: str | None = None  # gpu: null: cuda
    threads: int = 0  # 0: as many as there are CPUs
    debug: bool = False

    def validate(self) -> list[str]:
        found = nanogpt.problems(self.against)
        if self.part not in PARTS:
            return [*found, f"part={self.part!r} is not one of {', '.join(PARTS)}"]
        if self.part != "gpu" and (self.corpus is None or not Path(self.corpus).is_file()):
            found.append(f"corpus={self.corpus} is not a text file; name one, such as corpus=tinyshakespeare.txt")
        try:
            words("common", self.common)
        except cli.InputError as error:
            found.append(str(error))
        if self.part == "loss" and self.against is None and self.target is None:
            found.append("give against=, the folder of a checkout of nanoGPT, whose loss is to be reached, or target=")
        if self.part == "loss" and self.same_shape is None and self.any is None:
            found.append("name an experiment: same_shape= or any=")
        for name in ("seeds", "repeats", "steps", "window"):
            if (value := getattr(self, name)) is not None and value < 1:
                found.append(f"{name}={value} must be at least 1")
        if not 0 <= self.dropout < 1:
            found.append(f"dropout={self.dropout} must be in [0, 1)")
        if self.part in SHAPES and (unknown := [name for name in self.shapes or [] if name not in SHAPES[self.part]]):
            found.append(f"shapes={unknown} is not among {', '.join(SHAPES[self.part])}")
        if self.part == "gpu" and self.device is None and not torch.cuda.is_available():
            found.append(
                "part=gpu: this torch finds no CUDA device; to try the benchmark itself: device=cpu shapes=[toy]"
            )
        return found


def main(cfg: Config, overrides: cli.Overrides) -> None:
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    PARTS[cfg.part](cfg)
