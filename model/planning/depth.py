"""depth=N: one dial that sets the shape, the batch and the learning rates of the modern preset."""

from __future__ import annotations

import math

from ..optimization.schedule import OptimizerConfig

WIDTH_PER_LAYER, HEAD_WIDTH = 64, 64
TUNED_WIDTH = 256  # of the default model, whose learning rates were tuned
TUNED_TOKENS = 4096  # a step, for the default model
TUNED_BLOCKS = 12 * 6 * 256**2  # its parameters without the embeddings


def settings_for(depth: int, optimizer: OptimizerConfig) -> dict[str, int | float]:
    """Dotted settings for a model of `depth` layers, from what a small model was tuned to.

    - width 64 a layer, heads 64 wide: a constant aspect, as in nanochat, within the broad optimum of Kaplan et al.
      2020 (figure 5);
    - context 256 up to 8 layers, 512 below 12, then 1,024;
    - tokens a step grow as (parameters of the blocks)^0.65: the batch of DeepSeek LLM (Bi et al. 2024, section 3),
      compute^0.327, where tokens grow with parameters; from 4,096 at the default size, to a power of two;
    - Muon's rate stays: its updates have singular values near 1 whatever the width (Jordan 2024);
    - the rate of embeddings and head falls as width^-0.5, as in nanochat.
    """
    width = WIDTH_PER_LAYER * depth
    context = 256 if depth <= 8 else 512 if depth < 12 else 1024
    tokens = TUNED_TOKENS * max(1.0, 12 * depth * width**2 / TUNED_BLOCKS) ** 0.65
    rows = max(4, 2 ** round(math.log2(tokens / context)))
    return {
        "model.n_layer": depth,
        "model.d_model": width,
        "model.n_head": width // HEAD_WIDTH,
        "model.context": context,
        "batch_size": rows,
        "optimizer.adamw_learning_rate": optimizer.adamw_learning_rate * (TUNED_WIDTH / width) ** 0.5,
    }
