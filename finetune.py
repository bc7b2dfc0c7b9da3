"""Fine-tunes a checkpoint on labelled examples with the same fit() as pretraining, then compares before and after."""

from __future__ import annotations

if __name__ == "__main__":
    from conf import end_on_interrupt

    end_on_interrupt()  # while torch is imported

import contextlib
import json
import shlex
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conf import cli
from conf.display import answers as display
from conf.run.resume import resume_config
from conf.run.runs import show_sweep
from data import InputError as DataError
from data.evaluation import calibration
from data.evaluation.documents import bits_difference
from data.labelled import results
from data.labelled.answers import answer, with_label_set, with_labels_of
from data.labelled.audit import Audit
from data.labelled.examples import Example, fingerprint, note_unknown, split_examples, write_examples
from data.labelled.formats import read_examples
from data.labelled.results import baselines
from data.labelled.rows import PACKINGS, ExampleBatches, ExampleEvaluation, Rows
from data.labelled.templates import Task, chat_template, check_templates
from data.preparation.shards import find_prepared, open_split
from data.tokenizers.build import Tokenizer
from data.tokenizers.build import load as load_tokenizer
from model import InputError
from model.checkpoints import reader
from model.checkpoints.lock import lock_run
from model.device import Compute, keep_freed_memory
from model.distributed import parallel, strategies
from model.gpt import GPT
from model.language_model import LanguageModel
from model.sample_settings import as_list
from model.training.evaluate import answering
from model.training.trainable import train_only
from train import LoopConfig, fit

PATH = {"kind": "path"}
TEXT = {"kind": "text"}
DOCUMENTS = 200  # held-out documents on which forgetting is measured


@dataclass
class FinetuneConfig(LoopConfig):
    """The settings of `python finetune.py`: those of the loop, the checkpoint to start from, and the examples."""

    # start from this checkpoint: its weights, model and tokenizer
    checkpoint: str | None = field(default=None, metadata=PATH)
    # a JSONL, CSV or TSV file with the fields prompt and completion, text and label, or messages
    examples: str | None = field(default=None, metadata=PATH)
    # held-out examples; null: hold out val_fraction of `examples`, in whole groups
    val_examples: str | None = field(default=None, metadata=PATH)
    # fraction of the examples to hold out
    val_fraction: float = field(default=0.1, metadata={"group": "data", "needs": ("val_examples=null",)})
    text_field: str = field(default="text", metadata=TEXT | {"group": "data"})  # the field with the text to label
    label_field: str = field(default="label", metadata=TEXT | {"group": "data"})  # the field with its label
    # what the model reads for a text, default "{text}\n\nLabel:"; a checkpoint that was fine-tuned has its own
    prompt_template: str | None = field(default=None, metadata=TEXT | {"group": "data"})
    # what it learns to write for a label, default " {label}"
    completion_template: str | None = field(default=None, metadata=TEXT | {"group": "data"})
    # for messages: plain | chatml | zephyr | a JSON file with a prefix and a suffix for each role; default plain
    chat_template: str | None = field(default=None, metadata=TEXT | {"group": "data"})
    packing: str = field(default="none", metadata={"group": "data"})  # none | packed: several examples in a row
    dropout: float = 0.0  # replaces the checkpoint's dropout
    preview: int = 2  # number of examples to print before the first step, with the part that is trained on
    answer_limit: int = 1000  # maximum number of held-out examples to answer at each evaluation
    compare: bool = True  # at the end, compare with the checkpoint, the most common label and a bag of words
    from_scratch: bool = False  # also train the same network on the examples alone for the same number of steps
    # texts after which to show the next words whose probability changed most
    probes: Any = field(default=None, metadata=TEXT | {"list": True})
    # the folder of the checkpoint's prepared corpus, to measure how much of it the model forgets
    datasets: str = field(default="datasets", metadata=PATH)

    def validate(self) -> list[str]:
        found = super().validate()
        if not self.checkpoint:
            found.append("checkpoint is required: the run to start from, such as checkpoint=out/first")
        if not self.examples:
            found.append('examples is required: a file of lines like {"prompt": "2+2=", "completion": "4"}')
        if not 0 < self.val_fraction < 1:
            found.append(f"val_fraction={self.val_fraction} must be between 0 and 1")
        if not 0 <= self.dropout < 1:
            found.append(f"dropout={self.dropout} must be in [0, 1)")
        for name in ("preview", "answer_limit"):
            if getattr(self, name) < 0:
                found.append(f"{name}={getattr(self, name)} must be 0 or above")
        if self.packing not in PACKINGS:
            found.append(f"packing={self.packing!r} is not one of {', '.join(PACKINGS)}")
        return found + check_templates(
            Task.prompt if self.prompt_template is None else self.prompt_template,
            Task.completion if self.completion_template is None else self.completion_template,
        )


