"""Which settings a run goes on with: those it was started with, or those of the checkpoint it starts from."""

from __future__ import annotations

import json
import os
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from .cli import InputError, Overrides, read_config

Config = TypeVar("Config")

CHANGEABLE = {  # on resume; everything else would make it another run
    *("steps", "eval_every", "save_every", "log_every", "keep_last", "device", "compile", "parallel", "micro_batch"),
    *("debug", "resume", "run_dir", "wandb.mode", "wandb.project"),
}


def resume_config(cfg: Config, overrides: Overrides) -> Config:
    """The settings to train with. The rule, for run_dir with or without a run in it:

    | resume | no run               | a run                                                     |
    | ------ | -------------------- | --------------------------------------------------------- |
    | false  | starts               | refused                                                   |
    | true   | refused              | goes on with its config.yaml; other explicit settings     |
    | auto   | starts               | than CHANGEABLE must be equal to it                       |

    A restart by torchrun implies auto. Raises InputError, naming both values of each difference.
    """
    values: Any = cfg
    run_dir, resume = Path(values.run_dir), values.resume
    if not resume and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0:
        resume = "auto"
    metrics = run_dir / "metrics.jsonl"
    has_run = any(run_dir.glob("step_*")) or (metrics.is_file() and metrics.stat().st_size > 0)
    if not resume:
        if has_run:
            raise InputError(f"run_dir={run_dir} already holds a run: continue it with resume=true, or choose another")
        return cfg
    saved_path = run_dir / "config.yaml"
    if not saved_path.is_file():
        if resume == "auto" and not has_run:
            return replace(values, resume="auto")
        raise InputError(f"run_dir={run_dir} holds no run to resume: {saved_path} is missing")
    saved = read_config(saved_path, type(cfg))
    differences = [
        f"{key}={value!r}, but the run in {run_dir} has {get(saved, key)!r}"
        for key, value in overrides.items()
        if key not in CHANGEABLE and value != get(saved, key)
    ]
    if differences:
        raise InputError(*(f"{difference}; a resumed run keeps it" for difference in differences))
    for key in CHANGEABLE & overrides.keys():
        saved = put(saved, key, overrides[key])
    return replace(saved, resume=resume)  # type: ignore[type-var]


def follow_checkpoint(cfg: Config, overrides: Overrides, shape: Any, tokenizer: Path) -> Config:
    """`cfg` with the model and the tokenizer of the checkpoint it starts from; dropout alone may differ.

    Raises InputError where the command line asks for another model or tokenizer.
    """
    values: Any = cfg
    about = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    own = {f"model.{f.name}": getattr(shape, f.name) for f in fields(shape) if f.name not in ("dropout", "vocab_size")}
    own |= {"tokenizer.kind": about.get("kind"), "tokenizer.vocab_size": about.get("vocab_size")}
    differences = [
        f"{key}={value!r}, but the checkpoint has {own.get(key)!r}; leave it out, or train without checkpoint="
        for key, value in overrides.items()
        if key.startswith(("model.", "tokenizer.")) and key != "model.dropout" and value != own.get(key, value)
    ]
    if differences:
        raise InputError(*differences)
    model = replace(shape, dropout=values.model.dropout, vocab_size=0)  # the tokenizer says which
    return replace(values, model=model, tokenizer=type(values.tokenizer)(path=str(tokenizer)))


def get(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def put(config: Any, key: str, value: Any) -> Any:
    """A copy of the config with one dotted key changed."""
    name, _, rest = key.partition(".")
    assert is_dataclass(config)
    return replace(config, **{name: put(getattr(config, name), rest, value) if rest else value})  # type: ignore[type-var]
