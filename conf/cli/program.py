"""From yaml and the command line to plain dataclasses, and from a user's mistake to one line.

The only file that knows Hydra and OmegaConf; both are imported when they are needed.
"""

from __future__ import annotations

import atexit
import dataclasses
import errno
import gc
import io
import os
import re
import sys
import time
import traceback
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from .fields import describe, help_text, keys_of, leaves, nearest
from .renamed import REMOVED, RENAMED, current

Config = TypeVar("Config")
Overrides = dict[str, Any]  # what the command line asked for: {dotted key: value in the composed config}

CONF = Path(__file__).resolve().parent.parent

# Values that reach the program byte for byte. Hydra's grammar refuses "It's" and "~/notes", strips a trailing space,
# reads 1e3 as a number and expands ${x}; so it never sees these (except under --multirun, where its sweeps are wanted).
TEXTS = {
    *("prompt", "compare_prompts", "text", "options", "neutral", "stop", "bad_words", "force_words"),
    *("text_field", "document_separator", "tokenizer.pattern", "wandb.project", "sample_prompt"),
    *("common", "name", "a", "b", "size", "gpt2", "default"),  # of scripts.ablations and scripts.bench tokens
}
PATTERNS = {"include", "exclude", "val_include", "curate.drop_lines"}  # the word null means None
PATHS = {  # the word null means None, ~ is the home directory
    *(
        "corpus",
        "datasets",
        "run_dir",
        "checkpoint",
        "examples",
        "val_examples",
        "versus",
        "prompt_file",
        "prompts",
        "outputs",
        "against",
    ),
    *("json", "plot", "tokenizer.path", "tokenizer.encoding", "tokenizers", "pairs", "out"),
}
# Files to write, perhaps only after hours: where they are to go is checked before.
OUTPUTS = {"json", "plot", "outputs"}
# [a, "b c"] is a list.
LISTS = {"corpus", "tokenizers", *PATTERNS, *("stop", "bad_words", "force_words", "options", "compare_prompts")}


class InputError(ValueError):
    """Mistakes of the user's, one argument a line; exit status 2."""


def run(
    main: Callable[[Config, Overrides], int | None],
    schema: type[Config],
    *,
    name: str,
    argv: list[str] | None = None,
) -> NoReturn:
    """Calls main(config, overrides) with conf/<name>.yaml composed over the dataclass `schema`, then exits.

    Exit status: what main returns (None: 0); 2 for a user's mistake, told in one line; 1 and a traceback for a bug.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "debug=true" in (argument.lower() for argument in arguments)
    settings = [argument for argument in arguments if argument not in ("-m", "--multirun")]

    atexit.register(gc.freeze)  # else the interpreter looks through all of torch's objects several times as it ends
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that is not UTF-8 shows \\u2019 and ends nothing
        sys.stdout.reconfigure(errors="backslashreplace")

    def action() -> int | None:
        if {"-h", "--help"} & set(arguments):
            config: Any = compose(schema, name=name, arguments=[], check=False)[0]
            return print(help_text(schema, config=config, options=_group_options(name)))
        if len(settings) < len(arguments):
            return _sweep(main, schema, name=name, arguments=settings, debug=debug)
        return main(*compose(schema, name=name, arguments=arguments))

    sys.exit(_guarded(action, debug=debug))


def compose(schema: type[Config], *, name: str, arguments: list[str], check: bool = True) -> tuple[Config, Overrides]:
    """The config and what the command line set of it. InputError: everything that is wrong, one argument a line.

    `check=False` leaves out the config's own validate(): a key that must be given may be missing.
    """
    import hydra

    settings, free = _read_arguments(schema, name, arguments)
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra.compose(_store(schema, name), overrides=settings)
    except Exception as error:
        raise _as_input_error(error) from error
    config = _plain(composed, free)
    if check and not getattr(config, "resume", False):  # a resumed run is checked with the settings it goes on with
        check_config(config)
    return config, _explicit(config, [*settings, *free])


def write_config(config: Any, path: str | Path) -> None:
    """Writes a config dataclass as yaml, whole or not at all."""
    import yaml

    path = Path(path)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        yaml.safe_dump(dataclasses.asdict(config), file, sort_keys=False, allow_unicode=True, width=120)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_config(path: str | Path, schema: type[Config]) -> Config:
    """Reads what write_config wrote, now or under the names that settings had before.

    InputError when it is damaged or does not fit the schema.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: {_one_line(error)}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} is damaged: it holds no settings")
    found = {RENAMED.get(key, key): value for key, value in leaves(data)}
    for key, off in REMOVED.items():
        if found.pop(key, off) != off and off is not None:
            raise InputError(f"{path}: {key} is set, which this version no longer has; use the version that wrote it")
    keys = {key: hint for key, hint in keys_of(schema).items() if not dataclasses.is_dataclass(hint)}
    for key in [*(found.keys() - keys.keys()), *(keys.keys() - found.keys())]:
        verb = "has an unknown" if key in found else "lacks the"
        raise InputError(f"{path} {verb} key {key!r}: it is damaged, or another version of the program wrote it")
    # Text goes around OmegaConf, which would expand ${x}.
    texts = {key: value for key, value in found.items() if "${" in str(value)}
    composed = OmegaConf.structured(schema)
    for key in found.keys() - texts.keys():
        try:
            OmegaConf.update(composed, key, found[key])
        except OmegaConfBaseException as error:
            raise InputError(f"{path}: {key}={found[key]} does not fit: it takes {describe(keys[key])}") from error
    return _plain(composed, texts)


