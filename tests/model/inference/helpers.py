"""What the tests of inference share."""

from __future__ import annotations

from pathlib import Path

import torch

from data.tokenizers.build import TokenizerConfig, build
from model.device import Compute
from model.inference.generate import generate
from model.inference.sampling import SamplingConfig
from model.inference.vocabulary import Vocabulary
from model.language_model import LanguageModel
from tests.families import make

CPU = Compute(torch.device("cpu"), torch.float32, compile=False)
GREEDY = SamplingConfig(temperature=0)


def new_ids(model, prompts, **options):
    """The new ids of each row."""
    return [[new.id for new in row] for row in new_tokens(model, prompts, **options)]


def new_tokens(model, prompts, **options):
    """The new tokens of each row."""
    rows = [[] for _ in prompts]
    for step in generate(model, prompts, **options):
        for row, new in zip(rows, step, strict=True):
            if new is not None:
                row.append(new)
    return rows


def ascii_vocabulary(end_id, size=96):
    return Vocabulary(tuple(bytes([i + 32]) for i in range(size)), {end_id: "<|end|>"}, end_id)


def byte_model(family="modern", **changes):
    """A random model with a byte tokenizer."""
    tokenizer = build(TokenizerConfig(kind="byte"), [])
    model = make(family, vocab_size=tokenizer.vocab_size, **changes)
    return LanguageModel(model, tokenizer, CPU, directory=Path())
