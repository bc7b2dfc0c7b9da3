"""Scores checkpoints beside each other and beside baselines: on a corpus, labelled examples or questions."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conf import cli
from conf.display import answers as display
from conf.display import scores, tables
from data.batching.batches import WindowEvaluation
from data.curation.curate import CurateConfig
from data.evaluation.comparison import Comparison
from data.evaluation.documents import DocumentLosses, bits_difference, texts_of
from data.labelled import choices as questions
from data.labelled import results
from data.labelled.answers import Answers, answer, with_label_set, with_labels_of
from data.labelled.examples import Example, note_unknown
from data.labelled.formats import read_examples
from data.labelled.rows import Rows
from data.labelled.templates import Task
from data.preparation.config import PrepareConfig
from data.preparation.prepare import prepare
from data.preparation.shards import Split, find_prepared, open_split
from data.reporting.advice import VERBATIM, plural
from data.reporting.baselines import MAX_TOKENS, VERBATIM_BYTES, ngram_losses, sample, text_baselines, verbatim
from data.tokenizers.build import TokenizerConfig
from data.tokenizers.unknown import unknown_in, unknown_note
from model import InputError
from model.inference.sampling import NOT_FINITE
from model.inference.score import target_losses
from model.sample_settings import as_list
from sample import LanguageModel, load

PATH = {"kind": "path"}
PATTERNS = {"kind": "pattern", "list": True}
TEXT = {"kind": "text"}
READS = {"needs": ("corpus",)}
LABELLED = {"needs": ("examples",)}
ASKS = {"needs": ("questions",)}
ORDER = 5  # of the n-gram baseline

Models = dict[str, LanguageModel]  # by path; the first one is the subject of comparisons
Row = dict[str, Any]


@dataclass
class EvaluateConfig:
    """The keys of `python -m scripts.evaluate`."""

    checkpoint: Any = field(default=None, metadata={"kind": "path", "list": True})  # a run directory, or [several]
    versus: str | None = field(default=None, metadata=PATH)  # another one to compare with
    # a corpus: reports bits/byte and perplexity
    corpus: Any = field(default=None, metadata={"kind": "path", "list": True})
    context: int | None = field(default=None, metadata=READS)  # tokens that are read at once; null: the model's
    # tokens between the starts of windows; each scored token has context - stride before it. null: disjoint windows
    stride: int | None = field(default=None, metadata=READS)
    include: Any = field(default=None, metadata=PATTERNS | READS)
    exclude: Any = field(default=None, metadata=PATTERNS | READS)
    # these three: as in scripts.prepare
    document_separator: str | None = field(default=None, metadata=TEXT | READS)
    invalid_utf8: str = field(default="auto", metadata=READS)
    max_bad_lines: int = field(default=0, metadata=READS)
    datasets: str = field(default="datasets", metadata=PATH | READS)
    batch_size: int = field(default=32, metadata=READS)
    examples: str | None = field(default=None, metadata=PATH)  # labelled examples: reports accuracy
    train: str | None = field(default=None, metadata=PATH | LABELLED)  # examples for a bag of words to learn from
    label_field: str = field(default="label", metadata=TEXT | LABELLED)
    text_field: str = field(default="text", metadata=TEXT | {"needs": ("corpus|examples",)})
    # multiple choice, {"prompt", "options", "completion"}: reports accuracy by three measures
    questions: str | None = field(default=None, metadata=PATH)
    shots: int = field(default=0, metadata=ASKS)  # answered questions to put before each one
    shots_from: str | None = field(default=None, metadata=PATH | ASKS)  # the file they are drawn from
    neutral: str = field(default="", metadata=TEXT | ASKS)  # the prompt that PMI compares with
    device: str = "auto"
    dtype: str = "float32"
    seed: int = 1  # of the confidence intervals and of the choice of shots
    json: str | None = field(default=None, metadata={"kind": "output"})
    plot: str | None = field(default=None, metadata={"kind": "output"})
    debug: bool = False

    @property
    def paths(self) -> list[str]:
        return [*as_list(self.checkpoint), *as_list(self.versus)]

    def validate(self) -> list[str]:
        found = []
        if not as_list(self.checkpoint):
            found.append("checkpoint is required: a run directory such as checkpoint=out/first")
        if len(set(self.paths)) < len(self.paths):
            found.append(f"checkpoint={self.checkpoint} versus={self.versus}: the same one twice")
        if (self.corpus, self.examples, self.questions).count(None) != 2:
            found.append("give one of corpus= (bits/byte), examples= (accuracy) or questions= (multiple choice)")
        if not 1 <= self.batch_size <= 10**6:
            found.append(f"batch_size={self.batch_size} must be between 1 and 1,000,000")
        for name in ("context", "stride"):
            if (value := getattr(self, name)) is not None and value < 1:
                found.append(f"{name}={value} must be at least 1")
        if self.shots < 0 or (self.shots > 0) != (self.shots_from is not None):
            found.append(f"shots={self.shots} needs a number above 0 and a file: shots=3 shots_from=FILE")
        return found


def read_corpus(cfg: EvaluateConfig, lm: LanguageModel) -> Split:
    """Prepares every document of the corpus with the model's tokenizer."""
    corpus = PrepareConfig(
        corpus=cfg.corpus,
        include=cfg.include,
        exclude=cfg.exclude,
        text_field=cfg.text_field,
        document_separator=cfg.document_separator,
        invalid_utf8=cfg.invalid_utf8,
        max_bad_lines=cfg.max_bad_lines,
        val_fraction=0.0,
        datasets=cfg.datasets,
        tokenizer=TokenizerConfig(path=str(lm.directory / "tokenizer")),
        curate=CurateConfig(exact_duplicates=False, overlap=False),  # score every document
    )
    return open_split(prepare(corpus), "train")