def task_of(cfg: FinetuneConfig, start: Path) -> Task:
    """The templates: those of the command line, else those of the checkpoint, else the defaults."""
    task = Task.load(start) or Task()
    return Task(
        cfg.prompt_template or task.prompt,
        cfg.completion_template or task.completion,
        chat=chat_template(cfg.chat_template) if cfg.chat_template is not None else task.chat or chat_template("plain"),
    )


def read_splits(cfg: FinetuneConfig, task: Task) -> tuple[list[Example], list[Example], Task]:
    """Returns the training and the held-out examples, and the task with its label set, if there is one."""

    def read(path: str) -> list[Example]:
        return read_examples(path, task=task, text_field=cfg.text_field, label_field=cfg.label_field)

    examples = read(cfg.examples or "")
    if cfg.val_examples is None:
        examples, task = with_label_set(examples, task)
        return *split_examples(examples, val_fraction=cfg.val_fraction), task
    train, task = with_label_set(examples, task)
    return train, with_labels_of(task, read(cfg.val_examples)), task


def check_select(cfg: FinetuneConfig, task: Task) -> None:
    """Raises InputError, before training, if the evaluations will not have the figure that select= names."""
    known = ["loss"] + (["accuracy", "macro_f1"] if task.labels else ["exact_match"]) * bool(cfg.answer_limit)
    if cfg.select not in known:
        why = "answer_limit=0" if not cfg.answer_limit else "a label set" if task.labels else "free text, no label set"
        raise InputError(f"select={cfg.select} is not measured on these examples ({why}); use {' or '.join(known)}")


def check_base(cfg: FinetuneConfig, start: reader.Checkpoint, tokenizer: Tokenizer) -> None:
    """Raises InputError, before training, if the checkpoint that a resumed run is compared with is missing or other."""
    try:
        base = reader.find(Path(cfg.checkpoint or ""))
    except InputError as error:
        raise InputError(f"{error}; give its new path with checkpoint=, or set compare=false") from None
    same_tokenizer = base.manifest.get("tokenizer_fingerprint", tokenizer.fingerprint) == tokenizer.fingerprint
    if not same_tokenizer or replace(base.config, dropout=0.0) != replace(start.config, dropout=0.0):
        raise InputError(
            f"checkpoint={cfg.checkpoint} has a different model or tokenizer than {start.directory}; give the one that "
            "the run started from"
        )


class TaskEvaluation:
    """Answers the held-out examples at each evaluation of a run; each checkpoint keeps the task in task.json."""

    def __init__(self, rows: Rows, task: Task, tokenizer: Tokenizer, compute: Compute, *, limit: int) -> None:
        self.rows, self.task, self.tokenizer, self.compute, self.limit = rows, task, tokenizer, compute, limit

    def __call__(self, model: GPT) -> dict[str, float]:
        """Returns the metrics by name, and fits the temperature of the label probabilities."""
        if not self.limit:
            return {}
        with answering(model, self.tokenizer, self.compute) as lm:
            found = answer(lm, self.rows, self.task, limit=self.limit)
        if found.labels:
            self.task = replace(self.task, temperature=calibration.fit_temperature(*found.known))
        return found.metrics


