"""Checkpoints: the run directory, read verified and written atomically."""
