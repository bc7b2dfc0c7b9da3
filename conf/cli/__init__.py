"""The command line: the only place that imports Hydra. Programs call cli.run(main, Schema, name=...)."""

from .arguments import given_text, read_text
from .config import Overrides, compose, write_config
from .errors import InputError, is_user_mistake
from .fields import Modes
from .program import run

__all__ = [
    "InputError",
    "Modes",
    "Overrides",
    "compose",
    "given_text",
    "is_user_mistake",
    "read_text",
    "run",
    "write_config",
]
