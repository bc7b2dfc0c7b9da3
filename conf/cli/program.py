"""run(), the one door: every program's command line ends here."""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from .config import as_yaml, compose, group_options
from .errors import InputError, exit_status
from .fields import Modes
from .help import help_of_modes, help_text
from .sweep import sweep
from .unused import unused

Config = TypeVar("Config")


def run(
    main: Callable[[Config, dict[str, Any]], int | None],
    schema: type[Config] | Modes,
    *,
    name: str,
    argv: list[str] | None = None,
) -> NoReturn:
    """Calls main(config, overrides) with conf/<name>.yaml composed over the dataclass `schema`, then exits.

    --help lists the keys, --cfg job prints the composed settings, --multirun sweeps over several values.
    Exit status: what main returns (None: 0); 2 for a user's mistake, printed in one line; 1 and a traceback for a bug.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see end_on_interrupt
        signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "debug=true" in (argument.lower() for argument in arguments)
    atexit.register(gc.freeze)  # otherwise the interpreter scans all of torch's objects several times at exit
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that is not UTF-8 shows \\u2019 instead of failing
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(exit_status(lambda: _call(main, schema, name, arguments), debug=debug))


def _call(main: Callable[..., int | None], schema: Any, name: str, arguments: list[str]) -> int | None:
    """What the flags ask for; without any, main."""
    help_asked, arguments = _without(arguments, "-h", "--help")
    swept, arguments = _without(arguments, "-m", "--multirun")
    shown, arguments = _config_flag(arguments)
    if help_asked:
        return print(_help(schema, name, arguments))
    if shown and swept:
        raise InputError("--cfg shows the settings of one job; leave out --multirun")
    if shown:
        return print(as_yaml(compose(schema, name=name, arguments=arguments, check=False)[0]), end="")
    if swept:
        if isinstance(schema, Modes):
            schema = schema.schemas[schema.chosen(arguments)]
        debug = "debug=true" in (argument.lower() for argument in arguments)
        return sweep(main, schema, name=name, arguments=arguments, debug=debug)
    config, overrides = compose(schema, name=name, arguments=arguments)
    for line in unused(config, arguments) if os.environ.get("RANK", "0") == "0" else ():
        print(f"note: {line}", file=sys.stderr)
    return main(config, overrides)


def _without(arguments: list[str], *flags: str) -> tuple[bool, list[str]]:
    kept = [argument for argument in arguments if argument not in flags]
    return len(kept) < len(arguments), kept


def _config_flag(arguments: list[str]) -> tuple[bool, list[str]]:
    """Takes out `--cfg job`, `--cfg=job` or `-c job`. InputError for Hydra's other choices."""
    for place, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag in ("-c", "--cfg"):
            words = 1 if value else 2
            value = value or "".join(arguments[place + 1 : place + 2])
            if value != "job":
                raise InputError(f"{flag} {value}: only {flag} job exists, which prints the composed settings")
            return True, arguments[:place] + arguments[place + words :]
    return False, arguments


def _help(schema: Any, name: str, arguments: list[str]) -> str:
    """The help of the schema; of one mode if the arguments name it, else of all."""

    def defaults(one: type) -> Any:
        return compose(one, name=name, arguments=[], check=False)[0]

    options = group_options(name)
    if not isinstance(schema, Modes):
        return help_text(schema, defaults(schema), options)
    shown = [schema.chosen(arguments)] if any("=" in argument for argument in arguments) else list(schema.schemas)
    return help_of_modes(schema, {mode: defaults(schema.schemas[mode]) for mode in shown}, options)
