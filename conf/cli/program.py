"""run(), the one door: every program's command line ends here."""

from __future__ import annotations

import argparse
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
    sys.exit(exit_status(lambda: _call(main, schema, name, arguments, debug), debug=debug))


def _call(main: Callable[..., int | None], schema: Any, name: str, arguments: list[str], debug: bool) -> int | None:
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
        return sweep(main, one, name=name, arguments=arguments, debug=debug)
    config, overrides = compose(schema, name=name, arguments=arguments)
    for line in unused(config, arguments) if os.environ.get("RANK", "0") == "0" else ():
        print(f"note: {line}", file=sys.stderr)
    return main(config, overrides)


def _help(schema: Any, name: str, arguments: list[str]) -> str:
    """The help of the schema; of one mode if the arguments name it, else of all."""
    options = group_options(name)
    if not isinstance(schema, Modes):
        return help_text(schema, compose(schema, name=name, arguments=[], check=False)[0], options)
    shown = [schema.chosen(arguments)] if any("=" in argument for argument in arguments) else schema.schemas
    configs = {mode: compose(schema.schemas[mode], name=name, arguments=[], check=False)[0] for mode in shown}
    return help_of_modes(schema, configs, options)
