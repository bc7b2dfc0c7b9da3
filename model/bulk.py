"""Bulk sampling: the settings of each prompt in a file, a batch of prompts continued, and results as JSON has them."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from . import InputError
from .inference.classify import LabelProbabilities
from .inference.constraints import Constraints
from .inference.sampling import SamplingConfig
from .language_model import LanguageModel
from .next_word.words import WordRule

MAX_INTEGER = 2**63 - 1  # the largest that fits into a tensor
MAX_SAMPLES = 10**6


class Prompt(Protocol):
    """One sample of one line of a prompt file."""

    @property
    def index(self) -> int: ...
    @property
    def sample(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def fields(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Request:
    """How to continue one prompt."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    max_new_tokens: int = 200
    seed: int = 1
    num_samples: int = 1

    @property
    def group(self) -> SamplingConfig:
        """Prompts with equal groups can share a batch."""
        return self.sampling

    def validate(self) -> list[str]:
        """All errors in the settings, one line each."""
        found = []
        for name, lowest in (("max_new_tokens", max(1, self.sampling.min_new_tokens)), ("num_samples", 1)):
            if (value := getattr(self, name)) < lowest:
                found.append(f"{name}={value} must be at least {lowest}{' (min_new_tokens)' if lowest > 1 else ''}")
        if self.num_samples > MAX_SAMPLES:
            found.append(f"num_samples={self.num_samples} must be at most {MAX_SAMPLES:,}")
        return found + self.sampling.validate()

    def changed(self, fields: Mapping[str, Any]) -> Request:
        """This request with a prompt's own settings; other fields of the prompt are ignored, and null means absent.

        Raises InputError with all errors: values of a wrong type or range, and other spellings of a setting.
        """
        own: dict[str, Any] = {}
        errors = []
        for name, value in fields.items():
            if name in SETTINGS and value is not None:
                try:
                    own[name] = convert(value, SETTINGS[name])
                except TypeError as error:
                    errors.append(f"{name}={json.dumps(value)} does not fit: it takes {error}")
            elif name not in SETTINGS and (meant := SPELLINGS.get(letters_of(name))):
                errors.append(f"unknown field {name!r}; did you mean {meant!r}?")
        if not own and not errors:
            return self
        of_request = {name: own.pop(name) for name in REQUEST_SETTINGS if name in own}
        request = dataclasses.replace(self, sampling=dataclasses.replace(self.sampling, **own), **of_request)
        if errors := errors + request.validate():
            raise InputError(*errors)
        return request


def letters_of(name: str) -> str:
    return re.sub("[^a-z]", "", name.lower())


REQUEST_SETTINGS = {name: hint for name, hint in typing.get_type_hints(Request).items() if name != "sampling"}
SETTINGS = REQUEST_SETTINGS | typing.get_type_hints(SamplingConfig)  # every setting that a prompt may have of its own
# What other names mean (topK, max-new-tokens), by their letters.
SPELLINGS = {letters_of(name): name for name in SETTINGS}
SPELLINGS |= {"maxtokens": "max_new_tokens", "banned": "bad_words", "forced": "force_words"}


def request_reader(
    lm: LanguageModel, default: Request, *, note: Callable[[str], None] = lambda line: None
) -> Callable[[Mapping[str, Any]], Request]:
    """Returns a function from a prompt's fields to its Request; it raises InputError for settings that cannot be met.

    It calls `note` once for each field whose name is close to that of a setting.
    """
    noted: set[str] = set()

    @functools.lru_cache(maxsize=1000)
    def check_constraints(sampling: SamplingConfig, max_new_tokens: int) -> None:
        if sampling.force_words or sampling.bad_words:
            Constraints(lm.vocabulary, sampling, max_new_tokens=max_new_tokens)

    def read(fields: Mapping[str, Any]) -> Request:
        request = default.changed(fields)
        for name in [name for name in fields if name not in SETTINGS and name not in noted]:
            noted.add(name)
            for near in difflib.get_close_matches(name.lower(), SETTINGS, n=1, cutoff=0.8):
                note(f"field {name!r} is not a setting and only copied to the results; did you mean {near!r}?")
        check_constraints(request.sampling, request.max_new_tokens)
        return request

    if errors := default.validate():
        raise InputError(*errors)
    read({})
    return read


