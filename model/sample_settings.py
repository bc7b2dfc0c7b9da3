"""What sample.py can be asked: one dataclass of settings for each mode, composed of what several modes share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from . import InputError
from .device import DTYPES
from .inference.sampling import SamplingConfig
from .inference.score import METHODS
from .next_word.words import RULES

TEXT = {"kind": "text"}
TEXTS = {"kind": "text", "list": True}
PATH = {"kind": "path"}
OUTPUT = {"kind": "output"}

CHOICES: dict[str, tuple[str, ...]] = {
    "dtype": ("auto", *DTYPES, "int8"),
    "on_overflow": ("slide", "error"),
    "word_rule": tuple(RULES),
    "method": METHODS,
}
LEAST = dict.fromkeys(("num_samples", "max_new_tokens", "top", "batch_size", "max_expansions", "branches", "depth"), 1)
LEAST |= {"top_logprobs": 0}
LARGEST = {"num_samples": 10**6, "batch_size": 10**6, "depth": 100}  # more would exhaust memory or never end


@dataclass
class SampleConfig:
    """The settings of every mode."""

    # a run directory, RUN/best or one step directory
    checkpoint: str | None = field(default=None, metadata=PATH)
    mode: str = "text"  # text | next_word | next_token | continue | score | classify | chat
    device: str = "auto"  # auto | cpu | cuda | cuda:N | mps
    dtype: str = "float32"  # float32 is exact; bfloat16 and int8 (8-bit weights) are faster
    compile: Any = "auto"  # auto (for long texts) | true | false
    debug: bool = False  # show the traceback of a user's mistake

    def validate(self) -> list[str]:
        """Returns every problem, one line each."""
        found = [] if self.checkpoint else ["checkpoint is required: a run directory such as checkpoint=out/first"]
        for name, known in CHOICES.items():
            if (value := getattr(self, name, known[0])) not in known:
                found.append(f"{name}={value!r} is not one of {', '.join(known)}")
        for name, least in LEAST.items():
            if (number := getattr(self, name, least)) < least:
                found.append(f"{name}={number} must be at least {least}")
            elif number > LARGEST.get(name, number):
                found.append(f"{name}={number} must be at most {LARGEST[name]:,}")
        plot = getattr(self, "plot", None)
        if plot is not None and Path(plot).suffix.lower() not in ("", ".png", ".svg", ".pdf"):
            found.append(f"plot={plot} must end in .png, .svg or .pdf")
        return found

    def texts(self) -> dict[str, list[str]]:
        """Returns the settings that are text, by name."""
        names = ("text", "labels", "options", "neutral", "stop", "bad_words", "force_words")
        return {f"{name}=": as_list(getattr(self, name, None)) for name in names}


@dataclass
class InputConfig(SampleConfig):
    """The modes that answer a text and stop."""

    # a file with the prompt (classify: the text); default: standard input, but no prompt at a terminal or in score
    prompt_file: str | None = field(default=None, metadata=PATH)
    json: str | None = field(default=None, metadata=OUTPUT)  # write the result to this file


@dataclass
class PromptConfig(InputConfig):
    """The modes that answer a prompt and stop."""

    prompt: str | None = field(default=None, metadata=TEXT)  # the text to continue; default: see prompt_file

    def validate(self) -> list[str]:
        found = super().validate()
        if self.prompt is not None and self.prompt_file is not None:
            found.append("prompt and prompt_file are both given; choose one")
        return found


@dataclass
class PromptsConfig(PromptConfig):
    """The modes that show several prompts side by side."""

    compare_prompts: Any = field(default=None, metadata=TEXTS)  # [other, prompts] to show next to the first


@dataclass
class TableConfig(PromptsConfig):
    """The modes that print a table of outcomes for each prompt."""

    group: bool = False  # merge variants of case and of a leading space
    plot: str | None = field(default=None, metadata=OUTPUT)  # draw the table to this .png, .svg or .pdf file


@dataclass
class FilterConfig(SampleConfig):
    """The filters of a distribution, in the order in which they apply; see SamplingConfig."""

    temperature: float = 1.0  # 0: greedy, always the most probable token
    top_k: int | None = None  # keep the k most probable tokens
    top_p: float | None = None  # keep the fewest tokens whose probabilities sum to p
    min_p: float | None = None  # keep tokens at least this fraction as probable as the best
    typical_p: float | None = None  # top_p over tokens sorted by |surprisal - entropy|

    def sampling(self) -> SamplingConfig:
        values = {f.name: getattr(self, f.name) for f in fields(SamplingConfig) if hasattr(self, f.name)}
        texts = {name: tuple(as_list(values.get(name))) for name in ("stop", "bad_words", "force_words")}
        return SamplingConfig(**values | texts)

    def validate(self) -> list[str]:
        return super().validate() + self.sampling().validate()


@dataclass
class GenerationConfig(FilterConfig):
    """The modes that write new text."""

    max_new_tokens: int = 200
    min_new_tokens: int = 0  # until then neither the end token nor a stop string ends the text
    seed: int = 1
    repetition_penalty: float = 1.0  # above 1: tokens of the prompt and the new text become less probable
    presence_penalty: float = 0.0  # subtracted from the logit of each token in the new text
    frequency_penalty: float = 0.0  # subtracted as well, times the token's count in the new text
    stop: Any = field(default=None, metadata=TEXTS)  # text or [several]: the new text ends before it
    bad_words: Any = field(default=None, metadata=TEXTS)  # text or [several] that never appear in the new text
    force_words: Any = field(default=None, metadata=TEXTS)  # text or [several] that must appear in the new text

    def validate(self) -> list[str]:
        found = super().validate()
        if self.max_new_tokens < self.min_new_tokens:
            found.append(f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens={self.max_new_tokens}")
        return found


@dataclass
class WordConfig(FilterConfig):
    """The modes that give the distribution of the next word."""

    top: int = 20  # rows of the table; the search proves their order
    tolerance: float = 0.001  # stop when less probability than this is unexplored
    max_expansions: int = 1024  # stop after expanding this many tokens
    ignore_trailing_spaces: bool = True  # "your" and "your " give one table; false: they do not
    word_rule: str = "unicode"  # unicode | space | character: where words end

    def validate(self) -> list[str]:
        found = super().validate()
        return found if 0 <= self.tolerance < 1 else [*found, f"tolerance={self.tolerance} must be in [0, 1)"]


@dataclass
class TextConfig(GenerationConfig, PromptConfig):
    mode: str = "text"
    num_samples: int = 1
    on_overflow: str = "slide"  # when the context is full: slide (forget the oldest half) | error
    speculative: bool = False  # guess tokens where the text repeats itself: faster, the same text
    explain: bool = False  # show how each token was chosen
    # number of alternatives to report at each position (json, explain)
    top_logprobs: int = field(default=0, metadata={"needs": ("json|explain",)})


@dataclass
class NextWordConfig(WordConfig, TableConfig):
    mode: str = "next_word"


@dataclass
class NextTokenConfig(FilterConfig, TableConfig):
    mode: str = "next_token"
    top: int = 20  # rows of the table


@dataclass
class ContinueConfig(PromptsConfig):
    mode: str = "continue"
    branches: int = 3  # words at each position
    depth: int = 3  # words in a row
    word_rule: str = "unicode"  # unicode | space | character: where words end


@dataclass
class ScoreConfig(PromptsConfig):
    mode: str = "score"
    text: str | None = field(default=None, metadata=TEXT)  # score this text, after the prompt if there is one
    options: Any = field(default=None, metadata=TEXTS)  # or [several, texts] to choose from after the prompt
    examples: str | None = field(default=None, metadata=PATH)  # or a file of {"prompt", "options", "completion"}
    # how to choose: raw | normalised (per byte) | pmi (relative to `neutral`)
    method: str = field(default="raw", metadata={"needs": ("options",)})
    # the prompt that pmi compares with
    neutral: str = field(default="", metadata=TEXT | {"needs": ("options|examples",)})
    seed: int = field(default=1, metadata={"needs": ("examples",)})  # of the confidence intervals

    def validate(self) -> list[str]:
        found, options = super().validate(), as_list(self.options)
        if self.options is not None and len(set(options)) < max(2, len(options)):
            found.append(f'options={self.options} must be at least two different texts: \'options=[" a", " b"]\'')
        if (self.text, self.options, self.examples).count(None) != 2:
            found.append('mode=score takes one of text=TEXT, options=\'[" a", " b"]\' or examples=FILE')
        prompts = [name for name in ("prompt", "prompt_file", "compare_prompts") if getattr(self, name) is not None]
        if self.examples is not None and prompts:
            found.append(f"{prompts[0]}= cannot be used with examples=FILE, which has its own prompts")
        return found


@dataclass
class LabelConfig(SampleConfig):
    """The label set and its templates; null: those of the checkpoint."""

    labels: Any = field(default=None, metadata=TEXTS)  # [several, labels] to choose from, for any checkpoint
    prompt_template: str | None = field(default=None, metadata=TEXT)  # what the model reads: "{text}\n\nLabel:"
    completion_template: str | None = field(default=None, metadata=TEXT)  # what it would write: " {label}"

    def validate(self) -> list[str]:
        found, labels = super().validate(), as_list(self.labels)
        if self.labels is not None and len(set(labels)) < max(2, len(labels)):
            found.append(f"labels={self.labels} must be at least two different texts: 'labels=[good, bad]'")
        elif not all(isinstance(label, str) and label.strip() for label in labels):
            found.append(f"labels={self.labels}: a label is empty; write text")
        return found

    @property
    def unprompted(self) -> list[str]:
        """The labels of the command line if no template of the command line asks for them."""
        return as_list(self.labels) if self.prompt_template is None else []


@dataclass
class ClassifyConfig(LabelConfig, InputConfig):
    mode: str = "classify"
    text: Any = field(default=None, metadata=TEXTS)  # the text, or [several, texts]
    plot: str | None = field(default=None, metadata=OUTPUT)  # draw the table to this .png, .svg or .pdf file

    def validate(self) -> list[str]:
        found = super().validate()
        if self.text is not None and self.prompt_file is not None:
            found.append("text and prompt_file are both given; choose one")
        return found if self.text != [] else [*found, "text=[] has no text"]


@dataclass
class ChatConfig(GenerationConfig, WordConfig):
    mode: str = "chat"
    temperature: float = 0.7  # 0: greedy, always the most probable token; 1: the model's own distribution
    group: bool = False  # /words, /tokens: merge variants of case and of a leading space
    history: bool = True  # a line continues what was said so far; false: each line is answered by itself
    system: str | None = field(default=None, metadata=TEXT)  # the system message, for a checkpoint tuned on chats


@dataclass
class BulkConfig(SampleConfig):
    """The modes that answer every prompt of a file."""

    # a .jsonl file with {"prompt": ...} on each line, a .csv or .tsv table, or a .txt file of prompts
    prompts: str | None = field(default=None, metadata=PATH)
    outputs: str | None = field(default=None, metadata=OUTPUT)  # the file to write, a result a line
    batch_size: int = 64  # prompts answered together

    def validate(self) -> list[str]:
        found = super().validate()
        if self.prompts is None or self.outputs is None:
            found.append("prompts=FILE and outputs=FILE must be given together")
        return found


@dataclass
class BulkTextConfig(GenerationConfig, BulkConfig):
    num_samples: int = 1
    on_overflow: str = "slide"  # when the context is full: slide (forget the oldest half) | error


@dataclass
class BulkWordConfig(WordConfig, BulkConfig):
    mode: str = "next_word"


@dataclass
class BulkTokenConfig(FilterConfig, BulkConfig):
    mode: str = "next_token"
    top: int = 20  # rows of the table


@dataclass
class BulkClassifyConfig(LabelConfig, BulkConfig):
    mode: str = "classify"
    text_field: str = field(default="text", metadata=TEXT)  # the field with the text; else "prompt"


MODES: dict[str, type[SampleConfig]] = {  # by what chooses each on the command line
    "mode=text": TextConfig,
    "mode=next_word": NextWordConfig,
    "mode=next_token": NextTokenConfig,
    "mode=continue": ContinueConfig,
    "mode=score": ScoreConfig,
    "mode=classify": ClassifyConfig,
    "mode=chat": ChatConfig,
    "mode=text prompts=FILE": BulkTextConfig,
    "mode=next_word prompts=FILE": BulkWordConfig,
    "mode=next_token prompts=FILE": BulkTokenConfig,
    "mode=classify prompts=FILE": BulkClassifyConfig,
}


def choose_mode(given: Mapping[str, str]) -> str:
    """The key of MODES for the settings on a command line. Raises InputError for an unknown mode."""
    mode = given.get("mode", "text")
    bulk = bool({"prompts", "outputs"} & given.keys())
    if (key := f"mode={mode} prompts=FILE" if bulk else f"mode={mode}") in MODES:
        return key
    known = [key.removeprefix("mode=").partition(" ")[0] for key in MODES if key.endswith(" prompts=FILE") == bulk]
    if f"mode={mode}" in MODES:
        raise InputError(f"mode={mode} does not take prompts=FILE; only {', '.join(known)} do")
    raise InputError(f"mode={mode!r} is not one of {', '.join(known)}")


def as_list(value: str | list[str] | None) -> list[str]:
    """One text or several as a list; None is empty."""
    return [] if value is None else [value] if isinstance(value, str) else value
