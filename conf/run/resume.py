"""Which settings a run goes on with: those it was started with, or those of the checkpoint it starts from."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..cli import InputError, Overrides
from ..cli.config import check_config, read_config

Config = TypeVar("Config")

CHANGEABLE = {  # on resume; everything else would make it another run
    *("steps", "eval_every", "save_every", "log_every", "keep_last", "device", "compile", "parallel", "micro_batch"),
    *("time_budget", "sample_every", "sample_prompt", "activation_checkpointing", "save_in_background", "save_sharded"),
    *("debug", "resume", "run_dir", "wandb.mode", "wandb.project"),
    *("datasets", "workers", "verify"),  # where and how the corpus is prepared; what it is stays
}
LEFT_OPEN = {"optimizer.warmup_steps": None}  # how this key says that it is to be found out; the others: "auto"
ITS_OWN = ("model.", "tokenizer.")  # what comes from a checkpoint that training starts from


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
    if values.dry_run:  # which looks at no run and leaves none
        check_config(cfg)
        return cfg
    if not values.run_dir or values.resume not in (False, True, "auto"):
        check_config(cfg)  # which says so
    run_dir, resume = Path(values.run_dir), values.resume
    if not resume and restarted(run_dir):
        resume = "auto"
    metrics = run_dir / "metrics.jsonl"
    has_run = any(run_dir.glob("step_*")) or (metrics.is_file() and metrics.stat().st_size > 0)
    if not resume:
        if has_run:
            raise InputError(f"run_dir={run_dir} already holds a run: continue it with resume=true, or choose another")
        return cfg
    saved_path = run_dir / "config.yaml"
    if resume == "auto" and not has_run:
        check_config(cfg)
        return replace(values, resume="auto")
    if not saved_path.is_file():
        raise InputError(f"run_dir={run_dir} holds no run to resume: {saved_path} is missing")
    saved = read_config(saved_path, type(cfg))
    from_checkpoint = getattr(saved, "checkpoint", None) is not None  # follow_checkpoint compares what is its own
    differences = [
        f"{key}={value!r}, but the run in {run_dir} has {get(saved, key)!r}"
        for key, value in overrides.items()
        if key not in CHANGEABLE
        and value not in (get(saved, key), LEFT_OPEN.get(key, "auto"))  # the saved config has what was found
        and not (from_checkpoint and key.startswith(ITS_OWN) and key != "model.dropout")
    ]
    if differences:
        raise InputError(*(f"{difference}; a resumed run keeps it: leave it out" for difference in differences))
    for key in CHANGEABLE & overrides.keys():
        saved = put(saved, key, overrides[key])
    if "steps" in overrides and "time_budget" not in overrides:  # a number of steps instead of a time
        saved = put(saved, "time_budget", None)
    saved = replace(saved, resume=resume)  # type: ignore[type-var]
    check_config(saved)
    return saved


JOB = ".job"  # in a run_dir: the name of the torchrun job that trains there


def job() -> str:
    return os.environ.get("TORCHELASTIC_RUN_ID", "")


def restarted(run_dir: Path) -> bool:
    """Whether torchrun has started this process again after it began this run, and not another's in the same place."""
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    mark = run_dir / JOB
    return again and mark.is_file() and mark.read_text(encoding="utf-8") == job()


def follow_checkpoint(cfg: Config, overrides: Overrides, shape: Any, tokenizer: Path) -> Config:
    """`cfg` with the model and the tokenizer of the checkpoint it starts from; dropout alone may differ.

    Raises InputError where the command line asks for another model or tokenizer.
    """
    values: Any = cfg
    about = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    own = {f"model.{f.name}": getattr(shape, f.name) for f in fields(shape)}
    own |= {f"tokenizer.{name}": about.get(name) for name in ("kind", "vocab_size")}
    # tokenizer.json tells no more than these two; a default is what a chosen group brings along, not a wish.
    defaults = {
        f"tokenizer.{name}": value for name, value in asdict(type(values.tokenizer)()).items() if name != "kind"
    }
    differences = [
        f"{key}={value!r}, but the checkpoint has {own.get(key, 'its own')!r}; leave it out, or drop checkpoint="
        for key, value in overrides.items()
        if key.startswith(ITS_OWN)
        and key not in ("model.dropout", "model.vocab_size")
        and (key not in own or value != own[key])
        and not (key in defaults and value == defaults[key])
    ]
    if differences:
        raise InputError(*differences)
    dropout = values.model.dropout if "model.dropout" in overrides else shape.dropout
    model = replace(shape, dropout=dropout, vocab_size=0)  # set again from its tokenizer
    return replace(values, model=model, tokenizer=type(values.tokenizer)(path=str(tokenizer)))


def fill_in(cfg: Config, values: dict[str, Any], overrides: Overrides) -> Config:
    """`cfg` with what depth= comes to, where the command line does not say otherwise.

    Raises InputError where the command line sets the shape as well.
    """
    if both := [key for key in ("model.n_layer", "model.d_model") if key in overrides]:
        raise InputError(
            f"depth= sets {both[0]}, and so does the command line (or its model= or experiment=): drop one"
        )
    for key in values.keys() - overrides.keys():
        cfg = put(cfg, key, values[key])
    return cfg


def get(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def put(config: Any, key: str, value: Any) -> Any:
    """A copy of the config with one dotted key changed."""
    name, _, rest = key.partition(".")
    assert is_dataclass(config)
    return replace(config, **{name: put(getattr(config, name), rest, value) if rest else value})  # type: ignore[type-var]
