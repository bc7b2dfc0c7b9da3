"""A user's mistake becomes one line and exit status 2; anything else is a bug, with its traceback and status 1."""

from __future__ import annotations

import errno
import os
import re
import sys
import time
import traceback
from collections.abc import Callable


class InputError(ValueError):
    """Mistakes on the command line or in a saved config: one argument per line to print."""

    user_mistake = True  # model.InputError and data.InputError declare the same; conf imports neither


def is_user_mistake(error: BaseException) -> bool:
    """True if the exception says that the user, not the program, is at fault."""
    return getattr(error, "user_mistake", False) is True


def exit_status(action: Callable[[], int | None], *, debug: bool) -> int:
    """Calls `action` and returns the exit status: its own (None is 0), or 2 after printing a user's mistake.

    `debug` also prints the traceback. A bug is raised.
    """
    try:
        status = action()
        sys.stdout.flush()
        return status or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader is gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not (lines := message(error)):
            raise
        if debug:
            traceback.print_exc()
        rank = os.environ.get("RANK", "0")
        if rank != "0" and isinstance(error, InputError):  # all ranks read the same command line: rank 0 reports it
            time.sleep(5)  # torchrun kills every rank once one exits, so wait for rank 0 to print the error
            return 2
        start = "error" if rank == "0" else f"[rank {rank}] error"
        print(*(f"{start}: {line}" for line in lines), sep="\n", file=sys.stderr)
        return 2


def message(error: Exception) -> list[str]:
    """The lines that explain a user's mistake, a bad path or exhausted memory or disk; empty for a bug."""
    if isinstance(error, OSError) and error.filename is not None:
        return [f"{error.filename}: {error.strerror}"]
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return [f"{error.strerror}; make room and run it again"]
    torch_failed = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if torch_failed or isinstance(error, MemoryError):  # that of Python (no text) or numpy
        reason = (str(error).splitlines() or ["nothing more can be allocated."])[0]
        return [f"out of memory: {reason} Use a smaller model or batch, or more devices"]
    if is_user_mistake(error):
        return [" ".join(str(argument).split("\n")) for argument in error.args]
    return []


def as_input_error(error: Exception) -> InputError:
    """Turns an error of Hydra, OmegaConf or yaml into an InputError. Raises any other error unchanged."""
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, InputError):
        return error
    if not isinstance(error, (HydraException, OmegaConfBaseException, yaml.YAMLError)):
        raise error
    text = re.sub(r"(?s)\s*(See https|reference_type=|object_type=).*", "", str(error))
    return InputError(one_line(text).replace("full_key:", "in"))


def one_line(error: object) -> str:
    return " ".join(str(error).split())