def show_audit(audit: Audit, rows: Rows, preview: int) -> None:
    """Prints the first examples and the audit. Raises InputError for examples that must be refused."""
    for index in range(min(preview, len(rows))):
        display.show_example(rows.examples[index].place, rows.tokens(index))
    display.audit_table({"training": asdict(audit.train), "held out": asdict(audit.held_out)}, audit.labels)
    for count, what in (
        (audit.copied, "are also training examples"),
        (audit.same_prompt, "have the prompt of a training example but a different completion"),
        (audit.near_copies, "are near duplicates of training examples"),
    ):
        if count:
            print(f"note: held-out examples that {what}: {count:,}; the scores on them are too optimistic")
    for note in audit.notes:
        print(f"note: {note}")
    if audit.problems:
        raise InputError(*audit.problems)


def main(cfg: FinetuneConfig, overrides: cli.Overrides) -> None:
    cfg = resume_config(cfg, overrides)
    run_dir = Path(cfg.run_dir or "")
    world = parallel.World.from_environment()
    compute = Compute.resolve(cfg.device, dtype=cfg.dtype, compile=cfg.compile, local_rank=world.local_rank)
    keep_freed_memory()
    start = reader.source(cfg.run_dir, cfg.checkpoint, resume=bool(cfg.resume))
    tokenizer = load_tokenizer(start.directory / "tokenizer")
    start.check_tokenizer(vocab_size=tokenizer.vocab_size, fingerprint=tokenizer.fingerprint)
    train_examples, val_examples, task = read_splits(cfg, task_of(cfg, start.directory))
    check_select(cfg, task)
    resuming = start.directory.parent == run_dir  # then held_out.jsonl exists already
    if resuming and (saved := Task.load(start.directory)):
        task = replace(task, temperature=saved.temperature)
    model_config = replace(start.config, dropout=cfg.dropout)
    if resuming and cfg.compare:
        check_base(cfg, start, tokenizer)
    rows, val_rows = (Rows(some, tokenizer, context=model_config.context) for some in (train_examples, val_examples))
    how: dict[str, Any] = {
        "batch_size": cfg.batch_size,
        "seed": cfg.seed,
        "packing": cfg.packing,
        "one_width": compute.compile,
    }
    train_data, val_data = ExampleBatches(rows, **how), ExampleEvaluation(val_rows, one_width=compute.compile)
    with contextlib.ExitStack() as stack:
        if world.is_main and not cfg.dry_run:
            stack.enter_context(lock_run(run_dir))
        stack.enter_context(parallel.process_group(world, compute.device))
        if world.is_main:
            show_audit(Audit.of(rows, val_rows, chat=task.chat), rows, cfg.preview)
            for line in note_unknown(train_examples + val_examples, tokenizer, "the examples"):
                print(f"note: {line}")
        # A wrong name in trainable= is refused before anything is written.
        train_only(reader.without_storage(model_config), cfg.trainable)
        fingerprints = {
            "data_fingerprint": fingerprint(train_examples + val_examples),
            "tokenizer_fingerprint": tokenizer.fingerprint,
        }
        if world.is_main and cfg.val_examples is None and not resuming and not cfg.dry_run:
            write_examples(val_examples, run_dir / "held_out.jsonl")
            print(f"wrote the held-out examples to {run_dir / 'held_out.jsonl'}")

        def train(cfg: FinetuneConfig, start: reader.Checkpoint | None) -> bool:
            torch.manual_seed(cfg.seed)
            return fit(
                cfg, strategies.build(model_config, cfg.parallel), tokenizer, train_data, val_data,
                world=world, compute=compute, fingerprints=fingerprints, start=start,
                task=TaskEvaluation(val_rows, task, tokenizer, compute, limit=cfg.answer_limit),
            )  # fmt: skip

        finished = train(cfg, start)
        others = {}
        if cfg.from_scratch and finished:
            others["from scratch"] = run_dir / "from_scratch"
            if world.is_main:
                stack.enter_context(lock_run(others["from scratch"]))
                print("\nThe same network, trained from random weights on the examples alone:")
            finished = train(replace(cfg, run_dir=str(others["from scratch"]), trainable="all", resume="auto"), None)
    if world.is_main and finished:
        if cfg.compare:
            compare(cfg, others, rows, val_rows, task)
        print(how_to_use(run_dir, task))


