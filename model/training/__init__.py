"""Training: one update, evaluation, and the state of a run."""
