"""A checkpoint's path in; text, tables of next words or tokens, scores out. load(checkpoint) does it for Python."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from conf import cli
from conf.display import answer_prompts, chat, plots, tables
from data.labelled.choices import accuracies, baseline, read_choices
from data.labelled.outputs import Outputs
from data.labelled.prompts import Prompt, PromptFile
from data.tokenizers.build import load as load_tokenizer
from model import InputError
from model.bulk import Request, continue_prompts, request_reader
from model.checkpoints import reader
from model.device import DTYPES, Compute, keep_freed_memory
from model.inference.quantize import prepare_for_decoding
from model.inference.sampling import SamplingConfig
from model.inference.score import METHODS, score_options
from model.language_model import LanguageModel
from model.next_word.words import RULES, WordRule

MODES = ("text", "next_word", "next_token", "continue", "score", "chat")
BULK = ("text", "next_word", "next_token")  # modes that answer a file of prompts
NOT_IN_BULK = {
    "prompt",
    "prompt_file",
    "compare_prompts",
    "json",
    "plot",
    "group",
    "speculative",
    "explain",
    "top_logprobs",
}
FILTERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
RULES_OF_TEXT = [field.name for field in fields(SamplingConfig) if field.name not in FILTERS]
HEEDED = {  # keys that only some modes heed: a wish that has no effect is refused
    **dict.fromkeys(("num_samples", "on_overflow", "speculative", "explain", "top_logprobs"), ("text",)),
    **dict.fromkeys(("max_new_tokens", *RULES_OF_TEXT), ("text", "chat")),
    **dict.fromkeys(FILTERS, ("text", "chat", "next_word", "next_token")),
    **dict.fromkeys(("top", "group"), ("next_word", "next_token", "chat")),
    **dict.fromkeys(("tolerance", "max_expansions", "token_healing"), ("next_word", "chat")),
    **dict.fromkeys(("branches", "depth"), ("continue",)),
    **dict.fromkeys(("text", "options", "examples", "method", "neutral"), ("score",)),
    "word_rule": ("next_word", "continue", "chat"),
    "history": ("chat",),
    "plot": ("next_word", "next_token"),
    "compare_prompts": ("next_word", "next_token", "continue", "score"),
    "json": tuple(mode for mode in MODES if mode != "chat"),
}


@dataclass
class SampleConfig:
    """The keys of `python sample.py`."""

    checkpoint: str | None = None  # a run directory, RUN/best or one step directory
    mode: str = "text"  # text | next_word | next_token | continue | score | chat
    prompt: str | None = None
    prompt_file: str | None = None  # without prompt and prompt_file: standard input
    compare_prompts: Any = None  # [other, prompts], shown beside the first
    prompts: str | None = None  # a file with a prompt a line, {"prompt": ...}: answer all of them ...
    outputs: str | None = None  # ... and write a result a line there
    batch_size: int = 64  # prompts answered together
    num_samples: int = 1
    max_new_tokens: int = 200
    seed: int = 1
    temperature: float = 1.0  # 0: always the most probable token
    top_k: int | None = None  # only the k most probable tokens
    top_p: float | None = None  # only the fewest tokens that reach p
    min_p: float | None = None  # only tokens at least this fraction as probable as the best
    typical_p: float | None = None  # as top_p, those of the expected surprise first
    repetition_penalty: float = 1.0  # above 1: tokens in prompt and text become less probable
    presence_penalty: float = 0.0  # subtracted from the logits of tokens in the new text
    frequency_penalty: float = 0.0  # likewise, times how often it has them
    min_new_tokens: int = 0  # nothing ends the text before
    stop: Any = None  # text or [several]: the new text ends before it
    bad_words: Any = None  # text or [several] that the new text never has
    force_words: Any = None  # text or [several] that the new text must have
    on_overflow: str = "slide"  # at the end of the context: slide (forget the oldest half) | error
    speculative: bool = False  # faster where the text repeats itself; the same text
    explain: bool = False  # text: show how each token was chosen
    top_logprobs: int = 0  # text: so many tokens that were the most probable at each place (json, explain)
    top: int = 20  # next_word, next_token: rows of the table
    tolerance: float = 0.001  # next_word: stop when less is unexplored
    max_expansions: int = 1024  # next_word: stop after so many tokens
    token_healing: bool = True  # next_word: words (spaces at the prompt's end do not matter) | bytes (the exact prompt)
    word_rule: str = "unicode"  # next_word: unicode | space | character
    group: bool = False  # next_word, next_token: show variants of case and of a leading space as one
    branches: int = 3  # continue: words at each place
    depth: int = 3  # continue: words one after another
    text: str | None = None  # score: the text, after prompt if there is one
    options: Any = None  # score: [several, texts] to choose from after the prompt
    examples: str | None = None  # score: a file of questions, {"prompt", "options", "completion"}
    method: str = "raw"  # score: what chooses among options: raw | normalised | pmi
    neutral: str = ""  # score: the prompt that pmi compares with
    history: bool = True  # chat: a line continues the text so far; false: each is a prompt of its own
    json: str | None = None  # write the result there
    plot: str | None = None  # next_word, next_token: draw the tables there (PNG)
    device: str = "auto"
    dtype: str = "float32"  # float32 is exact; bfloat16 and int8 (weights) are faster
    compile: Any = "auto"  # auto: where the text is long enough to earn it back
    debug: bool = False

    def validate(self) -> list[str]:
        found = [] if self.checkpoint else ["checkpoint is required: a run directory such as checkpoint=out/first"]
        for name, known in (
            *(("mode", MODES), ("word_rule", RULES), ("method", METHODS)),
            *(("on_overflow", ("slide", "error")), ("dtype", ("auto", *DTYPES, "int8"))),
        ):
            if getattr(self, name) not in known:
                found.append(f"{name}={getattr(self, name)!r} is not one of {', '.join(known)}")
        for name in ("num_samples", "max_new_tokens", "top", "batch_size", "max_expansions", "branches", "depth"):
            if getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.tolerance < 1:
            found.append(f"tolerance={self.tolerance} must be 0 or above and below 1")
        if self.top_logprobs < 0:
            found.append(f"top_logprobs={self.top_logprobs} must be 0 or above")
        if self.prompt is not None and self.prompt_file is not None:
            found.append("prompt and prompt_file are both given; choose one")
        if (self.prompts is None) != (self.outputs is None):
            found.append("prompts=FILE and outputs=FILE are given together or not at all")
        if self.prompts is not None and self.mode not in BULK:
            found.append(f"mode={self.mode} does not take prompts=FILE; only {', '.join(BULK)} do")
        plain = {field.name: field.default for field in fields(self)}
        for name in (name for name in plain if getattr(self, name) != plain[name] and name != "max_new_tokens"):
            if self.prompts is not None and name in NOT_IN_BULK:
                found.append(f"{name}= has no effect with prompts=FILE; leave it out")
            elif self.mode in MODES and self.mode not in HEEDED.get(name, MODES):
                found.append(f"{name}= has no effect in mode={self.mode}; it is for mode={' or '.join(HEEDED[name])}")
        if self.mode == "text" and self.max_new_tokens < self.min_new_tokens:
            found.append(f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens={self.max_new_tokens}")
        if self.options is not None and len(set(as_list(self.options))) < max(2, len(as_list(self.options))):
            found.append(f'options={self.options} must be at least two texts, no two alike: \'options=[" a", " b"]\'')
        if self.mode == "score" and (self.text, self.options, self.examples).count(None) != 2:
            found.append('mode=score takes one of text=TEXT, options=\'["a", "b"]\' and examples=FILE')
        return found + self.sampling().validate()

    def sampling(self) -> SamplingConfig:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(SamplingConfig)}
        return SamplingConfig(
            **values | {name: tuple(as_list(values[name])) for name in ("stop", "bad_words", "force_words")}
        )


def as_list(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value


def load(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "float32",
    compile: bool | str = False,
    max_new_tokens: int = 0,
) -> LanguageModel:
    """Opens a checkpoint: a run directory (its newest intact step), RUN/best, or one step directory.

    Needs nothing beside it. compile="auto" compiles where max_new_tokens are many enough to earn it back. Raises
    InputError for a missing or damaged checkpoint.
    """
    found = reader.find(Path(path).expanduser())
    compute = Compute.for_decoding(device, dtype=dtype, compile=compile, steps=max_new_tokens)
    tokenizer = load_tokenizer(found.directory / "tokenizer")
    found.check_tokenizer(vocab_size=tokenizer.vocab_size, fingerprint=tokenizer.fingerprint)
    return LanguageModel(
        prepare_for_decoding(found.model(compute.device), compute), tokenizer, compute, found.directory
    )


def read_prompts(cfg: SampleConfig) -> list[str]:
    """The prompts byte for byte; of a file or standard input, without the last line's newline."""
    if cfg.prompt is not None:
        return [cfg.prompt, *as_list(cfg.compare_prompts)]
    if cfg.prompt_file is None and (sys.stdin.isatty() or cfg.mode == "score"):
        return ["", *as_list(cfg.compare_prompts)]
    try:
        raw = sys.stdin.buffer.read() if cfg.prompt_file is None else Path(cfg.prompt_file).read_bytes()
        return [raw.decode("utf-8").removesuffix("\n"), *as_list(cfg.compare_prompts)]
    except OSError as error:
        raise InputError(f"prompt_file={cfg.prompt_file}: {error.strerror}; check the path") from None
    except UnicodeDecodeError as error:
        place = "standard input" if cfg.prompt_file is None else f"prompt_file={cfg.prompt_file}"
        raise InputError(f"{place} is not UTF-8 at byte {error.start}; convert it (iconv)") from None


