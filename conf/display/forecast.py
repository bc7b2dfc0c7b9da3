"""What a run would take, in words: the lines that dry_run=true prints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .progress import count, duration


def describe(
    *,
    parts: Mapping[str, int],
    flops_per_token: float,
    steps: int,
    tokens_per_step: int,
    epochs: Mapping[str, float],
    seconds_per_step: float,
    timed_steps: int,
    mfu: float | None,
    total_seconds: float,
    aside_seconds: float,
    peak_memory: float | None,
    checkpoint_bytes: float,
    kept: int,
    losses: Sequence[str],
) -> str:
    """A table of what a run would take. `aside_seconds` are spent evaluating and saving; `kept` steps stay on disk."""
    used = "" if mfu is None else f"; {mfu:.0%} of the device's matrix products (MFU)"
    often = "; where text is seen that often, watch the validation loss" if max(epochs.values()) > 4 else ""
    rows = [
        ("parameters", parameters(parts)),
        ("FLOPs", f"{count(flops_per_token)} a token, {flops_per_token * tokens_per_step * steps:.2e} in all"),
        ("tokens", f"{count(tokens_per_step)} a step, {count(tokens_per_step * steps)} in {steps} steps"),
        ("epochs", ", ".join(f"{number:.2g} over {name}" for name, number in epochs.items()) + often),
        ("speed", f"{count(tokens_per_step / seconds_per_step)} tok/s, measured over {timed_steps} steps{used}"),
        ("time", f"{duration(total_seconds)}, {duration(aside_seconds)} of it to evaluate, save and draw"),
        ("peak memory", size(peak_memory)),
        ("disk", f"{size(checkpoint_bytes)} a saved step, {size(checkpoint_bytes * kept)} in all"),
        *zip(("loss", *[""] * (len(losses) - 1)), losses, strict=True),
    ]
    return table(rows)


def describe_sizing(
    *,
    parts: Mapping[str, int],
    vocab_size: int,
    flops_per_token: float,
    tokens: int,
    gpu: str,
    gpus: int,
    memory: Mapping[str, float],
    memory_of_one: float,
    seconds: float,
    assumed_mfu: float,
    checkpoint_bytes: float,
) -> str:
    """A table of what a model would take on GPUs of a kind, by arithmetic alone."""
    shares = ", ".join(f"{name} {size(part)}" for name, part in memory.items())
    rows = [
        ("parameters", parameters(parts) + f", with {vocab_size:,} ids (tokenizer.vocab_size)"),
        ("FLOPs", f"{count(flops_per_token)} a token, {flops_per_token * tokens:.2e} in all"),
        ("GPUs", f"{gpus} x {gpu} at least, with parallel=fsdp activation_checkpointing=true, on paper"),
        ("memory", f"{size(sum(memory.values()))} of {size(memory_of_one)} each: {shares}"),
        ("time", f"{duration(seconds)} for {count(tokens)} tokens, if {assumed_mfu:.0%} of their peak is reached"),
        ("disk", f"{size(checkpoint_bytes)} a saved step"),
    ]
    return table(rows)


def parameters(parts: Mapping[str, int]) -> str:
    return f"{count(sum(parts.values()))}: " + ", ".join(f"{name} {count(number)}" for name, number in parts.items())


def size(number: float | None) -> str:
    """Bytes -> '1.5 GiB'"""
    if number is None:
        return "unknown on this system"
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def losses(references: Mapping[str, float], run_dir: Path, facts: Mapping[str, str]) -> list[str]:
    """What can honestly be said of the loss to expect: models that only count, and runs that are there."""
    counted = "  ".join(f"{name} {loss:.3f}" for name, loss in references.items())
    lines = [f"by counting alone: {counted} nats/token"] if references else []
    earlier = sorted(runs_on_the_same_data(run_dir, facts), key=lambda run: run[2])[:3]
    lines += [f"{name}: {loss:.3f} after {count(tokens)} tokens of the same data" for name, tokens, loss in earlier]
    return lines if earlier else [*lines, "no forecast: no other run on these data is there to judge by"]


def runs_on_the_same_data(run_dir: Path, facts: Mapping[str, str]) -> Iterator[tuple[str, int, float]]:
    """(name, tokens, validation loss) of the best steps of runs beside run_dir whose manifests have these facts."""
    for best in sorted(run_dir.parent.glob("*/best")):
        try:
            manifest = json.loads((best.parent / best.read_text().strip() / "manifest.json").read_text())
            if all(manifest[name] == value for name, value in facts.items()):
                yield str(best.parent), int(manifest["tokens"]), float(manifest["val_loss"])
        except (OSError, ValueError, KeyError, TypeError):
            continue


def table(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)
