"""Labelled data: examples, choices, prompts and their results."""
