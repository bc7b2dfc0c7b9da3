"""Many prompts at once: what each asks for, and a batch of them continued in a fixed shape."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from . import InputError
from .inference.constraints import Rules
from .inference.sampling import SamplingConfig
from .language_model import Completion, LanguageModel

LARGEST = 2**63 - 1  # no integer beyond fits a tensor


class Prompt(Protocol):
    """A line of a file of prompts, and which of its samples."""

    @property
    def index(self) -> int: ...
    @property
    def sample(self) -> int: ...
    @property
    def text(self) -> str: ...


@dataclass(frozen=True)
class Request:
    """How one prompt is to be continued."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    max_new_tokens: int = 200
    seed: int = 1
    num_samples: int = 1

    @property
    def group(self) -> SamplingConfig:
        """What the prompts of one batch have in common."""
        return self.sampling

    def validate(self) -> list[str]:
        found = []
        for name, least in (("max_new_tokens", max(1, self.sampling.min_new_tokens)), ("num_samples", 1)):
            if (value := getattr(self, name)) < least:
                found.append(f"{name}={value} must be at least {least}{' (min_new_tokens)' if least > 1 else ''}")
        found += [f"num_samples={self.num_samples} must be at most a million"] if self.num_samples > 10**6 else []
        return found + self.sampling.validate()

    def changed(self, fields: Mapping[str, Any]) -> Request:
        """This request but for the fields that a prompt has of its own; those that mean nothing here are left out.

        Raises InputError with all that is wrong: values that do not fit, names that are nearly one of ours.
        """
        own, problems = {}, []
        for name, value in fields.items():
            if name in HINTS:
                try:
                    own[name] = fitted(value, HINTS[name])
                except TypeError as error:
                    problems.append(f"{name}={value!r} does not fit: it takes {error}")
            elif (close := misspelt(name)) is not None:
                problems.append(f"unknown field {name!r}; did you mean {close!r}?")
        if not own and not problems:
            return self
        ours = {name: value for name, value in own.items() if name in OWN}
        theirs = {name: value for name, value in own.items() if name not in OWN}
        request = dataclasses.replace(self, sampling=dataclasses.replace(self.sampling, **theirs), **ours)
        if problems := problems + request.validate():
            raise InputError(*problems)
        return request


def request_reader(lm: LanguageModel, default: Request) -> Callable[[Mapping[str, Any]], Request]:
    """What turns a prompt's fields into a Request; InputError also for what this model's vocabulary cannot fulfil."""

    @functools.lru_cache(maxsize=1000)
    def check(sampling: SamplingConfig, max_new_tokens: int) -> None:
        if sampling.force_words or sampling.bad_words:
            Rules(lm.vocabulary, sampling, room=max_new_tokens)

    def read(fields: Mapping[str, Any]) -> Request:
        request = default.changed(fields)
        check(request.sampling, request.max_new_tokens)
        return request

    if problems := default.validate():
        raise InputError(*problems)
    read({})
    return read


OWN = {name: hint for name, hint in typing.get_type_hints(Request).items() if name != "sampling"}
HINTS = OWN | typing.get_type_hints(SamplingConfig)  # every field that a prompt may have of its own


@functools.lru_cache(maxsize=1000)
def misspelt(name: str) -> str | None:
    """The field that a name most likely stands for, if it is very near."""
    return next(iter(difflib.get_close_matches(name.lower(), HINTS, n=1, cutoff=0.8)), None)


def fitted(value: Any, hint: Any) -> Any:
    """A value from JSON as its field's type wants it. TypeError: what that is, in words."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if float in kinds:
            return float(value)
        if int in kinds and isinstance(value, int) and abs(value) <= LARGEST:
            return value
    if tuple[str, ...] in kinds:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return tuple(items)
    words = {int: "an integer", float: "a number", type(None): "null", tuple[str, ...]: "a list of strings"}
    raise TypeError(" or ".join(words[kind] for kind in kinds))


def continue_batch(
    lm: LanguageModel,
    prompts: Sequence[list[int]],
    requests: Sequence[Request],
    *,
    indices: Sequence[int],
    rows: int,
    on_overflow: str = "slide",
) -> list[Completion]:
    """Continues prompts (their ids) that share their sampling.

    indices: with each prompt's seed, what its noise depends on. The batch is padded to `rows` rows: its results are
    then those of any other batch of this shape that holds the same prompts, to the bit. beyond: as for generate().
    """
    last = len(prompts) - 1
    padded = [min(row, last) for row in range(rows)]  # by copies of the last prompt, which last no longer than it does
    made = lm.complete(
        [prompts[row] for row in padded],
        max_new_tokens=[requests[row].max_new_tokens for row in padded],
        sampling=requests[0].sampling,
        seed=[requests[row].seed for row in padded],
        indices=[indices[row] for row in padded],
        on_overflow=on_overflow,
    )
    return made[: len(prompts)]


def continue_prompts(
    lm: LanguageModel, batch: Sequence[Prompt], requests: Sequence[Request], *, rows: int, on_overflow: str = "slide"
) -> list[dict[str, Any]]:
    """What a file of outputs says about each prompt of a batch, which is padded to `rows`."""
    indices = [prompt.index + (prompt.sample << 32) for prompt in batch]
    ids = [lm.encode(prompt.text) for prompt in batch]
    made = continue_batch(lm, ids, requests, indices=indices, rows=rows, on_overflow=on_overflow)
    results = []
    for prompt, request, answer in zip(batch, requests, made, strict=True):
        logs = [round(value, 6) + 0.0 for value in answer.log_probabilities]  # float32 knows no more; -0.0 is 0.0
        result = {"text": answer.text, "tokens": answer.tokens, "log_probabilities": logs, "ended": answer.ended}
        results.append({"sample": prompt.sample, **result} if request.num_samples > 1 else result)
    return results
