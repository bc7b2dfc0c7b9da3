"""A checkpoint's path in; text, tables of next words or tokens, scores out. From Python: load(checkpoint)."""

from __future__ import annotations

if __name__ == "__main__":
    from conf import end_on_interrupt

    end_on_interrupt()  # while torch is imported

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, cast

from conf import cli
from conf.display import plots, tables
from conf.display.answers import label_table, outside_note
from conf.display.chat import Chat, Messages
from conf.display.progress import answer_all
from data.labelled.choices import accuracies, baseline, read_choices, score_choices
from data.labelled.outputs import Outputs
from data.labelled.prompts import Prompt, PromptFile
from data.labelled.rows import chat_end, chat_prompt
from data.labelled.templates import Task
from data.tokenizers.build import Tokenizer
from data.tokenizers.build import load as load_tokenizer
from data.tokenizers.unknown import unknown_in, unknown_note
from model import InputError
from model import sample_settings as settings
from model.bulk import Request, classified, continue_prompts, next_tokens, next_words, request_reader
from model.checkpoints import reader
from model.checkpoints.tensors import weights_digest
from model.device import Compute, keep_freed_memory
from model.inference.quantize import prepare_for_decoding
from model.inference.score import joins_words
from model.language_model import LanguageModel
from model.next_word.words import WordRule
from model.threads import share_cpus


def load(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "float32",
    compile: bool | str = False,
    max_new_tokens: int = 0,
) -> LanguageModel:
    """Opens a checkpoint: a run directory (its newest intact step), RUN/best, or one step directory.

    The checkpoint contains all that is needed. compile="auto" compiles if max_new_tokens are enough to make it pay.
    Raises InputError for a missing or damaged checkpoint.
    """
    found = reader.find(Path(path).expanduser())
    compute = Compute.for_decoding(device, dtype=dtype, compile=compile, steps=max_new_tokens)
    tokenizer = load_tokenizer(found.directory / "tokenizer")
    found.check_tokenizer(vocab_size=tokenizer.vocab_size, fingerprint=tokenizer.fingerprint)
    model = prepare_for_decoding(found.model(compute.device), compute)
    return LanguageModel(model, tokenizer, compute, found.directory, labels=Task.load(found.directory))


def show_text(cfg: settings.TextConfig, lm: LanguageModel, prompts: list[str]) -> None:
    """mode=text: continues the prompt, printing the text as it is generated if it is one plain sample."""
    [prompt] = prompts
    if cfg.on_overflow == "slide" and (note := lm.overflow(prompt, cfg.max_new_tokens)):
        say(f"{note}; the oldest tokens will be forgotten")
    names = ("max_new_tokens", "seed", "on_overflow", "speculative")
    how: dict[str, Any] = {name: getattr(cfg, name) for name in names} | {"sampling": cfg.sampling()}
    if cfg.num_samples == 1 and cfg.json is None and not cfg.explain:
        pieces = lm.stream(prompt, **how)
        print(prompt + next(pieces, ""), end="", flush=True)  # every error is raised before the first piece
        for piece in pieces:
            print(piece, end="", flush=True)
        return print()
    results = []
    samples = lm.generate([prompt] * cfg.num_samples, **how, top_logprobs=cfg.top_logprobs, explain=cfg.explain)
    for number, sample in enumerate(samples, start=1):
        if cfg.num_samples > 1:
            bits = -sum(sample.log_probabilities) / max(1, len(sample.tokens)) / math.log(2)
            tokens = f"{len(sample.tokens)} tokens" + ", the stop string included" * (sample.ended == "stop")
            print(f"--- sample {number} of {cfg.num_samples}: {tokens}, {bits:.2f} bits each")
        print(prompt + sample.text)
        if cfg.explain:
            tables.explain_table(sample.explanation)
        results.append({"prompt": prompt} | {key: v for key, v in asdict(sample).items() if key != "explanation"})
    write_result(cfg.json, results)


def show_next(cfg: settings.NextWordConfig | settings.NextTokenConfig, lm: LanguageModel, prompts: list[str]) -> None:
    """mode=next_word, mode=next_token: a table of the most probable next words or tokens for each prompt."""
    ask: Callable[..., dict[str, Any]] = next_words if isinstance(cfg, settings.WordConfig) else next_tokens
    results = [ask(cfg, lm, prompt, cfg.sampling()) for prompt in prompts]
    write_result(cfg.json, results)
    print_next(cfg, results)
    if cfg.plot is not None:
        plots.plot_next(results, cfg.plot)