def write_result(path: str | None, results: list[dict[str, Any]]) -> None:
    """JSON: an object, or a list where there are several."""
    if path is not None:
        result = results if len(results) > 1 else results[0]
        Path(path).write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def next_tokens(
    cfg: SampleConfig, lm: LanguageModel, prompt: str, sampling: SamplingConfig | None = None
) -> dict[str, Any]:
    found = lm.next_tokens(prompt, top=cfg.top, sampling=sampling or cfg.sampling())
    return {"prompt": prompt, "tokens": [asdict(token) for token in found]}


def next_words(
    cfg: SampleConfig, lm: LanguageModel, prompt: str, sampling: SamplingConfig | None = None
) -> dict[str, Any]:
    """The next words as `json=` writes them."""
    found = lm.next_words(
        prompt,
        top=cfg.top,
        tolerance=cfg.tolerance,
        max_expansions=cfg.max_expansions,
        token_healing=cfg.token_healing,
        rule=WordRule(cfg.word_rule),
        sampling=sampling or cfg.sampling(),
    )
    return {"prompt": prompt, **asdict(found)}


def show_next_words(cfg: SampleConfig, lm: LanguageModel, prompts: list[str]) -> None:
    results = [next_words(cfg, lm, prompt) for prompt in prompts]
    write_result(cfg.json, results)
    note = cfg.sampling().filters
    for result in results:
        if note:
            result["note"] = f"of the distribution filtered by {note}"
        if cfg.group:
            result["words"] = tables.grouped(result["words"])
    tables.word_tables(results)
    if cfg.plot is not None:
        plots.plot_next(results, cfg.plot)


