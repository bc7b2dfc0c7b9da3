"""Batching: from a prepared corpus to batches, a pure function of (seed, step)."""