def _store(schema: type, name: str) -> str:
    """Makes the dataclass known to Hydra as `schema`, which conf/<name>.yaml builds on. Returns the primary config."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=schema)
    return name if (CONF / f"{name}.yaml").exists() else "schema"


def _read_arguments(
    schema: type, name: str, arguments: list[str], *, multirun: bool = False
) -> tuple[list[str], dict[str, Any]]:
    """Sorts the arguments into Hydra's and free ones, and collects everything that is wrong with them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    keys, options, parser = keys_of(schema), _group_options(name), OverridesParser.create()
    trial = OmegaConf.structured(schema)
    settings: list[str] = []
    free: dict[str, Any] = {}
    problems: list[str] = []
    for key, value, text in _key_values(arguments, keys, problems):
        if key not in keys and (new := current(key, value))[0] in keys:
            print(f"note: {key}= is now called {new[0]}=", file=sys.stderr)
            (key, value), text = new, "=".join(new)
        if key[:1] in "+~":
            problems.append(f"{text!r}: nothing can be added or removed; write {key.lstrip('+~') or 'KEY'}=VALUE")
        elif multirun and key.partition(".")[0].partition("/")[0] == "hydra":
            settings.append(text)
        elif key not in keys and key not in options:
            near = nearest(key, [*keys, *options])
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; --help lists all keys"
            problems.append(f"unknown key {key!r}{hint}")
        elif key in TEXTS | PATTERNS | PATHS and not multirun:
            try:
                free[key] = _free_value(key, value, keys[key])
            except InputError as error:
                problems.extend(error.args)
        else:
            try:
                override = parser.parse_overrides([text])[0]
                sweep = override.is_sweep_override()
                if sweep and not multirun:
                    problems.append(f"{text} holds several values: add --multirun, or quote it: {key}='\"{value}\"'")
                elif key in options and not sweep and value not in options[key]:
                    problems.append(f"{text}: there is no such {key}; choose one of {', '.join(options[key])}")
                elif key not in options and not sweep:
                    OmegaConf.update(trial, key, override.value())
            except OmegaConfBaseException:
                problems.append(f"{text} does not fit: {key} takes {describe(keys[key])}")
            except Exception as error:
                reason = _one_line(_as_input_error(error))
                problems.append(f"{text} cannot be read ({reason}); quote the value: '{key}=\"...\"'")
            settings.append(text)
    if problems:
        raise InputError(*problems)
    return settings, free


