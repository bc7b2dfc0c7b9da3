"""A pretrained model: decoding and next words, and other programs with the same weights."""

from .benchmark import Config, main

__all__ = ["Config", "main"]