def compare(cfg: FinetuneConfig, others: dict[str, Path], rows: Rows, val_rows: Rows, task: Task) -> None:
    """Prints how the tuned model does on the held-out examples beside the models and baselines that it should beat.

    Writes the same to comparison.json, and the confusion matrix with the reliability diagram to answers.png.
    """
    run_dir, tokenizer = Path(cfg.run_dir or ""), rows.tokenizer
    tuned, base = open_model(best(run_dir), cfg, tokenizer), open_model(Path(cfg.checkpoint or ""), cfg, tokenizer)
    answers = {"fine-tuned": answer(tuned, val_rows, task), "before": answer(base, val_rows, task)}
    answers |= {name: answer(open_model(best(path), cfg, tokenizer), val_rows, task) for name, path in others.items()}
    answers |= baselines(rows, val_rows, task, seed=cfg.seed) if task.labels else {}
    content = {"checkpoint": str(tuned.directory)} | results.compare(answers, seed=cfg.seed)
    content["forgetting"] = forgetting(base, tuned, cfg, tokenizer)
    content["probes"] = [next_words_moved(base, tuned, prompt) for prompt in as_list(cfg.probes)]
    print()
    display.show_results(content)
    print()
    (run_dir / "comparison.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if task.labels:
        display.plot_answers(run_dir / "answers.png", content, title=str(run_dir))
        print(f"confusion matrix and reliability diagram: {run_dir / 'answers.png'}")


def how_to_use(run_dir: Path, task: Task) -> str:
    if task.labels:
        what, how = "classify texts", 'mode=classify text="..."'
    else:
        what, how = ("chat with it", "mode=chat") if task.chat else ("sample from it", 'prompt="..."')
    return f"{what}:  python sample.py checkpoint={shlex.quote(str(best(run_dir)))} {how}"


def best(run_dir: Path) -> Path:
    """The best checkpoint of a run; its newest one if none was evaluated."""
    return run_dir / "best" if (run_dir / "best").exists() else run_dir


def open_model(path: Path, cfg: FinetuneConfig, tokenizer: Tokenizer) -> LanguageModel:
    """Opens a checkpoint in float32."""
    found = reader.find(path)
    compute = Compute.resolve(cfg.device, dtype="float32", compile=False)
    return LanguageModel(found.model(compute.device), tokenizer, compute, found.directory)


def forgetting(
    base: LanguageModel, tuned: LanguageModel, cfg: FinetuneConfig, tokenizer: Tokenizer
) -> dict[str, float] | None:
    """The bits/byte of both models on held-out documents of the corpus that the base was trained on, if it is there."""
    manifest = json.loads((base.directory / "manifest.json").read_text(encoding="utf-8"))
    prepared = find_prepared(cfg.datasets, str(manifest.get("data_fingerprint")))
    try:
        if prepared is None:
            raise DataError(f"the corpus of {cfg.checkpoint} is not prepared in datasets={cfg.datasets}")
        documents = open_split(prepared, "val").beginnings(DOCUMENTS, base.model.config.context)
    except DataError as error:
        print(f"note: forgetting is not measured: {error}")
        return None
    end_id = tokenizer.end_id
    n_bytes = np.array([len(tokenizer.decode_bytes([i for i in ids if i != end_id])) for ids in documents])
    before, after = (np.array(lm.losses(documents)) for lm in (base, tuned))
    return bits_difference(before, after, n_bytes, seed=cfg.seed)


def next_words_moved(base: LanguageModel, tuned: LanguageModel, prompt: str) -> dict[str, Any]:
    """The next words whose probability changed most, before and after; 0 for a word outside the 50 most probable."""
    before, after = ({row.word: row.lower for row in lm.next_words(prompt, top=50).words} for lm in (base, tuned))
    rows: list[dict[str, Any]] = [
        {"word": word, "before": before.get(word, 0.0), "after": after.get(word, 0.0)} for word in before | after
    ]
    rows.sort(key=lambda row: -abs(row["after"] - row["before"]))
    return {"prompt": prompt, "words": rows[:10]}


if __name__ == "__main__":
    cli.run(main, FinetuneConfig, name="finetune", after_sweep=show_sweep)