def _key_values(arguments: list[str], keys: dict[str, Any], problems: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yields (key, value, argument) for each key=value; anything else is a problem, one for each run of such words."""
    words: list[str] = []
    previous = ""
    for argument in [*arguments, None]:
        if argument is not None and (argument.startswith("-") or argument.find("=") < 1):
            words.append(argument)
            continue
        if words:
            first, _, rest = " ".join(words).replace("=", " ").lstrip("- ").partition(" ")
            if first not in keys and previous.partition("=")[0] in TEXTS | PATHS and not words[0].startswith("-"):
                advice = f"quote a value with spaces: '{' '.join([previous, *words])}'"
            else:
                advice = f"write {first}={rest.strip() or 'VALUE'}" if first in keys else "--help lists all keys"
            problems.append(f"{' '.join(words)!r} is not key=value; {advice}")
            words = []
        if argument is not None:
            key, _, value = argument.partition("=")
            yield key, value, argument
            previous = argument


def _free_value(key: str, value: str, hint: Any) -> Any:
    """What a free text or path key's value means: the text itself, but for lists, null and ~ as the key's set says."""
    if key in TEXTS:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{key}={value!r} is not UTF-8 text") from error
    elif not value:
        raise InputError(f"{key}= is empty; it takes {describe(hint)}")
    elif value == "null" and (hint is Any or type(None) in typing.get_args(hint)):
        return None
    expand = os.path.expanduser if key in PATHS else str
    if key in OUTPUTS:
        path = Path(expand(value))
        if path.is_dir():
            raise InputError(f"{key}={value} is a folder; name a file in it")
        if not path.parent.is_dir():
            raise InputError(f"{key}={value}: there is no folder {path.parent}; make it first")
    if key not in LISTS or not (value.startswith("[") and value.endswith("]")):
        return expand(value)

    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        items: Any = OverridesParser.create().parse_overrides([f"{key}={value}"])[0].value()
    except Exception as error:
        reason = _one_line(_as_input_error(error))
        raise InputError(f'{key}={value} is not a list ({reason}); quote its items: {key}=\'["a", "b"]\'') from error
    for item in items:
        if not isinstance(item, str):
            raise InputError(f'{key}={value}: the item {item} is not text; quote it: "{item}"')
    return [expand(item) for item in items]


def _plain(composed: Any, free: dict[str, Any]) -> Any:
    """The dataclass that an OmegaConf config stands for, with the free values put in as they are."""
    from omegaconf import OmegaConf

    try:
        config = OmegaConf.to_object(composed)
    except Exception as error:
        raise _as_input_error(error) from error
    for key, value in free.items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = getattr(node, parent)
        setattr(node, last, value)
    return config


def check_config(config: Any) -> None:
    """Asks the config and all dataclasses inside it for their problems. InputError with every one."""
    nested = (getattr(config, field.name) for field in dataclasses.fields(config))
    nodes = [config, *(node for node in nested if dataclasses.is_dataclass(node))]
    problems = [problem for node in nodes if hasattr(node, "validate") for problem in node.validate()]
    if problems:
        raise InputError(*dict.fromkeys(problems))


def _explicit(config: Any, arguments: list[str]) -> Overrides:
    """The part of the config that these arguments set: a key, each key of a group or of an experiment's yaml."""
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


def _sweep(
    main: Callable[[Any, Overrides], int | None], schema: type, *, name: str, arguments: list[str], debug: bool
) -> int:
    """Runs main for each combination of the swept values, one after the other. A user's mistake ends only its job."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    _read_arguments(schema, name, arguments, multirun=True)
    run_dirs = [argument for argument in arguments if argument.startswith("run_dir=")]
    if "run_dir" in keys_of(schema) and not any("${" in argument or "," in argument for argument in run_dirs):
        raise InputError("each job of a --multirun needs a run_dir of its own, for example run_dir='out/run-${seed}'")
    statuses: list[int] = []

    def job(composed: Any) -> None:
        settings = list(HydraConfig.get().overrides.task)
        print(f"job {len(statuses)}: {' '.join(settings)}", file=sys.stderr)

        def call() -> int | None:
            values = leaves(dataclasses.asdict(_plain(composed, {})))
            paths = {key: os.path.expanduser(value) for key, value in values if key in PATHS and isinstance(value, str)}
            config = _plain(composed, paths)
            check_config(config)
            return main(config, _explicit(config, settings))

        statuses.append(_guarded(call, debug=debug))

    # run() never returns, so there is nobody for whom to restore argv and the environment.
    switches = ["hydra.sweep.dir=out/multirun", "hydra.sweep.subdir=.", "hydra.output_subdir=null"]
    switches += ["hydra.job.chdir=false", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]
    sys.argv = [sys.argv[0], "--multirun", *switches, *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of being printed
    hydra.main(config_path=str(CONF), config_name=_store(schema, name), version_base="1.3")(job)()
    return max(statuses)


def _guarded(action: Callable[[], int | None], *, debug: bool) -> int:
    """Calls action and returns its exit status. A user's mistake becomes one line; a bug passes through."""
    try:
        status = action()
        sys.stdout.flush()
        return status or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            lines = [f"{error.filename}: {error.strerror}"]
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            lines = [f"{error.strerror}; make room and run it again"]
        elif type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):  # torch's
            lines = [f"out of memory: {str(error).splitlines()[0]} Take a smaller model or batch, or more devices"]
        elif any(ancestor.__name__ == "InputError" for ancestor in type(error).__mro__):  # ours, model's or data's
            lines = [" ".join(str(argument).split("\n")) for argument in error.args]
        else:
            raise
        if debug:
            traceback.print_exc()
        # Every rank of torchrun reads the same command line; one of them is enough to complain about it.
        rank = os.environ.get("RANK", "0")
        if rank == "0" or not isinstance(error, InputError):
            mark = "error" if rank == "0" else f"[rank {rank}] error"
            print(*(f"{mark}: {line}" for line in lines), sep="\n", file=sys.stderr)
        elif isinstance(error, InputError):
            time.sleep(5)  # torchrun ends all ranks when it sees one end, that which complains too
        return 2


def _as_input_error(error: Exception) -> InputError:
    """Hydra's, OmegaConf's and yaml's errors are the user's mistakes; anything else is a bug and raised as it is."""
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, InputError):
        return error
    if not isinstance(error, (HydraException, OmegaConfBaseException, yaml.YAMLError)):
        raise error
    text = re.sub(r"(?s)\s*(See https|reference_type=|object_type=).*", "", str(error))
    return InputError(_one_line(text).replace("full_key:", "in"))


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def _group_options(name: str) -> dict[str, list[str]]:
    """The groups in the defaults list of conf/<name>.yaml, each with the names of its files."""
    import yaml

    path = CONF / f"{name}.yaml"
    defaults = yaml.safe_load(path.read_text(encoding="utf-8"))["defaults"] if path.exists() else []
    groups = [group for entry in defaults if isinstance(entry, dict) for group in entry]
    return {group: sorted(file.stem for file in (CONF / group).glob("*.yaml")) for group in groups}