def show_next_tokens(cfg: SampleConfig, lm: LanguageModel, prompts: list[str]) -> None:
    results = [next_tokens(cfg, lm, prompt) for prompt in prompts]
    write_result(cfg.json, results)
    for result in results if cfg.group else []:
        result["tokens"] = tables.grouped(result["tokens"])
    tables.token_tables(results)
    if cfg.plot is not None:
        plots.plot_next(results, cfg.plot)


def show_continuations(cfg: SampleConfig, lm: LanguageModel, prompts: list[str]) -> None:
    results: list[dict[str, Any]] = []
    for prompt in prompts:
        found = lm.continuations(prompt, branches=cfg.branches, depth=cfg.depth, rule=WordRule(cfg.word_rule))
        results.append({"prompt": prompt, "continuations": [asdict(node) for node in found]})
        tables.continuation_tree(results[-1]["continuations"], prompt=prompt)
    write_result(cfg.json, results)


def show_scores(cfg: SampleConfig, lm: LanguageModel, prompts: list[str]) -> None:
    if cfg.examples is not None:
        return show_accuracy(cfg, lm)
    results: list[dict[str, Any]] = []
    for prompt in prompts:
        if cfg.text is not None:
            results.append(asdict(lm.score(cfg.text, prompt=prompt)))
            tables.surprisal(results[-1])
        else:
            found = lm.choose(prompt, as_list(cfg.options), method=cfg.method, neutral=cfg.neutral)
            results.append({"prompt": prompt, "options": [asdict(option) for option in found]})
            tables.option_table(results[-1]["options"], prompt=prompt, method=cfg.method)
    write_result(cfg.json, results)


