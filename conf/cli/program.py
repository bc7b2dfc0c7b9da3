"""run(), the entry point of every program: flags, one job, or with --multirun one job per combination of values."""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import gc
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from .arguments import read_arguments
from .config import CONF, as_yaml, check_config, compose, group_options, overrides_of, register, to_dataclass
from .errors import InputError, as_input_error, exit_status, one_line
from .fields import Modes, keys_of, leaves, unused
from .help import help_of_modes, help_text

Config = TypeVar("Config")
Job = tuple[Any, dict[str, Any]]  # of a sweep: the settings, and those that were typed
# run_dir is the only folder that a job writes, and Hydra's logging stays off.
SWITCHES = (
    *("hydra.sweep.dir=out/multirun", "hydra.sweep.subdir=.", "hydra.output_subdir=null", "hydra.job.chdir=false"),
    *("hydra/job_logging=disabled", "hydra/hydra_logging=disabled"),
)


def run(
    main: Callable[[Config, dict[str, Any]], int | None],
    schema: type[Config] | Modes,
    *,
    name: str,
    argv: list[str] | None = None,
    after_sweep: Callable[[list[Job]], None] | None = None,
) -> NoReturn:
    """Calls main(config, overrides) with conf/<name>.yaml composed over the dataclass `schema`, then exits.

    --help lists the keys, --cfg job prints the composed settings, --multirun sweeps over several values and calls
    after_sweep with the jobs. The output files that main wrote are named on standard error.
    Exit status: what main returns (None: 0); 2 for a user's mistake, printed in one line; 1 and a traceback for a bug.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see end_on_interrupt
        signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "debug=true" in (argument.lower() for argument in arguments)
    atexit.register(gc.freeze)  # otherwise the interpreter scans all of torch's objects several times at exit
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that is not UTF-8 shows \\u2019 instead of failing
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(exit_status(lambda: _call(main, schema, name, arguments, debug, after_sweep), debug=debug))


def _call(
    main: Callable[..., int | None],
    schema: Any,
    name: str,
    arguments: list[str],
    debug: bool,
    after_sweep: Callable[[list[Job]], None] | None,
) -> int | None:
    """What the flags ask for; without any, main."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job"])
    try:
        flags, arguments = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from None
    if flags.help:
        return print(_help(schema, name, arguments))
    if flags.cfg and flags.multirun:
        raise InputError("--cfg shows the settings of one job; leave out --multirun")
    if flags.cfg:
        return print(as_yaml(compose(schema, name=name, arguments=arguments, check=False)[0]), end="")
    if flags.multirun:
        one = schema.schemas[schema.chosen(arguments)] if isinstance(schema, Modes) else schema
        status, jobs = sweep(main, one, name=name, arguments=arguments, debug=debug)
        if after_sweep and len(jobs) > 1 and os.environ.get("RANK", "0") == "0":
            after_sweep(jobs)
        return status
    config, overrides = compose(schema, name=name, arguments=arguments)
    for line in unused(config, arguments) if os.environ.get("RANK", "0") == "0" else ():
        print(f"note: {line}", file=sys.stderr)
    result = main(config, overrides)
    for key, about in keys_of(type(config)).items():
        path = overrides.get(key) if about.kind == "output" and key != "outputs" else None  # outputs= has its own line
        if path and os.path.exists(path):
            print(f"wrote {path}", file=sys.stderr)
    return result


def _help(schema: Any, name: str, arguments: list[str]) -> str:
    """The help of the schema; of one mode if the arguments name it, else of all."""
    options = group_options(name)
    if not isinstance(schema, Modes):
        return help_text(schema, compose(schema, name=name, arguments=[], check=False)[0], options)
    shown = [schema.chosen(arguments)] if any("=" in argument for argument in arguments) else schema.schemas
    configs: dict[str, Any] = {
        mode: compose(schema.schemas[mode], name=name, arguments=[], check=False)[0] for mode in shown
    }
    return help_of_modes(schema, configs, options)


def sweep(
    main: Callable[[Any, Any], int | None], schema: type, *, name: str, arguments: list[str], debug: bool
) -> tuple[int, list[Job]]:
    """Calls main for each job. Returns the highest exit status, and the jobs whose settings were sound.

    A user's mistake ends only its own job.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    keys = keys_of(schema)
    words, _ = read_arguments(schema, arguments, options=group_options(name), multirun=True)
    run_dirs = [word for word in words if word.startswith("run_dir=")]
    if "run_dir" in keys and not any("${" in word or "," in word for word in run_dirs):
        raise InputError("each job of a --multirun needs a run_dir of its own, for example run_dir='out/run-${seed}'")
    statuses: list[int] = []
    jobs: list[Job] = []

    def job(composed: Any) -> None:
        settings: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        print(f"job {len(statuses)}: {' '.join(settings)}", file=sys.stderr)
        statuses.append(2)  # until the job ends; Hydra itself fails only before the first job

        def call() -> int | None:
            raw: Any = OmegaConf.to_container(composed, resolve=False)
            texts = {k: v for k, v in leaves(raw) if keys[k].kind in ("text", "pattern") and "${" in str(v)}
            for key in texts:  # as without --multirun, ${key} is replaced in paths and numbers, not in text
                OmegaConf.update(composed, key, "")
            values = leaves(dataclasses.asdict(to_dataclass(composed, texts)))
            paths = {k: os.path.expanduser(v) for k, v in values if keys[k].expands_home and isinstance(v, str)}
            config = to_dataclass(composed, texts | paths)
            overrides = overrides_of(config, settings)
            check_config(config, typed=overrides)
            jobs.append((config, overrides))
            return main(config, overrides)

        statuses[-1] = exit_status(call, debug=debug)

    sys.argv = [sys.argv[0], "--multirun", *SWITCHES, *words]  # Hydra's sweeps start from sys.argv only
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of printing them
    try:
        hydra.main(config_path=str(CONF), config_name=register(schema, name), version_base="1.3")(job)()
    except Exception as error:
        if statuses or isinstance(error, (HydraException, OmegaConfBaseException, OSError)):
            raise as_input_error(error) from error
        raise InputError(f"--multirun: {one_line(error)}; check the swept values and the hydra settings") from error
    if not statuses:
        raise InputError("--multirun has no job: one of the sweeps, such as range(0,0) or glob(x*), has no values")
    return max(statuses), jobs
