"""The forecast of a run in words: the lines that dry_run=true prints."""

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
    overhead_seconds: float,
    peak_memory: float | None,
    checkpoint_bytes: float,
    kept: int,
    losses: Sequence[str],
) -> str:
    """Returns a table of what a run needs, from a few measured steps.

    `overhead_seconds` of the total are spent evaluating and saving; `kept` checkpoints stay on disk.
    """
    used = "" if mfu is None else f"; {mfu:.0%} of the device's peak FLOP/s (MFU)"
    rows = [
        ("parameters", parameters(parts)),
        ("FLOPs", f"{flops_per_token:.2e} per token, {flops_per_token * tokens_per_step * steps:.2e} in all"),
        ("tokens", f"{count(tokens_per_step)} per step, {count(tokens_per_step * steps)} in {steps} steps"),
        ("epochs", describe_epochs(epochs)),
        ("speed", f"{count(tokens_per_step / seconds_per_step)} tok/s, measured over {timed_steps} steps{used}"),
        ("time", f"{duration(total_seconds)}, of which {duration(overhead_seconds)} evaluates, saves and plots"),
        ("peak memory", size(peak_memory)),
        ("disk", f"{size(checkpoint_bytes)} per checkpoint, {size(checkpoint_bytes * kept)} in all"),
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
    """Returns a table of what training needs on GPUs of a kind, from arithmetic only. `memory`: bytes on each GPU."""
    shares = ", ".join(f"{name} {size(part)}" for name, part in memory.items())
    rows = [
        ("parameters", parameters(parts) + f", with {vocab_size:,} ids (tokenizer.vocab_size)"),
        ("FLOPs", f"{flops_per_token:.2e} per token, {flops_per_token * tokens:.2e} in all"),
        ("GPUs", f"at least {gpus} x {gpu}, with parallel=fsdp activation_checkpointing=true (estimated)"),
        ("memory", f"{size(sum(memory.values()))} of {size(memory_of_one)} on each GPU: {shares}"),
        ("time", f"{duration(seconds)} for {count(tokens)} tokens at {assumed_mfu:.0%} of the peak FLOP/s"),
        ("disk", f"{size(checkpoint_bytes)} per checkpoint"),
    ]
    return table(rows)


def parameters(parts: Mapping[str, int]) -> str:
    return f"{count(sum(parts.values()))}: " + ", ".join(f"{name} {count(number)}" for name, number in parts.items())


def describe_epochs(epochs: Mapping[str, float]) -> str:
    """Describes the number of epochs over each part of the data, with advice if there are many."""
    often = "; watch the validation loss for overfitting" if max(epochs.values()) > 4 else ""
    numbers = {name: f"{number:,.1f}" if number >= 1 else f"{number:.2g}" for name, number in epochs.items()}
    return ", ".join(f"{number} over {name}" for name, number in numbers.items()) + often


def size(number: float | None) -> str:
    """Bytes -> '1.5 GiB'"""
    if number is None:
        return "unknown on this system"
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def losses(references: Mapping[str, float], run_dir: Path, fingerprints: Mapping[str, str]) -> list[str]:
    """Returns lines about the loss to expect: baselines that only count, and earlier runs on the same data."""
    baselines = "  ".join(f"{name} {loss:.3f}" for name, loss in references.items())
    lines = [f"baselines from counts: {baselines} nats/token"] if references else []
    earlier = sorted(runs_on_the_same_data(run_dir, fingerprints), key=lambda run: run[2])[:3]
    lines += [f"{name}: {loss:.3f} after {count(tokens)} tokens of the same data" for name, tokens, loss in earlier]
    return lines if earlier else [*lines, "no forecast: there is no other run on the same data to compare with"]


def runs_on_the_same_data(run_dir: Path, fingerprints: Mapping[str, str]) -> Iterator[tuple[str, int, float]]:
    """Yields (name, tokens, validation loss) of the best checkpoint of each sibling run with these fingerprints."""
    for best in sorted(run_dir.parent.glob("*/best")):
        try:
            manifest = json.loads((best.parent / best.read_text().strip() / "manifest.json").read_text())
            if all(manifest[name] == value for name, value in fingerprints.items()):
                yield str(best.parent), int(manifest["tokens"]), float(manifest["val_loss"])
        except (OSError, ValueError, KeyError, TypeError):
            continue


def table(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)
