"""From yaml and the command line to plain dataclasses; a run's config.yaml written and read back."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from .arguments import read_arguments
from .errors import InputError, as_input_error, one_line
from .fields import Modes, describe, keys_of, leaves
from .renamed import ADDED, REMOVED, RENAMED

Config = TypeVar("Config")
Overrides = dict[str, Any]  # what the command line set: {dotted key: value in the composed config}

CONF = Path(__file__).resolve().parent.parent


def compose(
    schema: type[Config] | Modes, *, name: str, arguments: list[str], check: bool = True
) -> tuple[Config, Overrides]:
    """Composes conf/<name>.yaml and the arguments over the dataclass. Returns the config and what the arguments set.

    `check=False` skips the config's own validate(), so that required keys may be missing.
    Raises InputError with everything that is wrong, one argument a line.
    """
    import hydra
    from omegaconf import OmegaConf

    modes, mode = (schema, schema.chosen(arguments)) if isinstance(schema, Modes) else (None, "")
    plain = schema.schemas[mode] if isinstance(schema, Modes) else schema
    settings, free = read_arguments(plain, arguments, options=group_options(name), mode=mode, modes=modes)
    keys = keys_of(plain)
    paths = {key for key in free if keys[key].expands_home and "${" in str(free[key])}  # OmegaConf replaces ${key}
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra.compose(register(plain, name), overrides=settings)
        for key, value in free.items():
            if key in paths or "${" not in str(value):
                OmegaConf.update(composed, key, value)
    except Exception as error:
        raise as_input_error(error) from error
    config = to_dataclass(composed, {key: value for key, value in free.items() if key not in paths})
    if check and not getattr(config, "resume", False):  # resume_config checks the settings that a run resumes with
        check_config(config, typed=free)
    return config, overrides_of(config, [*settings, *free])


def register(schema: type, name: str) -> str:
    """Registers the dataclass with Hydra as `schema`, the base of conf/<name>.yaml. Returns the primary config."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=schema)
    return name if (CONF / f"{name}.yaml").exists() else "schema"


def to_dataclass(composed: Any, free: Mapping[str, Any]) -> Any:
    """The dataclass of an OmegaConf config, with the free values put in unchanged."""
    from omegaconf import OmegaConf

    try:
        config = OmegaConf.to_object(composed)
    except Exception as error:
        raise as_input_error(error) from error
    for key, value in free.items():
        owner, _, last = key.rpartition(".")
        setattr(attrgetter(owner)(config) if owner else config, last, value)
    return config


def check_config(config: Any, *, typed: Iterable[str] = ()) -> None:
    """Validates the config, its nested dataclasses, and the output files among the `typed` keys.

    Raises InputError with every problem.
    """
    nested = (getattr(config, field.name) for field in dataclasses.fields(config))
    nodes = [config, *(node for node in nested if dataclasses.is_dataclass(node))]
    problems = [problem for node in nodes if hasattr(node, "validate") for problem in node.validate()]
    keys, values = keys_of(type(config)), dict(leaves(dataclasses.asdict(config)))
    outputs = [key for key in typed if key in values and keys[key].kind == "output" and values[key] is not None]
    problems += filter(None, (output_problem(key, values[key]) for key in outputs))
    if problems:
        raise InputError(*dict.fromkeys(problems))


def output_problem(key: str, value: str) -> str | None:
    """Returns why this file cannot be written, which would otherwise show only after hours of work; or None."""
    path = Path(value)
    is_new = not os.path.lexists(path)
    try:
        path.open("ab").close()
    except OSError as error:
        advice = "choose a file in an existing folder that you can write to"
        return f"{key}={value} cannot be written ({error.strerror}); {advice}"
    if is_new:
        path.unlink(missing_ok=True)
    return None


def overrides_of(config: Any, arguments: list[str]) -> Overrides:
    """The part of the config that these arguments set: a key, all keys of a group, or those in an experiment's yaml."""
    import yaml

    chosen = set()
    for argument in arguments:
        key, _, value = argument.partition("=")
        chosen.add(key)
        if key == "experiment" and value != "null":
            content = yaml.safe_load((CONF / "experiment" / f"{value}.yaml").read_text(encoding="utf-8")) or {}
            groups = [entry for entry in content.pop("defaults", []) if isinstance(entry, dict)]
            chosen |= {group.rpartition("/")[2] for entry in groups for group in entry}
            chosen |= {key for key, _ in leaves(content)}
    return {
        key: value
        for key, value in leaves(dataclasses.asdict(config))
        if any(key == choice or key.startswith(f"{choice}.") for choice in chosen)
    }


def group_options(name: str) -> dict[str, list[str]]:
    """The config groups in the defaults list of conf/<name>.yaml, each with its choices."""
    import yaml

    path = CONF / f"{name}.yaml"
    defaults = yaml.safe_load(path.read_text(encoding="utf-8"))["defaults"] if path.exists() else []
    groups = [group for entry in defaults if isinstance(entry, dict) for group in entry]
    choices = {group: [file.stem for file in (CONF / group).glob("*.yaml")] for group in groups}
    return {group: sorted(names, key=by_number) for group, names in choices.items()}


def by_number(name: str) -> list[str | int]:
    """A key to sort names by, which places gpt2_350m before gpt2_1558m."""
    return [int(part) if part.isdigit() else part for part in re.split("([0-9]+)", name)]


def as_yaml(config: Any) -> str:
    import yaml

    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True, width=120)


def write_config(config: Any, path: str | Path) -> None:
    """Writes a config as yaml, atomically."""
    path = Path(path)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(as_yaml(config))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_config(path: str | Path, schema: type[Config]) -> Config:
    """Reads what write_config wrote, also under the settings' old names.

    Raises InputError if the file is damaged or does not fit the schema.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: {one_line(error)}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} is damaged: it holds no settings")
    found = {RENAMED.get(key, key): value for key, value in leaves(data)}
    for key, off in REMOVED.items():
        if found.pop(key, off) != off and off is not None:
            raise InputError(f"{path}: {key} is set, but no longer exists; use the version that wrote the file")
    keys = {key: about for key, about in keys_of(schema).items() if not dataclasses.is_dataclass(about.type)}
    found = {key: value for key, value in ADDED.items() if key in keys} | found
    for key in [*(found.keys() - keys.keys()), *(keys.keys() - found.keys())]:
        verb = "has an unknown" if key in found else "lacks the"
        raise InputError(f"{path} {verb} key {key!r}: it is damaged, or another version of the program wrote it")
    # Text with ${x} bypasses OmegaConf, which would expand it.
    texts = {key: value for key, value in found.items() if "${" in str(value)}
    composed = OmegaConf.structured(schema)
    for key in found.keys() - texts.keys():
        try:
            OmegaConf.update(composed, key, found[key])
        except OmegaConfBaseException as error:
            raise InputError(f"{path}: {key}={found[key]} does not fit: it takes {describe(keys[key].type)}") from error
    return to_dataclass(composed, texts)
