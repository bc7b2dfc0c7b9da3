"""The probability of every label after a prompt: all tokens of the label, end token included, scored exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import InputError
from ..device import Compute
from ..gpt import GPT
from .decode import Decoder
from .sampling import NOT_FINITE

TOKENS_PER_BATCH = 8192  # in the cache, padding included
LOGITS_AT_ONCE = 2**24  # elements: 64 MiB in float32, for each token of the longest label


class Labels(Protocol):
    """The label set of a fine-tuned checkpoint and its templates."""

    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def temperature(self) -> float: ...
    def prompt_of(self, text: str) -> str: ...
    def completion_of(self, label: str) -> str: ...


@dataclass(frozen=True)
class LabelProbability:
    label: str
    probability: float  # among the labels, calibrated by the checkpoint's temperature
    log_probability: float  # nats, of the whole label with its end token


@dataclass(frozen=True)
class LabelProbabilities:
    """The labels of a text, the most probable first."""

    text: str
    labels: list[LabelProbability]
    outside: float  # the model's probability of anything that is not a label


def label_probabilities(texts: Sequence[str], ask: Labels, scores: Tensor) -> list[LabelProbabilities]:
    """scores (N, L): the log-probabilities of the labels for each text."""
    shares = (scores.double() / ask.temperature).softmax(-1)
    found = []
    for text, row, share in zip(texts, scores.double(), shares, strict=True):
        rows = map(LabelProbability, ask.labels, share.tolist(), row.tolist())
        ranked = sorted(rows, key=lambda one: -one.probability)
        found.append(LabelProbabilities(text, ranked, max(0.0, 1 - float(row.exp().sum()))))
    return found


Tree = dict[int, Any]  # token -> the Tree of the labels that continue with it, or the label that ends with it


def label_tree(labels: Sequence[Sequence[int]]) -> Tree:
    """Returns the prefix tree of the labels. Each ends with the end token, so none is a prefix of another."""
    tree: Tree = {}
    for number, ids in enumerate(labels):
        node = tree
        for token in ids[:-1]:
            node = node.setdefault(token, {})
        node[ids[-1]] = number
    return tree


@torch.no_grad()
def label_log_probabilities(
    model: GPT, prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], *, compute: Compute
) -> Tensor:
    """prompts (N lists of ids), labels (L lists of ids, with the end token last) -> log p (N, L), float32 on the CPU.

    Reads each prompt once, and then each node of the labels' prefix tree, which is removed from the cache again before
    the next one. A prompt is truncated on the left to leave room for the longest label.
    """
    if len(set(map(tuple, labels))) < len(labels):
        raise InputError("two labels have the same tokens; make them different in characters that the tokenizer knows")
    tree, longest_label = label_tree(labels), max(map(len, labels))
    room = model.config.context - (longest_label - 1)  # the end token is never read
    if room < 1:
        raise InputError(
            f"a label has {longest_label - 1} tokens, but the context is {model.config.context}; shorten it"
        )
    prompts = [tuple(prompt[-room:]) for prompt in prompts]
    found = torch.empty(len(prompts), len(labels))
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    while order:
        capacity = len(prompts[order[-1]]) + longest_label - 1
        size = max(1, min(TOKENS_PER_BATCH // capacity, LOGITS_AT_ONCE // model.config.vocab_size))
        rows, order = order[-size:], order[:-size]
        decoder = Decoder(model, rows=len(rows), capacity=capacity, compute=replace(compute, compile=False))
        logits = decoder.prefill([prompts[index] for index in rows])
        if not logits.isfinite().all():
            raise InputError(NOT_FINITE)
        found[rows] = walk(decoder, tree, logits, torch.empty(len(rows), len(labels)))
    return found


def walk(decoder: Decoder, tree: Tree, logits: Tensor, found: Tensor, total: Tensor | float = 0.0) -> Tensor:
    """Fills found (B, L) for all labels below a node. logits (B, V) follow the node; total (B,) is its log p."""
    log_p = logits.log_softmax(-1)  # (B, V)
    for token, child in tree.items():
        along = total + log_p[:, token]
        if isinstance(child, int):
            found[:, child] = along.cpu()
        else:
            walk(decoder, child, decoder.step(torch.full((len(logits),), token, device=logits.device)), found, along)
            decoder.cache.length -= 1
    return found