def losses_of(cfg: EvaluateConfig, lm: LanguageModel, split: Split) -> tuple[np.ndarray, int, int]:
    """Returns nats (n_tokens - 1,) of every token but the first, the context and the stride."""
    most = lm.model.config.context
    context = cfg.context or most
    if context > most or (cfg.stride or 1) > context:
        raise InputError(
            f"context={context} stride={cfg.stride}: the context is at most {most} for {lm.directory}, and the stride "
            "at most the context"
        )
    # No window is wider than the text: with rotary positions, no tensor bounds the context in model.json.
    width = min(context, max(1, split.n_tokens - 1))
    data = WindowEvaluation(split, context=width, stride=min(cfg.stride or width, width))
    nats = []
    for start in range(0, len(data), cfg.batch_size):
        batch = data.batch(start, min(len(data), start + cfg.batch_size))
        inputs, targets = (torch.from_numpy(array) for array in (batch.inputs, batch.targets))
        nats.append(target_losses(lm.model, inputs, targets, compute=lm.compute).numpy())
    found = np.concatenate(nats)
    if not np.isfinite(found).all():
        raise InputError(NOT_FINITE)
    return found, context, cfg.stride or context


def corpus_baselines(cfg: EvaluateConfig, lm: LanguageModel, split: Split, text: bytes) -> tuple[dict[str, float], str]:
    """Returns bits/byte of baselines on the same text, and a sentence that says what they know."""
    per_byte = (split.n_tokens - 1) / max(1, len(text)) / math.log(2)
    vocab_size = lm.tokenizer.vocab_size
    found = {"uniform": math.log(vocab_size) * per_byte}
    manifest = json.loads((lm.directory / "manifest.json").read_text(encoding="utf-8"))
    prepared = find_prepared(cfg.datasets, str(manifest.get("data_fingerprint")))
    about = f"no unigram and {ORDER}-gram: the corpus that {lm.directory.parent} was trained on is not in datasets="
    if prepared is not None:
        train = sample(open_split(prepared, "train"), max_tokens=MAX_TOKENS)
        losses = ngram_losses(train, [split.tokens[:].astype(np.int64)], vocab_size=vocab_size, order=ORDER)
        found |= {"unigram": losses[0] * per_byte, f"{ORDER}-gram": losses[-1] * per_byte}
        count = sum(map(len, train))
        about = f"unigram and {ORDER}-gram (Witten-Bell) counted on {count:,} tokens of the training split"
        tokenizer: Any = lm.tokenizer
        seen = b"".join(tokenizer.decode_bytes(ids[ids != tokenizer.end_id]) for ids in train)
        if len(text) >= VERBATIM_BYTES and (share := verbatim(text, seen)) > VERBATIM:
            print(f"note: {lm.directory.parent} was trained on {share:.0%} of this text; it knows other text less well")
    return found | text_baselines(text), f"{about}; gzip and xz: this text alone"