def show_accuracy(cfg: SampleConfig, lm: LanguageModel) -> None:
    """How often the model, without any training for it, chooses the right one of several options."""
    choices = read_choices(cfg.examples or "")
    scored = score_options(lm, [(c.prompt, c.options) for c in choices], method=cfg.method, neutral=cfg.neutral)
    columns = {"raw": "log_probability", "normalised": "per_byte", "pmi": "pmi"}
    measures = {name: [[getattr(o, column) for o in row] for row in scored] for name, column in columns.items()}
    measures["without the prompt"] = [[o.log_probability - o.pmi for o in row] for row in scored]
    how, share = baseline(choices)
    rows = [*accuracies(choices, measures, seed=cfg.seed), {"method": how, "accuracy": share}]
    tables.accuracy_table(rows, title=f"{len(choices):,} questions of {cfg.examples}: share answered rightly")
    write_result(cfg.json, [{"examples": cfg.examples, "questions": len(choices), "accuracies": rows}])


def show_text(cfg: SampleConfig, lm: LanguageModel, prompts: list[str]) -> None:
    [prompt] = prompts
    if cfg.on_overflow == "slide" and (note := lm.overflow(prompt, cfg.max_new_tokens)):
        print(f"note: {note}; the oldest tokens are forgotten on the way", file=sys.stderr)
    how: dict[str, Any] = {
        name: getattr(cfg, name) for name in ("max_new_tokens", "seed", "on_overflow", "speculative")
    }
    how["sampling"] = cfg.sampling()
    if cfg.num_samples == 1 and cfg.json is None and not cfg.explain:
        pieces = lm.stream(prompt, **how)
        print(prompt + next(pieces, ""), end="", flush=True)  # after the first piece: nothing can be refused any more
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
        return
    made = lm.generate([prompt] * cfg.num_samples, **how, top_logprobs=cfg.top_logprobs, explain=cfg.explain)
    results = []
    for number, sample in enumerate(made, start=1):
        if cfg.num_samples > 1:
            mean = sum(sample.log_probabilities) / max(1, len(sample.tokens)) / math.log(2)
            print(f"--- sample {number} of {cfg.num_samples}: {len(sample.tokens)} tokens, {-mean:.2f} bits each")
        print(prompt + sample.text)
        result = asdict(sample)
        if cfg.explain:
            tables.explain_table(lm.explained(sample))
        results.append({name: value for name, value in result.items() if name not in ("explanation", "drafted")})
    write_result(cfg.json, results)


RESULT = (
    "index",
    "sample",
    "text",
    "tokens",
    "words",
    "log_probabilities",
    "ended",
    "continues",
    "unexplored",
    "stopped",
)


def run_bulk(cfg: SampleConfig, lm: LanguageModel) -> None:
    """Answers the prompts of a file; the same command again goes on where it was stopped, be it by a kill."""
    read = request_reader(lm, Request(cfg.sampling(), cfg.max_new_tokens, cfg.seed, cfg.num_samples))
    prompts = PromptFile(
        cfg.prompts or "",
        read=read,
        tokenizer=lm.tokenizer,
        context=lm.model.config.context,
        batch_size=cfg.batch_size,
        reserved=RESULT,
        refuse_beyond=cfg.on_overflow == "error",
    )
    if prompts.unknown is not None:
        print(f"note: the tokenizer does not know all of {cfg.prompts}:{prompts.unknown}", file=sys.stderr)
    weights = json.loads((lm.directory / "manifest.json").read_text())["files"]["model.safetensors"]["sha256"]
    names = (
        "mode",
        "batch_size",
        "max_new_tokens",
        "seed",
        "num_samples",
        "top",
        "tolerance",
        "max_expansions",
        "token_healing",
    )
    about = {
        **{"prompts": f"sha256 {prompts.sha256[:16]}", "checkpoint": f"{lm.directory.name} sha256 {weights[:16]}"},
        **{name: getattr(cfg, name) for name in (*names, "word_rule", "on_overflow")},
        **asdict(cfg.sampling()),
        **lm.compute.describe(),
    }

    def answer(batch: Sequence[Prompt], rows: int) -> list[dict[str, Any]]:
        requests = [read(prompt.fields) for prompt in batch]
        if cfg.mode == "text":
            results = continue_prompts(lm, batch, requests, rows=rows, on_overflow=cfg.on_overflow)
        else:
            table = next_words if cfg.mode == "next_word" else next_tokens
            results = [table(cfg, lm, p.text, r.sampling) for p, r in zip(batch, requests, strict=True)]
        heads = [{"index": prompt.index, "prompt": prompt.text, **prompt.fields} for prompt in batch]
        return [head | result for head, result in zip(heads, results, strict=True)]

    with Outputs(cfg.outputs or "", about=about, sizes=prompts.sizes, order=prompts.order) as outputs:
        answer_prompts.answer_all(prompts, outputs, answer, total=len(prompts.order), name=cfg.outputs or "")


