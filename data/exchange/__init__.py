"""Tokenizers, chat templates and texts of other programs: read here, written for them, and proved equal."""
