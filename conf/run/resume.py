"""Which settings a run uses: those on the command line, those it was started with, or those of its checkpoint."""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import asdict, fields, is_dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from ..cli import InputError, Overrides
from ..cli.config import check_config, read_config
from ..cli.fields import nearest, typed

Config = TypeVar("Config")

CHANGEABLE = {  # on resume; any other change would make it a different run
    *("steps", "eval_every", "save_every", "log_every", "keep_last", "device", "compile", "parallel", "micro_batch"),
    *("time_budget", "sample_every", "sample_prompt", "activation_checkpointing", "save_in_background", "save_sharded"),
    *("deterministic", "patience", "compare", "from_scratch", "probes", "preview"),
    *("debug", "resume", "run_dir", "wandb.mode", "wandb.project"),
    *("datasets", "workers", "verify"),  # where and how the corpus is prepared, not what it contains
}
BY_CONTENT = {"corpus", "examples", "val_examples", "tokenizer.path"}  # may move: restore() compares fingerprints
PROGRAMS = {"corpus": "train.py", "examples": "finetune.py"}  # by the key that only the program's own runs have
FROM_CHECKPOINT = ("model.", "tokenizer.")  # fixed by the checkpoint that training starts from
JOB_FILE = ".job"  # in a run_dir: the id of the torchrun job that trains there


def resume_config(cfg: Config, overrides: Overrides) -> Config:
    """Returns the settings to train with.

    | resume | run_dir without a run | run_dir with a run                                          |
    | ------ | --------------------- | ----------------------------------------------------------- |
    | false  | starts                | refuses                                                     |
    | true   | refuses               | resumes with its config.yaml; `overrides` may differ from   |
    | auto   | starts                | it in CHANGEABLE and BY_CONTENT only                        |

    A restart by torchrun implies auto. Raises InputError with both values of each difference, and for another
    program's run.
    """
    values: Any = cfg
    if values.dry_run or not values.run_dir or values.resume not in (False, True, "auto"):
        check_config(cfg)  # raises for everything but a dry run, which needs no run_dir
        return cfg
    run_dir = Path(values.run_dir)
    resume = values.resume or ("auto" if is_restart(run_dir) else False)
    metrics = run_dir / "metrics.jsonl"
    has_run = any(run_dir.glob("step_*")) or (metrics.is_file() and metrics.stat().st_size > 0)
    if not resume and has_run:
        raise InputError(f"run_dir={run_dir} already holds a run: continue it with resume=true, or choose another")
    if not resume:
        return cfg
    if resume == "auto" and not has_run:
        check_config(cfg)
        return replace(values, resume="auto")
    if not (path := run_dir / "config.yaml").is_file():
        siblings = [folder.name for folder in run_dir.parent.glob("*") if any(folder.glob("step_*"))]
        near = [] if run_dir.exists() else nearest(run_dir.name, siblings)
        hint = f"; did you mean run_dir={run_dir.parent / near[0]}?" if near else ""
        raise InputError(f"run_dir={run_dir} holds no run to resume: {path} is missing{hint}")
    check_program(path, type(cfg))
    saved = read_config(path, type(cfg))
    refuse_changes(saved, overrides, run_dir)
    for key in (CHANGEABLE | by_content(saved)) & overrides.keys():
        if key in CHANGEABLE or overrides[key] is not None:
            saved = with_key(saved, key, overrides[key])
    if "steps" in overrides and "time_budget" not in overrides:  # steps replace the time budget
        saved = with_key(saved, "time_budget", None)
    saved = with_key(saved, "resume", resume)
    check_config(saved)
    return saved


def check_program(path: Path, schema: type) -> None:
    """Raises InputError if another program started the run with this config.yaml."""
    text = path.read_text(encoding="utf-8", errors="replace")
    for key, program in PROGRAMS.items():
        if not hasattr(schema, key) and re.search(rf"^{key}:", text, flags=re.MULTILINE):
            command = shlex.join(["python", program, f"run_dir={path.parent}", "resume=true"])
            raise InputError(f"run_dir={path.parent} is a run of {program}; resume it with that:  {command}")


def by_content(saved: Any) -> set[str]:
    """Settings that may name another place. finetune.py compares with its checkpoint and checks that it fits."""
    return BY_CONTENT | ({"checkpoint"} if hasattr(saved, "examples") else set())


