"""The models that are trained, the variants of this project's runs, and the FLOPs of a token."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.config import ModelConfig
from model.gpt import GPT
from model.planning.plan import flops_per_token

# GPT-2 without biases, as nanoGPT trains it, with AdamW; and what a variant sets besides.
GPT2 = ("model=gpt2_124m", "model.bias=false", "model.activation=gelu_exact", "optimizer=adamw")
VARIANTS: dict[str, tuple[str, ...]] = {
    "default": GPT2,
    "deterministic": (*GPT2, "deterministic=true"),
    "document_mask": (*GPT2, "packing=stream", "document_mask=true"),
    "modern": ("model=tiny", "optimizer=muon"),  # the default preset, with half as many heads
}


@dataclass(frozen=True)
class Shape:
    """The size of a model, and the data that one run reads."""

    n_layer: int
    n_head: int
    d_model: int
    context: int
    batch_sizes: tuple[int, ...]  # sequences per step of this project's runs, in ascending order
    nanogpt_batch_sizes: tuple[int, ...]  # the same of nanoGPT's
    steps: int  # timed steps of the last of batch_sizes; other batches train on as many tokens
    data: tuple[str, str]  # the corpus, and a setting of the tokenizer
    variants: tuple[str, ...] = ("default",)

    def steps_at(self, batch_size: int) -> int:
        return max(1, round(self.steps * self.batch_sizes[-1] / batch_size))

    def heads(self, variant: str) -> int:
        return max(1, self.n_head // 2) if variant == "modern" else self.n_head

    def settings(self, variant: str) -> list[str]:
        """The settings of train.py for the model and its optimizer."""
        size = {"n_layer": self.n_layer, "n_head": self.heads(variant), "d_model": self.d_model}
        size["context"] = self.context
        return [*VARIANTS[variant], *(f"model.{name}={value}" for name, value in size.items())]

    def flops_per_token(self, vocab_size: int, variant: str) -> tuple[int, int]:
        """FLOPs of training on one token: with all T x T products of attention, and with the half that is causal."""
        config = ModelConfig(
            vocab_size, self.n_layer, self.heads(variant), d_model=self.d_model, context=self.context,
            activation="relu2" if variant == "modern" else "gelu",
        )  # fmt: skip
        with torch.device("meta"):
            model = GPT(config)
        return flops_per_token(model), flops_per_token(model, context=self.context // 2)


# The standard library is large enough to train a vocabulary of GPT-2's size.
GPT2_DATA = ("pystdlib", "tokenizer.vocab_size=50257")
CHARACTERS = ("shakespeare", "tokenizer=char")
SHAPES = {
    "1m": Shape(4, 4, 128, 64, (12,), (12,), steps=200, data=CHARACTERS),  # nanoGPT's CPU recipe
    "10m": Shape(6, 6, 384, 256, (16,), (16,), steps=8, data=CHARACTERS),  # the model of its recipe for a GPU
    "68m": Shape(4, 12, 768, 1024, (64,), (64,), steps=40, data=GPT2_DATA),  # a third of the layers compiles sooner
    "124m": Shape(12, 12, 768, 1024, (12, 64), (12, 64), steps=100, variants=tuple(VARIANTS), data=GPT2_DATA),
    "1b": Shape(18, 16, 2048, 1024, (16,), (8, 16), steps=40, data=GPT2_DATA),
    "toy": Shape(1, 2, 32, 32, (2, 4), (2, 4), steps=10, variants=tuple(VARIANTS), data=CHARACTERS),  # for tests
}
USUAL = {"cpu": ["1m", "10m"], "gpu": ["124m", "1b"]}
