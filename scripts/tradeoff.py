"""Plots fine-tuning runs: what each gained on its task against what it forgot of the checkpoint's corpus."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conf import cli
from conf.cli import InputError
from conf.display.answers import plot_tradeoff


@dataclass
class TradeoffConfig:
    """The keys of `python -m scripts.tradeoff`."""

    # run directories of finetune.py with the same held-out examples and the same starting checkpoint
    runs: Any = field(default=None, metadata={"kind": "path", "list": True})
    plot: str = field(default="out/tradeoff.png", metadata={"kind": "output"})
    debug: bool = False

    def validate(self) -> list[str]:
        return [] if self.runs else ["runs is required: run directories such as runs=[out/a,out/b]"]


def read(run_dir: Path) -> dict[str, Any]:
    """A point of the plot: the run's name, its accuracy and its forgetting, each with its interval."""
    path = run_dir / "comparison.json"
    if not path.is_file():
        raise InputError(f"{path} is missing: finish the run of finetune.py with compare=true")
    content = json.loads(path.read_text(encoding="utf-8"))
    if not content.get("forgetting"):
        raise InputError(f"{path} has no forgetting: the corpus of the checkpoint was not prepared in datasets=")
    rows = {row["name"]: row for row in content["results"]}
    return {"name": run_dir.name, "task": rows["fine-tuned"], "start": rows["before"], **content["forgetting"]}


def main(cfg: TradeoffConfig, overrides: cli.Overrides) -> None:
    runs = [cfg.runs] if isinstance(cfg.runs, str) else cfg.runs
    points = [read(Path(run).expanduser()) for run in runs]
    for run, point in zip(runs, points, strict=True):
        if (point["start"], point["before"]) != (points[0]["start"], points[0]["before"]):
            raise InputError(
                f"{run} and {runs[0]} differ before fine-tuning: choose runs with the same checkpoint, held-out "
                "examples and corpus"
            )
    for point in points:
        forgot = f"{point['difference']:+.4f} bits/byte forgotten ({point['low']:+.4f} to {point['high']:+.4f})"
        print(f"{point['name']}: accuracy {point['task']['accuracy']:.1%}, {forgot}")
    plot_tradeoff(cfg.plot, points)
    print(f"plot: {cfg.plot}")


if __name__ == "__main__":
    cli.run(main, TradeoffConfig, name="tradeoff")