def run_chat(cfg: SampleConfig, lm: LanguageModel) -> int:
    def stream(text: str, now: SampleConfig, index: int) -> Iterator[str]:
        return lm.stream(text, max_new_tokens=now.max_new_tokens, sampling=now.sampling(), seed=now.seed, index=index)

    def words(text: str, now: SampleConfig) -> None:
        show_next_words(now, lm, [text])

    def tokens(text: str, now: SampleConfig) -> None:
        show_next_tokens(now, lm, [text])

    keys = [field.name for field in fields(SamplingConfig)]
    return chat.chat(
        stream,
        settings=replace(cfg, json=None, plot=None),
        keys=[
            *keys,
            "max_new_tokens",
            "seed",
            "top",
            "tolerance",
            "max_expansions",
            "token_healing",
            "word_rule",
            "group",
        ],
        views={"words": words, "tokens": tokens},
        history=cfg.history,
        echo=cfg.history,
        length=lambda text: len(lm.tokenizer.encode(text)),
        context=lm.model.config.context,
    )


def note_what_is_read(cfg: SampleConfig, lm: LanguageModel, prompts: list[str]) -> None:
    """Says where the model does not see what was typed."""
    for text in [*prompts, *as_list(cfg.text), *as_list(cfg.options)]:
        ids = lm.tokenizer.encode(text)
        if (read := lm.tokenizer.decode(ids)) != text:
            print(f"note: the tokenizer does not know all of {text!r}; the model reads {read!r}", file=sys.stderr)
        if cfg.mode in ("next_word", "next_token", "continue") and len(ids) > lm.model.config.context - 32:
            print(f"note: of {len(ids)} tokens of prompt only the last are read", file=sys.stderr)
        if cfg.mode == "text" and text.endswith(" ") and lm.tokenizer.encode(text + "a")[: len(ids)] != ids:
            print("note: the prompt ends in a space, which tokens of words begin with: try without it", file=sys.stderr)


def note_quality(cfg: SampleConfig, lm: LanguageModel, prompt: str) -> None:
    """Says what narrower numbers cost."""
    exact = load(cfg.checkpoint or "", device=cfg.device)
    print(f"note: {cfg.dtype} against float32: {lm.quality_loss(exact, prompt)}", file=sys.stderr)


SHOW: dict[str, Callable[[SampleConfig, LanguageModel, list[str]], None]] = {
    "text": show_text,
    "next_word": show_next_words,
    "next_token": show_next_tokens,
    "continue": show_continuations,
    "score": show_scores,
}


def main(cfg: SampleConfig, overrides: cli.Overrides) -> int | None:
    keep_freed_memory()
    lm = load(
        cfg.checkpoint or "", device=cfg.device, dtype=cfg.dtype, compile=cfg.compile, max_new_tokens=cfg.max_new_tokens
    )
    if cfg.prompts is not None:
        run_bulk(cfg, lm)
        return None
    if cfg.mode == "chat":
        return run_chat(cfg, lm)
    prompts = read_prompts(cfg)
    note_what_is_read(cfg, lm, prompts)
    SHOW[cfg.mode](cfg, lm, prompts)
    if cfg.dtype == "int8":
        note_quality(cfg, lm, prompts[0])
    return None


if __name__ == "__main__":
    cli.run(main, SampleConfig, name="sample")