def evaluate_corpus(cfg: EvaluateConfig, models: Models) -> list[Row]:
    """Loss, bits/byte and perplexity of each checkpoint on a corpus, beside baselines."""
    rows: list[Row] = []
    documents: list[DocumentLosses] = []
    baselines: dict[str, float] = {}
    about = ""
    for path, lm in models.items():
        split = read_corpus(cfg, lm)
        text = texts_of(split, lm.tokenizer)
        nats, context, stride = losses_of(cfg, lm, split)
        losses = DocumentLosses.of(nats, split, text)
        if not rows and not split.unknown:
            baselines, about = corpus_baselines(cfg, lm, split, b"".join(text))
        documents.append(losses)
        row = losses.figures(seed=cfg.seed, known=not split.unknown)
        how = {"context": context, "stride": stride, "unknown_characters": sum(split.unknown.values())}
        rows.append({"checkpoint": path, **row, **how})
    for row, other in zip(rows[1:], documents[1:], strict=True):
        if row["bits_per_byte"] is not None and np.array_equal(other.n_bytes, documents[0].n_bytes):
            found = bits_difference(other.nats, documents[0].nats, other.n_bytes, seed=cfg.seed)
            interval = {key: found[key] if len(other.nats) > 1 else None for key in ("low", "high")}
            row["difference"] = {"difference": found["difference"], **interval}
    rows[0] |= {"baselines": baselines, "baselines_about": about}
    scores.corpus_table(rows)
    if cfg.plot is not None:
        scores.plot_corpus(cfg.plot, rows, title=str(cfg.corpus))
    return rows


def read_labelled(cfg: EvaluateConfig, models: Models) -> tuple[list[Example], list[Example], Task]:
    """Returns the examples, those for the bag of words, and the task of the first checkpoint that has one.

    Without one, the labels are those of the two files.
    """
    task = next(filter(None, (Task.load(lm.directory) for lm in models.values())), Task())
    read = partial(read_examples, task=task, text_field=cfg.text_field, label_field=cfg.label_field)
    examples = read(cfg.examples or "")
    train = read(cfg.train) if cfg.train is not None else []
    if not task.labels:
        both, task = with_label_set([*examples, *train], task)
        return both[: len(examples)], both[len(examples) :], task
    if examples[0].chat:
        return examples, train, replace(task, labels=())
    examples = with_labels_of(task, examples)
    if unknown := sum(example.label not in task.labels for example in examples):
        print(f"note: labels that were not trained count as wrong: {unknown:,} of {plural(len(examples), 'example')}")
    return examples, with_labels_of(task, train) if train else [], task


def evaluate_examples(cfg: EvaluateConfig, models: Models) -> list[Row]:
    """What each checkpoint answers to labelled examples, beside baselines; the first one's answers in detail."""
    examples, train, task = read_labelled(cfg, models)
    tokenizers: dict[str, Any] = {path: lm.tokenizer for path, lm in models.items()}
    rows_of = {path: Rows(examples, tokenizers[path], context=lm.model.config.context) for path, lm in models.items()}
    if dropped := {place for rows in rows_of.values() for place in rows.dropped}:
        print(f"note: left out: {plural(len(dropped), 'example')} whose completion does not fit the context")
        kept = [example for example in examples if example.place not in dropped]
        rows_of = {path: Rows(kept, rows.tokenizer, context=rows.context) for path, rows in rows_of.items()}
    answers: dict[str, Answers] = {}
    texts: dict[str, dict[str, float]] = {}  # figures of greedy text
    for path, lm in models.items():
        answers[path] = answer(lm, rows_of[path], task)
        written = answer(lm, rows_of[path], replace(task, labels=())) if task.labels else answers[path]
        texts[path] = written.metrics
    rows = rows_of[cfg.paths[0]]
    for line in note_unknown(examples, rows.tokenizer, str(cfg.examples)):
        print(f"note: {line}")
    if task.labels and train:
        if not any(example.label in task.labels for example in train):
            raise InputError(f"train={cfg.train}: no example has one of the labels {', '.join(task.labels[:9])}")
        learned = {(example.prompt, example.completion) for example in train}
        if copied := sum((example.prompt, example.completion) in learned for example in examples):
            print(f"note: train= has {copied:,} of the examples too, so the score of the bag of words is too high")
        train_rows = Rows(train, rows.tokenizer, context=rows.context)
        answers |= results.baselines(train_rows, rows, task, seed=cfg.seed)
    content = results.compare(answers, seed=cfg.seed)
    for row in content["results"]:
        row |= {key: value for key, value in texts.get(row["name"], {}).items() if key == "stopped"}
    display.show_results(content)
    if cfg.plot is not None and "confusion" in content:
        display.plot_answers(cfg.plot, content, title=cfg.paths[0])
    elif cfg.plot is not None:
        scores.plot_accuracies(cfg.plot, content["results"], title=str(cfg.examples))
    found = []
    for path, lm, row in zip(models, models.values(), content["results"], strict=False):
        known = {key: value for key, value in row.items() if key not in ("name", "low", "high")} | texts[path]
        names = {"accuracy_low": row["low"], "accuracy_high": row["high"], "examples": content["examples"]}
        unknown = unknown_in((text for e in examples for text in (e.prompt, e.completion)), lm.tokenizer).total()
        found.append({"checkpoint": path, **known, **names, "unknown_characters": unknown})
    found[0]["comparison"] = content
    return found