def print_next(cfg: Any, results: list[dict[str, Any]]) -> None:
    """Prints the tables of next words or tokens; cfg is a config with `group` and filters."""
    for result in results:
        rows = "words" if "words" in result else "tokens"
        if rows == "words" and (filters := cfg.sampling().filters):
            result["note"] = f"of the distribution filtered by {filters}"
        result[rows] = tables.grouped(result[rows]) if cfg.group else result[rows]
    tables.next_tables(results)


def show_continuations(cfg: settings.ContinueConfig, lm: LanguageModel, prompts: list[str]) -> None:
    """mode=continue: a tree of the most probable words and of those that follow each."""
    results: list[dict[str, Any]] = []
    for prompt in prompts:
        found = lm.continuations(prompt, branches=cfg.branches, depth=cfg.depth, rule=WordRule(cfg.word_rule))
        results.append({"prompt": prompt, "continuations": [asdict(node) for node in found]})
        tables.continuation_tree(results[-1]["continuations"], prompt=prompt)
    write_result(cfg.json, results)


def show_scores(cfg: settings.ScoreConfig, lm: LanguageModel, prompts: list[str]) -> None:
    """mode=score: the log-probability of a text, a choice among options, or the accuracy over a file of questions."""
    results: list[dict[str, Any]] = []
    for prompt in prompts if cfg.examples is None else []:
        if cfg.text is not None:
            results.append(asdict(lm.score(cfg.text, prompt=prompt)))
            tables.surprisal(results[-1])
        else:
            found = lm.choose(prompt, settings.as_list(cfg.options), method=cfg.method, neutral=cfg.neutral)
            results.append({"prompt": prompt, "options": [asdict(option) for option in found]})
            tables.option_table(results[-1]["options"], prompt=prompt, method=cfg.method)
    write_result(cfg.json, results or [show_accuracy(cfg, lm)])


def show_accuracy(cfg: settings.ScoreConfig, lm: LanguageModel) -> dict[str, Any]:
    """How often the model chooses the right option of a multiple-choice question, by each method."""
    choices = read_choices(cfg.examples or "")
    note_unknown(lm, {str(cfg.examples): [text for choice in choices for text in (choice.prompt, *choice.options)]})
    measures = score_choices(lm, choices, neutral=cfg.neutral)
    method, accuracy = baseline(choices)
    rows = [*accuracies(choices, measures, seed=cfg.seed), {"method": method, "accuracy": accuracy}]
    tables.accuracy_table(rows, title=f"{len(choices):,} questions of {cfg.examples}: share answered correctly")
    return {"examples": cfg.examples, "questions": len(choices), "accuracies": rows}


def label_task(cfg: settings.LabelConfig, lm: LanguageModel) -> Task:
    """The label set and its templates: those of the command line, else those of the checkpoint."""
    task = Task.load(lm.directory) or Task()
    task = task.changed(cfg.prompt_template, cfg.completion_template, settings.as_list(cfg.labels))
    lm.classify([], task)  # raises InputError if there are no labels, or they cannot be scored
    return task


def show_labels(cfg: settings.ClassifyConfig, lm: LanguageModel, texts: list[str]) -> None:
    """mode=classify: a table of the labels' probabilities for each text."""
    results = [asdict(found) for found in lm.classify(texts, label_task(cfg, lm))]
    write_result(cfg.json, results)
    label_table(results)
    say(outside_note([found["outside"] for found in results], cfg.unprompted, trained=cfg.labels is None))
    if cfg.plot is not None:
        plots.plot_next(results, cfg.plot)