def refuse_changes(saved: Any, overrides: Overrides, run_dir: Path) -> None:
    """Raises InputError if the command line changes what a resumed run must keep."""
    from_checkpoint = getattr(saved, "checkpoint", None) is not None  # then follow_checkpoint compares its settings
    changes: dict[str, tuple[Any, Any]] = {}
    may_move = by_content(saved)
    for key, value in overrides.items():
        unresolved = None if key == "optimizer.warmup_steps" else "auto"  # asks for the value that was found at start
        kept = attrgetter(key)(saved)
        if key in CHANGEABLE or value in (kept, unresolved) or (key in may_move and None not in (value, kept)):
            continue
        if not (from_checkpoint and key.startswith(FROM_CHECKPOINT) and key != "model.dropout"):
            changes[key] = value, kept
    if changes:
        advice = "a resumed run keeps it: leave it out"
        raise InputError(*conflicts(changes, overrides, saved, f"the run in {run_dir}", advice))


def conflicts(
    differences: dict[str, tuple[Any, Any]], overrides: Overrides, config: Any, other: str, advice: str
) -> list[str]:
    """Returns a line for each setting whose value is another one in `other`, and one for a whole group such as model=.

    differences: (value, value in `other`) by key. config: has the groups.
    """
    lines: dict[str, list[str]] = {}
    for key in differences:
        group = key.rpartition(".")[0]
        whole = group and all(f"{group}.{field.name}" in overrides for field in fields(getattr(config, group)))
        lines.setdefault(f"{group}=" if whole else key, []).append(key)
    found = []
    for name, keys in lines.items():
        wanted = ", ".join(f"{key}={typed(differences[key][0])}" for key in keys)
        kept = ", ".join(typed(differences[key][1]) for key in keys)
        found.append(f"{'' if name in keys else f'{name} sets '}{wanted}, but {other} has {kept}; {advice}")
    return found


def torchrun_job() -> str:
    """The id of the torchrun job of this process; empty outside torchrun."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "")


def is_restart(run_dir: Path) -> bool:
    """True if torchrun restarted this process after the same job had started the run in run_dir."""
    mark = run_dir / JOB_FILE
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    return restarts > 0 and mark.is_file() and mark.read_text(encoding="utf-8") == torchrun_job()


def follow_checkpoint(cfg: Config, overrides: Overrides, shape: Any, tokenizer: Path) -> Config:
    """Returns cfg with the model's shape and the tokenizer of the checkpoint to start from. Only dropout may differ.

    Raises InputError if the command line asks for another model or tokenizer.
    """
    values: Any = cfg
    about = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    own = {f"model.{f.name}": getattr(shape, f.name) for f in fields(shape)}
    own |= {f"tokenizer.{name}": about.get(name) for name in ("kind", "vocab_size")}
    # tokenizer.json holds only these two. A default value of another setting comes with a group and asks for nothing.
    defaults = {f"tokenizer.{name}": value for name, value in asdict(type(values.tokenizer)()).items()}
    del defaults["tokenizer.kind"]
    differences = {
        key: (value, own.get(key, "its own"))
        for key, value in overrides.items()
        if key.startswith(FROM_CHECKPOINT)
        and key not in ("model.dropout", "model.vocab_size")
        and (key not in own or value != own[key])
        and not (key in defaults and value == defaults[key])
    }
    if differences:
        advice = "leave it out, or drop checkpoint="
        raise InputError(*conflicts(differences, overrides, values, "the checkpoint", advice))
    dropout = values.model.dropout if "model.dropout" in overrides else shape.dropout
    model = replace(shape, dropout=dropout, vocab_size=0)  # main() sets vocab_size from the tokenizer
    return replace(values, model=model, tokenizer=type(values.tokenizer)(path=str(tokenizer)))


def apply_depth(cfg: Config, values: dict[str, Any], overrides: Overrides) -> Config:
    """Returns cfg with the settings that depth= implies, except those that the command line sets.

    Raises InputError if the command line also sets the shape.
    """
    if both := [key for key in ("model.n_layer", "model.d_model") if key in overrides]:
        raise InputError(
            f"depth= sets {both[0]}, and so does the command line (or its model= or experiment=): drop one"
        )
    for key in values.keys() - overrides.keys():
        cfg = with_key(cfg, key, values[key])
    return cfg


def with_key(config: Any, key: str, value: Any) -> Any:
    """A copy of the config with one dotted key changed."""
    name, _, rest = key.partition(".")
    assert is_dataclass(config) and not isinstance(config, type)
    return replace(config, **{name: with_key(getattr(config, name), rest, value) if rest else value})
