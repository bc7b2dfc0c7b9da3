"""Ablations: pairs of training runs at equal tokens over several seeds, and a table of their final losses."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path

from conf import cli
from conf.cli.arguments import split_settings
from conf.run.runs import train_once

# Quantiles of Student's t, two-sided 95 %, for 1, 2... degrees of freedom. Above 30 the normal quantile is used.
T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)

PATH = {"kind": "path"}
TEXT = {"kind": "text"}


@dataclass
class AblationsConfig:
    """The keys of `python -m scripts.ablations`."""

    # a file with one pair per line: NAME | settings of A | settings of B
    pairs: str = field(default="scripts/ablations.txt", metadata=PATH)
    common: str = field(default="", metadata=TEXT)  # settings of every run, as on train.py's command line
    name: str | None = field(default=None, metadata=TEXT)  # compares only a= and b=, under this name
    a: str = field(default="", metadata=TEXT)  # settings of A, the baseline
    b: str = field(default="", metadata=TEXT)  # settings of B, the change
    seeds: int = 3  # runs per side, with the seeds 1, 2...
    # where the runs and the tables go; finished runs are not repeated
    out: str = field(default="out/ablations", metadata=PATH)
    times: bool = True  # show the ratio of the training times; false if the machine was busy
    debug: bool = False  # show the traceback of a mistake too

    def validate(self) -> list[str]:
        found = [] if self.seeds >= 2 else [f"seeds={self.seeds}: must be at least 2 for a standard deviation"]
        if self.name is None and (self.a or self.b):
            found.append("name is required with a= and b=")
        return found


@dataclass
class Result:
    """The losses of a pair of settings, in the order of the seeds."""

    name: str
    a: str
    b: str
    a_losses: list[float] = field(default_factory=list)  # final loss on the whole validation split, nats per token
    b_losses: list[float] = field(default_factory=list)
    tokens: int = 0  # of each run
    a_seconds: float = 0.0  # mean training time of a run
    b_seconds: float = 0.0

    @property
    def difference(self) -> float:
        """The mean of B - A over the seeds. If it is negative, B is better."""
        return mean(self.differences)

    @property
    def differences(self) -> list[float]:
        return [b - a for a, b in zip(self.a_losses, self.b_losses, strict=True)]

    @property
    def margin(self) -> float:
        """Half the width of the 95 % interval (paired t): both runs of a seed see the data in the same order."""
        n = len(self.differences)
        return (T95[n - 2] if n - 2 < len(T95) else 1.96) * deviation(self.differences) / math.sqrt(n)

    @property
    def verdict(self) -> str:
        if abs(self.difference) <= self.margin:
            return "no difference shown"
        return "B is better" if self.difference < 0 else "A is better"


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def deviation(values: list[float]) -> float:
    """The sample standard deviation."""
    return math.sqrt(sum((value - mean(values)) ** 2 for value in values) / (len(values) - 1))


def read_pairs(cfg: AblationsConfig) -> list[tuple[str, str, str]]:
    """Returns (name, settings of A, settings of B) for each pair. Raises InputError for a malformed line."""
    if cfg.name is not None:
        return [(cfg.name, cfg.a, cfg.b)]
    pairs = []
    for number, line in enumerate(Path(cfg.pairs).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = [part.strip() for part in line.split("|")]
        if len(parts) != 3 or not parts[0]:
            raise cli.InputError(f"{cfg.pairs}:{number}: write NAME | settings of A | settings of B")
        pairs.append((parts[0], parts[1], parts[2]))
    return pairs


def run_name(settings: str, given: list[str]) -> str:
    """The folder of a run: its side's settings, readable, and a hash of everything that train.py is given."""
    readable = re.sub(r"[^\w.=]+", "-", settings)[:100].strip("-") or "as-it-is"
    return f"{readable}-{hashlib.sha256(shlex.join(given).encode()).hexdigest()[:8]}"


def compare(cfg: AblationsConfig, name: str, a: str, b: str) -> Result:
    """Trains both sides with every seed."""
    result = Result(name, a, b)
    for seed in range(1, cfg.seeds + 1):
        ends = {}
        for side, settings in (("a", a), ("b", b)):  # in turn, so that changes of the machine's speed affect both
            given = [*split_settings("common", cfg.common), *split_settings(side, settings), f"seed={seed}"]
            ends[side] = train_once(Path(cfg.out) / "runs" / run_name(settings, given), given)
            print(f"{name} {side.upper()} seed {seed}: {ends[side]['val_loss']:.4f}", flush=True)
        if ends["a"]["tokens"] != ends["b"]["tokens"]:
            raise cli.InputError(
                f"{name}: A read {ends['a']['tokens']} tokens, B {ends['b']['tokens']}; make steps * batch_size equal"
            )
        result.tokens = ends["a"]["tokens"]
        result.a_losses.append(ends["a"]["val_loss"])
        result.b_losses.append(ends["b"]["val_loss"])
        result.a_seconds += ends["a"]["elapsed_seconds"] / cfg.seeds
        result.b_seconds += ends["b"]["elapsed_seconds"] / cfg.seeds
    return result


def markdown(results: list[Result], cfg: AblationsConfig) -> str:
    """The results as a table."""
    lines = [
        f"Final validation losses (nats per token), mean and standard deviation over {cfg.seeds} seeds. All runs use "
        f"`{cfg.common or 'the defaults'}`. B - A is paired by seed, with a 95 % interval (t); below 0: B is better.",
        "",
        "| what | A | B | loss A | loss B | B - A | | tokens |" + " time B / A |" * cfg.times,
        "|" + " --- |" * (8 + cfg.times),
    ]
    for r in results:
        sides = [f"{mean(losses):.4f} ± {deviation(losses):.4f}" for losses in (r.a_losses, r.b_losses)]
        shown = [f"`{settings}`" if settings else "as it is" for settings in (r.a, r.b)]
        lines.append(
            f"| {r.name} | {' | '.join(shown)} | {' | '.join(sides)} | {r.difference:+.4f} ± {r.margin:.4f} "
            f"| {r.verdict} | {r.tokens:,} |" + f" {r.b_seconds / r.a_seconds:.2f} |" * cfg.times
        )
    return "\n".join(lines) + "\n"


def main(cfg: AblationsConfig, overrides: cli.Overrides) -> None:
    results = []
    out = Path(cfg.out)
    for pair in read_pairs(cfg):
        results.append(compare(cfg, *pair))
        figures = [asdict(r) | {"difference": r.difference, "margin": r.margin, "verdict": r.verdict} for r in results]
        (out / "ablations.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        (out / "ablations.md").write_text(markdown(results, cfg), encoding="utf-8")
    print(markdown(results, cfg), end="")


if __name__ == "__main__":
    cli.run(main, AblationsConfig, name="ablations")