def run_chat(cfg: settings.ChatConfig, lm: LanguageModel) -> int:
    """mode=chat: continues what is typed, line by line; answers it if the checkpoint has a chat template."""
    template, tokenizer = task.chat if (task := Task.load(lm.directory)) else None, cast(Tokenizer, lm.tokenizer)
    if cfg.system is not None and not (template and "system" in template.roles):
        raise InputError("system= needs a checkpoint whose chat template has system messages; leave it out")

    def prompt(said: Any) -> str | list[int]:
        return chat_prompt(template, said, tokenizer) if template and not isinstance(said, str) else said

    def stream(said: Any, now: settings.ChatConfig, index: int) -> Iterator[str]:
        how: dict[str, Any] = {"max_new_tokens": now.max_new_tokens, "sampling": now.sampling(), "seed": now.seed}
        return lm.stream(prompt(said), **how, index=index)

    fixed = {"history", "system", *(field.name for field in fields(settings.SampleConfig))}
    views: dict[str, Callable[[Any, Any], None]] = {
        "words": lambda text, now: print_next(now, [next_words(now, lm, text, now.sampling())]),
        "tokens": lambda said, now: print_next(now, [next_tokens(now, lm, prompt(said), now.sampling())]),
    }
    options: dict[str, Any] = {
        "settings": cfg,
        "keys": [field.name for field in fields(cfg) if field.name not in fixed],
        "history": cfg.history,
        "note": lambda line: unknown_note(lost, "this line") if (lost := lm.tokenizer.unknown(line)) else None,
        "length": lambda said: len(lm.encode(prompt(said))),
        "context": lm.model.config.context,
    }
    if template is None:
        return Chat(stream, views=views, **options).run()
    suffix, ends = chat_end(template, tokenizer)
    lm = replace(lm, ends=ends)
    start = [] if cfg.system is None else [{"role": "system", "content": cfg.system}]
    del views["words"]
    return Messages(stream, views=views, start=start, suffix=suffix, **options).run()


def run_bulk(cfg: Any, lm: LanguageModel) -> int:
    """prompts=FILE: answers every prompt of a file. If interrupted or killed, the same command resumes.

    cfg: one of the configs of a mode with prompts=FILE.
    """
    fields_of_results = "index sample text tokens words log_probabilities ended continues unexplored stopped"
    writes, task, text_fields = isinstance(cfg, settings.BulkTextConfig), None, ["prompt"]
    on_overflow = cfg.on_overflow if writes else "slide"
    if isinstance(cfg, settings.BulkClassifyConfig):
        task, text_fields, fields_of_results = label_task(cfg, lm), [cfg.text_field, "prompt"], ""
        read: Callable[..., Request] = lambda fields: Request()  # noqa: E731
    else:
        request = Request(cfg.sampling(), *((cfg.max_new_tokens, cfg.seed, cfg.num_samples) if writes else ()))
        read = request_reader(lm, request, note=lambda line: say(f"{cfg.prompts}: {line}"))
    prompts = PromptFile(
        cfg.prompts,
        read=read,
        tokenizer=lm.tokenizer,
        context=lm.model.config.context,
        batch_size=cfg.batch_size,
        text_fields=text_fields,
        reserved=fields_of_results.split(),
        refuse_overflow=on_overflow == "error",
    )
    if prompts.unknown:
        say(unknown_note(prompts.unknown, f"{cfg.prompts}, first in line {prompts.unknown_line}"))
    note_unknown(lm, cfg.texts())
    about = asdict(cfg) | lm.compute.describe() | {"prompts": f"sha256 {prompts.sha256[:16]}"}
    del about["outputs"], about["debug"]
    about["checkpoint"] = f"{lm.directory.name} sha256 {weights_digest(lm.directory)}"
    outside: list[float] = []  # for each text, the probability of anything but a label

    def answer(batch: Sequence[Prompt], rows: int) -> list[dict[str, Any]]:
        if task:
            found = lm.classify([prompt.text for prompt in batch], task)
            outside.extend(one.outside for one in found)
            return [classified(prompt, one) for prompt, one in zip(batch, found, strict=True)]
        requests = [read(prompt.fields) for prompt in batch]
        if writes:
            results = continue_prompts(lm, batch, requests, rows=rows, on_overflow=on_overflow)
        else:
            ask: Callable[..., dict[str, Any]] = next_words if isinstance(cfg, settings.WordConfig) else next_tokens
            results = [ask(cfg, lm, p.text, r.sampling) for p, r in zip(batch, requests, strict=True)]
        return [{"index": p.index, "prompt": p.text, **p.fields} | r for p, r in zip(batch, results, strict=True)]

    with Outputs(cfg.outputs, about=about, sizes=prompts.sizes, order=prompts.order) as outputs:
        batches = range(outputs.done, len(prompts))
        answers = (answer(prompts.batch(number), prompts.shape(number)) for number in batches)
        answer_all(answers, outputs, total=len(prompts.order), name=cfg.outputs)
    if task:
        say(outside_note(outside, cfg.unprompted, trained=cfg.labels is None))
    return 0


