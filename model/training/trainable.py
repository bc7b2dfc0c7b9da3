"""Which parameters a run trains, chosen by patterns such as blocks.-2: or head."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from .. import InputError
from ..gpt import GPT

BLOCKS = re.compile(r"blocks\.(-?\d+)?(?:(:)(-?\d+)?)?")  # start, colon, stop
GROUPS: dict[str, Callable[[str], bool]] = {  # by the name of a parameter
    "all": lambda name: True,
    "embed": lambda name: name.startswith(("embed.", "position_embed.")),
    "head": lambda name: name.startswith("lm_head."),
    "norms": lambda name: "norm" in name,
    "biases": lambda name: name.endswith(".bias"),
}


def train_only(model: GPT, patterns: str | Sequence[str]) -> None:
    """Freezes every parameter that none of the patterns (or the only one) names.

    A pattern is a key of GROUPS, a block or a range of blocks counted as in Python (blocks.0, blocks.-2:, blocks.1:3),
    or a parameter name with wildcards (*.mlp.*). Raises InputError for a pattern that names nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = {name for name in names if matches(name, pattern, model.config.n_layer)}
        if not found:
            why = "the head is tied to the embedding: name embed" if pattern == "head" else "this model has none"
            raise InputError(
                f"trainable={pattern} names no parameter ({why}); use {', '.join(GROUPS)}, blocks.-2: for the last two "
                f"of {model.config.n_layer} blocks, or a name such as {names[-1]}"
            )
        chosen |= found
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)


def count_parameters(model: GPT) -> tuple[int, int]:
    """Returns the number of all parameters and of those that are trained."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)


def matches(name: str, pattern: str, n_layer: int) -> bool:
    if pattern in GROUPS:
        return GROUPS[pattern](name)
    if not (blocks := BLOCKS.fullmatch(pattern)):
        return fnmatchcase(name, pattern)
    start, stop = (int(text) if text else None for text in (blocks[1], blocks[3]))
    numbers = list(range(n_layer)[start:stop])
    if not blocks[2]:
        numbers = [number for number in range(n_layer) if start in (number, number - n_layer)]
    return name.startswith(tuple(f"blocks.{number}." for number in numbers))
