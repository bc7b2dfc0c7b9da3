"""Training speed of this project and of nanoGPT."""

from .benchmark import Config, main

__all__ = ["Config", "main"]