SHOW: dict[str, Callable[[Any, LanguageModel, list[str]], None]] = {
    "text": show_text,
    "next_word": show_next,
    "next_token": show_next,
    "continue": show_continuations,
    "score": show_scores,
    "classify": show_labels,
}


def read_prompts(cfg: settings.InputConfig) -> list[str]:
    """The prompts: prompt=, or text= in mode=classify, byte for byte; from a file or standard input by read_text()."""
    others = settings.as_list(getattr(cfg, "compare_prompts", None))
    given = cfg.text if isinstance(cfg, settings.ClassifyConfig) else getattr(cfg, "prompt", None)
    if given is None and cfg.prompt_file is None and (sys.stdin.isatty() or cfg.mode == "score"):
        if cfg.mode == "classify":
            raise InputError("mode=classify needs text=TEXT, prompt_file=FILE or a text on standard input")
        say(None if cfg.mode == "score" else "no prompt is given: the text begins a document")
        given = ""
    return [*([cli.read_text("prompt_file", cfg.prompt_file)] if given is None else settings.as_list(given)), *others]


def note_what_is_read(cfg: settings.InputConfig, lm: LanguageModel, prompts: list[str]) -> None:
    """Prints a note if the model does not see what was typed."""
    place = "the prompt" + "s" * (len(prompts) > 1) if cfg.mode != "classify" else "text="
    note_unknown(lm, cfg.texts() | {place: prompts})
    for prompt in prompts:
        ids = lm.tokenizer.encode(prompt)
        room = lm.model.config.context - (0 if cfg.mode == "classify" else 32)
        if cfg.mode in ("next_word", "next_token", "continue", "classify") and len(ids) > room:
            say(f"only the last of the prompt's {len(ids)} tokens are read")
        if cfg.mode == "text" and prompt.endswith(" ") and lm.tokenizer.encode(prompt + "a")[: len(ids)] != ids:
            say("the prompt ends in a space, but tokens include the space before them: try without it")
        scored = [*cfg.texts()["text="], *cfg.texts()["options="]] if cfg.mode == "score" else []
        if joined := [text for text in scored if joins_words(prompt, text)]:
            say(f"no space between the prompt and {joined[0]!r}; a text may begin with one (in a list if it is quoted)")


def note_unknown(lm: LanguageModel, texts: Mapping[str, Sequence[str]]) -> None:
    """Prints a note for each place, such as "the prompt", whose texts have characters that the tokenizer lacks."""
    for place, some in texts.items():
        if unknown := unknown_in(some, lm.tokenizer):
            say(unknown_note(unknown, place))


def say(note: str | None) -> None:
    if note is not None:
        print(f"note: {note}", file=sys.stderr)


def write_result(path: str | None, results: list[dict[str, Any]]) -> None:
    """Writes JSON: an object, or a list if there are several."""
    if path is not None:
        result = results if len(results) > 1 else results[0]
        Path(path).write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main(cfg: settings.SampleConfig, overrides: cli.Overrides) -> int | None:
    keep_freed_memory()
    length = getattr(cfg, "max_new_tokens", 0)
    lm = load(cfg.checkpoint or "", device=cfg.device, dtype=cfg.dtype, compile=cfg.compile, max_new_tokens=length)
    with share_cpus(lm.compute.device):
        if not isinstance(cfg, settings.InputConfig):
            return run_chat(cfg, lm) if isinstance(cfg, settings.ChatConfig) else run_bulk(cfg, lm)
        prompts = read_prompts(cfg)
        note_what_is_read(cfg, lm, prompts)
        SHOW[cfg.mode](cfg, lm, prompts)
        if cfg.dtype == "int8":
            exact = load(cfg.checkpoint or "", device=cfg.device)
            say(f"int8 compared with float32: {lm.quality_loss(exact, prompts[0])}")
    return None


MODES = cli.Modes(settings.MODES, choose=settings.choose_mode)

if __name__ == "__main__":
    cli.run(main, MODES, name="sample")
