"""The figures of several models' answers to the same examples, as comparison.json holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from ..evaluation import calibration
from ..evaluation.accuracy import accuracy_interval
from ..evaluation.bag_of_words import BagOfWords
from ..evaluation.comparison import confusion, macro_f1_interval
from .answers import Answers, groups_of, label_numbers
from .rows import Rows
from .templates import Task


def baselines(rows: Rows, val_rows: Rows, task: Task, *, seed: int) -> dict[str, Answers]:
    """Returns the answers of a bag of words and of the most common label, both learned from the training examples."""
    known = [(e.prompt, number) for e, number in zip(rows.examples, label_numbers(rows.examples, task), strict=True)]
    texts, numbers = [text for text, n in known if n >= 0], np.array([n for _, n in known if n >= 0])
    counts = np.bincount(numbers, minlength=len(task.labels)) + 1
    prompts = [example.prompt for example in val_rows.examples]
    probs = {
        "bag of words": BagOfWords.train(texts, numbers, len(task.labels), seed=seed).probabilities(prompts),
        "most common label": np.tile(counts / counts.sum(), (len(prompts), 1)),
    }
    truth, groups = label_numbers(val_rows.examples, task), groups_of(val_rows.examples)
    return {
        name: Answers(p.argmax(1) == truth, groups, task.labels, np.log(np.maximum(p, 1e-30)), truth)
        for name, p in probs.items()
    }


def compare(answers: Mapping[str, Answers], *, seed: int) -> dict[str, Any]:
    """Returns the figures of each model, and the paired difference of the first one to each other one.

    The first model's confusion matrix and calibration follow if the examples have a label set.
    """
    (subject, first), *others = answers.items()
    differences = [{"a": name, "b": subject, **asdict(found.versus(first, seed=seed))} for name, found in others]
    rows = [{"name": name, **figures(found, seed=seed)} for name, found in answers.items()]
    content: dict[str, Any] = {"examples": len(first.right), "results": rows, "differences": differences}
    return content | (label_figures(first, seed=seed) if first.labels else {})


def figures(found: Answers, *, seed: int) -> dict[str, Any]:
    """Returns the share of right answers with its 95 % interval, and what else is known of them."""
    low, high = accuracy_interval(found.right, found.groups, seed=seed)
    row: dict[str, Any] = {"accuracy": float(found.right.mean()), "low": low, "high": high, **found.metrics}
    if found.scores is not None and found.truth is not None:
        interval = macro_f1_interval(found.chosen, found.truth, len(found.labels), groups=found.groups, seed=seed)
        scores, truth = found.known
        error = calibration.calibration_error(calibration.probabilities(scores), truth) if len(truth) else None
        row |= {"macro_f1_low": interval[0], "macro_f1_high": interval[1], "calibration_error": error}
    return row


def label_figures(found: Answers, *, seed: int) -> dict[str, Any]:
    """Returns the confusion matrix, the fitted temperature, and the calibration before and after it (cross-fitted)."""
    scores, truth = found.known
    if not len(truth):
        return {}
    content: dict[str, Any] = {
        "labels": list(found.labels),
        "confusion": confusion(scores.argmax(1), truth, len(found.labels)).tolist(),
        "outside": float(1 - np.exp(scores).sum(1).mean()),
        "temperature": calibration.fit_temperature(scores, truth),
        "calibration": {},
    }
    probabilities = {"as trained": calibration.probabilities(scores)}
    if len(truth) >= 2 * calibration.FEWEST:  # each half fits a temperature
        probabilities["with temperature"] = calibration.cross_fitted(scores, truth, seed=seed)
    for name, probs in probabilities.items():
        low, high = calibration.calibration_error_interval(probs, truth, seed=seed)
        content["calibration"][name] = {
            "error": calibration.calibration_error(probs, truth), "low": low, "high": high,
            "bins": [asdict(part) for part in calibration.reliability(probs, truth)],
        }  # fmt: skip
    return content
