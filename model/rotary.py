"""Rotary position embedding (Su et al. 2021): queries and keys are rotated by angles that grow with the position.

The product of a rotated query and a rotated key depends on the distance between their tokens, not on their positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import ModelConfig

Rotary = tuple[Tensor, Tensor]  # cosines and sines, each (T, 1, E/2), or (B, T, 1, E/2) where positions differ by row


def rotary_frequencies(config: ModelConfig, *, device: torch.device | None = None) -> Tensor:
    """Returns the radians per position of each pair of dimensions, (E/2,): from 1 down to almost 1 / rotary_base.

    rotary_scaling lowers them for contexts beyond that of pretraining. [factor] divides all of them (position
    interpolation, Chen et al. 2023). [factor, low, high, original context] is Llama 3.1's rule (Grattafiori et al.
    2024): frequencies with fewer than `low` turns in the original context are divided by factor, those with more than
    `high` turns are kept, and those between are interpolated.
    """
    E = config.head_dim
    frequencies = config.rotary_base ** -(torch.arange(0, E, 2, device=device).float() / E)
    if config.rotary_scaling is None:
        return frequencies
    factor, *bounds = config.rotary_scaling
    if not bounds:
        return frequencies / factor
    low, high, original_context = bounds
    turns = original_context * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # 1: as it is, 0: divided by factor
    return frequencies * (kept + (1 - kept) / factor)


def rotary_tables(config: ModelConfig, device: torch.device) -> Rotary:
    """Returns the cosines and sines of the angles of every position, each (context, E/2)."""
    positions = torch.arange(config.context, device=device).float()
    angles = torch.outer(positions, rotary_frequencies(config, device=device))
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotates each pair (x[i], x[i + E/2]) by its angle; x: (B, T, heads, E)."""
    cos, sin = rotary
    a, b = x.chunk(2, dim=-1)  # (B, T, heads, E/2) each
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
