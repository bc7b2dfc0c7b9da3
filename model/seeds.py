"""Seeds: randomness as a function of (seed, step, rank), so that no generator state has to be saved."""

from __future__ import annotations


def hash_seed(*parts: int) -> int:
    """Mixes integers into one 63-bit seed, with one round of splitmix64 each; the same on every machine."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
