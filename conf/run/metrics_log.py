"""The log of a run: metrics.jsonl, the progress line, wandb on request, and loss.png at the end."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..cli import InputError
from ..display import plots, progress
from ..display.forecast import size
from ..display.progress import count, duration
from .stopwatch import Pace, Slowdown, Stopwatch

REFERENCES = "references.json"  # in a run_dir: baseline losses
TIMING = "timing.json"  # in a run_dir: where the time of the last process went
WANDB_ID = ".wandb_id"  # in a run_dir: the id of its wandb run, which a resumed run continues


class MetricsLog:
    """Writes and shows a run's metrics on the main rank; does nothing on the others."""

    def __init__(
        self,
        run_dir: Path,
        *,
        steps: int,
        start: int,
        elapsed_seconds: float,
        settings: dict[str, Any],
        enabled: bool,
        watch: Stopwatch | None = None,
        references: dict[str, float] | None = None,
        report_slow: bool = False,
    ) -> None:
        """`start` is the number of steps done, `elapsed_seconds` their time. `references` are drawn as baseline losses.

        `watch` counts the time of logging and plotting. report_slow: says when steps become much slower.
        """
        self.run_dir, self.enabled, self.select = run_dir, enabled, settings["select"]
        self.wandb: Any = None
        self.watch = watch or Stopwatch()
        self.progress = progress.Progress(steps, start=start, enabled=enabled)
        self.started = time.perf_counter() - elapsed_seconds  # as if a resumed run had never paused
        self.since, self.tokens, self.step = time.perf_counter(), 0, start  # at the previous log line
        self.start, self.first_seconds = start, 0.0  # the first step includes compilation
        self.timed_tokens, self.timed_seconds = 0, 0.0
        self.pace, self.slowdown = Pace(), Slowdown() if report_slow else None
        if not enabled:
            return
        path, cut = run_dir / "metrics.jsonl", run_dir / ".tmp-metrics.jsonl"
        kept = (line for line in plots.read_metrics(path) if line["step"] <= start)
        cut.write_text("".join(map(as_line, kept)), encoding="utf-8")
        cut.replace(path)
        if references:
            (run_dir / REFERENCES).write_text(as_line(references), encoding="utf-8")
        self.file, self.pending = path.open("ab", buffering=0), b""
        if settings["wandb"]["mode"] != "disabled":
            self._start_wandb(settings)

    def _start_wandb(self, settings: dict[str, Any]) -> None:
        import wandb

        id_file, about = self.run_dir / WANDB_ID, settings["wandb"]
        run_id, name = id_file.read_text() if id_file.exists() else None, self.run_dir.resolve().name
        try:
            self.wandb = wandb.init(
                id=run_id, resume="allow", dir=self.run_dir.resolve(), name=name, config=settings, **about
            )
        except wandb.errors.Error as error:
            raise InputError(f"wandb.mode={about['mode']}: {error}, or set wandb.mode=disabled") from None
        id_file.write_text(self.wandb.id)

    def __enter__(self) -> MetricsLog:
        self.progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        failed = error[0] is not None
        self.progress.__exit__(*error)
        try:
            # If training failed, that error is the one to report.
            with contextlib.suppress(Exception) if failed else contextlib.nullcontext():
                if self.enabled:
                    self._write_out()
                    self.file.close()
                    with self.watch("plotting"):
                        draw_loss(self.run_dir)
                    if self.wandb is not None:
                        self._log_samples()
        finally:
            if self.wandb is not None:
                self.wandb.finish(exit_code=int(failed))

    @property
    def elapsed_seconds(self) -> float:
        """Seconds of training since the run's first start, without pauses between its processes."""
        return time.perf_counter() - self.started

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps the time of evaluating and saving out of the training speed."""
        before = time.perf_counter()
        yield
        self.since += time.perf_counter() - before

    def log_training(self, step: int, tokens: int, *, loss: float, learning_rate: float, grad_norm: float) -> None:
        """Logs one line of training; `tokens` is the run's total so far."""
        now, speed = time.perf_counter(), None
        if not self.tokens:
            self.first_seconds = now - self.since
        else:
            speed = (tokens - self.tokens) / (now - self.since)
            self.timed_tokens += tokens - self.tokens
            self.timed_seconds += now - self.since
            self.pace.add(step - self.step, now - self.since)
            if self.slowdown and (line := self.slowdown.add(tokens - self.tokens, now - self.since)):
                self.say(line)
        self.since, self.tokens, self.step = now, tokens, step
        with self.watch("display"):
            self._write(
                step, tokens, train_loss=loss, learning_rate=learning_rate, grad_norm=grad_norm, tokens_per_second=speed
            )
            rate = f"{learning_rate:.4f}" if learning_rate >= 0.001 else f"{learning_rate:.1e}"
            facts = [f"loss {loss:.3f}", f"lr {rate}", *([] if speed is None else [f"{count(speed)} tok/s"])]
            self.progress.update(step, *facts)

    @property
    def seconds_per_step(self) -> float | None:
        """Recent, in this process, without evaluating and saving; None before the second line."""
        return self.pace.seconds_per_step

    def log_evaluation(self, step: int, tokens: int, result: Any, *, best: bool) -> None:
        """Logs an evaluation: its `loss`, its `metrics` by name, and its `bits_per_byte` if they are not None."""
        bits_per_byte, metrics = result.bits_per_byte, result.metrics
        self._write(step, tokens, val_loss=result.loss, val_bits_per_byte=bits_per_byte, **metrics)
        mark = f"  (best {plots.METRICS.get(self.select, self.select)} so far)" if best else ""
        bits = "no bits/byte: unknown characters" if bits_per_byte is None else f"{bits_per_byte:.4f} bits/byte"
        figures = [f"{plots.METRICS.get(name, name)} {value:.4f}" for name, value in metrics.items()]
        if "accuracy" not in metrics:  # bits per byte of labels mean nothing
            figures.insert(0, bits)
        self.progress.say(f"step {step}: validation loss {result.loss:.4f}, {', '.join(figures)}{mark}")

    def log_sample(self, step: int, tokens: int, *, prompt: str, text: str) -> None:
        """Logs a text that the model wrote at this step."""
        self._write(step, tokens, prompt=prompt, sample=text)
        self.progress.say(f"step {step}: sample: {prompt}{text}")

    def set_total_steps(self, steps: int) -> None:
        """Updates the progress line after a time budget changed the number of steps."""
        self.progress.total = steps

    def summary(
        self,
        *,
        flops_per_token: float,
        peak_flops: float | None,
        peak_memory: float | None,
        best: str | None,
    ) -> list[str]:
        """Time, speed, memory and result of a finished run, in lines. peak_flops: per second, of all devices."""
        figures = []
        if self.timed_tokens:
            speed = self.timed_tokens / self.timed_seconds
            figures.append(f"{count(speed)} tok/s in the training steps{' since the resume' if self.start else ''}")
            if peak_flops:
                figures.append(f"{speed * flops_per_token / peak_flops:.1%} of the device's peak FLOP/s (MFU)")
        if peak_memory is not None:
            figures.append(f"peak memory {size(peak_memory)}")
        self._write_timing(peak_memory)
        taken = f"finished in {duration(self.elapsed_seconds)}{' in all' if self.start else ''}"
        taken += f": {count(self.tokens)} tokens"
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.watch.shares().items())
        best = "" if best is None else f"; {self.run_dir / 'best'}: {best}"
        return [
            ", ".join([taken, *figures]),
            f"share of the time: training {1 - sum(self.watch.shares().values()):.1%}, {shares}",
            f"saved in {self.run_dir}{best}; the curves: {self.run_dir / 'loss.png'}",
        ]

    def say(self, line: str) -> None:
        self.progress.say(line)

    def _write(self, step: int, tokens: int, **metrics: float | str | None) -> None:
        known = {
            name: value
            for name, value in metrics.items()
            if value is not None and (isinstance(value, str) or math.isfinite(value))
        }
        if self.enabled:
            line = {"step": step, "tokens": tokens, "elapsed_seconds": round(self.elapsed_seconds, 3), **known}
            self.pending += as_line(line).encode()
            self._write_out()
        if self.wandb is not None and "sample" not in known:  # samples become a table at the end
            self.wandb.log({"tokens": tokens, **known}, step=step)

    def _write_out(self) -> None:
        """Writes the pending lines. On a full disk they stay pending; saving a checkpoint reports the full disk."""
        with contextlib.suppress(OSError):
            while self.pending:
                self.pending = self.pending[self.file.write(self.pending) :]

    def _write_timing(self, peak_memory: float | None) -> None:
        """Writes timing.json for programs: seconds of the steps, of the first one, and of each other activity."""
        timing = {
            "steps": self.step - self.start,
            "first_step_seconds": self.first_seconds,
            "training_seconds": self.first_seconds + self.timed_seconds,
            "aside_seconds": self.watch.seconds,
            "peak_memory": peak_memory,
        }
        if self.enabled:
            (self.run_dir / TIMING).write_text(as_line(timing), encoding="utf-8")

    def _log_samples(self) -> None:
        """Sends all sampled texts of the run, also of its earlier processes, to wandb as a table."""
        import wandb

        lines = plots.read_metrics(self.run_dir / "metrics.jsonl")
        rows = [[line["step"], line["prompt"], line["sample"]] for line in lines if "sample" in line]
        if rows and self.wandb is not None:
            self.wandb.log({"samples": wandb.Table(columns=["step", "prompt", "text"], data=rows)})


def as_line(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


def draw_loss(run_dir: Path) -> None:
    """Plots the run's metrics.jsonl to its loss.png."""
    plots.plot_loss(run_dir / "metrics.jsonl", run_dir / "loss.png", title=run_dir.name)
