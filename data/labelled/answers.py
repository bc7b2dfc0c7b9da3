"""What a model answers to labelled examples: the most probable label of a label set, or greedy text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ..evaluation.comparison import Comparison, macro_f1
from .examples import Example
from .rows import Rows, chat_end
from .templates import Task

MOST_COMPLETIONS = 100  # more different completions are free text, not a label set
PER_COMPLETION = 10  # and so are completions that occur less often on average
EXTRA_TOKENS = 4  # that an answer may have beyond the longest completion


class Model(Protocol):
    """A language model, as far as it is needed here."""

    def label_scores(self, prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> Any:
        """Returns log p (N, L) of whole labels, whose ids end with the end token, after each prompt."""

    def greedy(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, ends: tuple[int, ...] = ()
    ) -> list[tuple[str, bool]]:
        """Returns the most probable text after each prompt, and whether it ended by itself: at the end token, or one of
        `ends`.
        """


def with_label_set(examples: Sequence[Example], task: Task) -> tuple[list[Example], Task]:
    """Returns the examples and the task with its label set: of labels, or of completions that repeat often.

    Free text has no label set, and only chats have a chat template.
    """
    if any(example.chat for example in examples):
        return list(examples), task
    task = replace(task, chat=None)
    if examples[0].label is None:
        completions = {example.completion for example in examples}
        if len(completions) > min(MOST_COMPLETIONS, len(examples) / PER_COMPLETION):
            return list(examples), task
        task = replace(task, prompt="{text}", completion="{label}")
        examples = [replace(example, label=example.completion) for example in examples]
    return list(examples), replace(task, labels=tuple(sorted({e.label for e in examples if e.label is not None})))


def with_labels_of(task: Task, examples: Sequence[Example]) -> list[Example]:
    """Returns held-out examples for a task: if it has a label set, completions are labels."""
    if not task.labels or examples[0].label is not None or examples[0].chat:
        return list(examples)
    names = {task.completion_of(label): label for label in task.labels}
    return [replace(example, label=names.get(example.completion, example.completion)) for example in examples]


@dataclass(frozen=True)
class Answers:
    """A model's answers to n examples. With a label set: scores (n, L), truth (n,) and chosen (n,) label numbers.

    `truth` is -1 for a label that is not in the set. Without one: `stopped` (n,), whether the text ended by itself.
    """

    right: np.ndarray  # (n,) bool
    groups: list[str]
    labels: tuple[str, ...] = ()
    scores: np.ndarray | None = None
    truth: np.ndarray | None = None
    stopped: np.ndarray | None = None

    @property
    def chosen(self) -> np.ndarray:
        assert self.scores is not None
        return self.scores.argmax(1)

    @property
    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """The scores and the truth of the examples whose label is in the set."""
        assert self.scores is not None and self.truth is not None
        inside = self.truth >= 0
        return self.scores[inside], self.truth[inside]

    @property
    def metrics(self) -> dict[str, float]:
        """The figures that a run logs; each is better the higher it is."""
        if self.scores is None or self.truth is None:
            found = {"exact_match": float(self.right.mean())}
            return found if self.stopped is None else found | {"stopped": float(self.stopped.mean())}
        return {"accuracy": float(self.right.mean()), "macro_f1": macro_f1(self.chosen, self.truth, len(self.labels))}

    def versus(self, other: Answers, *, seed: int = 1) -> Comparison:
        """Compares `other` (b) with these answers (a), to the same examples."""
        return Comparison.of(self.right, other.right, groups=self.groups, seed=seed)


def groups_of(examples: Sequence[Example]) -> list[str]:
    return [f"group {e.group}" if e.group is not None else f"example {i}" for i, e in enumerate(examples)]


def label_numbers(examples: Sequence[Example], task: Task) -> np.ndarray:
    """Returns the number of each example's label, or -1 if it is not in the label set."""
    number = {label: index for index, label in enumerate(task.labels)}
    return np.array([number.get(example.label or "", -1) for example in examples])


def label_ids(rows: Rows, task: Task) -> list[list[int]]:
    """Returns the ids of each label as a completion, with the end token."""
    encoded = rows.tokenizer.encode_batch([task.completion_of(label) for label in task.labels], continued=True)
    return [[*ids.tolist(), rows.tokenizer.end_id] for ids in encoded]


def answer(model: Model, rows: Rows, task: Task, *, limit: int | None = None) -> Answers:
    """Returns the model's answers to `limit` examples, always the same random ones, or to all."""
    # Files are often sorted by label, so the first examples would not do.
    indices = sorted(np.random.default_rng(0).permutation(len(rows))[:limit].tolist())
    examples = [rows.examples[index] for index in indices]
    prompts = [rows.prompt_ids(index).tolist() for index in indices]
    groups = groups_of(examples)
    if task.labels:
        scores = np.asarray(model.label_scores(prompts, label_ids(rows, task)), dtype=np.float64)
        truth = label_numbers(examples, task)
        return Answers(scores.argmax(1) == truth, groups, task.labels, scores, truth)
    lengths = [len(rows.ids[index]) - len(prompt) for index, prompt in zip(indices, prompts, strict=True)]
    suffix, ends = chat_end(task.chat, rows.tokenizer) if task.chat else ("", ())
    texts = model.greedy(prompts, max_new_tokens=max(lengths) + EXTRA_TOKENS, ends=ends)
    stopped = np.array([ended for _, ended in texts])
    right = np.array([text == e.completion + suffix for (text, _), e in zip(texts, examples, strict=True)]) & stopped
    return Answers(right, groups, stopped=stopped)
