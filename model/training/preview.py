"""A text from a model in training: shows how far it is, and changes nothing that training reads."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import torch

from ..device import Compute
from ..distributed import sharded
from ..gpt import GPT
from ..inference.sampling import SamplingConfig
from ..language_model import LanguageModel, Tokenizer


def sample_text(
    model: GPT, tokenizer: Tokenizer, prompt: str, *, compute: Compute, max_new_tokens: int = 64, seed: int = 1
) -> str:
    """What the model continues `prompt` with at temperature 0.8; the same seed, so that texts of a run compare.

    Eager, though training is compiled: a cache and lengths that grow would be compiled anew.
    """
    was_training = model.training
    model.eval()
    try:
        lm = LanguageModel(model, tokenizer, replace(compute, compile=False), Path())
        sampling = SamplingConfig(temperature=0.8)
        with sharded.gathered(model), eager(compute.compile):
            return lm.generate([prompt], max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)[0].text
    finally:
        model.train(was_training)


def eager(compiled: bool) -> contextlib.AbstractContextManager:
    """Inside it what is compiled runs as it is written."""
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
