"""What a run tells about itself: metrics.jsonl, the progress line, wandb where it is asked for, loss.png at the end."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import display, plots
from .cli import InputError


class Journal:
    """Writes and shows a run's figures on the main rank; on the others it does nothing."""

    def __init__(
        self,
        run_dir: Path,
        *,
        steps: int,
        start: int,
        elapsed_seconds: float,
        settings: dict[str, Any],
        enabled: bool,
    ) -> None:
        self.run_dir, self.enabled, self.wandb = run_dir, enabled, None
        self.progress = display.Progress(steps, start=start, enabled=enabled)
        self.began = time.perf_counter() - elapsed_seconds  # as if a resumed run had never paused
        self.since, self.tokens = time.perf_counter(), 0  # of the line before
        if not enabled:
            return
        path, cut = run_dir / "metrics.jsonl", run_dir / ".tmp-metrics.jsonl"
        cut.write_text("".join(line + "\n" for line in lines_up_to(path, start)), encoding="utf-8")
        cut.replace(path)
        self.file = path.open("a", encoding="utf-8")
        if settings["wandb"]["mode"] != "disabled":
            import wandb

            try:
                self.wandb = wandb.init(dir=run_dir, name=run_dir.resolve().name, config=settings, **settings["wandb"])
            except wandb.errors.Error as error:
                raise InputError(
                    f"wandb.mode={settings['wandb']['mode']}: {error}, or set wandb.mode=disabled"
                ) from None

    def __enter__(self) -> Journal:
        self.progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        failed = error[0] is not None
        self.progress.__exit__(*error)
        try:
            # Of two errors the first is the one to be told.
            with contextlib.suppress(Exception) if failed else contextlib.nullcontext():
                if self.enabled:
                    self.file.close()
                    draw(self.run_dir)
        finally:
            if self.wandb is not None:
                self.wandb.finish(exit_code=int(failed))

    @property
    def elapsed_seconds(self) -> float:
        """Since the run's first start, pauses between its processes left out."""
        return time.perf_counter() - self.began

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """For evaluating and saving: their time does not count against the training speed."""
        before = time.perf_counter()
        yield
        self.since += time.perf_counter() - before

    def trained(self, step: int, tokens: int, *, loss: float, learning_rate: float, grad_norm: float) -> None:
        """One line of training; `tokens` is the run's total so far."""
        now = time.perf_counter()
        speed = (tokens - self.tokens) / (now - self.since) if self.tokens else None
        self.since, self.tokens = now, tokens
        self._write(
            step, tokens, train_loss=loss, learning_rate=learning_rate, grad_norm=grad_norm, tokens_per_second=speed
        )
        self.progress.update(step, loss=loss, learning_rate=learning_rate, tokens_per_second=speed)

    def evaluated(self, step: int, tokens: int, *, loss: float, bits_per_byte: float, best: bool) -> None:
        self._write(step, tokens, val_loss=loss, val_bits_per_byte=bits_per_byte)
        mark = "  (best so far)" if best else ""
        self.progress.say(f"step {step}: validation loss {loss:.4f}, {bits_per_byte:.4f} bits/byte{mark}")

    def say(self, line: str) -> None:
        self.progress.say(line)

    def _write(self, step: int, tokens: int, **figures: float | None) -> None:
        known = {name: figure for name, figure in figures.items() if figure is not None and math.isfinite(figure)}
        if self.enabled:
            line = {"step": step, "tokens": tokens, "elapsed_seconds": round(self.elapsed_seconds, 3), **known}
            with contextlib.suppress(OSError):  # a full disk: lines wait in the buffer; the checkpoints tell of it
                self.file.write(json.dumps(line) + "\n")
                self.file.flush()
        if self.wandb is not None:
            self.wandb.log({"tokens": tokens, **known}, step=step)


def draw(run_dir: Path) -> None:
    """Draws the run's metrics.jsonl as its loss.png."""
    plots.plot_loss(run_dir / "metrics.jsonl", run_dir / "loss.png", title=run_dir.name)


def lines_up_to(path: Path, step: int) -> list[str]:
    """The whole lines of a metrics file whose step is not beyond `step`; a kill may have cut the last one short."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] <= step:
                kept.append(line)
    return kept
