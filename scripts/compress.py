"""Compares a run's bits/byte with xz -9e, which compresses the validation text after the training text."""

from __future__ import annotations

import lzma
from dataclasses import dataclass, field
from pathlib import Path

from conf import cli
from data import InputError
from data.preparation.shards import Split, find_prepared, open_split
from data.reporting.baselines import xz_size
from data.tokenizers.build import load
from model.checkpoints import reader

PATH = {"kind": "path"}
EXTREME = 9 | lzma.PRESET_EXTREME


@dataclass
class CompressConfig:
    """The keys of `python -m scripts.compress`."""

    run_dir: str | None = field(default=None, metadata=PATH)  # a run directory of train.py
    datasets: str = field(default="datasets", metadata=PATH)  # the folder of its prepared corpus
    debug: bool = False

    def validate(self) -> list[str]:
        return [] if self.run_dir else ["run_dir is required: a run of train.py, such as run_dir=out/quickstart"]


def text_of(split: Split, directory: Path) -> bytes:
    """Decodes the text of a split, without the end tokens."""
    tokenizer = load(directory / "tokenizer")
    ids = split.tokens[:]
    return tokenizer.decode_bytes(ids[ids != tokenizer.end_id].tolist())


def main(cfg: CompressConfig, overrides: cli.Overrides) -> None:
    run_dir = Path(cfg.run_dir or "")
    if reader.find(run_dir) and not (run_dir / "best").exists():
        raise InputError(f"{run_dir} has no held-out text (val_fraction=0), or stopped before its first evaluation")
    best = reader.find(run_dir / "best")
    if "val_bits_per_byte" not in best.manifest:
        raise InputError(
            f"{best.directory} has no val_bits_per_byte: train with a validation split whose characters the tokenizer "
            "knows"
        )
    model = best.manifest["val_bits_per_byte"]
    fingerprint = best.manifest["data_fingerprint"]
    prepared = find_prepared(cfg.datasets, fingerprint)
    if prepared is None:
        raise InputError(
            f"datasets={cfg.datasets} does not contain the prepared corpus of {run_dir} (a fine-tuned run has none); "
            "give datasets="
        )
    train, val = (text_of(open_split(prepared, name), prepared) for name in ("train", "val"))
    xz = (xz_size(train + val, preset=EXTREME) - xz_size(train, preset=EXTREME)) * 8 / len(val)
    print(f"{len(val):,} bytes of held-out text after {len(train):,} bytes of training text:")
    print(f"  xz -9e    {xz:.3f} bits/byte")
    print(f"  model    {model:.3f} bits/byte, {abs(model / xz - 1):.0%} {'less' if model < xz else 'more'} than xz")


if __name__ == "__main__":
    cli.run(main, CompressConfig, name="compress")