def convert(value: Any, hint: Any) -> Any:
    """Converts a JSON value to the type of its setting. Raises TypeError with the expected type in words."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if float in kinds:
            return float(value)
        if int in kinds and isinstance(value, int) and abs(value) <= MAX_INTEGER:
            return value
    if tuple[str, ...] in kinds:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return tuple(items)
    names = {int: "an integer", float: "a number", type(None): "null", tuple[str, ...]: "a list of strings"}
    raise TypeError(" or ".join(names[kind] for kind in kinds))


def continue_prompts(
    lm: LanguageModel, batch: Sequence[Prompt], requests: Sequence[Request], *, rows: int, on_overflow: str = "slide"
) -> list[dict[str, Any]]:
    """Continues prompts that have the same sampling settings; returns the fields of the output file.

    A prompt's noise depends on its seed, index and sample. The batch is padded to `rows` rows, so the results are bit
    for bit those of any other batch of this shape with the same prompts. on_overflow: see generate().
    """
    padded = [min(row, len(batch) - 1) for row in range(rows)]  # copies of the last prompt, which end when it ends
    completions = lm.generate(
        [batch[row].text for row in padded],
        max_new_tokens=[requests[row].max_new_tokens for row in padded],
        sampling=requests[0].sampling,
        seed=[requests[row].seed for row in padded],
        indices=[batch[row].index + (batch[row].sample << 32) for row in padded],
        on_overflow=on_overflow,
    )
    results = []
    for prompt, request, made in zip(batch, requests, completions[: len(batch)], strict=True):
        log_probs = [round(value, 6) + 0.0 for value in made.log_probabilities]  # float32 has no more; -0.0 becomes 0.0
        result = {"text": made.text, "tokens": made.tokens, "log_probabilities": log_probs, "ended": made.ended}
        results.append({"sample": prompt.sample, **result} if request.num_samples > 1 else result)
    return results


def next_words(cfg: Any, lm: LanguageModel, prompt: str, sampling: SamplingConfig) -> dict[str, Any]:
    """The distribution of the next word as JSON holds it; cfg is any config of the search for words."""
    names = ("top", "tolerance", "max_expansions", "ignore_trailing_spaces")
    how: dict[str, Any] = {name: getattr(cfg, name) for name in names}
    return {"prompt": prompt, **asdict(lm.next_words(prompt, **how, rule=WordRule(cfg.word_rule), sampling=sampling))}


def next_tokens(cfg: Any, lm: LanguageModel, prompt: str | Sequence[int], sampling: SamplingConfig) -> dict[str, Any]:
    """The distribution of the next token as JSON holds it; cfg is any config with `top`."""
    shown = prompt if isinstance(prompt, str) else lm.tokenizer.decode(prompt)
    return {"prompt": shown, "tokens": [asdict(t) for t in lm.next_tokens(prompt, top=cfg.top, sampling=sampling)]}


def classified(prompt: Prompt, found: LabelProbabilities) -> dict[str, Any]:
    """The result of a text of a file: its own fields, then its label with the probabilities of all.

    A field of its own with the name of a result, such as the true label, becomes given_NAME.
    """
    best = found.labels[0]
    result = {
        "label": best.label,
        "probability": round(best.probability, 6),
        "probabilities": {row.label: round(row.probability, 6) for row in found.labels},
        "outside": round(found.outside, 6),
    }
    taken = {"index", "text", *result}
    own = {f"given_{name}" if name in taken else name: value for name, value in prompt.fields.items()}
    return {"index": prompt.index, "text": prompt.text} | own | result
