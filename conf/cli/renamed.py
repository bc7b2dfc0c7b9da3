"""Old names of settings. They work for one version: on the command line with a note, and in saved configs."""

from __future__ import annotations

from typing import Any

RENAMED = {
    "model.tied": "model.tie_embeddings",
    "model.norm_weight": "model.norm_affine",
    "model.norm_epsilon": "model.norm_eps",
    "model.softcap": "model.logit_softcap",
    "optimizer.kind": "optimizer.name",
    "optimizer.clip": "optimizer.grad_clip",
    "optimizer.epsilon": "optimizer.eps",
    "optimizer.newton_schulz": "optimizer.newton_schulz_dtype",
    "optimizer.decay_fraction": "optimizer.decay_ratio",
    "optimizer.final_fraction": "optimizer.min_lr_ratio",
    "budget": "time_budget",
    "average": "weight_average",
    "average_decay": "ema_decay",
    "average_fraction": "tail_fraction",
    "checkpoint_activations": "activation_checkpointing",
    "batches": "packing",
    "confined": "document_mask",
    "weights": "mixture_weights",
    "broken_lines": "max_bad_lines",
    "beside": "compare_prompts",
    "beyond": "on_overflow",
    "border": "ignore_trailing_spaces",
    "max_tokens": "max_expansions",
    "banned": "bad_words",
    "forced": "force_words",
    "alternatives": "top_logprobs",
}
RENAMED_VALUES = {("border", "words"): "true", ("border", "bytes"): "false", ("beyond", "refuse"): "error"}
# Settings that no longer exist, with the value at which they did nothing (None: any value).
REMOVED: dict[str, Any] = {
    "model.zero_init": None,
    "model.ngram": 0,
    "model.ngram_contexts": 0,
    "optimizer.cautious": False,
}
# Settings that are newer than some saved configs, with the value that does what the program did without them.
ADDED: dict[str, Any] = {"tokenizer.allow_special": False}


def current(key: str, value: str) -> tuple[str, str]:
    """The present name and value of a setting."""
    return RENAMED.get(key, key), RENAMED_VALUES.get((key, value), value)