def evaluate_questions(cfg: EvaluateConfig, models: Models) -> list[Row]:
    """How often each checkpoint chooses the right option, by each measure, and the paired differences."""
    plain = questions.read_choices(cfg.questions or "")
    shots = questions.read_choices(cfg.shots_from) if cfg.shots_from is not None else []
    asked = questions.with_shots(plain, shots, shots=cfg.shots, seed=cfg.seed)
    found: list[Row] = []
    table: list[Row] = []
    right: dict[str, dict[str, np.ndarray]] = {}  # by checkpoint and measure
    for path, lm in models.items():
        text = (text for choice in asked for text in (choice.prompt, *choice.options))
        if unknown := unknown_in(text, lm.tokenizer):
            print(f"note: {unknown_note(unknown, str(cfg.questions))}")
        longest = max(len(lm.tokenizer.encode(choice.prompt)) for choice in asked)
        if longest > lm.model.config.context:
            print(f"note: {path} reads only the end of the longest prompts, which have up to {longest:,} tokens")
        measures = questions.score_choices(lm, asked, neutral=cfg.neutral)
        right[path] = {name: questions.right_answers(asked, values) for name, values in measures.items()}
        rows = questions.accuracies(asked, measures, seed=cfg.seed)
        table += [row | {"method": f"{path}: {row['method']}" if len(models) > 1 else row["method"]} for row in rows]
        chosen = {name: [int(np.argmax(row)) for row in values] for name, values in measures.items()}
        found.append({"checkpoint": path, "questions": len(asked), "shots": cfg.shots, "accuracies": rows,
                      "answers": chosen})  # fmt: skip
    method, accuracy = questions.baseline(asked)
    shown_shots = plural(cfg.shots, "shot") if cfg.shots else "no shots"
    tables.accuracy_table(
        [*table, {"method": method, "accuracy": accuracy}],
        title=f"{plural(len(asked), 'question')} of {cfg.questions}, {shown_shots}: share answered correctly",
    )
    groups = questions.groups_of(asked)
    subject = cfg.paths[0]
    for row in found[1:]:
        path = row["checkpoint"]
        row["differences"] = [
            {"a": f"{path} ({name})", "b": f"{subject} ({name})"}
            | vars(Comparison.of(right[path][name], right[subject][name], groups=groups, seed=cfg.seed))
            for name in right[path]
        ]
        print(*display.difference_lines(row["differences"]), sep="\n")
    found[0]["baseline"] = {"method": method, "accuracy": accuracy}
    if cfg.plot is not None:
        bars = [row | {"name": row["method"]} for row in table]
        bars.append({"name": method, "accuracy": accuracy, "baseline": True})
        scores.plot_accuracies(cfg.plot, bars, title=str(cfg.questions))
    return found


def main(cfg: EvaluateConfig, overrides: cli.Overrides) -> None:
    models = {path: load(path, device=cfg.device, dtype=cfg.dtype) for path in cfg.paths}
    if cfg.corpus is not None:
        rows = evaluate_corpus(cfg, models)
    elif cfg.examples is not None:
        rows = evaluate_examples(cfg, models)
    else:
        rows = evaluate_questions(cfg, models)
    if cfg.json is not None:
        content = rows if len(rows) > 1 else rows[0]
        Path(cfg.json).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main, EvaluateConfig, name="evaluate")
