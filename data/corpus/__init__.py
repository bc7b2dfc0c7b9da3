"""Corpora: from a name or a path to documents."""
