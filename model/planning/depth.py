"""depth=N: sets the shape, the batch size and the learning rate of the modern preset from one number."""

from __future__ import annotations

import math

from ..optimization.schedule import OptimizerConfig

WIDTH_PER_LAYER, HEAD_WIDTH = 64, 64
# The default model, whose hyperparameters were tuned: its width, tokens per step, and parameters of the blocks.
TUNED_WIDTH, TUNED_TOKENS, TUNED_BLOCKS = 256, 4096, 12 * 6 * 256**2


def settings_for(depth: int, optimizer: OptimizerConfig) -> dict[str, int | float]:
    """Returns dotted settings for a model of `depth` layers, scaled from the tuned default model.

    - Width 64 per layer, heads 64 wide: a constant aspect ratio as in nanochat, within the broad optimum of Kaplan et
      al. 2020 (figure 5).
    - Context 256 up to 8 layers, 512 below 12 layers, then 1,024.
    - Tokens per step grow as (parameters of the blocks)^0.65. This is the batch size of DeepSeek LLM, compute^0.327 (Bi
      et al. 2024, section 3), if tokens grow with parameters. 4,096 at the default size; a power of two sequences.
    - Muon's learning rate stays: its updates have singular values near 1 at any width (Jordan 2024).
    - The learning rate of embeddings and head falls as width^-0.5, as in nanochat.
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
