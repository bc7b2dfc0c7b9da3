"""Samples a text during training, without affecting it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import torch

from ..device import Compute
from ..distributed import sharded
from ..gpt import GPT
from ..inference.sampling import SamplingConfig
from ..inference.vocabulary import Tokenizer
from ..language_model import LanguageModel


def sample_text(
    model: GPT, tokenizer: Tokenizer, prompt: str, *, compute: Compute, max_new_tokens: int = 64, seed: int = 1
) -> str:
    """Continues `prompt` at temperature 0.8. The seed is fixed, so that the texts of a run can be compared.

    Runs eagerly even if training is compiled: a growing cache would cause recompilation.
    """
    was_training = model.training
    model.eval()
    eager = torch.compiler.set_stance("force_eager") if compute.compile else contextlib.nullcontext()
    try:
        lm = LanguageModel(model, tokenizer, replace(compute, compile=False), Path())
        sampling = SamplingConfig(temperature=0.8)
        with sharded.unsharded(model), eager:
            return lm.generate([prompt], max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)[0].text
    finally:
        model.train(was_training)
